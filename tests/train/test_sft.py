"""SFT: one run looked at from all sides, and the same run stopped by the clock and taken up again."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from tiny_gemma import equal, forward
from tiny_run import CONFIG, ROWS, Clock, StopAfter, new_policy, short_tokenizer
from tunix.sft import sharding_utils

from reasonkit.config import SftSettings
from reasonkit.data.rows import sft_batches
from reasonkit.models import checkpoints
from reasonkit.models.checkpoints import restore_lora
from reasonkit.models.mesh import make_mesh
from reasonkit.session.run_log import NullLog, RunLog
from reasonkit.session.time_budget import BudgetError, TimeBudget
from reasonkit.train.sft import sft
from tools.flax import init_random

pytestmark = pytest.mark.usefixtures("compiled")

SETTINGS = SftSettings(steps=6, batch_size=8, max_length=48, learning_rate=2e-2, save_every=4)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(jax.devices()[:4], 4, 1)


@pytest.fixture(scope="module")
def base(mesh):
    return init_random(CONFIG, mesh)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return short_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def policy(base, mesh, tokenizer):
    return new_policy(base, mesh, tokenizer)


@pytest.fixture(scope="module")
def whole(base, mesh, tokenizer, tmp_path_factory):
    """A run without interruption, into a relative folder; `batches` is what the train step was given."""
    folder, batches, steps = tmp_path_factory.mktemp("whole"), [], []
    before = jax.tree.map(np.asarray, nnx.state(base))
    policy, log, shard = new_policy(base, mesh, tokenizer), RunLog(folder / "log.jsonl"), sharding_utils.shard_input

    def spy(*args):
        batches.append(shard(*args))
        return batches[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding_utils, "shard_input", spy)
        patch.chdir(folder)
        result = sft(policy, mesh, ROWS, SETTINGS, TimeBudget(1, 0), log, Path("checkpoints"), seed=3,
                     on_step=lambda: steps.append(1))
    assert equal(before, nnx.state(base)), "the base moved"
    return SimpleNamespace(policy=policy, result=result, log=log, batches=batches, on_steps=len(steps),
                           checkpoints=folder / "checkpoints")


def adapter(policy):
    return nnx.state(policy.model, nnx.LoRAParam)


def steps_in(checkpoints):
    return sorted(int(name) for name in os.listdir(checkpoints / "actor"))


def test_batches_are_split_over_the_chips(whole, mesh):
    assert len(whole.batches) == 6
    for leaf in jax.tree.leaves(whole.batches):
        assert isinstance(leaf.sharding, NamedSharding) and leaf.sharding.mesh == mesh
        assert leaf.sharding.spec == PartitionSpec("fsdp")
        assert [shard.data.shape for shard in leaf.addressable_shards] == [(2, SETTINGS.max_length)] * 4


def test_the_first_loss_is_that_of_the_replies_by_hand(whole, base, tokenizer):
    """By hand: mean negative log-likelihood of the reply's tokens and its stop token, nothing of the prompt."""
    batch = next(sft_batches(ROWS, tokenizer, 8, SETTINGS.max_length, seed=3))
    tokens_BL, mask_BL = batch["tokens_BL"], batch["loss_mask_BL"]
    assert (tokens_BL[mask_BL == 1] == tokenizer.end_of_turn).sum() == 8
    logits_BLV = np.asarray(forward(base, tokens_BL), np.float64)[:, :-1]
    logps_BLV = logits_BLV - np.log(np.exp(logits_BLV).sum(-1, keepdims=True))
    logps_BL = np.take_along_axis(logps_BLV, tokens_BL[:, 1:, None], -1)[..., 0]
    first = whole.log.read("sft_step")[0]
    np.testing.assert_allclose(first["loss"], -logps_BL[mask_BL[:, 1:] == 1].mean(), rtol=1e-5)


def test_each_step_is_logged_once_as_it_learns(whole):
    begun, *rows = whole.log.read()
    assert (begun["event"], begun["stage"], begun["step"]) == ("start", "sft", 0)
    assert [(row["event"], row["step"]) for row in rows] == [("sft_step", step) for step in range(1, 7)]
    assert rows[-1]["loss"] < rows[0]["loss"] - 1 and all(row["seconds"] > 0 for row in rows)
    assert whole.on_steps == 6


def test_a_relative_folder_gets_the_adapter_as_one_more_step(whole, base, mesh, tokenizer):
    result = whole.result
    assert (result.stage, result.steps, result.checkpoint_step, result.stopped) == ("sft", 6, 7, "data")
    assert steps_in(whole.checkpoints)[-2:] == [6, 7] and checkpoints.latest_step(whole.checkpoints) == 7
    assert (whole.checkpoints / "actor/6/optimizer_state").is_dir()
    assert not (whole.checkpoints / "actor/7/optimizer_state").exists(), "the next stage would go on with SFT's"
    judged = new_policy(base, mesh, tokenizer, seed=9)
    assert restore_lora(judged.model, whole.checkpoints) == 7 and equal(adapter(judged), adapter(whole.policy))


def test_a_run_that_the_clock_stopped_ends_as_one_without_a_break(whole, policy, base, mesh, tokenizer, tmp_path):
    log, clock = RunLog(tmp_path / "log.jsonl"), StopAfter(2)
    first = sft(policy, mesh, ROWS, SETTINGS, clock.budget, log, tmp_path, seed=3, on_step=clock.on_step)
    assert first.stopped == "time" and 0 < first.steps < 6 and first.checkpoint_step == first.steps + 1
    assert steps_in(tmp_path)[-1] == first.checkpoint_step, "what is handed over is not what the judges would load"

    again = new_policy(base, mesh, tokenizer, seed=9)
    second = sft(again, mesh, ROWS, SETTINGS, TimeBudget(1, 0), log, tmp_path, seed=3)
    assert (second.stopped, second.checkpoint_step) == ("data", 7) and steps_in(tmp_path)[-1] == 7
    rows = log.read("sft_step")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose([row["loss"] for row in rows],
                               [row["loss"] for row in whole.log.read("sft_step")], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
                 adapter(again), adapter(whole.policy))

    third = new_policy(base, mesh, tokenizer, seed=9)  # nothing is left to do: the adapter is handed over again
    result = sft(third, mesh, ROWS, SETTINGS, TimeBudget(1, 0), log, tmp_path, seed=3)
    assert (result.checkpoint_step, len(log.read("sft_step"))) == (7, 6)
    assert equal(adapter(third), adapter(again)) and steps_in(tmp_path)[-1] == 7


def test_checkpoints_of_a_later_stage_are_refused(policy, mesh, tmp_path):
    """Tunix would resume from them, and their adapter would be handed over as the result of SFT."""
    checkpoints.save_for_next_stage(policy.model, tmp_path, 9)
    with pytest.raises(ValueError, match=r"is at step 9, and this stage goes from step 0 to 6: .* another folder"):
        sft(policy, mesh, ROWS, SETTINGS, TimeBudget(1, 0), NullLog(), tmp_path, seed=0)
    assert steps_in(tmp_path) == [9]


@pytest.mark.parametrize(("changes", "message"), [
    ({"batch_size": 10}, "SFT batch_size = 10 rows cannot be split over fsdp=4 chips: make it 8 or 12"),
    ({"batch_size": 32}, "30 rows are fewer than one batch of 32: add rows or lower the batch size"),
    ({"max_length": 20}, "0 rows are fewer than one batch of 8"),
])
def test_settings_that_cannot_be_trained_are_named(policy, mesh, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        sft(policy, mesh, ROWS, replace(SETTINGS, **changes), TimeBudget(1, 0), NullLog(), tmp_path, seed=0)
    assert checkpoints.latest_step(tmp_path) == 0


def test_a_session_without_time_is_named(policy, mesh, tmp_path):
    clock = Clock()
    budget = TimeBudget(1, 20, clock=clock)
    clock.now = 45 * 60.0
    with pytest.raises(BudgetError, match=r"stage 'sft' would begin with 0 minutes: 45.0 of 60 .* 20 reserved"):
        sft(policy, mesh, ROWS, SETTINGS, budget, NullLog(), tmp_path, seed=0)


def test_a_session_that_grows_makes_all_steps(policy, mesh, tmp_path):
    """Its twenty minutes are over long before the last, and two minutes pass at each look at the clock."""
    ticks = iter(range(0, 10 ** 9, 120))
    budget = TimeBudget(1 / 3, 2, clock=lambda: float(next(ticks)), grows=True)
    result = sft(policy, mesh, ROWS, SETTINGS, budget, NullLog(), tmp_path, seed=0)
    assert (result.steps, result.stopped) == (SETTINGS.steps, "data") and budget.minutes_used > 20

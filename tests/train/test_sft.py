"""SFT: one run looked at from all sides, and the same run stopped by the clock and taken up again."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from datasets import concatenate_datasets
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from tiny_gemma import bump, equal, forward, gemma2_config, small_config
from tiny_run import CONFIG, ROWS, Clock, StopAfter, new_policy, short_tokenizer
from tunix.models.gemma import model as gemma2
from tunix.sft import sharding_utils
from tunix.sft.peft_trainer import _default_loss_fn as tunix_loss
from tunix.sft.utils import build_positions_from_mask, make_causal_attn_mask

from reasonkit.data.rows import sft_batches
from reasonkit.models import checkpoints, logprobs
from reasonkit.models.checkpoints import restore_lora
from reasonkit.models.lora import add_lora
from reasonkit.models.mesh import make_mesh
from reasonkit.session.run_log import NullLog, RunLog
from reasonkit.session.time_budget import BudgetError, TimeBudget
from reasonkit.settings import SftSettings
from reasonkit.train.sft import model_input, sft, sft_loss, validation_loss
from tools.flax import init_random

pytestmark = pytest.mark.usefixtures("compiled")

SETTINGS = SftSettings(steps=6, batch_size=8, max_length=48, learning_rate=2e-2, save_every=4)
PACKED = replace(SETTINGS, batch_size=4, max_length=100, save_every=2, pack=True)


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


def test_the_train_step_is_compiled_once(whole):
    """What later steps compile belongs to their first save."""
    compiled = [row.get("compiled", {}) for row in whole.log.read("sft_step")]
    assert [any("train_step" in name for name in made) for made in compiled] == [True] + [False] * 5
    assert all(seconds > 0 for made in compiled for seconds in made.values())


def test_a_relative_folder_gets_the_adapter_as_one_more_step(whole, base, mesh, tokenizer):
    result = whole.result
    assert (result.steps, result.checkpoint_step, result.stopped) == (6, 7, "data")
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


def test_a_packed_run_that_is_taken_up_again_sees_the_same_rows(base, mesh, tokenizer, tmp_path):
    """Step by step: the same rows in the same order, so the same loss, and at the end the same adapter."""
    ended = {}
    for name, stops in (("whole", 99), ("broken", 3)):
        policy, log, clock = new_policy(base, mesh, tokenizer), RunLog(tmp_path / f"{name}.jsonl"), StopAfter(stops)
        result = sft(policy, mesh, ROWS, PACKED, clock.budget, log, tmp_path / name, seed=3, on_step=clock.on_step)
        if result.stopped == "time":
            policy = new_policy(base, mesh, tokenizer, seed=9)
            sft(policy, mesh, ROWS, PACKED, TimeBudget(1, 0), log, tmp_path / name, seed=3)
        ended[name] = policy, log.read("sft_step"), result.stopped
    (policy, steps, _), (again, resumed, stopped) = ended.values()
    assert stopped == "time" and len(resumed) == len(steps) == PACKED.steps
    for name in ("step", "rows", "tokens"):
        assert [row[name] for row in resumed] == [row[name] for row in steps]
    assert all(PACKED.batch_size < row["rows"] and row["tokens"] <= 400 for row in steps)
    np.testing.assert_allclose([row["loss"] for row in resumed], [row["loss"] for row in steps], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), adapter(again), adapter(policy))


def unpack(batch):
    """The same rows, each in a sequence of its own: tokens and the mask of the loss."""
    rows = [(tokens_L[piece_L == piece], mask_L[piece_L == piece])
            for tokens_L, mask_L, piece_L in zip(*batch.values(), strict=True) for piece in range(1, piece_L.max() + 1)]
    tokens_BL, mask_BL = np.zeros((len(rows), 48), np.int32), np.zeros((len(rows), 48), np.float32)
    for number, (tokens, mask) in enumerate(rows):
        tokens_BL[number, :len(tokens)], mask_BL[number, :len(mask)] = tokens, mask
    return tokens_BL, mask_BL


def plain_input(batch):
    """Without our masks: Tunix's own, of right-padded rows."""
    tokens_BL, mask_BL = batch
    present_BL = tokens_BL != 0
    return {"input_tokens": tokens_BL, "input_mask": mask_BL, "positions": build_positions_from_mask(present_BL),
            "attention_mask": make_causal_attn_mask(present_BL)}


@nnx.jit(static_argnums=2)
def loss_and_gradients(model, inputs, loss=sft_loss):
    """The loss of SFT, and its gradients by all weights, the base's too."""
    return nnx.value_and_grad(lambda model: loss(model, **inputs), argnums=nnx.DiffState(0, nnx.Param))(model)


def difference(one, other):
    """The largest relative one, of the losses and of all gradients, each relative to the largest of its array."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(np.abs(a - b).max() / max(np.abs(b).max(), 1e-9) for a, b in pairs)


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_packed_rows_in_chunks_have_the_loss_and_the_gradients_of_plain_ones_by_tunix(family, mesh, tokenizer,
                                                                                     monkeypatch):
    """In local and global layers, with a window of 8 tokens in rows of 40 and sequences of 200. The control lets a row
    see those before it."""
    monkeypatch.setattr(logprobs, "CHUNK", 2 * CONFIG.num_embed * 60)  # 199 tokens of two rows in four chunks
    model = (gemma2.Gemma(gemma2_config(), rngs=nnx.Rngs(0)) if family == "gemma2"
             else init_random(small_config(num_layers=6), mesh))
    model = add_lora(model, mesh, 4, 8.0)
    bump(model, 0.01)
    batch = next(sft_batches(ROWS, tokenizer, 2, 200, 0, pack=True))
    tokens_BL, mask_BL = unpack(batch)
    assert len(tokens_BL) > 4 and {kind.attn.attn_type.name for kind in model.layers} == {"LOCAL_SLIDING", "GLOBAL"}
    plain = loss_and_gradients(model, plain_input((tokens_BL, mask_BL)), tunix_loss)
    assert difference(loss_and_gradients(model, model_input(batch)), plain) < 2e-5
    merged = {**batch, "piece_BL": np.minimum(batch["piece_BL"], 1)}
    assert difference(loss_and_gradients(model, model_input(merged)), plain) > 0.1


def test_terse_rows_are_left_out_on_request(whole, policy, mesh, tmp_path, capsys):
    """The adapter is, to the last bit, that of a run which never had them."""
    terse = ROWS.map(lambda row: {"reasoning": f"So {row['answer']}"})
    bare = ROWS.map(lambda row: {"reasoning": ""})
    open_ones = bare.map(lambda row: {"kind": "open", "answer": ""})  # for GRPO only, as in a mix of real sources
    rows = concatenate_datasets([terse, bare, open_ones, ROWS])
    settings = replace(SETTINGS, skip_terse=True)
    sft(policy, mesh, rows, settings, TimeBudget(1, 0), NullLog(), tmp_path, seed=3)
    assert equal(adapter(policy), adapter(whole.policy))
    told = f"SFT imitates {len(ROWS)} of {2 * len(ROWS)} worked rows: the others' reasoning shows no work"
    assert told in capsys.readouterr().out
    with pytest.raises(ValueError, match="0 rows are fewer than one batch of 8"):
        sft(policy, mesh, terse, settings, TimeBudget(1, 0), NullLog(), tmp_path / "terse", seed=3)


@pytest.mark.parametrize(("settings", "most", "steps"), [(SETTINGS, 0, 6), (SETTINGS, 1, 4), (SETTINGS, 0.5, 2),
                                                        (SETTINGS, 2, 6), (PACKED, 1, 4), (PACKED, 0.1, 1)])
def test_sft_ends_after_its_epochs(policy, mesh, tmp_path, capsys, settings, most, steps):
    """30 rows fill 3.75 batches of 8, or 15 packed sequences of 100 tokens in 3.75 batches of 4."""
    result = sft(policy, mesh, ROWS, replace(settings, max_epochs=most), TimeBudget(1, 0), NullLog(), tmp_path, seed=3)
    assert (result.steps, result.stopped) == (steps, "data")
    assert ("epochs of 30 rows (max_epochs)" in capsys.readouterr().out) == (steps < 6)
    done = sft(policy, mesh, ROWS, replace(settings, max_epochs=most), TimeBudget(1, 0), NullLog(), tmp_path, seed=3)
    assert done.steps == steps, "a finished stage stays finished"


def test_checkpoints_of_a_later_stage_are_refused(policy, mesh, tmp_path):
    """Tunix would resume from them, and their adapter would be handed over as the result of SFT."""
    checkpoints.save_lora(policy.model, tmp_path, 9)
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


def test_the_validation_loss_is_the_mean_over_the_tokens_that_have_one(policy, mesh):
    batches = list(islice(sft_batches(ROWS, policy.tokenizer, 4, SETTINGS.max_length, 0), 2))
    found = validation_loss(policy, mesh, ROWS, SETTINGS, most=11)
    both = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    np.testing.assert_allclose(found, _nll(policy.model, both), rtol=1e-5)
    assert math.isnan(validation_loss(policy, mesh, ROWS.select(range(3)), SETTINGS)), "fewer rows than chips"


def _nll(model, batch) -> float:
    logits = np.asarray(forward(model, batch["tokens_BL"]), np.float64)[:, :-1]
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    mask, targets = batch["loss_mask_BL"][:, 1:], batch["tokens_BL"][:, 1:]
    return float(-(np.take_along_axis(logits, targets[..., None], -1)[..., 0] * mask).sum() / mask.sum())

"""The policy on all chips, or on one half with its judge on the other: SFT and GRPO train as on a single device."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from fault_run import GRPO, SFT
from flax import nnx
from tiny_run import CONFIG, ROWS, new_policy, short_tokenizer

from reasonkit.models.load import LoadedModel
from reasonkit.models.logprobs import rating_logprobs
from reasonkit.models.mesh import plan_mesh
from reasonkit.rewards.mix import RewardMix
from reasonkit.session.run_log import RunLog
from reasonkit.session.time_budget import TimeBudget
from reasonkit.train.grpo import grpo
from reasonkit.train.sft import sft
from tools.flax import init_random

pytestmark = pytest.mark.usefixtures("compiled")

LAYOUTS = {"single": (1, True), "colocated": (8, False), "split": (8, True)}  # devices, planned for a judge or without
CHIPS = {"single": ([0], [0]), "colocated": ([*range(8)], [*range(8)]), "split": ([0, 1, 2, 3], [4, 5, 6, 7])}


def chips(model, kind):
    return [device.id for device in jax.tree.leaves(nnx.state(model, kind))[0].sharding.mesh.devices.flat]


def weights(policy):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(policy.model, nnx.LoRAParam))]


def train(layout, tokenizer, folder):
    """SFT on the policy's chips, then GRPO with a model as judge; in the split layout it works beside the policy."""
    devices, judged = LAYOUTS[layout]
    plan = plan_mesh(jax.devices()[:devices], judge=judged)
    judge_mesh = plan.judge or plan.policy
    judge = LoadedModel(init_random(CONFIG, judge_mesh, seed=1), tokenizer, CONFIG, "judge", folder)
    rate = rating_logprobs(judge, judge_mesh, ("1", "5"), max_length=64, batch_size=8)

    def rated(prompts, completions, **columns):
        return [round(float(low - high), 3) for low, high in rate(completions)]

    policy, log = new_policy(init_random(CONFIG, plan.policy), plan.policy, tokenizer), RunLog(folder / "log.jsonl")
    budget = TimeBudget(1, 0)
    start = sft(policy, plan.policy, ROWS, replace(SFT, save_every=50), budget, log, folder / "checkpoints", 3)
    after_sft = weights(policy)
    settings = replace(GRPO, beta=0.04, save_every=50, rollout_micro_prompts=4 if layout == "split" else 0)
    grpo(policy, plan.policy, ROWS, RewardMix([(rated, 1.0)], log), settings, budget, log, folder / "checkpoints", 3,
         start.checkpoint_step)
    return SimpleNamespace(log=log, sft=after_sft, grpo=weights(policy), chips=(
        chips(policy.model, nnx.LoRAParam), chips(judge.model, nnx.Param)))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return short_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def single(compiled, tokenizer, tmp_path_factory):
    return train("single", tokenizer, tmp_path_factory.mktemp("single"))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["colocated", "split"])
def test_training_is_that_of_a_single_device(layout, single, tokenizer, tmp_path):
    run = train(layout, tokenizer, tmp_path)
    assert single.chips == CHIPS["single"] and run.chips == CHIPS[layout]
    for event, fields in (("sft_step", ("loss",)), ("grpo_step", ("loss", "kl", "length")), ("reward", ("mean",))):
        ours, theirs = ([[row[field] for field in fields] for row in one.log.read(event)] for one in (run, single))
        assert len(ours) == 3
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert [row["sample"] for row in run.log.read("reward")] == [row["sample"] for row in single.log.read("reward")]
    for name in ("sft", "grpo"):
        for a, b in zip(getattr(run, name), getattr(single, name), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)

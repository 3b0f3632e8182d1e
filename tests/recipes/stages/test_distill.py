from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from datasets import Dataset
from flax import nnx
from tiny_gemma import ROWS, TOKENS, equal, forward, small_config, train_tokenizer

from reasonkit.models.checkpoints import restore_lora
from reasonkit.models.load import LoadedModel, Tokenizer
from reasonkit.models.lora import add_lora
from reasonkit.models.mesh import plan_mesh
from reasonkit.session.run_log import RunLog
from reasonkit.session.time_budget import TimeBudget
from reasonkit.settings import DistillSettings
from reasonkit.train.rollout import Rollout
from recipes.stages.distill import completion_logprobs, distill, reverse_kl
from tools.flax import init_random

SETTINGS = DistillSettings(steps=6, batch_size=8, max_prompt_length=320, max_new_tokens=8, learning_rate=3e-2,
                           warmup=0.0)
QUESTIONS = Dataset.from_list([
    {"id": f"{a}", "question": f"{a} plus {a}", "answer": f"{2 * a}", "kind": "number", "rubric": "[]"}
    for a in range(8)])


@pytest.fixture(scope="module")
def plan():
    return plan_mesh(jax.devices(), judge=True, judge_tp=2)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer(train_tokenizer(tmp_path_factory.mktemp("tokenizer")), "gemma3")


@pytest.fixture(scope="module")
def teacher(plan, tokenizer):
    model = init_random(small_config(embed_dim=48, num_embed=ROWS + 8), plan.judge, seed=5)
    return LoadedModel(model, tokenizer, model.config, "teacher", None)


@pytest.fixture(scope="module")
def base(plan):
    return init_random(small_config(), plan.policy)


@pytest.fixture
def policy(base, plan, tokenizer):
    return LoadedModel(add_lora(base, plan.policy, 8, 16.0), tokenizer, base.config, "student", None)


def test_the_reverse_kl_is_by_hand():
    student, teacher = np.array([0.5, 0.5]), np.array([0.9, 0.1])
    forward = 0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5)
    reverse = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    assert abs(forward - reverse) > 0.1  # the case tells the two apart
    same = np.log(np.stack([student, student]))
    student_BLV = np.stack([np.log(np.stack([student, student])), same])
    teacher_BLV = np.stack([np.log(np.stack([teacher, teacher])), np.log(np.stack([teacher, student]))])
    # First row: one token counts, of KL `reverse`. Second: two count, of which one is equal.
    kl = reverse_kl(jnp.array(student_BLV), jnp.array(teacher_BLV), jnp.array([[1.0, 0.0], [1.0, 1.0]]))
    np.testing.assert_allclose(kl, (reverse + reverse / 2) / 2, rtol=1e-5)
    assert reverse_kl(jnp.array(student_BLV), jnp.array(teacher_BLV), jnp.zeros((2, 2))) == 0


def test_logprobs_are_those_of_the_completion_tokens(base):
    """A token's log-probability is read at the position before it, and over the first 40 ids only."""
    out_BLV = nnx.jit(completion_logprobs, static_argnums=(2, 3))(base, TOKENS, 3, 40)
    logits_BLV = np.asarray(forward(base, TOKENS), np.float64)[:, -4:-1, :40]
    expected_BLV = logits_BLV - np.log(np.exp(logits_BLV).sum(-1, keepdims=True))
    assert out_BLV.dtype == jnp.float32
    np.testing.assert_allclose(out_BLV, expected_BLV, atol=1e-4)


def test_the_student_nears_a_larger_teacher_on_the_other_half(
        policy, teacher, base, plan, tmp_path, monkeypatch):
    log, calls, sampled_with = RunLog(tmp_path / "run.jsonl"), [], []
    generate = Rollout.generate

    def watched(self, prompts, config, **kwargs):
        adapter = nnx.state(self.model(), nnx.LoRAParam)
        sampled_with.append(sum(float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(adapter)))
        return generate(self, prompts, config, **kwargs)

    monkeypatch.setattr(Rollout, "generate", watched)
    frozen = nnx.state(base), nnx.state(teacher.model)

    def run(settings, start_step):
        return distill(policy, teacher, plan.policy, plan.judge, QUESTIONS, settings, TimeBudget(1), log,
                       tmp_path, seed=0, start_step=start_step, on_step=lambda: calls.append(1))

    result, rows = run(SETTINGS, 0), log.read("distill_step")
    kl = [row["loss"] for row in rows]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6] and len(calls) == 6
    assert kl[-1] < 0.8 * kl[0] and min(kl) > 0, kl
    assert all(1 <= row["length"] <= 8 for row in rows)
    moved = set(sampled_with[1:])  # the first update has a learning rate of 0: warm-up
    assert len(moved) == 5, "a step sampled with weights other than those it trained"
    assert (result.stage, result.steps, result.checkpoint_step) == ("distill", 6, 7)
    assert result.stopped == "data"
    assert equal(frozen[0], nnx.state(base)) and equal(frozen[1], nnx.state(teacher.model))
    adapter = nnx.state(policy.model, nnx.LoRAParam)
    assert restore_lora(policy.model, tmp_path) == 7
    assert equal(adapter, nnx.state(policy.model, nnx.LoRAParam))

    again = run(dataclasses.replace(SETTINGS, steps=1), 7)
    assert (again.steps, again.checkpoint_step) == (1, 9) and log.last("distill_step")["step"] == 1
    assert len(sampled_with) == 7, "a batch that is only skipped was sampled"
    assert log.last("distill_step")["loss"] < 0.8 * kl[0]


def test_what_cannot_be_distilled_is_named(policy, teacher, plan, tokenizer, tmp_path):
    def run(teacher=teacher, **changes):
        distill(policy, teacher, plan.policy, plan.judge, QUESTIONS, dataclasses.replace(SETTINGS, **changes),
                TimeBudget(1), RunLog(tmp_path / "run.jsonl"), tmp_path, seed=0, start_step=0)

    with pytest.raises(ValueError, match="distillation batch_size = 6 rows cannot be split over fsdp=4"):
        run(batch_size=6)
    other = Tokenizer(train_tokenizer(tmp_path / "other", symbols=("plus",)), "gemma3")
    with pytest.raises(ValueError, match="teacher reads text as other tokens than student"):
        run(dataclasses.replace(teacher, tokenizer=other))

from __future__ import annotations

import itertools
from dataclasses import replace

import jax
import numpy as np
import pytest
from datasets import Dataset
from flax import nnx
from tiny_gemma import bump, equal, forward, small_config, train_tokenizer
from tunix.sft.dpo.dpo_trainer import DPOTrainer

from reasonkit.models.checkpoints import restore_lora
from reasonkit.models.load import LoadedModel, Tokenizer
from reasonkit.models.lora import add_lora
from reasonkit.models.mesh import make_mesh
from reasonkit.session.run_log import RunLog
from reasonkit.session.time_budget import TimeBudget
from reasonkit.settings import SimpoSettings
from reasonkit.text.tags import TAGS
from recipes.stages.simpo import loss_fn, pair_batches, pair_loss, simpo
from tools.flax import init_random

PROMPT, REPLY = 320, 12  # tokens; the small tokenizer spells most of the prompt in bytes
SETTINGS = SimpoSettings(steps=6, batch_size=4, max_prompt_length=PROMPT, max_new_tokens=REPLY, questions=12,
                         learning_rate=2e-2, save_every=4)
PAIRS = Dataset.from_list([
    {"question": f"{a} plus {b}", "chosen": f"model {a + b}", "rejected": f"user {a} {b} {a}"}
    for a in range(4) for b in range(3)])


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(jax.devices(), 8, 1)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer(train_tokenizer(tmp_path_factory.mktemp("tokenizer")), "gemma3")


@pytest.fixture(scope="module")
def base(mesh):
    return init_random(small_config(), mesh)


@pytest.fixture
def policy(base, mesh, tokenizer, tmp_path):
    model = add_lora(base, mesh, 4, 8.0)
    return LoadedModel(model, tokenizer, model.config, "small", tmp_path)


def batches(tokenizer, pairs=PAIRS, batch_size=4, prompt=PROMPT, reply=REPLY, seed=0):
    return pair_batches(pairs, tokenizer, batch_size, prompt, reply, seed)


@pytest.mark.parametrize(
    ("chosen", "rejected", "beta", "gamma", "smoothing", "expected"),
    [
        # z = 2 x 0.5 - 1 = 0; the reading 2 x (0.5 - 1) = -1 would give 1.3133.
        (-1.0, -1.5, 2.0, 1.0, 0.0, np.log(2)),
        (-1.0, -1.0, 2.0, 1.0, 0.0, np.log(1 + np.e)),
        (-0.5, -2.5, 2.0, 1.0, 0.0, np.log(1 + np.exp(-3))),
        (-0.5, -2.5, 2.0, 1.0, 0.1, 0.9 * np.log(1 + np.exp(-3)) + 0.1 * np.log(1 + np.exp(3))),
        (-2.5, -0.5, 2.5, 0.5, 0.0, np.log(1 + np.exp(5.5))),
    ],
)
def test_the_loss_of_a_pair_is_the_papers(chosen, rejected, beta, gamma, smoothing, expected):
    loss_B = pair_loss(np.float32([chosen]), np.float32([rejected]), beta, gamma, smoothing)
    np.testing.assert_allclose(loss_B, [expected], rtol=1e-6)


def test_the_loss_of_a_batch_is_that_of_its_replies_by_hand(policy, mesh, tokenizer):
    """By hand: rows right-padded log-softmax in numpy, mean over the reply and its stop token."""
    bump(policy.model, 0.05)
    batch = next(batches(tokenizer))
    prompts = [ids[mask] for ids, mask in zip(batch.prompt_ids, batch.prompt_mask, strict=True)] * 2
    replies = [ids[mask] for part in ("chosen", "rejected") for ids, mask in
               zip(getattr(batch, f"{part}_ids"), getattr(batch, f"{part}_mask"), strict=True)]
    rows_RL = np.zeros((8, PROMPT + REPLY), np.int32)
    for row_L, prompt, reply in zip(rows_RL, prompts, replies, strict=True):
        row_L[:len(prompt) + len(reply)] = [*prompt, *reply]
    logits_RLV = np.asarray(forward(policy.model, rows_RL), np.float64)
    logps_RLV = logits_RLV - np.log(np.exp(logits_RLV).sum(-1, keepdims=True))
    means = [np.mean([logps_LV[len(prompt) + n - 1, token] for n, token in enumerate(reply)])
             for logps_LV, prompt, reply in zip(logps_RLV, prompts, replies, strict=True)]
    chosen, rejected = np.array(means[:4]), np.array(means[4:])
    expected = np.mean(np.log(1 + np.exp(-(2.0 * (chosen - rejected) - 1.0))))

    example = DPOTrainer._prepare_inputs(  # the trainer's own stacking, of the two fields that it reads
        type("Trainer", (), {"model": policy.model, "_ref_model_exists": False})(), batch)
    with mesh:
        loss, metrics = nnx.jit(loss_fn(SETTINGS))(policy.model, example)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    np.testing.assert_allclose(metrics["rewards/margin"], 2.0 * np.mean(chosen - rejected), atol=1e-4)
    np.testing.assert_allclose(metrics["log_probs/chosen"], chosen.mean(), rtol=1e-4)
    assert float(metrics["rewards/accuracy"]) == np.mean(chosen > rejected)


def test_a_reply_has_no_bos_and_ends_with_its_stop_token(tokenizer):
    pairs = Dataset.from_list(
        [{"question": "1 plus 2", "chosen": "model 3<end_of_turn>user", "rejected": "user 4"}])
    batch = next(batches(tokenizer, pairs, batch_size=1, reply=40))
    prompt = batch.prompt_ids[0][batch.prompt_mask[0]]
    chosen = batch.chosen_ids[0][batch.chosen_mask[0]]
    rejected = batch.rejected_ids[0][batch.rejected_mask[0]]
    assert prompt.tolist() == [tokenizer.bos_id(), *tokenizer.encode(TAGS.prompt("1 plus 2"))]
    assert rejected.tolist() == [*tokenizer.encode("user 4"), tokenizer.end_of_turn]
    assert chosen[-1] == tokenizer.end_of_turn and list(chosen).count(tokenizer.end_of_turn) == 1
    assert batch.prompt_mask[0][-1] and not batch.prompt_mask[0][0] and batch.chosen_mask[0][0]
    assert ((batch.chosen_ids[0] == 0) == ~batch.chosen_mask[0]).all()


def test_batches_are_a_function_of_the_seed(tokenizer):
    def first(seed):
        return [batch.chosen_ids.tolist() for batch in itertools.islice(batches(tokenizer, seed=seed), 4)]

    assert first(1) == first(1) != first(2)


def test_pairs_that_cannot_be_used_are_named(tokenizer):
    with pytest.raises(ValueError, match="no column chosen, only question, rejected"):
        next(batches(tokenizer, PAIRS.remove_columns("chosen")))
    for limits in ({"reply": 3}, {"prompt": 20}):  # never cut: left out
        with pytest.raises(ValueError, match="0 rows are fewer than one batch of 4"):
            next(batches(tokenizer, **limits))


def test_the_margin_rises_and_the_adapter_is_handed_over(policy, base, mesh, tmp_path):
    log, calls = RunLog(tmp_path / "run.jsonl"), []
    before = nnx.state(base)
    with pytest.raises(ValueError, match="SimPO 2 x batch_size = 6 rows cannot be split over fsdp=8"):
        three = replace(SETTINGS, batch_size=3)
        simpo(policy, mesh, PAIRS, three, TimeBudget(1), log, tmp_path, seed=0, start_step=0)
    result = simpo(policy, mesh, PAIRS, SETTINGS, TimeBudget(1), log, tmp_path / "run", seed=0, start_step=0,
                   on_step=lambda: calls.append(1))
    rows = log.read("simpo_step")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6] and len(calls) == 6
    margins = [row["margin"] for row in rows]
    assert margins[-1] > margins[0] + 1 and rows[-1]["loss"] < rows[0]["loss"] and rows[-1]["accuracy"] == 1
    assert (result.stage, result.steps, result.checkpoint_step, result.stopped) == ("simpo", 6, 7, "data")
    assert equal(before, nnx.state(base)), "the base moved"

    again = LoadedModel(add_lora(base, mesh, 4, 8.0), policy.tokenizer, policy.config, "small", tmp_path)
    assert restore_lora(again.model, tmp_path / "run") == 7
    lora = nnx.state(policy.model, nnx.LoRAParam)
    assert equal(nnx.state(again.model, nnx.LoRAParam), lora)
    follow = replace(SETTINGS, steps=1)
    result = simpo(again, mesh, PAIRS, follow, TimeBudget(1), log, tmp_path / "run", seed=0, start_step=7)
    assert (result.steps, result.checkpoint_step) == (1, 9)
    assert log.last("simpo_step")["step"] == 1 and log.last("simpo_step")["margin"] > margins[0]

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from datasets import Dataset
from flax import nnx
from tiny_gemma import bump, equal, forward, small_config, train_tokenizer
from tiny_run import RUBRIC
from tunix.sft.dpo.dpo_trainer import DPOTrainer

from reasonkit.config import PROFILES
from reasonkit.data.curation import curate
from reasonkit.data.problems import load_recipe
from reasonkit.data.rows import TooFewRows
from reasonkit.eval.evaluate import evaluate
from reasonkit.models.checkpoints import restore_lora
from reasonkit.models.load import LoadedModel, Tokenizer, load
from reasonkit.models.lora import add_lora
from reasonkit.models.mesh import make_mesh
from reasonkit.session.manifest import FAILED
from reasonkit.session.run_log import RunLog
from reasonkit.session.time_budget import TimeBudget
from reasonkit.settings import SimpoSettings
from reasonkit.text.tags import TAGS
from reasonkit.train.rollout import generator
from reasonkit.train.sft import sft
from recipes.stages import traces
from recipes.stages.simpo import loss_fn, pair_batches, pair_loss, sample_pairs, simpo
from tools.flax import init_random

pytestmark = pytest.mark.usefixtures("compiled")

PROMPT, REPLY = 320, 12  # tokens; the small tokenizer spells most of the prompt in bytes
SETTINGS = SimpoSettings(steps=6, batch_size=4, max_prompt_length=PROMPT, max_new_tokens=REPLY, questions=12,
                         learning_rate=2e-2, save_every=4, sft_weight=0.0)
PAIRS = [
    {"question": f"{a} plus {b}", "chosen": f"model {a + b}", "rejected": f"user {a} {b} {a}"}
    for a in range(4) for b in range(3)]


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


@pytest.mark.parametrize("sft_weight", [0.0, 0.2])
def test_the_loss_of_a_batch_is_that_of_its_replies_by_hand(sft_weight, policy, mesh, tokenizer):
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
    expected = np.mean(np.log(1 + np.exp(-(2.0 * (chosen - rejected) - 1.0))) - sft_weight * chosen)

    example = DPOTrainer._prepare_inputs(  # the trainer's own stacking, of the two fields that it reads
        type("Trainer", (), {"model": policy.model, "_ref_model_exists": False})(), batch)
    with mesh:
        loss, metrics = nnx.jit(loss_fn(replace(SETTINGS, sft_weight=sft_weight)))(policy.model, example)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    np.testing.assert_allclose(metrics["rewards/margin"], 2.0 * np.mean(chosen - rejected), atol=1e-4)
    np.testing.assert_allclose(metrics["log_probs/chosen"], chosen.mean(), rtol=1e-4)
    assert float(metrics["rewards/accuracy"]) == np.mean(chosen > rejected)


def test_a_reply_has_no_bos_and_ends_with_its_stop_token(tokenizer):
    pairs = [{"question": "1 plus 2", "chosen": "model 3<end_of_turn>user", "rejected": "user 4"}]
    batch = next(batches(tokenizer, pairs, batch_size=1, reply=40))
    prompt = batch.prompt_ids[0][batch.prompt_mask[0]]
    chosen = batch.chosen_ids[0][batch.chosen_mask[0]]
    rejected = batch.rejected_ids[0][batch.rejected_mask[0]]
    assert prompt.tolist() == [tokenizer.bos_id(), *tokenizer.encode(TAGS.prompt("1 plus 2"))]
    assert rejected.tolist() == [*tokenizer.encode("user 4"), tokenizer.end_of_turn]
    assert chosen[-1] == tokenizer.end_of_turn and list(chosen).count(tokenizer.end_of_turn) == 1
    assert batch.prompt_mask[0][-1] and not batch.prompt_mask[0][0] and batch.chosen_mask[0][0]
    assert ((batch.chosen_ids[0] == 0) == ~batch.chosen_mask[0]).all()


@pytest.mark.parametrize(("text", "stopped"), [("<reasoning>1 plus 2", False), ("user <answer>3", False),
                                               ("<reasoning>1</reasoning> plus", True), ("user 4", True)])
def test_a_rejected_reply_that_was_cut_off_has_no_stop_token(text, stopped, tokenizer):
    """With one it had more tokens than a reply may have, so its pair was left out."""
    ids = tokenizer.encode(text)
    pairs = [{"question": "1 plus 2", "chosen": "model 3", "rejected": text}]
    batch = next(batches(tokenizer, pairs, batch_size=1, reply=len(ids) + 9 * stopped))
    assert batch.rejected_ids[0][batch.rejected_mask[0]].tolist() == [*ids, *[tokenizer.end_of_turn] * stopped]
    if not stopped:
        short = next(batches(tokenizer, pairs, batch_size=1, reply=len(ids) - 1))
        assert short.rejected_ids[0].tolist() == ids[:-1], "the text may have more tokens than were sampled"


def test_batches_are_a_function_of_the_seed(tokenizer):
    def first(seed):
        return [batch.chosen_ids.tolist() for batch in itertools.islice(batches(tokenizer, seed=seed), 4)]

    assert first(1) == first(1) != first(2)


def test_pairs_that_cannot_be_used_are_named(tokenizer):
    with pytest.raises(ValueError, match="a pair has no chosen, only question, rejected: it is question, chosen, rej"):
        next(batches(tokenizer, [{"question": "1 plus 2", "rejected": "user 4"}]))
    for limits in ({"reply": 3}, {"prompt": 20}):  # never cut: left out
        with pytest.raises(TooFewRows, match=r"of \d+ pairs, 0 have at most .* a batch takes 4: "):
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
    assert (result.steps, result.checkpoint_step, result.stopped) == (6, 7, "data")
    assert equal(before, nnx.state(base)), "the base moved"

    again = LoadedModel(add_lora(base, mesh, 4, 8.0), policy.tokenizer, policy.config, "small", tmp_path)
    assert restore_lora(again.model, tmp_path / "run") == 7
    lora = nnx.state(policy.model, nnx.LoRAParam)
    assert equal(nnx.state(again.model, nnx.LoRAParam), lora)
    follow = replace(SETTINGS, steps=1)
    result = simpo(again, mesh, PAIRS, follow, TimeBudget(1), log, tmp_path / "run", seed=0, start_step=7)
    assert (result.steps, result.checkpoint_step) == (1, 9)
    assert log.last("simpo_step")["step"] == 1 and log.last("simpo_step")["margin"] > margins[0]


# -- pairs of the policy's own completions


ANSWERS = {  # by question, in the order of sampling
    "1 plus 2": ("1+2=3|3", "1+2=4|4", "3|3", "1+2=3"),
    "2 plus 2": ("2+2=5|5", "4|4", "2+2=5|5", "none"),
    "3 plus 2": ("3+2=5|5",) * 4,
    "write a poem": ("a|b",) * 4,
}


def rendered(text):
    """"reasoning|answer" in our tags, and text without a bar as it is."""
    reasoning, bar, answer = text.partition("|")
    return TAGS.render(reasoning=reasoning, answer=answer) if bar else text


@pytest.fixture
def asked(monkeypatch):
    """The questions of `ANSWERS` as rows, a policy that says these, and the batches it was asked."""
    calls = []

    def generator(*_, batch_size, temperature, **__):
        assert temperature == 1.0

        def generate(prompts, seed):
            assert len(prompts) <= batch_size
            calls.append((len(prompts), seed))
            asked = [next(question for question in ANSWERS if question in prompt) for prompt in prompts]
            return [rendered(ANSWERS[question][number % 4]) for number, question in enumerate(asked)]

        return generate

    monkeypatch.setattr(traces, "generator", generator)
    rows = [{"id": question, "family": "sum", "kind": "open" if question[0] == "w" else "number", "question": question,
             "reasoning": f"{question[0]}+2={gold}", "answer": gold, "rubric": RUBRIC}
            for question, gold in zip(ANSWERS, "3452", strict=True)]
    return Dataset.from_list(rows), calls


def test_pairs_are_the_policys_own_or_the_data_s_where_it_has_none(asked):
    rows, calls = asked
    settings = replace(SETTINGS, questions=12, num_generations=4)
    policy = SimpleNamespace(model=None, tokenizer=None)
    pairs = sample_pairs(policy, None, rows, settings, 8, TimeBudget(1), 5)
    found = {pair["question"]: (pair["chosen"], pair["rejected"], pair["cause"], pair["by"]) for pair in pairs}
    assert found == {
        "1 plus 2": (rendered("1+2=3|3"), rendered("1+2=4|4"), "wrong answer", "policy"),
        "2 plus 2": (rendered("2+2=4|4"), rendered("2+2=5|5"), "wrong answer", "data")}
    assert calls == [(8, 5), (4, 7)], "two questions at once, the open one is not asked, each call has its seed"
    bare = rows.map(lambda row: {"reasoning": ""})
    pairs = sample_pairs(policy, None, bare, settings, 8, TimeBudget(1), 5)
    assert [pair["by"] for pair in pairs] == ["policy"], "a row without a worked solution has none to choose"


def test_where_no_pair_is_found_it_is_said_why(asked, capsys):
    rows = asked[0].filter(lambda row: row["question"] == "2 plus 2").map(lambda row: {"reasoning": ""})
    policy = SimpleNamespace(model=None, tokenizer=None)
    assert sample_pairs(policy, None, rows, SETTINGS, 4, TimeBudget(1), 0) == []
    assert re.search(r"rejected are: {'wrong answer': 2, 'no work': 1, 'format: .*': 1}. In ", capsys.readouterr().err)


def test_sampling_takes_half_of_the_stages_time(asked, monkeypatch, capsys):
    rows, calls = asked
    now = itertools.count(0, 100)
    monkeypatch.setattr(traces.time, "monotonic", lambda: next(now))
    budget = SimpleNamespace(part=lambda *asked: {("simpo", 1 / 2): 2.5}[asked])
    policy = SimpleNamespace(model=None, tokenizer=None)
    assert sample_pairs(policy, None, rows, SETTINGS, 4, budget, 0) is None, "another session may find more"
    assert len(calls) == 1
    told = capsys.readouterr().out
    assert "the 2 minutes for completions are over: 1 of 3 questions were asked" in told
    assert "the 0 pairs so far are fewer than one batch of 4, so they are not kept" in told
    now = itertools.count(0, 100)
    for batch_size, found in ((2, 1), (1, 1)):  # of the question that has a pair
        some = rows.filter(lambda row: row["question"] != "3 plus 2")
        made = sample_pairs(policy, None, some, replace(SETTINGS, batch_size=batch_size), 4, budget, 1)
        assert made is None if found < batch_size else len(made) == found
        now = itertools.count(0, 100)
    calls.clear()
    budget.part = lambda *asked: 0.0
    assert sample_pairs(policy, None, rows, SETTINGS, 4, budget, 0) is None and not calls, "no time, no call"


def test_too_few_pairs_hand_over_the_adapter_that_the_stage_began_with(policy, mesh, tmp_path, capsys):
    log, folder = RunLog(tmp_path / "run.jsonl"), tmp_path / "run"
    began = simpo(policy, mesh, PAIRS, SETTINGS, TimeBudget(1), log, folder, seed=0, start_step=0).checkpoint_step
    before = jax.tree.map(np.asarray, nnx.state(policy.model, nnx.LoRAParam))
    result = simpo(policy, mesh, [], SETTINGS, TimeBudget(1), log, folder, seed=0, start_step=began)
    assert (result.steps, result.checkpoint_step) == (0, began)
    assert result.stopped.startswith(FAILED) and "of 0 pairs, 0 have at most" in result.stopped
    assert "the run goes on with the adapter it began with" in capsys.readouterr().err
    after = jax.tree.map(np.asarray, nnx.state(policy.model, nnx.LoRAParam))
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_what_there_was_no_time_for_is_made_another_time(tmp_path):
    """And where there was time and nothing was found, that is kept, so it is not looked for each day."""
    path = tmp_path / "a"
    assert traces.read_or_make(path, lambda: None) == [] and not path.exists()
    assert traces.read_or_make(path, lambda: [{"a": 1}]) == [{"a": 1}] == traces.read_or_make(path, list)
    path.unlink()
    assert traces.read_or_make(path, list) == [] == traces.read_or_make(path, lambda: [{"a": 1}])


def test_a_rejected_one_that_was_cut_off_is_taken_last():
    made = [{"prompt_sha256": "1", "question": "1 plus 2", "cause": cause, "score": None, "completion": text}
            for cause, text in (("", "whole"), ("format: missing_answer", "<reasoning>1 and"), (traces.NO_WORK, "3"))]
    assert [traces.pairs(some)[0]["rejected"] for some in (made, made[:2])] == ["3", "<reasoning>1 and"]


@pytest.fixture
def optimised():
    """The programs of this test run for longer than they compile (see `conftest`)."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.slow
def test_the_format_is_kept_and_the_work_is_shown(optimised, tmp_path):
    """On the demo's model after SFT, which keeps the format and, as its traces are terse, often shows no work."""
    mesh, profile = make_mesh(jax.devices()[:1], 1, 1), PROFILES["cpu"]
    policy = load(profile.policy, mesh, profile.dtype)
    policy = replace(policy, model=add_lora(policy.model, mesh, profile.lora_rank, profile.lora_alpha))
    splits, _ = curate(load_recipe("tiny_mix"), {"train": 3000, "validation": 120, "test": 60}, 0)
    generate = generator(policy.model, policy.tokenizer, mesh, max_prompt_length=80, max_new_tokens=64, batch_size=60)
    log, budget = RunLog(tmp_path / "log.jsonl"), TimeBudget(1, grows=True)
    short = replace(profile.sft, steps=100, batch_size=16)
    start = sft(policy, mesh, splits["train"], short, budget, log, tmp_path / "run", 0).checkpoint_step
    before = evaluate(generate, splits["validation"], 60)
    settings = replace(profile.simpo, steps=25, batch_size=8, questions=160)
    pairs = sample_pairs(policy, mesh, splits["train"], settings, 60, budget, 0)
    simpo(policy, mesh, pairs, settings, budget, log, tmp_path / "run", 0, start)
    after = evaluate(generate, splits["validation"], 60)
    assert before.format_rate.mean > 0.95 and before.step_accuracy.mean < 0.5
    assert after.format_rate.mean >= before.format_rate.mean - 0.05
    assert after.step_accuracy.mean > before.step_accuracy.mean + 0.3

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from datasets import concatenate_datasets
from flax import nnx
from tiny_gemma import ROWS, TOKENS, bump, equal, forward, gemma2_config, small_config, train_tokenizer
from tiny_run import ROWS as PROBLEMS
from tiny_run import short_tokenizer
from tunix.sft.utils import build_positions_from_mask, make_causal_attn_mask

from reasonkit.data import rows as rows_module
from reasonkit.models.checkpoints import restore_lora
from reasonkit.models.gemma import CLASSES
from reasonkit.models.load import LoadedModel, Tokenizer
from reasonkit.models.lora import add_lora
from reasonkit.models.mesh import Plan, make_mesh
from reasonkit.run import Run
from reasonkit.session.run_log import RunLog
from reasonkit.session.time_budget import TimeBudget
from reasonkit.settings import DistillSettings, SftSettings
from reasonkit.text.tags import TAGS
from reasonkit.train import sft as sft_module
from reasonkit.train.rollout import Rollout, generator
from reasonkit.train.sft import sft
from recipes.stages import distill as distill_module
from recipes.stages.distill import (
    cells,
    distill,
    divergence,
    format_targets,
    mean_per_row,
    read_completions,
    student_loss,
    top_cells,
    train_toy_teacher,
)
from tools.flax import init_random

pytestmark = pytest.mark.usefixtures("compiled")

SETTINGS = DistillSettings(steps=6, batch_size=8, max_prompt_length=64, max_new_tokens=16, learning_rate=3e-2,
                           warmup=0.0, top_k=ROWS)
TAUGHT = SftSettings(steps=1, batch_size=4, max_length=64, learning_rate=1e-2)


@pytest.fixture(scope="module")
def plan():
    return Plan(make_mesh(jax.devices()[:4], 4, 1), make_mesh(jax.devices()[4:], 2, 2), {})


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return short_tokenizer(tmp_path_factory.mktemp("tokenizer"))


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


STUDENT, TEACHER = np.array([0.5, 0.5]), np.array([0.9, 0.1])
FORWARD = 0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5)
REVERSE = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
MIXED = 0.3 * TEACHER + 0.7 * STUDENT
JENSEN = 0.3 * (TEACHER * np.log(TEACHER / MIXED)).sum() + 0.7 * (STUDENT * np.log(STUDENT / MIXED)).sum()


@pytest.mark.parametrize(("beta", "expected"), [(0, FORWARD), (1, REVERSE), (0.3, JENSEN)])
def test_the_divergences_are_by_hand(beta, expected):
    assert len({round(value, 2) for value in (FORWARD, REVERSE, JENSEN)}) == 3  # the case tells them apart
    student_BTC = np.log(np.stack([np.stack([STUDENT, STUDENT])] * 2))
    teacher_BTC = np.log(np.stack([np.stack([TEACHER, TEACHER]), np.stack([TEACHER, STUDENT])]))
    values_BT = divergence(jnp.array(student_BTC), jnp.array(teacher_BTC), beta)
    np.testing.assert_allclose(values_BT, [[expected, expected], [expected, 0]], rtol=1e-5, atol=1e-7)
    # First row: one token counts. Second: two count, of which one is equal.
    np.testing.assert_allclose(mean_per_row(values_BT, jnp.array([[1.0, 0.0], [1.0, 1.0]])),
                               (expected + expected / 2) / 2, rtol=1e-5)
    assert mean_per_row(values_BT, jnp.zeros((2, 2))) == 0


def test_the_jensen_shannon_divergence_joins_the_two():
    student, teacher = jnp.log(STUDENT), jnp.log(TEACHER)
    np.testing.assert_allclose(divergence(student, teacher, 1e-3) / 1e-3, FORWARD, rtol=1e-2)
    np.testing.assert_allclose(divergence(student, teacher, 1 - 1e-3) / 1e-3, REVERSE, rtol=1e-2)


@pytest.mark.parametrize("scale", [0.5, 3.0, 8.0])
@pytest.mark.parametrize("beta", [0, 0.1, 0.5, 0.9, 1])
def test_what_the_top_tokens_lack_is_below_its_bound(beta, scale):
    """Against the exact divergence, from nearly flat distributions to sharp ones."""
    rng = np.random.default_rng(0)
    teacher_BV = jax.nn.log_softmax(jnp.array(rng.normal(0, scale, (64, 200)), jnp.float32))
    student_BV = jax.nn.log_softmax(teacher_BV + jnp.array(rng.normal(0, 1, (64, 200)), jnp.float32))
    ids_BK, teacher_BC = top_cells(teacher_BV, 20)
    exact_B = np.asarray(divergence(student_BV, teacher_BV, beta))
    lacking_B = exact_B - np.asarray(divergence(cells(student_BV, ids_BK), teacher_BC, beta))
    rest_BV = np.ones((64, 200), bool)
    np.put_along_axis(rest_BV, np.asarray(ids_BK), False, -1)
    of_teacher_B, of_student_B = ((np.exp(x_BV) * rest_BV).sum(-1) for x_BV in (teacher_BV, student_BV))
    ratio_BR = np.asarray(teacher_BV - student_BV)[rest_BV].reshape(64, 180)
    if beta in (0, 1):
        bound_B = (of_student_B if beta else of_teacher_B) * np.ptp(ratio_BR, axis=-1) ** 2 / 8
    else:
        bound_B = np.log(2) * (beta * of_teacher_B + (1 - beta) * of_student_B)
    assert (lacking_B > -1e-5).all() and (lacking_B <= bound_B + 1e-5).all()
    assert lacking_B.max() > 1e-4 and (scale < 8 or lacking_B.mean() < 0.1 * exact_B.mean())


def test_all_tokens_are_the_whole_distribution():
    """A rest without tokens has no share and no gradient."""
    student_V, teacher_V = (jax.nn.log_softmax(jax.random.normal(jax.random.key(n), (1, 40))) for n in (1, 2))
    ids_K, teacher_C = top_cells(teacher_V, 99)
    assert teacher_C.shape == (1, 41)

    def naive(x):
        return divergence(jax.nn.log_softmax(x), teacher_V, 1).sum()

    def top(x):
        return divergence(cells(jax.nn.log_softmax(x), ids_K), teacher_C, 1).sum()

    for of in (lambda f: f(student_V), lambda f: jax.grad(f)(student_V)):
        np.testing.assert_allclose(of(top), of(naive), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("positions", [9, 2, 1])
def test_logprobs_are_those_of_the_completion_tokens(base, positions):
    """A token's log-probability is read at the position before it, and over the first 40 ids only."""
    def read(logprobs_BTV, shift_BT):
        return logprobs_BTV + shift_BT[..., None]

    shift_BL = jnp.arange(3.0) * jnp.ones((len(TOKENS), 1))
    out_BLV = nnx.jit(read_completions, static_argnums=(2, 3, 4, 5))(base, TOKENS, 3, 40, positions, read, shift_BL)
    logits_BLV = np.asarray(forward(base, TOKENS), np.float64)[:, -4:-1, :40]
    expected_BLV = logits_BLV - np.log(np.exp(logits_BLV).sum(-1, keepdims=True)) + np.arange(3)[:, None]
    assert out_BLV.dtype == jnp.float32
    np.testing.assert_allclose(out_BLV, expected_BLV, atol=1e-4)


@pytest.mark.parametrize("family", ["gemma3", "gemma2"])
def test_the_loss_in_chunks_has_the_gradients_of_the_naive_one(family, plan):
    """With all tokens of the teacher. And it never holds the logits of the batch, which the naive one does."""
    config, length = gemma2_config() if family == "gemma2" else small_config(), 5
    base = CLASSES[family](config, rngs=nnx.Rngs(0))
    assert (getattr(base, "final_logits_softcap", None) is None) == (family == "gemma3")
    model = add_lora(base, plan.policy, 4, 8.0)
    bump(model, 0.05)
    vocabulary = 40
    teacher_BTV = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (len(TOKENS), length, vocabulary)))
    ids_BTK, teacher_BTC = top_cells(teacher_BTV, vocabulary)
    mask_BT = jnp.asarray(TOKENS[:, -length:] != 0, jnp.float32)
    graph, adapter, rest = nnx.split(model, nnx.LoRAParam, ...)

    def naive(adapter):
        mask_BL = TOKENS != 0
        logits_BLV, _ = nnx.merge(graph, adapter, rest)(
            jnp.asarray(TOKENS), build_positions_from_mask(mask_BL), None, make_causal_attn_mask(mask_BL))
        student_BTV = jax.nn.log_softmax(logits_BLV[:, -length - 1:-1, :vocabulary])
        return mean_per_row(divergence(student_BTV, teacher_BTV, 1), mask_BT)

    def chunked(adapter):
        def read(logprobs_BTV, ids_BTK, teacher_BTC):
            return divergence(cells(logprobs_BTV, ids_BTK), teacher_BTC, 1)

        values_BT = read_completions(nnx.merge(graph, adapter, rest), jnp.asarray(TOKENS), length, vocabulary, 2, read,
                                     ids_BTK, teacher_BTC)
        return mean_per_row(values_BT, mask_BT)

    (value, slope), (expected, slope_expected) = (jax.jit(jax.value_and_grad(f))(adapter) for f in (chunked, naive))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(slope_expected))
    assert largest > 1e-3
    for got, want in zip(jax.tree.leaves(slope), jax.tree.leaves(slope_expected), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5 * largest, rtol=1e-4)
    for f, held in ((chunked, False), (naive, True)):
        text = str(jax.make_jaxpr(jax.grad(f))(adapter))
        assert any(f"f32[{len(TOKENS)},{n},{ROWS}]" in text for n in range(3, 99)) == held


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
        return distill(policy, teacher, plan.policy, plan.judge, PROBLEMS, settings, TimeBudget(1), log,
                       tmp_path, seed=0, start_step=start_step, on_step=lambda: calls.append(1))

    result, rows = run(SETTINGS, 0), log.read("distill_step")
    kl = [row["loss"] for row in rows]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6] and len(calls) == 6
    assert kl[-1] < 0.9 * kl[0] and min(kl) > 0, kl
    assert all(1 <= row["length"] <= 16 and row["on_policy"] and row["rest"] < 1e-6 for row in rows)
    moved = set(sampled_with[1:])  # the first update has a learning rate of 0: warm-up
    assert len(moved) == 5, "a step sampled with weights other than those it trained"
    assert (result.steps, result.checkpoint_step) == (6, 7)
    assert result.stopped == "data"
    assert equal(frozen[0], nnx.state(base)) and equal(frozen[1], nnx.state(teacher.model))
    adapter = nnx.state(policy.model, nnx.LoRAParam)
    assert restore_lora(policy.model, tmp_path) == 7
    assert equal(adapter, nnx.state(policy.model, nnx.LoRAParam))

    again = run(dataclasses.replace(SETTINGS, steps=1), 7)
    assert (again.steps, again.checkpoint_step) == (1, 9) and log.last("distill_step")["step"] == 1
    assert len(sampled_with) == 7, "a batch that is only skipped was sampled"
    assert log.last("distill_step")["loss"] < 0.9 * kl[0]

    result, row = run(dataclasses.replace(SETTINGS, steps=1, on_policy=0.0, top_k=64), 9), log.last("distill_step")
    assert result.steps == 1 and len(sampled_with) == 7, "worked solutions are not sampled"
    assert not row["on_policy"] and 12 <= row["length"] <= 16 and 0.01 < row["rest"] < 1


@pytest.mark.parametrize(("text", "expected"), [
    ("<reasoning>1 plus</reasoning>\n<answer>3</answer><end_of_turn>", ["<reasoning>", "\n<answer>", "<end_of_turn>"]),
    ("<reasoning>1 plus</reasoning> <answer>3", ["<reasoning>", " <answer>"]),  # cut off
    ("<reasoning>1 <answer> 3</answer>", ["<reasoning>"]), ("<reasoning>1</reasoning> so <answer>3</answer>",
                                                            ["<reasoning>"]),  # opened where they should not be
    ("so <reasoning>1</reasoning><answer>3</answer>", []), ("3<end_of_turn>", []), ("", [])])
@pytest.mark.parametrize("whole", [True, False])
def test_the_format_of_a_completion_is_where_it_is_right(text, expected, whole, tokenizer, tmp_path):
    """Also where a tokenizer spells the tags, here in bytes."""
    if not whole:
        tokenizer = Tokenizer(train_tokenizer(tmp_path), "gemma3")
        assert len(tokenizer.encode("<answer>")) > 6
    tokens_T = np.array([*tokenizer.encode(text), 0, 0, ROWS + 7])  # padding, and no token at all
    targets_T = format_targets(tokens_T, tokenizer)
    wanted = tokenizer.encode("<reasoning>")[0]
    assert targets_T.shape == tokens_T.shape and targets_T[0] == wanted and not targets_T[1:][-3:].any()
    if not expected:
        assert not targets_T[1:].any(), "only what it should have begun with"
        return
    assert ((targets_T == tokens_T) | (targets_T == 0)).all()
    assert [*filter(None, targets_T)] == [token for text in expected for token in tokenizer.encode(text)]


def test_a_token_that_a_tag_shares_with_the_text_is_of_the_format():
    """As in Gemma's tokenizers."""
    pieces = "< reason ing >\u2581 a .</ reason ing >< answer >** 1 **</ answer >".split(" ")
    tokens = SimpleNamespace(piece=lambda number: ["", *pieces][number], vocab_size=99)
    targets_T = format_targets(np.arange(1, len(pieces) + 1), tokens)
    assert [piece for piece, kept in zip(pieces, targets_T, strict=True) if kept] == [*pieces[:4], *pieces[8:11]]


def test_where_the_format_wants_a_token_the_teacher_has_no_say(base, plan):
    length, vocabulary = 3, 40
    settings = dataclasses.replace(SETTINGS, batch_size=len(TOKENS), max_new_tokens=length, top_k=vocabulary)
    teacher_BTV = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (len(TOKENS), length, vocabulary)))
    targets_BT, mask_BT = np.zeros((len(TOKENS), length), np.int32), TOKENS[:, -length:] != 0
    targets_BT[0, 1] = 7
    ids_BTK, teacher_BTC = top_cells(teacher_BTV, vocabulary)
    loss = student_loss(settings, plan.policy, vocabulary)(base, jnp.array(TOKENS), jnp.array(targets_BT), ids_BTK,
                                                           teacher_BTC)
    student_BTV = read_completions(base, jnp.array(TOKENS), length, vocabulary, length, lambda logprobs: logprobs)
    expected_BT = np.array(divergence(student_BTV, teacher_BTV, settings.beta))
    assert mask_BT[0, 1] and abs(expected_BT[0, 1] + student_BTV[0, 1, 7]) > 0.1
    expected_BT[0, 1] = -student_BTV[0, 1, 7]
    np.testing.assert_allclose(loss, mean_per_row(expected_BT, mask_BT), rtol=1e-4)


@pytest.mark.parametrize("kept", [True, False])
def test_a_teacher_without_our_tags_does_not_take_them_away(kept, base, plan, tokenizer, tmp_path, monkeypatch):
    """It never begins with <reasoning>, as stock models seldom do. The control learns that from it."""
    pairs, tag = rows_module.sft_pairs, tokenizer.encode(TAGS.reasoning_start)
    settings, mesh, models = dataclasses.replace(TAUGHT, steps=30, batch_size=8, learning_rate=2e-2), plan.policy, []
    for name, cut in (("student", 0), ("teacher", len(tag))):
        monkeypatch.setattr(rows_module, "sft_pairs", lambda *rest, cut=cut: [
            (prompt, reply[cut:]) for prompt, reply in pairs(*rest)])
        models.append(LoadedModel(add_lora(base, mesh, 8, 16.0), tokenizer, base.config, name, None))
        sft(models[-1], mesh, PROBLEMS, settings, TimeBudget(1), RunLog(tmp_path / name), tmp_path / f"{name}s", 0)
    generate = generator(models[0].model, tokenizer, mesh, batch_size=8, max_prompt_length=64, max_new_tokens=16)

    def share():
        return np.mean([text.startswith(TAGS.reasoning_start) for text in generate(
            [TAGS.prompt(question) for question in PROBLEMS["question"][:24]])])

    assert share() == 1
    if not kept:
        monkeypatch.setattr(distill_module, "format_targets", lambda tokens_T, tokenizer: np.zeros_like(tokens_T))
    distill(*models, mesh, mesh, PROBLEMS, dataclasses.replace(SETTINGS, steps=15, learning_rate=1e-2), TimeBudget(1),
            RunLog(tmp_path / "log"), tmp_path / "run", seed=0, start_step=0)
    assert share() == kept


def test_where_there_is_time_more_steps_are_made_than_forecast(policy, teacher, plan, tmp_path):
    """Completions are shorter than the forecast takes them to be. A session that grows makes no more."""
    settings, log = dataclasses.replace(SETTINGS, steps=1, most_steps=3), RunLog(tmp_path / "log")
    begun = 0
    for grows, steps in ((True, 1), (False, 3)):
        result = distill(policy, teacher, plan.policy, plan.judge, PROBLEMS, settings, TimeBudget(1, 0, grows=grows),
                         log, tmp_path, seed=0, start_step=begun)
        assert (result.steps, result.stopped, result.checkpoint_step) == (steps, "data", begun + steps + 1)
        begun = result.checkpoint_step
    assert [row["steps"] for row in log.read("start")] == [1, 3]


def test_what_cannot_be_distilled_is_named(policy, teacher, plan, tokenizer, tmp_path):
    def run(teacher=teacher, **changes):
        distill(policy, teacher, plan.policy, plan.judge, PROBLEMS, dataclasses.replace(SETTINGS, **changes),
                TimeBudget(1), RunLog(tmp_path / "run.jsonl"), tmp_path, seed=0, start_step=0)

    for wrong in ({"beta": 1.1}, {"on_policy": -0.1}, {"top_k": 0}):
        with pytest.raises(ValueError, match=f"{[*wrong][0]}={[*wrong.values()][0]}.*: give two numbers from 0 to 1"):
            run(**wrong)
    with pytest.raises(ValueError, match="distillation batch_size = 6 rows cannot be split over fsdp=4"):
        run(batch_size=6)
    other = Tokenizer(train_tokenizer(tmp_path / "other", symbols=("plus",)), "gemma3")
    with pytest.raises(ValueError, match="teacher splits text into other tokens than student"):
        run(dataclasses.replace(teacher, tokenizer=other))


def a_run(folder, budget):
    return Run(SimpleNamespace(lora_rank=4, lora_alpha=8.0, sft=TAUGHT), None, 0, folder, budget)


@pytest.mark.slow
def test_a_toy_teacher_learns_worked_steps_only_and_is_read_back(plan, tokenizer, tmp_path, monkeypatch):
    terse = PROBLEMS.map(lambda row: {"id": f"terse {row['id']}", "reasoning": f"So {row['answer']}"})
    seen, batches = [], sft_module.sft_batches
    monkeypatch.setattr(sft_module, "sft_batches", lambda rows, *rest: seen.extend(rows["id"]) or batches(rows, *rest))
    base = init_random(small_config(), plan.judge)
    stock = LoadedModel(base, tokenizer, base.config, "stock", None)
    rows = concatenate_datasets([terse, PROBLEMS])
    run = a_run(tmp_path, TimeBudget(grows=True))
    teacher, again = (train_toy_teacher(stock, plan.judge, rows, run) for _ in range(2))
    assert seen and {*seen} <= {*PROBLEMS["id"]}, "trained once, on rows that show a step"
    assert teacher.name == again.name == "stock, trained on worked steps"
    adapters = [nnx.state(model, nnx.LoRAParam) for model in (teacher.model, again.model)]
    fresh = nnx.state(add_lora(base, plan.judge, 4, 8.0, 0), nnx.LoRAParam)
    assert equal(*adapters) and not equal(adapters[0], fresh)


@pytest.mark.parametrize("grows", [False, True])
def test_a_toy_teacher_gets_a_quarter_of_the_stages_time(grows, plan, tokenizer, tmp_path, monkeypatch):
    """Its SFT had no clock, so a session of twelve minutes with many steps never came to distillation."""
    budgets = []
    monkeypatch.setattr("recipes.stages.distill.sft", lambda *arguments: budgets.append(arguments[4]))
    monkeypatch.setattr("recipes.stages.distill.restore_lora", lambda *_: None)
    base = init_random(small_config(), plan.judge)
    run = a_run(tmp_path, TimeBudget(1.5, 10, shares={"distill": 3.0, "grpo": 1.0}, grows=grows))
    for _ in range(2):
        train_toy_teacher(LoadedModel(base, tokenizer, base.config, "stock", None), plan.judge, PROBLEMS, run)
    assert len(budgets) == 1, "one that the clock has ended is not trained on when the notebook runs again"
    assert budgets[0].minutes_left == pytest.approx(80 * 3 / 4 / 4, abs=0.5)
    assert budgets[0].grows is grows

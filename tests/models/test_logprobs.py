from __future__ import annotations

import dataclasses
import random
import shutil
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.interpreters import pxla
from scipy.stats import spearmanr
from tiny_gemma import (
    TOKENS,
    bump,
    constrain,
    forward,
    gemma2,
    gemma2_config,
    gemma2_hf,
    small_config,
    train_tokenizer,
)
from tunix.rl import algo_core, common
from tunix.sft.utils import build_positions_from_mask, make_causal_attn_mask
from tunix.utils import sharding_utils

from reasonkit.config import PROFILES
from reasonkit.data.problems import load_recipe, rubric_of
from reasonkit.judge.judge import RATINGS, JudgeItem, judge_prompt
from reasonkit.models import logprobs
from reasonkit.models.load import Tokenizer, load, quantize_int8
from reasonkit.models.logprobs import SHARED, local_judge, pack_shared_prefixes, rating_logprobs
from reasonkit.models.lora import add_lora
from reasonkit.models.mesh import make_mesh, plan_mesh
from reasonkit.models.placement import load_judge
from reasonkit.text.tags import TAGS
from tools.build_tiny_models import ASSETS, reply
from tools.flax import init_random, save_flax
from tools.hf.__main__ import convert

pytestmark = pytest.mark.usefixtures("compiled")


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(jax.devices(), 8, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, mesh):
    root = tmp_path_factory.mktemp("tiny")
    return save_flax(init_random(small_config(), mesh), train_tokenizer(root / "pieces"), root / "model")


@pytest.fixture(scope="module")
def loaded(folder, mesh):
    return load(folder, mesh, jnp.float32)


@pytest.fixture
def seen(monkeypatch):
    """The devices of the mesh that Tunix sees where it constrains, and whether in the main thread."""
    traces = []

    def shard(x, spec, eager=False):
        mesh = pxla.thread_resources.env.physical_mesh
        traces.append(
            (
                mesh.size and [d.id for d in mesh.devices.flat],
                threading.current_thread() is threading.main_thread(),
            )
        )
        return jnp.asarray(x)

    monkeypatch.setattr(sharding_utils, "shard", shard)
    return traces


PROMPTS = [TAGS.prompt(f"add {'1 and ' * n}2") for n in (1, 10, 3, 20, 2)]


@pytest.mark.parametrize(("fsdp", "tp"), [(8, 1), (4, 2)])
def test_ratings_are_the_models_next_token_log_probabilities(loaded, folder, monkeypatch, fsdp, tp):
    """With Tunix's activation constraints, which it leaves out on a CPU."""
    monkeypatch.setattr(sharding_utils, "shard", constrain)
    mesh = make_mesh(jax.devices(), fsdp, tp)
    score = rating_logprobs(load(folder, mesh, jnp.float32), mesh, ("1", "2", "3"), 256, batch_size=8)
    got = score(PROMPTS)
    assert got.shape == (5, 3) and got.dtype == np.float32
    columns = [loaded.tokenizer.encode(rating)[0] for rating in "123"]
    for row, prompt in zip(got, PROMPTS, strict=True):
        ids = np.array([[2, *loaded.tokenizer.encode(prompt)]])
        expected = jax.nn.log_softmax(forward(loaded.model, ids)[0, -1])[np.array(columns)]
        np.testing.assert_allclose(row, expected, atol=1e-4)


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_prompts_in_one_row_are_rated_as_each_alone(folder, mesh, tmp_path, family):
    """Local layers see eight tokens back: those of a text, not those of the row, whatever stands beside it."""
    if family == "gemma2":
        shutil.copy(train_tokenizer(tmp_path / "pieces", 107), gemma2_hf(tmp_path / "hf"))
        convert(tmp_path / "hf", tmp_path / "gemma2")
    loaded = load(folder if family == "gemma3" else tmp_path / "gemma2", mesh, jnp.float32)
    prompts = [f"add {reply} and 5 {criterion}" for reply in ("1 and 2", "1 and 2 and 3 and 4 and 6")
               for criterion in ("is 7", "plus 8 is 3", "model", "0 and 5 and 5 and 8 and 9")]
    rows = pack_shared_prefixes([[2, *loaded.tokenizer.encode(prompt)] for prompt in prompts], 128)
    assert sum(map(len, rows)) == len(prompts) + len(rows) < 2 * len(prompts), "some share a row"
    together = rating_logprobs(loaded, mesh, ("1", "2", "3"), 128, batch_size=8)
    assert np.ptp(together(prompts)[:, 0]) > 1e-3
    alone = np.concatenate([together([prompt]) for prompt in prompts])
    np.testing.assert_allclose(together(prompts), alone, atol=1e-5)


def test_a_judges_prompts_of_one_reply_share_a_row():
    tokenizer = Tokenizer(ASSETS / "judge" / "tokenizer.model", "gemma3")
    recipe, rng = load_recipe("tiny_mix"), random.Random(0)
    drawn = [reply(recipe, rng, "test") for _ in range(20)]
    texts = [[2, *tokenizer.encode(judge_prompt(item.question, text, criterion, reverse))] for item, text, _ in drawn
             for reverse in (False, True) for criterion in rubric_of(recipe, item)]
    rows = pack_shared_prefixes(texts, 1024)
    assert len(rows) == 20 and [len(pieces) for pieces in rows] == [5] * 20
    assert [[*pieces[0], *piece] for pieces in rows for piece in pieces[1:]] == texts
    assert sum(len(piece) for pieces in rows for piece in pieces) < 0.5 * sum(map(len, texts))


@pytest.mark.parametrize(("question", "shared"), [(60, [9]), (4, [3, 3, 3, 3])])
def test_replies_to_one_question_share_a_row_where_that_is_cheaper(question, shared):
    """Four replies of ten tokens, on two criteria each."""
    texts = [[2, *[5] * question, *[10 + n] * 10, 20 + criterion, 30] for n in range(4) for criterion in range(2)]
    assert [len(pieces) for pieces in pack_shared_prefixes(texts, 1024)] == shared


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), max_size=30), st.integers(1, 30))
@settings(max_examples=200)
def test_every_text_is_packed_once_whole_and_in_order(texts, max_length):
    rows = pack_shared_prefixes(texts, max_length)
    assert [[*pieces[0], *piece] for pieces in rows for piece in pieces[1:]] == texts
    for pieces in rows:
        assert all(pieces[1:]) and 2 <= len(pieces) <= SHARED + 1
        size = sum(map(len, pieces))
        assert size <= max_length or len(pieces) == 2
        assert size <= sum(len(pieces[0]) + len(piece) for piece in pieces[1:])


def test_int8_ratings_rank_as_floats_do_in_a_third_of_the_memory():
    mesh, recipe, rng = make_mesh(jax.devices()[:4], 4, 1), load_recipe("tiny_mix"), random.Random(0)
    prompts = [judge_prompt(item.question, text, criterion) for item, text, _ in (
        reply(recipe, rng, "test") for _ in range(60)) for criterion in rubric_of(recipe, item)]
    floats = load("tiny-judge", mesh, jnp.float32)
    sizes, rated = [], []
    for judge in (floats, quantize_int8(floats, mesh)):
        sizes.append(sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(judge.model))))
        logprobs_BR = rating_logprobs(judge, mesh, RATINGS, 1024, 40)(prompts)
        rated.append(np.exp(logprobs_BR) @ np.arange(1, 6) / np.exp(logprobs_BR).sum(-1))
    assert spearmanr(*rated).statistic > 0.98 and not np.array_equal(*rated)
    assert sizes[1] < sizes[0] / 3


def test_the_judge_of_a_profile_is_named_by_what_it_is():
    plan, profile = plan_mesh(jax.devices(), judge=True), dataclasses.replace(PROFILES["smoke"], judge_int8=True)
    judge = local_judge(load_judge(profile, plan), plan.judge, profile, Path())
    assert judge.identity.startswith("tiny-judge-int8 explicit ") and not judge.chat
    (verdict,) = judge.score([JudgeItem("2+2?", "<answer>4</answer>", load_recipe("tiny_mix").rubric)])
    assert 0 <= verdict.score <= 1 and not judge.failures


def test_the_judges_mesh_is_entered_in_the_calling_thread(folder, seen):
    half = make_mesh(jax.devices()[4:], 4, 1)
    score = rating_logprobs(load(folder, half), half, ("1", "2"), max_length=64, batch_size=4)
    out = []
    thread = threading.Thread(target=lambda: out.append(score(["add 1"])))
    thread.start()
    thread.join()
    assert np.isfinite(out[0]).all()
    assert seen and all(trace == ([4, 5, 6, 7], False) for trace in seen)


def test_a_length_is_compiled_once(folder, mesh, seen):
    score = rating_logprobs(load(folder, mesh), mesh, ("1", "2"), max_length=128, batch_size=8)
    score(["add 1"] * 3)
    once = len(seen)
    for count in (1, 8, 11):
        score(["add 1 and 2"] * count)
    assert len(seen) == once
    for count, length in ((70, 2), (100, 3), (90, 3)):  # 64, 96 and 128 columns
        score(["1" * count])
        assert len(seen) == length * once


def test_a_prompt_that_is_too_long_is_no_signal_and_harms_no_other(loaded, mesh):
    score = rating_logprobs(loaded, mesh, ("1", "2"), max_length=20, batch_size=8)
    fits, too_long = "1" * 19, "1" * 20  # and BOS
    got = score([too_long, fits, "add 1", too_long])
    assert np.isneginf(got[[0, 3]]).all() and np.isfinite(got[[1, 2]]).all()
    np.testing.assert_array_equal(got[1:3], score([fits, "add 1"]))
    assert score([]).shape == (0, 2) and np.isneginf(score([too_long])).all()


def test_an_adapted_judge_rates_with_its_adapter(loaded, mesh):
    adapted = dataclasses.replace(loaded, model=add_lora(loaded.model, mesh, 4, 8.0))
    bump(adapted.model)
    one, other = (rating_logprobs(m, mesh, ("1", "2"), 64, 8)(["add 1"]) for m in (loaded, adapted))
    assert np.abs(one - other).max() > 1e-3


def test_ratings_that_cannot_be_read_off_are_refused(loaded, mesh):
    with pytest.raises(
        ValueError, match=r"rating '10' is the tokens \[\d+, \d+\] for .*: ratings must be one token"
    ):
        rating_logprobs(loaded, mesh, ("1", "10"), 64, 8)
    with pytest.raises(ValueError, match="batch_size = 6 rows cannot be split over fsdp=8"):
        rating_logprobs(loaded, mesh, ("1", "2"), 64, 6)


def in_chunks(model, inputs, count, temperature=1.0):
    return logprobs.token_logprobs(model, *inputs, count, temperature)


def at_once(model, inputs, count, temperature=1.0):
    """As in Tunix: all logits, then those that are wanted."""
    tokens_BT, positions_BT, mask_BTT = inputs
    logits_BCV = model(tokens_BT, positions_BT, None, mask_BTT)[0][:, -count - 1:-1] / temperature
    return (common.selective_log_softmax(logits_BCV, tokens_BT[:, -count:]),
            algo_core.compute_entropy_from_logits(logits_BCV.astype(jnp.float32)))


def slopes(read, model, inputs, count=9, temperature=0.7):
    """The log-probabilities, the entropies, and the gradients of a weighted sum of log-probabilities."""
    weights_BC = jax.random.normal(jax.random.key(1), (len(inputs[0]), count))

    def total(model):
        found = read(model, inputs, count, temperature)
        return (found[0] * weights_BC).sum(), found

    return jax.tree.leaves(nnx.jit(nnx.value_and_grad(total, argnums=nnx.DiffState(0, nnx.Param), has_aux=True))(model))


def inputs_of(tokens_BT):
    mask_BT = tokens_BT != 0
    return jnp.array(tokens_BT), build_positions_from_mask(mask_BT), make_causal_attn_mask(mask_BT)


def tiny(family, mesh):
    if family == "gemma3":
        return init_random(small_config(), mesh)
    model = gemma2.Gemma(gemma2_config(), rngs=nnx.Rngs(0))
    nnx.update(model, jax.tree.map(lambda x: x + 0.02, nnx.state(model)))  # its feed-forward begins with zeros
    return model


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_chunks_have_the_log_probabilities_and_gradients_of_all_logits_at_once(family, mesh, monkeypatch):
    """Chunks of different sizes, under Gemma 2's cap on logits, by the adapter and by all other weights."""
    monkeypatch.setattr(logprobs, "CHUNK", 400 * 2.4)  # tokens of a chip: 9 of a row in four chunks
    model = add_lora(tiny(family, mesh), mesh, 4, 8.0)
    bump(model, 0.05)
    with mesh:
        for ours, theirs in zip(*(slopes(read, model, inputs_of(TOKENS)) for read in (in_chunks, at_once)),
                                strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-5 * max(1, np.abs(theirs).max()))
    adapted = np.asarray(in_chunks(model, inputs_of(TOKENS), 9)[0])
    bump(model, -0.05)
    assert np.abs(adapted - in_chunks(model, inputs_of(TOKENS), 9)[0]).max() > 1e-3, "the adapter does nothing"


def test_no_array_of_all_logits_is_made(mesh, monkeypatch):
    """Of 4 rows of 64 tokens and 32,768 words. The control is Tunix's way."""
    monkeypatch.setattr(logprobs, "CHUNK", 32768 * 4 * 4)
    config, tokens_BT = small_config(num_embed=32768), np.ones((4, 65), np.int32)
    model = add_lora(init_random(config, mesh), mesh, 4, 8.0)
    graph, lora, rest = nnx.split(model, nnx.LoRAParam, ...)

    def temporaries(read):
        def total(lora):
            return read(nnx.merge(graph, lora, rest), inputs_of(tokens_BT), 64)[0].sum()

        return jax.jit(jax.grad(total)).lower(lora).compile().memory_analysis().temp_size_in_bytes

    whole = 4 * 64 * 32768 * 4
    assert temporaries(in_chunks) < 0.4 * whole < whole < temporaries(at_once)

"""Probabilities and features against plain forward passes, and a reward model that tells good traces from bad."""

from __future__ import annotations

import dataclasses
import random

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from tiny_run import CONFIG, new_policy, short_tokenizer
from tunix.sft.utils import build_positions_from_mask, make_causal_attn_mask

from reasonkit.data.problems import load_recipe
from reasonkit.judge.judge import JudgeItem
from reasonkit.judge.rubric import Criterion
from reasonkit.models.load import load
from reasonkit.models.mesh import make_mesh
from reasonkit.text.tags import TAGS
from recipes.judges.cache import CachedJudge
from recipes.rewards.thought_teacher import (
    FLATTEN,
    LOWEST,
    ThoughtJudge,
    ThoughtTeacher,
    trace_features,
    train_teacher,
)
from tools.build_tiny_models import auc, reply
from tools.flax import init_random

pytestmark = pytest.mark.usefixtures("compiled")

LENGTH = 64
PROMPT = TAGS.prompt("3 plus 4")


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(jax.devices()[:2], 2, 1)


@pytest.fixture(scope="module")
def policy(mesh, tmp_path_factory):
    return new_policy(init_random(CONFIG, mesh), mesh, short_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def stock(policy, mesh):
    return dataclasses.replace(policy, model=init_random(CONFIG, mesh))


def test_features_are_the_mean_and_last_state_and_the_likelihood_of_the_reasonings_tokens(stock, mesh):
    questions, thoughts = ["3 plus 4", "1 plus 2", "5 plus 5"], ["3+4=7", "9" * LENGTH, "x"]
    got, width = trace_features(stock, mesh, LENGTH, 4)(questions, thoughts), 2 * CONFIG.embed_dim
    assert got.shape == (3, width + 1 + LOWEST) and np.isnan(got[1]).all()
    for n in (0, 2):
        before = [2, *stock.tokenizer.encode(TAGS.prompt(questions[n]) + "<reasoning>")]
        ids = np.array([[*before, *stock.tokenizer.encode(thoughts[n])]])
        mask = np.ones_like(ids, bool)
        inputs = ids, build_positions_from_mask(mask), None, make_causal_attn_mask(mask)
        hidden_BTD, _ = stock.model(*inputs, hidden=True)
        expected = np.concatenate([hidden_BTD[0, len(before):].mean(0), hidden_BTD[0, -1]])
        np.testing.assert_allclose(got[n, :width], expected, atol=1e-4)
        logps_TV = jax.nn.log_softmax(stock.model(*inputs)[0][0].astype(np.float32))
        logps = sorted(float(logps_TV[t - 1, ids[0, t]]) for t in range(len(before), ids.shape[1]))
        assert got[n, width] == pytest.approx(np.mean(logps), abs=1e-4)
        np.testing.assert_allclose(got[n, width + 1:], [*logps, *[0.0] * LOWEST][:LOWEST], atol=1e-4)


def test_features_that_training_moves_are_refused(policy, mesh):
    with pytest.raises(ValueError, match="small has an adapter, and training would change its features"):
        trace_features(policy, mesh, LENGTH, 4)


# The reward model


@pytest.fixture(scope="module")
def toy():
    rng = np.random.default_rng(0)
    features_ND = rng.normal(size=(200, 5)).astype(np.float32) * [1, 10, 0.1, 1, 1] + [0, 3, 0, 0, 0]
    good_N = features_ND[:, 0] + 5 * features_ND[:, 2] + rng.normal(size=200) > 0
    return features_ND, good_N


def test_the_fit_is_that_of_scikit_learn(toy):
    features_ND, good_N = toy
    features_ND = np.vstack([features_ND, np.full(5, np.nan)])
    teacher = train_teacher("toy", features_ND, np.append(good_N, True))
    z_ND = (toy[0] - toy[0].mean(0)) / toy[0].std(0)
    oracle = LogisticRegression(C=1 / (FLATTEN * len(z_ND)), tol=1e-8, max_iter=1000).fit(z_ND, good_N)
    got = teacher.score(features_ND)
    np.testing.assert_allclose(got[:-1], oracle.predict_proba(z_ND)[:, 1], atol=1e-3)
    assert np.isnan(got[-1]) and auc(got[:-1], good_N) > 0.75


def test_it_is_saved_whole_and_read_back(toy, tmp_path):
    teacher = train_teacher("toy", *toy)
    path = tmp_path / "deep" / "teacher.safetensors"
    teacher.save(path)
    teacher.save(path)
    again = ThoughtTeacher.load(path)
    assert (again.model, again.bias) == ("toy", teacher.bias) and [p.name for p in path.parent.iterdir()] == [path.name]
    np.testing.assert_array_equal(again.score(toy[0]), teacher.score(toy[0]))
    with pytest.raises(FileNotFoundError, match="no reward model at .*none: train one"):
        ThoughtTeacher.load(tmp_path / "none")


def test_what_cannot_be_trained_or_scored_is_named(toy, stock, mesh):
    with pytest.raises(ValueError, match="200 good traces of 200 that fit: give some of both kinds"):
        train_teacher("toy", toy[0], np.ones(200, bool))
    teacher = train_teacher("toy", *toy)
    with pytest.raises(ValueError, match=r"features of shape \(2, 3\) for a head of 5 weights, trained on toy"):
        teacher.score(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="the reward model was trained on toy, but the model is small: load toy"):
        ThoughtJudge(teacher, stock, mesh, LENGTH, 4)


def test_a_teacher_rates_the_reasoning_alone(stock, mesh, tmp_path):
    teacher = ThoughtTeacher("small", np.linspace(-1, 1, 2 * CONFIG.embed_dim + 1 + LOWEST) / 10, 0.1)
    judge = ThoughtJudge(teacher, stock, mesh, LENGTH, 4)
    texts = ("3+4=7", "9" * LENGTH, "3+4=7", "")
    replies = [*(f"<reasoning>{text}</reasoning><answer>1</answer>" for text in texts), "<answer>7</answer>"]
    expected = float(teacher.score(trace_features(stock, mesh, LENGTH, 4)(["3 plus 4"], ["3+4=7"]))[0])
    score = pytest.approx(expected, abs=1e-5)
    items = [JudgeItem("3 plus 4", reply, (Criterion("Flow", "The steps follow", 1.0),)) for reply in replies]
    for cached in (judge, *(CachedJudge(judge, tmp_path / "verdicts.jsonl") for _ in range(2))):
        got = cached.score(items)
        assert [verdict.score for verdict in got] == [score, 0.0, score, 0.0, 0.0] and 0 < got[0].score < 1
        assert [verdict.cause for verdict in got] == [None, "reply_too_long", None, None, None]
    other = ThoughtJudge(dataclasses.replace(teacher, bias=0.2), stock, mesh, LENGTH, 4)
    assert other.identity != judge.identity and not judge.failures and judge.score([]) == []


def test_it_tells_good_traces_from_bad_ones_on_questions_it_never_saw():
    """Good: all steps shown, none of them padding."""
    recipe, mesh = load_recipe("tiny_mix"), make_mesh(jax.devices()[:2], 2, 1)
    judge = load("tiny-judge", mesh, "float32")
    features, sides = trace_features(judge, mesh, 192, 64), []
    for seed, (split, size) in enumerate((("train", 500), ("test", 300))):
        rng = random.Random(seed)
        items, texts, truths = zip(*(reply(recipe, rng, split, places=(0,)) for _ in range(size)), strict=True)
        thoughts = [TAGS.parse(text).reasoning for text in texts]
        sides.append((features([item.question for item in items], thoughts),
                      np.array([min(truth.values()) == 1.0 for truth in truths])))
    (train, good), (test, held_out) = sides
    teacher = train_teacher(judge.name, train, good)
    assert auc(teacher.score(test), held_out) > 0.65

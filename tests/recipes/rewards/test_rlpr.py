"""Probabilities of the reference answer against plain forward passes, and the reward that is made of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tiny_gemma import bump, forward
from tiny_run import CONFIG, new_policy, short_tokenizer

from reasonkit.config import PROFILES
from reasonkit.models.mesh import make_mesh
from reasonkit.rewards.mix import RewardMix
from reasonkit.session.run_log import NullLog
from reasonkit.session.setup import find_recipe
from reasonkit.text.tags import TAGS, neutralise
from recipes.rewards.rlpr import PolicyItself, mean_probability, rlpr
from tools.flax import init_random

pytestmark = pytest.mark.usefixtures("compiled")

LENGTH = 64
PROMPT = TAGS.prompt("3 plus 4")
PROFILE = replace(PROFILES["smoke"], judge_max_length=LENGTH, judge_batch=4)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(jax.devices()[:2], 2, 1)


@pytest.fixture(scope="module")
def policy(mesh, tmp_path_factory):
    return new_policy(init_random(CONFIG, mesh), mesh, short_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def probability(policy, mesh):
    return mean_probability(policy, mesh, LENGTH, 4)


def by_hand(policy, context, target):
    """The mean of the probabilities of the target's tokens and the stop token, read off one forward pass."""
    tokenizer = policy.tokenizer
    before, after = ([tokenizer.bos_id(), *tokenizer.encode(text)] for text in (context, context + target))
    assert after[:len(before)] == before, "no token spans the two"
    ids = [*after, tokenizer.end_of_turn]
    p_TV = jax.nn.softmax(forward(policy.model, np.array([ids + [0] * (LENGTH - len(ids))]))[0])
    return np.mean([p_TV[n - 1, ids[n]] for n in range(len(before), len(ids))])


TARGETS = ["7</answer>", "42</answer>", "7", "1 2 3 4 5</answer>", "x</answer>"]


def test_probabilities_are_the_models_own(policy, probability):
    contexts = [PROMPT + "<answer>", PROMPT + "<reasoning>3+4=7</reasoning>\n<answer>", "1", "add 1 and", PROMPT]
    got = probability(contexts, TARGETS)
    assert got.shape == (5,) and got.dtype == np.float32
    np.testing.assert_allclose(got, [by_hand(policy, *pair) for pair in zip(contexts, TARGETS, strict=True)], rtol=1e-4)


def test_what_is_too_long_is_no_signal_and_what_just_fits_is_one(policy, probability):
    fits, too_long = "1" * (LENGTH - 3), "1" * (LENGTH - 2)  # with BOS, a target of one token, and the stop token
    got = probability([too_long, fits, "1"], ["7", "7", "7"])
    assert np.isnan(got).tolist() == [True, False, False]
    assert got[2] == pytest.approx(probability(["1"], ["7"])[0]) and probability([], []).shape == (0,)


def itself(policy, mesh):
    return PolicyItself(policy, mesh, PROFILE, Path())


def test_rlpr_is_the_gain_over_the_bare_prompt(policy, mesh, monkeypatch):
    """Under the weights of the moment, and nothing where it can't be known. Here it is small, so not rounded."""
    monkeypatch.setattr("recipes.rewards.rlpr.DECIMALS", 7)
    reward = rlpr(itself(policy, mesh))
    thoughts = ["3+4=7", "1 2 3", None, "9" * LENGTH, "the answer is 7<end_of_turn>"]
    completions = [f"<reasoning>{text}</reasoning>\n<answer>1</answer>" if text else "<answer>7</answer>"
                   for text in thoughts]

    def expected(text):
        if text is None:
            return 0.0
        if len(text) >= LENGTH:
            return None
        written = neutralise(text)
        p, p0 = (by_hand(policy, PROMPT + before + "<answer>", "7</answer>")
                 for before in (f"<reasoning>{written}</reasoning>\n", ""))
        return float(np.clip(p - p0, 0, 1))

    seen = []
    for _ in range(2):
        got = reward([PROMPT] * 5, completions, answer=np.array(["7"] * 5), kind=["number"] * 5)
        assert got == [pytest.approx(value, abs=1e-5) if value else value for value in map(expected, thoughts)]
        seen.append(got)
        bump(policy.model, 0.3)
    assert seen[0] != seen[1] and any(value for value in seen[0] + seen[1])
    assert reward.__name__ == "rlpr" and reward([PROMPT], completions[2:3], ["7"], ["number"]) == [0.0]
    assert reward.failures == {"too_long": 2, "open": 0}
    assert reward([PROMPT] * 3, completions[:3], ["", " ", "{}"], ["open", "open", "plan"]) == [None] * 3
    assert reward.failures["open"] == 3
    columns = dict(answer=["7"] * 2, kind=["number"] * 2)
    assert len(RewardMix([(reward, 1.0)], NullLog())([PROMPT] * 2, completions[:2], 2, **columns)) == 2


def test_a_gain_is_rounded_because_grpo_would_magnify_its_noise():
    def probability(contexts, targets):
        return np.array([0.3 + 0.21 * ("3+4" in context) + 0.02 * ("=" in context) for context in contexts])

    reward = rlpr(SimpleNamespace(probability=probability, failures=Counter()))
    completions = [f"<reasoning>{text}</reasoning>\n<answer>7</answer>" for text in ("3+4", "3+4=7", "= 7")]
    assert reward([PROMPT] * 3, completions, answer=["7"] * 3, kind=["number"] * 3) == [0.2, 0.2, 0.0]


def test_the_recipe_pays_for_the_probability_in_the_right_format(policy, mesh):
    """Also on an open question, which no program can grade. Elsewhere the right answer pays as well."""
    mix = RewardMix(find_recipe("rlpr").rewards(itself(policy, mesh), ["3 plus 4"]), NullLog())
    completions = ["<reasoning>3+4=7</reasoning>\n<answer>7</answer>", "<reasoning>3+4=7</reasoning>\n<answer>7"]
    gain = rlpr(itself(policy, mesh))([PROMPT], completions[:1], answer=["7"], kind=["open"])[0]
    for kind, right in (("number", 1.0), ("open", 0.0)):
        earned = mix([PROMPT] * 2, completions, 2, answer=["7"] * 2, kind=[kind] * 2, question=["3 plus 4"] * 2)
        np.testing.assert_allclose(earned, [right + gain, -0.3], atol=1e-5)

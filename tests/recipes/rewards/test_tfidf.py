"""TF-IDF: the same cosines as scikit-learn's, and what happens at the edges."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

from reasonkit.data import problems as data
from reasonkit.text.words import words
from recipes.rewards.text import TfIdf

RECIPE = data.load_recipe("tiny_mix")


def test_the_cosines_are_those_of_scikit_learn():
    """Given every word as its vocabulary, scikit-learn weighs an unseen word as `TfIdf` does."""
    problems = list(itertools.islice(data.make_problems(RECIPE, "train", 0), 200))
    questions = [problem.question for problem in problems]
    others = [problem.reasoning + " Therefore the lamp" for problem in problems]
    vocabulary = sorted({word for text in questions + others for word in words(text)})
    oracle = TfidfVectorizer(token_pattern=r"\w+", vocabulary=vocabulary).fit(questions)
    expected = (oracle.transform(questions).multiply(oracle.transform(others))).sum(axis=1)
    model = TfIdf(questions)
    found = [model.cosine(words(a), words(b)) for a, b in zip(questions, others, strict=True)]
    assert found == pytest.approx([float(value) for value in expected.ravel().tolist()[0]], abs=1e-12)
    assert 0.0 < min(found) and max(found) < 1.0


def test_rare_words_count_more_and_unseen_ones_most():
    model = TfIdf(["a cat", "a dog", "a cow"])
    common, rare, unseen = (model.cosine(["cat", "dog", word], [word]) for word in ("a", "cow", "emu"))
    assert common < rare < unseen


def test_padding_with_unseen_words_lowers_the_cosine():
    model = TfIdf(["a cat", "a dog"])
    assert model.cosine(["cat", "emu"], ["cat"]) < model.cosine(["cat"], ["cat"]) == pytest.approx(1.0)


@pytest.mark.parametrize(("a", "b", "expected"), [
    ([], ["cat"], None), (["cat"], [], None), ([], [], None), (["cat"], ["dog"], 0.0), (["emu"], ["emu"], 1.0)])
def test_without_words_there_is_no_cosine(a, b, expected):
    assert TfIdf(["a cat", "a dog"]).cosine(a, b) == (expected if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("texts", [[], ["", " !? "]])
def test_texts_without_words_are_refused(texts):
    with pytest.raises(ValueError, match=f"{len(texts)} texts without a single word: fit on"):
        TfIdf(texts)


@given(st.text(), st.text())
def test_any_two_texts_have_a_cosine_in_0_1_whatever_their_order(a, b):
    model = TfIdf(["one cat", "one dog"])
    value = model.cosine(words(a), words(b))
    assert value is None if not words(a) or not words(b) else 0.0 <= value <= 1.0
    assert value == pytest.approx(model.cosine(words(b), words(a))) if value is not None else True


def test_the_order_of_words_does_not_matter():
    said = words("Leo has 6 shells and buys 5 shells more")
    mixed = random.Random(0).sample(said, len(said))
    model = TfIdf(["Leo has 6 shells", "Mia has 2 pens"])
    assert model.cosine(said, mixed) == pytest.approx(1.0)

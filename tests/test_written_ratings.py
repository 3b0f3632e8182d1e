"""Ratings in free text: the judge's own, and never the scale's, a step's or those of another scale."""

from __future__ import annotations

import doctest
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import written_ratings as ratings
from benchmarks.written_ratings import read_rating, written_ratings
from reasonkit.judge.judge import JudgeItem, LocalJudge
from reasonkit.judge.rubric import Criterion


@pytest.mark.parametrize(("text", "rating"), [
    # the number alone
    ("4", 4), ("4.", 4), ("4!", 4), ("_4_", 4), ("**5**", 5), ("[[4]]", 4), (" 2\n5", 2), ('{"rating": 1}', 1),
    ('```json\n{"rating": 3}\n```', 3), ("Answer: 4", 4),
    # the scale is not the rating
    ("from 1 to 5, I rate this 4", 4), ("Between 1 and 5 I rate it 2", 2), ("on a scale of 1-5: 3", 3),
    ("1–5: 4", 4), ("scale 1..5, rating 2", 2), ("1 to 5: 1", 1), ("1 2 3 4 5: 4", 4), ("1, 2, 3, 4, or 5? 3", 3),
    ("Rating (1-5): 4", 4), ("I rate this 4 on a scale of 1 to 5", 4), ("On a 5-point scale: 4", 4),
    ("Rating: 4 (1 = worst, 5 = best)", 4), ("Rating (1 = worst, 5 = best): 2", 2), ("1: worst, 5: best. 2", 2),
    ("On a scale from 1 (worst) to 5 (best), this is a 2.", 2), ("from 5, the best, to 1, the worst: 2", 2),
    ("1 (not met) to 5 (fully met): 5", 5), ("5 is the best, 1 is the worst; I give 3", 3),
    ("1 being the worst and 5 being the best, 3", 3), ("I rate this 4, where 1 is worst and 5 is best.", 4),
    # out of five
    ("4/5", 4), ("4 out of 5", 4), ("4 out of five", 4), ("The reply earns 3 of 5.", 3), ("5 out of 5 (1-5)", 5),
    ("3 stars out of 5", 3), ("4 (max. 5)", 4),
    # other numbers beside it
    ("The reply has 3 steps. Rating: 5", 5), ("4. The reply has 3 steps", 4), ("Rating: 4\nConfidence: 5", 4),
    ("1. fine\n2. fine\nRating: 4", 4), ("I rate this reply a 4", 4), ("My rating is **4**.", 4), ("Rating - 3", 3),
    ("Rating: 5 (excellent)", 5), ("4 - the steps follow", 4), ("10. Rating: 3", 3),
    # no signal: none at all, between two, or out of the scale
    ("", None), ("good", None), ("rating: four", None), ("٤", None), ("0", None), ("10", None), ("4th", None),
    ("3.5", None), ("3,5", None), ("4.5/5", None), ("3-4", None), ("between 3 and 4", None), ("Rating: -3", None),
    ("80%", None), ("4 %", None), ("4 points", None),
    # no signal: another scale
    ("6/5", None), ("4/10", None), ("4 out of 10", None), ("3 stars out of 10", None), ("rated 3 of 4", None),
    ("1-10: 4", None), ("0-5: 3", None), ("on a scale of 1 to 10, 4", None), ("Scale: 1 to 10. Rating: 4", None),
    ("4 on a 10-point scale", None), ("4 on a scale of 10", None), ("4 (max. 10)", None),
    # no signal: several that may be meant
    ("Rating: 4. Then again, rating: 3", None), ("1. Steps: 4\n2. Clear: 3", None), ("Criterion 1: 4", None),
    ("The reply has 3 steps and 2 errors", None), ("4 of the 5 steps are right", None), ("Rating: 5 = excellent", None),
])
def test_a_rating_is_told_from_its_scale(text, rating):
    assert read_rating(text) == rating


@given(st.lists(st.sampled_from(["1", "5", "4", " to ", "/", " of ", "rating", ":", "(", "best", "-", ".", "\n"])
                | st.text(max_size=3)).map("".join))
def test_any_text_is_read(text):
    assert read_rating(text) in (None, 1, 2, 3, 4, 5)


@pytest.mark.parametrize("unit", ["rating ", "rating is the ", "1 ", "1-", "1 (", "4/", "\n1. x", "1 best 5 ", "-"])
def test_a_text_is_read_in_linear_time(unit):
    def seconds(characters):
        start = time.process_time()
        read_rating(unit * (characters // len(unit)))
        return time.process_time() - start

    # Four times the text may take four times the time; a quadratic reader would take 16. Between is room for noise.
    assert min(seconds(200_000), seconds(200_000)) < 8 * min(seconds(50_000), seconds(50_000)) + 0.01


@pytest.mark.parametrize(("text", "score"), [
    ("4", 0.75), ("**5**", 1.0), ('{"rating": 1}', 0.0), ("The reply earns 3 of 5.", 0.5), (" 2\n5", 0.25),
    ("", None), ("good", None), ("10", None), ("0", None), ("6/5", None), ("٤", None),  # an Arabic four
    ("From 1 to 5, I rate this 4.", 0.75), ("3.5", None),
])
def test_a_written_rating_is_the_texts_or_no_signal(text, score):
    judge = LocalJudge(written_ratings(lambda prompts: [text] * len(prompts)), "fake")
    (result,) = judge.score([JudgeItem("q", "r", (Criterion("Steps", "d", 1.0), Criterion("Clear", "d", 0.3)))])
    assert (result.cause if score is None else result.score) == ("non_finite" if score is None else score)


def test_doctests():
    result = doctest.testmod(ratings)
    assert result.attempted and not result.failed

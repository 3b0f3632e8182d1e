"""pass@k and maj@k against a count of all subsets and a bootstrap over problems, and the tables' figures."""

from __future__ import annotations

import re
from itertools import combinations
from statistics import mean

import numpy as np
import pytest

from reasonkit.eval.evaluate import EvalResult
from tools import uncertainty
from tools.uncertainty import at_k_table, calibration_table, majority_at_k, pass_at_k


def results(*problems):
    """One result per completion, from the answers to each problem. "+" is right, "" is no answer."""
    return [EvalResult([{"id": str(n), "answer": answers[i] or None, "correct": answers[i][:1] == "+"}
                        for n, answers in enumerate(problems)]) for i in range(len(problems[0]))]


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(k):
    problems = [["+", "a", "a", "b"], ["a", "a", "a", "a"], ["+", "+", "", "a"], ["+", "+", "+", "+"]]
    seen = mean(any(a == "+" for a in subset) for answers in problems for subset in combinations(answers, k))
    assert pass_at_k(results(*problems), k).mean == pytest.approx(seen)


@pytest.mark.parametrize(("answers", "k", "expected"), [
    (["+", "+", "a"], 3, 1.0), (["+", "a", "A "], 3, 0.0), (["+", "a"], 2, 0.5), (["+", "a", "b"], 3, 1 / 3),
    (["", "", "+"], 3, 1.0), (["", ""], 2, 0.0), (["+1", "+1.0", "a", "a"], 4, 0.5), (["+", "a", "a"], 1, 1 / 3),
    (["+", "a", "a"], 2, (0.5 + 0.5 + 0) / 3)])
def test_majority_at_k_by_hand(answers, k, expected):
    assert majority_at_k(results(answers), k).mean == pytest.approx(expected)


def test_drawn_subsets_agree_with_all_of_them(monkeypatch):
    rng = np.random.default_rng(1)
    made = results(*[rng.choice(["+", "a", "b", ""], 8).tolist() for _ in range(100)])
    whole = majority_at_k(made, 4).mean
    monkeypatch.setattr(uncertainty, "SUBSETS", 60)  # of 70
    assert majority_at_k(made, 4).mean == pytest.approx(whole, abs=0.02) and majority_at_k(made, 8) == majority_at_k(
        made[::-1], 8)


def test_the_interval_is_that_of_a_bootstrap_over_problems():
    """A problem is as hard for all of its completions. 200 problems with 8 completions are no 1,600 trials."""
    rng = np.random.default_rng(0)
    made = results(*[np.where(rng.random(8) < rng.beta(0.5, 0.5), "+", "a").tolist() for _ in range(200)])
    for k, found in ((1, pass_at_k(made, 1)), (4, pass_at_k(made, 4)), (3, majority_at_k(made, 3))):
        alone = [(pass_at_k if k != 3 else majority_at_k)([EvalResult([r.samples[n]]) for r in made], k).mean
                 for n in range(200)]
        ends = np.quantile(rng.choice(alone, (4000, 200)).mean(1), (0.025, 0.975))
        np.testing.assert_allclose(found[1:], ends, atol=0.012)


def test_what_cannot_be_counted_is_named():
    two = results(["+", "a"], ["a", "a"])
    for k in (0, 3):
        with pytest.raises(ValueError, match=f"k={k}: give a whole number from 1 to the number of results, 2"):
            pass_at_k(two, k)
    with pytest.raises(ValueError, match="on different problems: 1 of them differ, such as id '1'"):
        majority_at_k([two[0], EvalResult(two[1].samples[:1])], 1)
    with pytest.raises(ValueError, match="from 1 to the number of results, 0"):
        pass_at_k([], 1)


def cells(page):
    return [[re.sub(r"<svg.*?</svg>|<[^>]*>", "", cell).strip() for cell in re.findall("<td>(.*?)</td>", row, re.S)]
            for row in re.findall("<tr>.*?</tr>", page, re.S)[1:]]


@pytest.mark.parametrize(("n", "ks"), [(1, ["1"]), (2, ["1", "2"]), (6, ["1", "2", "4", "6"])])
def test_the_table_has_the_powers_of_two_and_all(n, ks):
    results = [EvalResult([{"id": "a", "answer": "1", "correct": i == 0}]) for i in range(n)]
    rows = cells(at_k_table(results))
    assert [row[0] for row in rows] == ks
    assert rows[0][1].startswith(f"{100 / n:.1f}") and rows[-1][1].startswith("100.0")


def test_a_judge_that_knows_and_one_that_does_not():
    def row(score, right, **more):
        return {"sample": {"parts": {"rubric_if_tag_format": score, "exact_answer": right, "words": 0.5}}, **more}

    rows = [row(0.05, 0.0)] * 8 + [row(1.0, 1.0)] * 6 + [row(0.81, 0.0)] * 2 + [row(0.6, 1.0)]
    low, middle, high = cells(calibration_table([*rows, row(0.5, None), row(None, 1.0), {"at": 3}]))
    assert middle[:3] == ["0.6 to 0.8", "1", "0.60"]
    assert low[:3] == ["0.0 to 0.2", "8", "0.05"] and low[3].startswith("0.0")
    assert high[:3] == ["0.8 to 1.0", "8", "0.95"] and high[3].startswith("75.0")
    assert calibration_table([]) == ""

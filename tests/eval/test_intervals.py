"""Intervals of means: by hand where that can be done, honest at the ends, and as often right as they say."""

from __future__ import annotations

import math
import runpy
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from reasonkit.eval.intervals import interval, p_value

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))  # as for a script
BENCHMARK = runpy.run_path(str(BENCHMARKS / "coverage.py"))
LAWS = {law.name: law for law in BENCHMARK["LAWS"]}


@pytest.mark.parametrize(("right", "n"), [(0, 1), (0, 5), (1, 5), (0, 25), (3, 25), (25, 25), (172, 400)])
def test_a_rates_interval_is_the_mid_p_one(right, n):
    low, high = interval([1.0] * right + [0.0] * (n - right), 0.0, 1.0)
    for end, tail in ((low, stats.binom.sf(right, n, low)), (high, stats.binom.cdf(right - 1, n, high))):
        inside = 0 < end < 1
        assert inside == (end == low and right > 0 or end == high and right < n)
        if inside:
            assert tail + stats.binom.pmf(right, n, end) / 2 == pytest.approx(0.025, abs=1e-6)


def test_a_rate_that_was_never_seen_may_still_be():
    assert interval([0.0] * 25, 0.0, 1.0) == (0.0, pytest.approx(1 - 0.05 ** (1 / 25)))
    assert interval([1.0] * 25, 0.0, 1.0) == (pytest.approx(0.05 ** (1 / 25)), 1.0)


def test_five_of_five_gained():
    """A change of 1 may come of a rate of (1 + m) / 2, with the rest lost."""
    assert interval([1.0] * 5, -1.0, 1.0) == (pytest.approx(2 * 0.05 ** 0.2 - 1, abs=1e-6), 1.0)
    assert p_value([1.0] * 5, -1.0, 1.0) == pytest.approx(2 / 2 ** 6)


@pytest.mark.parametrize("value", [-1.0, -0.3, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("n", [1, 5, 25, 600])
def test_equal_values_are_not_certain_of_their_mean(value, n):
    low, high = interval([value] * n, -1.0, 1.0)
    assert -1 <= low <= value <= high <= 1 and high - low > 1 / n
    assert (low == value) == (value == -1) and (high == value) == (value == 1)


def test_many_values_have_the_normal_interval():
    for n, law in ((600, (2, 1)), (5000, (0.5, 3))):
        values = np.random.default_rng(3).beta(*law, n)
        half = 1.96 * values.std(ddof=1) / math.sqrt(n)
        assert interval(values, 0.0, 1.0) == pytest.approx((values.mean() - half, values.mean() + half), abs=half / 10)


def test_of_one_rate_the_changes_are_a_sign_test_in_the_large():
    gained, lost, n = 60, 35, 600
    values = [1.0] * gained + [-1.0] * lost + [0.0] * (n - gained - lost)
    exact = stats.binomtest(gained, gained + lost).pvalue
    assert p_value(values, -1.0, 1.0) == pytest.approx(exact - stats.binom.pmf(gained, gained + lost, 0.5), rel=0.02)


def test_the_tail_of_sums_between_the_points_of_the_grid():
    """Values of no common grid, against the sums themselves: 3 of 4 possible ones, so that weights are known."""
    values = [0.0, 1.0, 1 / math.pi]
    low, high = interval(values, 0.0, 1.0)
    wide = interval(values * 9, 0.0, 1.0)
    assert low < wide[0] < np.mean(values) < wide[1] < high
    mirrored = interval([1 - value for value in values], 0.0, 1.0)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=2e-3)


@given(st.lists(st.sampled_from([-1.0, -0.75, -1 / 3, 0.0, 0.1, 0.5, 1.0]), min_size=1, max_size=40))
@settings(max_examples=100, deadline=None)
def test_interval_and_p_value_never_contradict_each_other(values):
    low, high = interval(values, -1.0, 1.0)
    p = p_value(values, -1.0, 1.0)
    assert -1 <= low <= np.mean(values) + 1e-9 and np.mean(values) - 1e-9 <= high <= 1 and 0 <= p <= 1
    if abs(p - 0.05) > 1e-6:
        assert (p < 0.05) == (not low <= 0 <= high)


@cache
def ends(right: int, n: int, low: float) -> tuple[float, float]:
    return interval([1.0] * right + [0.0] * (n - right), low, 1.0)


def exact_coverage(n: int, rate: float, low: float) -> float:
    """Of n values that are 1 at this rate and else 0, in a range from `low`; counts that never come are left out."""
    chances = stats.binom.pmf(np.arange(n + 1), n, rate)
    return sum(float(chances[right]) for right in np.flatnonzero(chances > 1e-6)
               if ends(right, n, low)[0] - 1e-9 <= rate <= ends(right, n, low)[1] + 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("low", [0.0, -1.0], ids=["rates", "changes"])
@pytest.mark.parametrize("n", [5, 25, 600])
def test_coverage_is_as_said(n, low):
    """Without chance: every count of ones, by how likely it is. 0.04 gained of 25 was covered in 60 %."""
    found = {rate: exact_coverage(n, rate, low) for rate in (0, 0.02, 0.04, 0.5, 1)}
    assert min(found.values()) >= 0.935, found
    assert found[0] == found[1] == pytest.approx(1), "every draw is the same, and an interval that is honest holds it"
    assert found[0.5] <= 0.975, found
    if n == 600:
        assert max(found[rate] for rate in (0.02, 0.04, 0.5)) <= 0.965, found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "n"), [("steps, few right", 25), ("steps, most right", 25), ("change of steps", 25),
                                         ("change, 0.1 gained, 0.05 lost", 25), ("change, 0.3 gained, 0.1 lost", 600)])
def test_coverage_of_fractions_and_of_gains_with_losses(name, n):
    covered, above, _ = BENCHMARK["coverage"](LAWS[name], n, draws=400, seed=1)
    assert covered >= 0.935 - 2 * math.sqrt(0.935 * 0.065 / 400) and above <= 0.05


@pytest.mark.parametrize(("values", "match"), [
    ([], "0 values from None to None: give at least one"),
    ([0.5, 1.5], r"2 values from 0.5 to 1.5: .* in \[0.0, 1.0\]"),
    ([-0.1], "1 values from -0.1"),
    ([float("nan")], "nan"),
])
def test_what_is_no_sample_is_refused(values, match):
    with pytest.raises(ValueError, match=match):
        interval(values, 0.0, 1.0)

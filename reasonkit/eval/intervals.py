"""How certain a mean of bounded values is: `interval`, and `p_value` for a hypothesis about the mean.

Both ask: if the mean were m, how likely is a sum at least as far off as the one we saw? They assume the most likely
distribution with mean m on the values seen and the two ends of their range. Sources: Efron, Canadian J. Statistics 9,
1981 (nonparametric tilting); Owen, Biometrika 75, 1988 (its weights); Honda and Takemura, COLT 2010 (the ends).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import brentq

LEVEL = 0.95
TRACE = 1e-6  # prior share of an end that was not seen: it gains mass only if the mean needs it
CELLS = (2, 4, 6, 12, 24, 60, 120)  # sizes of the grid for sums: the first on which all values lie is used, or the last


def interval(values: Sequence[float], low: float, high: float) -> tuple[float, float]:
    """The ends of the 95 % interval for the mean of independent `values` in [low, high].

    It contains every mean m under which both tails of the sum are at least 2.5 %. Half of the probability of the sum
    itself counts as tail. This is the mid-p of Lancaster, JASA 56, 1961. It covers 95 % on average, while an exact test
    covers more. For zeros and ones this gives the mid-p interval of a rate. For changes of -1, 0 and 1 the weights are
    those of Tango, Statistics in Medicine 17, 1998. Raises ValueError without values and for one outside the range.
    """
    tail, mean = _tail(values, low, high), float(np.mean(values))
    ends = [low, high]
    if mean > low:
        ends[0] = brentq(lambda m: tail(m) - (1 - LEVEL) / 2, low, mean, xtol=1e-8)
    if mean < high:
        ends[1] = brentq(lambda m: tail(m) - (1 + LEVEL) / 2, mean, high, xtol=1e-8)
    return float(ends[0]), float(ends[1])


def p_value(values: Sequence[float], low: float, high: float) -> float:
    """Twice the smaller tail if the mean is 0, to twelve places. It is below 0.05 exactly if `interval` excludes 0.

    Raises ValueError as `interval` does.
    """
    upper = _tail(values, low, high)(0.0)
    return abs(round(2 * min(upper, 1 - upper), 12))


def _tail(values: Sequence[float], low: float, high: float) -> Callable[[float], float]:
    """A function of the mean: the probability of a larger sum, plus half the probability of the same sum."""
    found, counts = np.unique(np.asarray(values, np.float64), return_counts=True)
    n = int(counts.sum())
    if n == 0 or not (low <= found[0] and found[-1] <= high):
        raise ValueError(f"{n} values from {found[0] if n else None} to {found[-1] if n else None}: give at least "
                         f"one, all of them in [{low}, {high}]")
    for end in {low, high} - set(found):
        found, counts = np.append(found, end), np.append(counts, TRACE * n)
    scaled = (found - low) / (high - low)
    fitting = (cells for cells in CELLS if np.abs(scaled * cells - np.round(scaled * cells)).max() < 1e-9)
    cells = next(fitting, CELLS[-1])
    place = scaled * cells  # a value between two grid points is split between them, which keeps its mean
    below = np.minimum(place.astype(int), cells - 1)
    part = place - below
    seen = float(np.sum((np.asarray(values, np.float64) - low) / (high - low) * cells))
    size = n * cells + 1
    # less than 1e-21 of all sums are further than 5 cells sqrt(n) from their mean (Hoeffding, JASA 58, 1963)
    length = 1 << (min(size, math.ceil(10 * cells * math.sqrt(n))) - 1).bit_length()

    def tail(mean: float) -> float:
        if mean <= low:
            return 0.0 if seen > 0 else 0.5
        if mean >= high:
            return 1.0 if seen < n * cells else 0.5
        weights = _weights(found, counts / n, mean)
        one = np.bincount(below, weights * (1 - part), cells + 1) + np.bincount(below + 1, weights * part, cells + 1)
        centre = round(n * (mean - low) / (high - low) * cells)
        start = min(max(centre - length // 2, 0), max(size - length, 0))
        sums = np.roll(np.fft.irfft(np.fft.rfft(one, length) ** n, length), -start)
        middle = np.cumsum(sums) - sums / 2
        return 1 - float(np.interp(seen - start, np.arange(length), middle))

    return tail


def _weights(values: np.ndarray, shares: np.ndarray, mean: float) -> np.ndarray:
    """The most likely weights of this mean, share / (1 + t (value - mean)), with the t that gives them this mean."""
    away = values - mean
    ends = -1 / away.max(), -1 / away.min()
    t = brentq(lambda t: np.sum(shares * away / (1 + t * away)), *(end * (1 - 1e-12) for end in ends))
    weights = shares / (1 + t * away)
    return weights / weights.sum()

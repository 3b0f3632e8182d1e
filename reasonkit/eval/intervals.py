"""How sure a mean of bounded values is: `interval`, and `p_value` for a mean that was supposed beforehand.

Both ask one question: if the mean were m, how likely is a sum as far off as the one seen? The values are then taken to
be drawn from the likeliest distribution of mean m that has mass on the values seen and on the two ends of their range
(Efron, Canadian J. Statistics 9, 1981, nonparametric tilting; Owen, Biometrika 75, 1988, for its weights; Honda and
Takemura, COLT 2010, for the ends, without which equal values would be certain of their mean).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import brentq

TRACE = 1e-6  # the share of an end that was not seen: it takes on mass only where a mean can't be had without it
CELLS = (2, 4, 6, 12, 24, 60, 120)  # of the grid that tells sums apart: the first that has all values, or the last


def interval(values: Sequence[float], low: float, high: float, level: float = 0.95) -> tuple[float, float]:
    """The ends of an interval for the mean of independent `values`, which lie in [low, high].

    It holds the means m under which neither tail of the sum, half of the sum's own mass included, is below
    (1 - level) / 2: the mid-p of Lancaster, JASA 56 (1961), by which it covers `level` on average, where an exact test
    covers more. For zeros and ones the distribution of mean m is the Bernoulli one, and this the mid-p interval of a
    rate: 0 of 25 is [0, 1 - 0.05^(1/25)]. For changes of -1, 0 and 1 the weights are the likeliest ones of a matched
    pair under a given difference (Tango, Statistics in Medicine 17, 1998).

    Raises ValueError without values, for one outside the range, and for a level that does not lie between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level}: must lie between 0 and 1, such as 0.95")
    tail, mean = _tail(values, low, high), float(np.mean(values))
    ends = [low, high]
    if mean > low:
        ends[0] = brentq(lambda m: tail(m) - (1 - level) / 2, low, mean, xtol=1e-8)
    if mean < high:
        ends[1] = brentq(lambda m: tail(m) - (1 + level) / 2, mean, high, xtol=1e-8)
    return float(ends[0]), float(ends[1])


def p_value(values: Sequence[float], low: float, high: float, mean: float = 0.0) -> float:
    """Twice the smaller tail under this mean, at most 1: below 1 - level exactly if `interval` leaves the mean out.

    It is right to twelve places. Raises ValueError as `interval`.
    """
    upper = _tail(values, low, high)(mean)
    return abs(round(2 * min(upper, 1 - upper), 12))


def _tail(values: Sequence[float], low: float, high: float) -> Callable[[float], float]:
    """A function of the mean: the chance of a larger sum, and half of that of the same one."""
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
    place = scaled * cells  # a value between two points of the grid is shared out between them, so that its mean stays
    below = np.minimum(place.astype(int), cells - 1)
    part = place - below
    seen = float(np.sum((np.asarray(values, np.float64) - low) / (high - low) * cells))
    size = n * cells + 1
    # further from their mean than 5 cells sqrt(n) lie less than 1e-21 of all sums (Hoeffding, JASA 58, 1963)
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
    """The likeliest weights of this mean: share / (1 + t (value - mean)), with the t under which they have it."""
    away = values - mean
    ends = -1 / away.max(), -1 / away.min()
    t = brentq(lambda t: np.sum(shares * away / (1 + t * away)), *(end * (1 - 1e-12) for end in ends))
    weights = shares / (1 + t * away)
    return weights / weights.sum()

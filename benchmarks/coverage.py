"""How often the 95 % intervals contain the true mean: `python benchmarks/coverage.py`.

It covers each kind of figure in a result, at true means in the middle of the range, near its ends and at them: rates,
step accuracy, and paired changes of both. At a rate of 0 or 1 every draw is the same, so an honest interval always
contains the mean. With few possible sums a coverage of 95 % does not exist: for 5 completions at a rate of 0.02 it is
90.4, 99.6 or 100 %. Exits with 1 when a coverage is below 93.5 % by more than two standard errors of the simulation.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from typing import NamedTuple

import checkout  # noqa: F401
import numpy as np

from reasonkit.eval.intervals import interval

FLOOR = 0.935


class Law(NamedTuple):
    """What one reply, or one problem of a pair, is worth, and how often; `low` is the least that it could be worth."""

    name: str
    low: float
    values: Sequence[float]
    chances: Sequence[float]

    @property
    def mean(self) -> float:
        return float(np.dot(self.values, self.chances))


def _change(gained: float, lost: float) -> Law:
    return Law(f"change, {gained:g} gained, {lost:g} lost", -1.0, (1.0, -1.0, 0.0), (gained, lost, 1 - gained - lost))


LAWS = (
    *(Law(f"rate {rate:g}", 0.0, (1.0, 0.0), (rate, 1 - rate)) for rate in (0, 0.02, 0.1, 0.5, 0.98, 1)),
    *(_change(gained, lost) for gained, lost in
      ((0, 0), (0.02, 0), (0.04, 0), (0.5, 0), (1, 0), (0.02, 0.02), (0.1, 0.05), (0.3, 0.1), (0.5, 0.5))),
    Law("steps, few right", 0.0, (0.0, 1 / 3, 0.5, 1.0), (0.9, 0.05, 0.03, 0.02)),
    Law("steps, most right", 0.0, (1.0, 0.75, 0.5, 0.0), (0.8, 0.1, 0.05, 0.05)),
    Law("change of steps", -1.0, (-0.5, -0.25, 0.0, 0.25, 0.5, 1.0), (0.05, 0.1, 0.5, 0.2, 0.1, 0.05)),
)


def coverage(law: Law, n: int, draws: int, seed: int) -> tuple[float, float, float]:
    """The share of intervals of n values that hold the mean, that of those all above it, and their mean width."""
    counts_DV = np.random.default_rng(seed).multinomial(n, law.chances, draws)
    kinds_KV, times_K = np.unique(counts_DV, axis=0, return_counts=True)
    ends_K2 = np.array([interval(np.repeat(law.values, counts), law.low, 1.0) for counts in kinds_KV])
    above_K, below_K = ends_K2[:, 0] > law.mean + 1e-9, ends_K2[:, 1] < law.mean - 1e-9
    shares_K = times_K / draws
    return float(shares_K @ ~(above_K | below_K)), float(shares_K @ above_K), float(shares_K @ np.ptp(ends_K2, axis=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--n", type=int, nargs="+", default=[5, 25, 600])
    options = parser.parse_args()
    worst = 1.0
    print(f"| {options.draws} draws | " + " | ".join(f"n = {n} | above, below | width" for n in options.n) + " |")
    print("|---" * (1 + 3 * len(options.n)) + "|")
    for law in LAWS:
        cells = []
        for n in options.n:
            covered, above, width = coverage(law, n, options.draws, seed=n)
            worst = min(worst, covered)
            missed = f"{100 * above:.1f}, {100 * abs(1 - covered - above):.1f}"
            cells.append(f"{100 * covered:.1f} % | {missed} | {width:.3f}")
        print(f"| {law.name} | {' | '.join(cells)} |", flush=True)
    noise = 2 * math.sqrt(FLOOR * (1 - FLOOR) / options.draws)
    print(f"\nThe least is {100 * worst:.1f} %; {100 * FLOOR:.1f} % is the floor, {100 * noise:.1f} the noise.")
    sys.exit(worst < FLOOR - noise)


if __name__ == "__main__":
    main()

"""Tables that look beyond one greedy completion: `at_k_table` has several sampled ones per problem, and
`calibration_table` the right answers at each level of the judge's score."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from reasonkit.eval.evaluate import EvalResult, mean_of
from reasonkit.eval.sampled import majority_at_k, pass_at_k
from reasonkit.show.report import Html, interval_cell, table

BINS = 5  # of the judge's score


def at_k_table(results: Sequence[EvalResult]) -> Html:
    """pass@k and maj@k for k = 1, 2, 4, … and all of `results`, one per sampled completion of each problem."""
    n = len(results)
    ks = sorted({2**power for power in range(n.bit_length()) if 2**power <= n} | {n})
    return table(["k", "pass@k", "maj@k"],
                 [[k, interval_cell(pass_at_k(results, k)), interval_cell(majority_at_k(results, k))] for k in ks],
                 f"{results[0].n} problems, {n} sampled completions each. pass@k: one of k is right. maj@k: the most "
                 "frequent answer of k is right. Means with 95 % intervals over problems.")


def calibration_table(rows: Iterable[Mapping[str, Any]]) -> Html:
    """How many completions are right at each level of the judge's score. `rows` are "reward" rows of a run log.

    The recipe's `exact_answer` decides what is right. A judge of steps need not agree with it, but if the share does
    not rise with the score, the score says nothing about answers. Empty without a judge.
    """
    pairs = []
    for parts in (row["sample"]["parts"] for row in rows if row.get("sample")):
        found = [next((value for name, value in parts.items() if name.startswith(part)), None)
                 for part in ("rubric", "exact_answer")]
        if None not in found:
            pairs.append(found)
    lines: list[list[object]] = []
    for number in range(BINS):
        inside = [(score, float(right > 0)) for score, right in pairs
                  if min(int(score * BINS + 1e-9), BINS - 1) == number]
        if inside:
            scores, right = zip(*inside, strict=True)
            lines.append([f"{number / BINS:.1f} to {(number + 1) / BINS:.1f}", len(inside), f"{np.mean(scores):.2f}",
                          interval_cell(mean_of(right))])
    return table(["judge's score", "n", "its mean", "right answers"], lines, "One logged completion per step, so early "
                 "and late ones alike. With few completions a line says little.") if lines else Html()

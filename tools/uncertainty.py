"""Tables that look beyond one greedy completion: `at_k_table` has several sampled ones per problem, and
`calibration_table` the right answers at each level of the judge's score. Sources: Chen et al., arXiv 2107.03374 (the
unbiased estimator of pass@k); Wang et al., arXiv 2203.11171 (self-consistency). Intervals are over problems, because
completions of the same problem are alike."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, islice
from typing import Any

import numpy as np

from reasonkit.eval.evaluate import EvalResult, Interval, mean_of
from reasonkit.show.report import Html, interval_cell, table

BINS = 5  # of the judge's score
SUBSETS = 500  # a majority is averaged over at most so many subsets of a problem's completions


def at_k_table(results: Sequence[EvalResult]) -> Html:
    """pass@k and maj@k for k = 1, 2, 4, … and all of `results`, one per sampled completion of each problem."""
    n = len(results)
    ks = sorted({2**power for power in range(n.bit_length())} | {n})
    return table(["k", "pass@k", "maj@k"],
                 [[k, interval_cell(pass_at_k(results, k)), interval_cell(majority_at_k(results, k))] for k in ks],
                 f"{results[0].n} problems, {n} sampled completions each. pass@k: one of k is right. maj@k: the most "
                 "frequent answer of k is right. Means with 95 % intervals over problems.")


def pass_at_k(results: Sequence[EvalResult], k: int) -> Interval:
    """The chance that at least one of `k` completions is right: 1 - C(n - c, k) / C(n, k) if c of n = len(results) are.

    Each result has one sampled completion per problem, drawn with a different seed. Raises ValueError if the results
    are on different problems, and for a k that is not from 1 to n.
    """
    n = len(results)
    right = [sum(sample["correct"] for sample in samples) for samples in _by_problem(results, k)]
    return mean_of([1 - math.comb(n - c, k) / math.comb(n, k) for c in right])


def majority_at_k(results: Sequence[EvalResult], k: int) -> Interval:
    """The chance that the most frequent answer of `k` completions is right, averaged over subsets of the n.

    All right answers count as one answer. Wrong ones are compared as text, without case and white space, so two
    spellings of one answer split their votes. A completion without an answer has no vote. In a tie each answer counts
    by its share. Results and errors as for `pass_at_k`.
    """
    problems, n = _by_problem(results, k), len(results)
    subsets = list(islice(combinations(range(n), k), SUBSETS + 1))
    if len(subsets) > SUBSETS:
        rng = np.random.default_rng(0)
        subsets = [rng.choice(n, k, replace=False) for _ in range(SUBSETS)]
    votes = [[True if s["correct"] else "".join((s["answer"] or "").casefold().split()) for s in samples]
             for samples in problems]
    return mean_of([math.fsum(_share_right(answers[i] for i in subset) for subset in subsets) / len(subsets)
                    for answers in votes])


def _share_right(answers: Iterable[str | bool]) -> float:
    counts = Counter(filter(None, answers))
    most = max(counts.values(), default=0)
    return (counts[True] == most) / list(counts.values()).count(most) if most else 0.0


def _by_problem(results: Sequence[EvalResult], k: int) -> list[list[dict]]:
    if not 1 <= k <= len(results):
        raise ValueError(f"k={k}: give a whole number from 1 to the number of results, {len(results)}")
    by_id = [{sample["id"]: sample for sample in result.samples} for result in results]
    if other := {key for found in by_id for key in found.keys() ^ by_id[0].keys()}:
        raise ValueError(f"the results are on different problems: {len(other)} of them differ, such as id "
                         f"{min(other)!r}; evaluate all on one test set")
    return [[found[key] for found in by_id] for key in by_id[0]]


def calibration_table(rows: Iterable[Mapping[str, Any]]) -> Html:
    """How many completions are right at each level of the judge's score. `rows` are "reward" rows of a run log.

    The recipe's `exact_answer` decides what is right. A judge of steps need not agree with it, but if the share does
    not rise with the score, the score says nothing about answers. Empty without a judge.
    """
    levels: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for parts in (row["sample"]["parts"] for row in rows if row.get("sample")):
        score, right = (next((value for name, value in parts.items() if name.startswith(part)), None)
                        for part in ("rubric", "exact_answer"))
        if score is not None and right is not None:
            levels[min(int(score * BINS + 1e-9), BINS - 1)].append((score, float(right > 0)))
    lines = [[f"{level / BINS:.1f} to {(level + 1) / BINS:.1f}", len(pairs),
              f"{np.mean([score for score, _ in pairs]):.2f}", interval_cell(mean_of([right for _, right in pairs]))]
             for level, pairs in sorted(levels.items())]
    return table(["judge's score", "n", "its mean", "right answers"], lines, "One logged completion per step, so early "
                 "and late ones alike. With few completions a line says little.") if lines else Html()

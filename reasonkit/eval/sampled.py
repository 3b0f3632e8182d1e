"""Scores several sampled completions per problem. `pass_at_k`: is at least one of k right? `majority_at_k`: is their
most frequent answer right?

Sources: the unbiased estimator of Chen et al. (arXiv 2107.03374) and self-consistency (Wang et al., arXiv 2203.11171).
Each problem gives one value in [0, 1]. Intervals are over problems, because completions of the same problem are alike.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations, islice

import numpy as np

from reasonkit.eval.evaluate import EvalResult, Interval, mean_of

SUBSETS = 500  # a majority is averaged over at most so many subsets of a problem's completions


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

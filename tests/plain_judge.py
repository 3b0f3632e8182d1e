"""A judge made of plain functions, for tests."""

from __future__ import annotations

from collections import Counter

from reasonkit.judge.judge import JudgeFailure, JudgeVerdict


class PlainJudge:
    """Each function gives a number in [0, 1] for an item, and the score is their mean. One that raises is a failure."""

    def __init__(self, criteria):
        self.criteria, self.failures = criteria, Counter()

    def score(self, items):
        results = [self._score(item) for item in items]
        self.failures.update(result.cause for result in results if isinstance(result, JudgeFailure))
        return results

    def _score(self, item):
        try:
            met = tuple(float(criterion(item)) for criterion in self.criteria)
        except Exception as error:
            return JudgeFailure("criterion", f"{type(error).__name__}: {error}")
        return JudgeVerdict(sum(met) / len(met), met)

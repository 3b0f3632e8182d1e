"""`ApiJudge`: a judge behind an API. It sends score sheets by `api_calls.ApiCalls`, within limits of money and time.

Every item ends as a verdict or as a `JudgeFailure`, whose cause is one of `ScoreSheet.read` or of `ApiCalls`.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np

from reasonkit.judge.judge import JudgeFailure, JudgeItem, Result, weighted_score, wording_hash
from reasonkit.judge.rubric import Criterion
from reasonkit.session.run_log import RunLog
from recipes.judges.api_calls import ApiCalls, ApiLimits
from recipes.judges.api_client import CallError, Service, service_from_secrets
from recipes.judges.score_sheet import HIGHEST, ScoreSheet

# Causes by which one completion may spoil its whole call: it is refused, or makes the judge write too much or badly.
SHARED_CAUSES = {"blocked", "too_long", "unparsable", "contradictory", "miscounted"}


class ApiJudge(ApiCalls):
    """A judge that asks `service`. One call rates up to `replies_per_call` completions of consecutive items that share
    question and rubric. `mode` is as in `ScoreSheet`. `both_orders` asks each sheet a second time in the opposite order
    and takes the mean, for twice the money. An item that fails in one order fails.

    Raises ValueError for an unknown mode, for fewer than one completion per call, and as `ApiCalls`.
    """

    def __init__(self, service: Service, limits: ApiLimits, *, mode: str = "explicit", both_orders: bool = False,
                 replies_per_call: int = 8, log: RunLog | None = None) -> None:
        if mode not in HIGHEST:
            raise ValueError(f"mode is {mode!r}; give 'explicit' or 'implicit'")
        if replies_per_call < 1:
            raise ValueError(f"replies_per_call={replies_per_call!r}: give a number above 0")
        super().__init__(service, limits, log)
        self.name, self.mode, self.replies_per_call = service.name, mode, replies_per_call
        self.orders = (False, True) if both_orders else (False,)
        self.failures: Counter[str] = Counter()
        self._counting = threading.Lock()

    @property
    def identity(self) -> str:
        """What a verdict depends on besides the item: endpoint, model, mode, completions per call, prompts."""
        sheets = [ScoreSheet("q", ("r",), (Criterion("t", "d", 1.0),), self.mode, back) for back in self.orders]
        wording = wording_hash([sheet.prompt.replace(str(sheet.number), "?") for sheet in sheets])
        return f"{self.service.endpoint} {self.name} {self.mode} {self.replies_per_call} {wording}"

    def score(self, items: Sequence[JudgeItem]) -> list[Result]:
        """One result per item, within `limits.batch_seconds` and a few more.

        If a call for several items fails for one of `SHARED_CAUSES`, each item is asked about once more separately.
        Raises ValueError for an item without criteria.
        """
        singles = [ScoreSheet(item.question, (item.reply,), item.rubric, self.mode, back)
                   for back in self.orders for item in items]
        shares = []  # the numbers of the singles that one sheet joins
        for blank, same in groupby(range(len(singles)), lambda n: replace(singles[n], replies=())):
            numbers = list(same)
            if not blank.rubric:
                raise ValueError(f"item {numbers[0]} has an empty rubric; a judge needs at least one criterion")
            shares += [numbers[start:start + self.replies_per_call]
                       for start in range(0, len(numbers), self.replies_per_call)]
        shares.sort(key=lambda share: share[0] % len(items))  # both orders of an item, before the money ends
        results: dict[int, Result] = {}
        deadline, denied = self.deadline(), []

        def ask_about(shares: list[list[int]]) -> None:
            sheets = [replace(singles[share[0]], replies=tuple(singles[n].replies[0] for n in share))
                      for share in shares]
            answers = self.ask([(sheet.prompt, sheet.schema) for sheet in sheets], deadline, denied) if sheets else []
            for share, sheet, answer in zip(shares, sheets, answers, strict=True):
                found = (sheet.fail(answer.cause, f"{self.name}: {str(answer)[:300]}")
                         if isinstance(answer, CallError) else sheet.read(answer))
                results.update(zip(share, found, strict=True))

        ask_about(shares)
        ask_about([[n] for share in shares if len(share) > 1 and all(results[n].cause in SHARED_CAUSES for n in share)
                   for n in share])
        means = [_mean([results[n] for n in range(first, len(singles), len(items))], item.rubric)
                 for first, item in enumerate(items)]
        with self._counting:
            self.failures.update(result.cause for result in means if isinstance(result, JudgeFailure))
        return means


def _mean(results: list[Result], rubric: Sequence[Criterion]) -> Result:
    """The verdict on the mean over the orders, or the first failure."""
    if failures := [result for result in results if isinstance(result, JudgeFailure)]:
        return failures[0]
    met_C = np.mean([result.per_criterion for result in results], axis=0)
    return weighted_score(met_C, rubric[:len(met_C)])


def from_secrets(limits: ApiLimits, *, max_tokens: int = 4096, **options: Any) -> ApiJudge | None:
    """The judge whose key is among the secrets, or None. See `api_client.service_from_secrets`.

    options: as for `ApiJudge`. Raises ValueError for a model without a price, and as `service_from_secrets`.
    """
    service = service_from_secrets(max_tokens=max_tokens)
    return ApiJudge(service, limits, **options) if service else None

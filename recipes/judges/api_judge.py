"""`ApiJudge`: a judge behind an API. It sends score sheets by `api_calls.ApiCalls`, within limits of money and time.

Every item ends as a verdict or as a `JudgeFailure`, whose cause is one of `ScoreSheet.read` or of `ApiCalls`.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from reasonkit.judge.judge import JudgeFailure, JudgeItem, Result, wording_hash
from reasonkit.judge.rubric import Criterion
from reasonkit.session.run_log import RunLog
from recipes.judges.api_calls import ApiCalls, ApiLimits
from recipes.judges.api_client import CallError, Service, service_from_secrets
from recipes.judges.score_sheet import ScoreSheet

# Causes by which one completion may spoil its whole call: it is refused, or makes the judge write too much or badly.
SHARED_CAUSES = {"blocked", "too_long", "unparsable", "contradictory", "miscounted"}


class ApiJudge(ApiCalls):
    """A judge that asks `service`. One call rates up to `replies_per_call` completions of consecutive items that share
    question and rubric. Raises ValueError for fewer than one completion per call, and as `ApiCalls`.
    """

    def __init__(self, service: Service, limits: ApiLimits, *, replies_per_call: int = 8,
                 log: RunLog | None = None) -> None:
        if replies_per_call < 1:
            raise ValueError(f"replies_per_call={replies_per_call!r}: give a number above 0")
        super().__init__(service, limits, log)
        self.name, self.replies_per_call = service.name, replies_per_call
        self.failures: Counter[str] = Counter()
        self._counting = threading.Lock()

    @property
    def identity(self) -> str:
        """What a verdict depends on besides the item: endpoint, model, completions per call, and the prompt."""
        sheet = ScoreSheet("q", ("r",), (Criterion("t", "d", 1.0),))
        wording = wording_hash([sheet.prompt.replace(str(sheet.number), "?")])
        return f"{self.service.endpoint} {self.name} explicit {self.replies_per_call} {wording}"

    def score(self, items: Sequence[JudgeItem]) -> list[Result]:
        """One result per item, within `limits.batch_seconds` and a few more.

        If a call for several items fails for one of `SHARED_CAUSES`, each item is asked about once more separately.
        Raises ValueError for an item without criteria.
        """
        shares = []  # the numbers of the items on each sheet
        for (_, rubric), same in groupby(range(len(items)), lambda n: (items[n].question, items[n].rubric)):
            numbers = list(same)
            if not rubric:
                raise ValueError(f"item {numbers[0]} has an empty rubric; a judge needs at least one criterion")
            shares += [numbers[start:start + self.replies_per_call]
                       for start in range(0, len(numbers), self.replies_per_call)]
        results: dict[int, Result] = {}
        deadline, denied = self.deadline(), []

        def ask_about(shares: list[list[int]]) -> None:
            sheets = [ScoreSheet(items[share[0]].question, tuple(items[n].reply for n in share), items[share[0]].rubric)
                      for share in shares]
            answers = self.ask([(sheet.prompt, sheet.schema) for sheet in sheets], deadline, denied) if sheets else []
            for share, sheet, answer in zip(shares, sheets, answers, strict=True):
                found = (sheet.fail(answer.cause, f"{self.name}: {str(answer)[:300]}")
                         if isinstance(answer, CallError) else sheet.read(answer))
                results.update(zip(share, found, strict=True))

        ask_about(shares)
        ask_about([[n] for share in shares if len(share) > 1 and all(results[n].cause in SHARED_CAUSES for n in share)
                   for n in share])
        with self._counting:
            self.failures.update(result.cause for result in results.values() if isinstance(result, JudgeFailure))
        return [results[n] for n in range(len(items))]


def from_secrets(limits: ApiLimits, *, max_tokens: int = 4096, **options: Any) -> ApiJudge | None:
    """The judge whose key is among the secrets, or None. See `api_client.service_from_secrets`.

    options: as for `ApiJudge`. Raises ValueError for a model without a price, and as `service_from_secrets`.
    """
    service = service_from_secrets(max_tokens=max_tokens)
    return ApiJudge(service, limits, **options) if service else None

"""`ApiJudge`: a judge behind an API. It sends score sheets through `api_calls.ApiCalls`, within limits of money and
time.

Every item ends as a verdict or as a `JudgeFailure`, whose cause is one of `ScoreSheet.read` or of `ApiCalls`.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

from reasonkit.judge.judge import JudgeFailure, JudgeItem, Result
from reasonkit.session.run_log import RunLog
from recipes.judges.api_calls import ApiCalls, ApiLimits
from recipes.judges.api_client import CallError, Service, service_from_secrets
from recipes.judges.score_sheet import ScoreSheet, score_sheets, sheet_identity


class ApiJudge(ApiCalls):
    """A judge that asks `service`. One call rates up to `replies_per_call` completions of consecutive items that share
    question and rubric. If one of them makes the call fail, each is asked about separately. Raises ValueError as
    `ApiCalls` does.
    """

    def __init__(self, service: Service, limits: ApiLimits, *, replies_per_call: int = 8,
                 log: RunLog | None = None) -> None:
        super().__init__(service, limits, log)
        self.name, self.replies_per_call = service.name, replies_per_call
        self.failures: Counter[str] = Counter()
        self._counting = threading.Lock()

    @property
    def identity(self) -> str:
        """What a verdict depends on besides the item."""
        return sheet_identity(f"{self.service.endpoint} {self.name}", self.replies_per_call)

    def score(self, items: Sequence[JudgeItem]) -> list[Result]:
        """One result per item, within `limits.batch_seconds` and a few more. Raises ValueError as `score_sheets`."""
        deadline, denied = self.deadline(), []

        def ask(sheets: list[ScoreSheet]) -> list[list[Result]]:
            answers = self.ask([(sheet.prompt, sheet.schema) for sheet in sheets], deadline, denied)
            return [sheet.fail(answer.cause, f"{self.name}: {str(answer)[:300]}") if isinstance(answer, CallError)
                    else sheet.read(answer) for sheet, answer in zip(sheets, answers, strict=True)]

        results = score_sheets(items, ask, self.replies_per_call)
        with self._counting:
            self.failures.update(result.cause for result in results if isinstance(result, JudgeFailure))
        return results


def from_secrets(limits: ApiLimits, *, max_tokens: int = 4096, **options: Any) -> ApiJudge | None:
    """The judge whose key is among the secrets, or None. See `api_client.service_from_secrets`.

    options: as for `ApiJudge`. Raises ValueError for a model without a price, and as `service_from_secrets`.
    """
    service = service_from_secrets(max_tokens=max_tokens)
    return ApiJudge(service, limits, **options) if service else None

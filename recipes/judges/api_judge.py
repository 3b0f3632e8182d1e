"""`ApiJudge`: a judge behind an API. It asks score sheets of an `api_client.Service`, within limits of money and time.

Every item ends as a verdict or as a `JudgeFailure`, whose cause is one of `ScoreSheet.read` or one of these: "timeout",
"connection", "rate_limit" (429) and "server" (5xx), each after retries; "auth" (401, 403: no further call in that
batch), "request" (any other 4xx), "blocked" (no text), "too_long" (cut at `max_tokens`), "spending_limit", "backend".
"""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from fractions import Fraction
from functools import cache
from typing import Any

from tenacity import (
    AsyncRetrying,
    retry_if_exception,
    stop_after_attempt,
    stop_before_delay,
    wait_random_exponential,
)

from reasonkit.judge.judge import JudgeFailure, JudgeItem, Result
from reasonkit.session.secrets import redact
from recipes.judges.api_client import PRICES, CallError, Service, service_from_secrets
from recipes.judges.score_sheet import ScoreSheet, score_sheets, sheet_identity

RETRIED = {"timeout", "connection", "rate_limit", "server"}
UNBILLED = {"rate_limit", "server", "auth", "request"}  # answered with an error status
OVERHEAD = 256  # tokens that a service may put around a prompt
GRACE = 1.0     # seconds that calls get to end after they were cancelled


@dataclass(frozen=True)
class ApiLimits:
    """What a judge may use: `dollars` in its life, and `prices` by model, in dollars per million tokens in and out, for
    a model that `api_client.PRICES` lacks or has wrong.

    `call_seconds` is for one attempt. A batch, which is one `score`, takes at most `batch_seconds` and a few more.
    Before a retry it waits a random time up to backoff_seconds * 2^n, and as long as the service asks.
    Raises ValueError for numbers that are out of range and for unusable prices.
    """

    dollars: float
    prices: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    concurrency: int = 8
    attempts: int = 5
    backoff_seconds: float = 1.0
    call_seconds: float = 60.0
    batch_seconds: float = 300.0

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self) if f.name != "prices"):
            value = getattr(self, name)
            if not (_number(value) and (value >= 0 if name == "dollars" else value > 0)):
                raise ValueError(f"{name}={value!r}: give a number above 0 (the dollars may be 0)")
        if not isinstance(self.prices, Mapping):
            raise ValueError(f"prices={self.prices!r}: give them by model, such as {{'gemini-2.5-flash': (0.3, 2.5)}}")
        for model, price in self.prices.items():
            if not (isinstance(price, tuple | list) and len(price) == 2
                    and all(_number(p) and 0 <= p < math.inf for p in price)):
                raise ValueError(f"prices[{model!r}]={price!r}: give dollars per million tokens, in and out, each a "
                                 "number of at least 0, such as (0.3, 2.5)")


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class ApiJudge:
    """A judge that asks `service`. One call rates up to `replies_per_call` completions of consecutive items that share
    question and rubric. If it fails because of one of them, each is asked alone. mode: see `ScoreSheet`.

    Threads may share it, and it works under a running event loop, because the calls run in a loop of their own.

    spent: dollars, never less than the service bills. Each attempt first reserves its worst case, which is a token per
    byte of the prompt and `max_tokens` out, and is not sent if that would pass `limits.dollars`. An answer replaces it
    by the real cost, and an error status by 0. Without an answer, or with token counts that can't be true, it stands.
    usage: calls sent, and tokens_in and tokens_out of those answered.

    Raises ValueError for a model whose price is neither in `limits` nor in `api_client.PRICES`.
    """

    def __init__(self, service: Service, limits: ApiLimits, *, mode: str = "explicit",
                 replies_per_call: int = 8) -> None:
        self.service, self.limits = service, limits
        self.name, self.mode, self.replies_per_call = service.name, mode, replies_per_call
        self.failures: Counter[str] = Counter()
        self.usage: Counter[str] = Counter()
        self._prices = limits.prices.get(service.name) or PRICES.get((service.endpoint, service.name))
        if self._prices is None:
            raise ValueError(f"no price is known for model {service.name!r} ({service.endpoint or 'no endpoint'}), "
                             "and without one no spending limit holds: look it up and give it, as in ApiLimits("
                             f"dollars, prices={{{service.name!r}: (0.3, 2.5)}}), dollars per million tokens in and "
                             f"out; or name another model, such as {', '.join(model for _, model in PRICES)}")
        self._spent = Fraction(0)  # exact: reserving and settling leave no rounding
        self._counting = threading.Lock()
        self._slots = asyncio.Semaphore(limits.concurrency)
        self._loop = _background_loop()

    @property
    def identity(self) -> str:
        """What a verdict depends on besides the item."""
        return sheet_identity(f"{self.service.endpoint} {self.name}", self.mode, self.replies_per_call)

    @property
    def spent(self) -> float:
        """Dollars so far."""
        return float(self._spent)

    def score(self, items: Sequence[JudgeItem]) -> list[Result]:
        """One result per item, within `limits.batch_seconds` and a few more. Raises ValueError as `score_sheets`."""
        deadline, denied = self._loop.time() + self.limits.batch_seconds, []
        results = score_sheets(items, lambda sheets: self._ask(sheets, deadline, denied), self.mode,
                               self.replies_per_call)
        with self._counting:
            self.failures.update(result.cause for result in results if isinstance(result, JudgeFailure))
        return results

    def _ask(self, sheets: list[ScoreSheet], deadline: float, denied: list[CallError]) -> list[list[Result]]:
        batch = asyncio.run_coroutine_threadsafe(self._batch(sheets, deadline, denied), self._loop)
        try:
            return batch.result(self._left(deadline) + 3 * GRACE)
        except TimeoutError:  # something blocks the loop itself
            return [self._failed(sheet, "timeout", "the loop did not answer") for sheet in sheets]
        finally:
            batch.cancel()  # an interrupt ends the calls, too

    def _left(self, deadline: float) -> float:
        return max(0.0, deadline - self._loop.time())

    async def _batch(self, sheets: list[ScoreSheet], deadline: float, denied: list[CallError]) -> list[list[Result]]:
        tasks = [asyncio.create_task(self._answer(sheet, deadline, denied)) for sheet in sheets]
        try:
            done, late = await asyncio.wait(tasks, timeout=self._left(deadline))
        finally:
            for task in tasks:
                task.cancel()
        if late:
            await asyncio.wait(late, timeout=GRACE)
        detail = f"the batch has {self.limits.batch_seconds:g} s, and the answer was not there by then"
        return [task.result() if task in done and not task.cancelled() else self._failed(sheet, "timeout", detail)
                for sheet, task in zip(sheets, tasks, strict=True)]

    async def _answer(self, sheet: ScoreSheet, deadline: float, denied: list[CallError]) -> list[Result]:
        async with self._slots:
            backoff = wait_random_exponential(self.limits.backoff_seconds)
            retrying = AsyncRetrying(
                retry=retry_if_exception(lambda error: isinstance(error, CallError) and error.cause in RETRIED),
                stop=stop_after_attempt(self.limits.attempts) | stop_before_delay(self._left(deadline)),
                wait=lambda state: state.outcome.exception().retry_after + backoff(state), reraise=True)
            try:
                text = await retrying(self._attempt, sheet, denied)
            except CallError as error:
                return self._failed(sheet, error.cause, str(error))
        return sheet.read(redact(text, self.service.secret))  # a failure quotes the text

    async def _attempt(self, sheet: ScoreSheet, denied: list[CallError]) -> str:
        prompt, schema = sheet.prompt, sheet.schema
        most_in = len(prompt.encode()) + len(json.dumps(schema)) + OVERHEAD
        reserved = self._dollars(most_in, self.service.max_tokens)
        if denied:
            raise denied[0]
        if self._spent + reserved > self.limits.dollars:
            raise CallError("spending_limit", f"{self.spent:.6f} of {self.limits.dollars:g} dollars are spent or "
                            f"reserved, and this call may cost {float(reserved):.6f}")
        self._spent += reserved
        cost = reserved
        self.usage["calls"] += 1
        try:
            async with asyncio.timeout(self.limits.call_seconds):
                answer = await self.service.ask(prompt, schema)
            if answer.tokens_in and answer.tokens_out:
                cost = self._dollars(answer.tokens_in, answer.tokens_out)
                self.usage.update(tokens_in=answer.tokens_in, tokens_out=answer.tokens_out)
            return answer.text
        except TimeoutError:
            raise CallError("timeout", f"no answer within {self.limits.call_seconds:g} s") from None
        except CallError as error:
            if error.cause in UNBILLED:
                cost = Fraction(0)
            if error.cause == "auth":
                denied.append(error)
            raise
        finally:
            self._spent += cost - reserved

    def _dollars(self, tokens_in: int, tokens_out: int) -> Fraction:
        price_in, price_out = map(Fraction, self._prices)
        return (tokens_in * price_in + tokens_out * price_out) / 10**6

    def _failed(self, sheet: ScoreSheet, cause: str, detail: str) -> list[Result]:
        return sheet.fail(cause, f"{self.name}: {detail[:300]}")


@cache
def _background_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="reasonkit-judge-api", daemon=True).start()
    return loop


def from_secrets(limits: ApiLimits, *, max_tokens: int = 4096, **options: Any) -> ApiJudge | None:
    """The judge that a secret switches on, or None without one; see `api_client.service_from_secrets`.

    options: as for `ApiJudge`. Raises ValueError for a model without a price, and as `service_from_secrets`.
    """
    service = service_from_secrets(max_tokens)
    return ApiJudge(service, limits, **options) if service else None

"""A judge behind an API: score sheets of `judge_text`, asked of one of `services`.

It is what stands between the sheets and a network that fails: how many calls at once, how fast, how often again, how
long, and for how much money.

Every item ends as a verdict or as a `JudgeFailure` with one of these causes, besides those of `ScoreSheet.read`:
"timeout", "connection", "rate_limit" (429) and "server" (5xx), each after retries; "auth" (401, 403: no further call in
that batch); "request" (any other 4xx); "blocked" (no text); "too_long" (cut at `max_tokens`); "spending_limit"; and
"backend", anything else that the service's `call` raises.
"""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from tenacity import (
    AsyncRetrying,
    retry_if_exception,
    stop_after_attempt,
    stop_before_delay,
    wait_random_exponential,
)

from reasonkit.judge import JudgeFailure, JudgeItem
from reasonkit.judge_text import Result, ScoreSheet, identity, score_sheets
from reasonkit.services import CallError, Service, call_error, service_from_secrets

RETRIED = {"timeout", "connection", "rate_limit", "server"}
UNBILLED = {"rate_limit", "server", "auth", "request"}  # answered with an error status
OVERHEAD = 256  # tokens that a service may put around a prompt
GRACE = 1.0     # seconds that calls get to end after they were cancelled


@dataclass(frozen=True)
class Limits:
    """What a judge may use. `dollars`: in its life; prices in dollars per million tokens, in and out.

    A batch, which is one `score`, takes at most `batch_seconds` and a few more; `call_seconds` is for one attempt of
    one call. Before a retry: a random time up to backoff_seconds * 2^n, and what the service asks for.
    Raises ValueError for a number below 0, or one of 0 that is no price and no sum.
    """

    dollars: float
    dollars_in: float
    dollars_out: float
    concurrency: int = 8
    calls_per_minute: float = math.inf
    attempts: int = 5
    backoff_seconds: float = 1.0
    call_seconds: float = 60.0
    batch_seconds: float = 300.0

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self)):
            value = getattr(self, name)
            if not (value >= 0 if name.startswith("dollars") else value > 0):
                raise ValueError(f"{name}={value!r}: give a number above 0 (a price, or the dollars, may be 0)")


class ApiJudge:
    """A judge that asks `service`. One call rates up to `replies_per_call` replies of consecutive items that share
    question and rubric. mode, both_orders: see `ScoreSheet` and `score_sheets`.

    Safe in any thread, and under a running event loop, which `score` blocks: the calls run in a loop of their own.

    spent: dollars, never less than the service bills. Each attempt reserves its worst case before it is sent (a token
    for each byte of the prompt, `max_tokens` out) and is not sent where that would pass `limits.dollars`. An answer
    puts the real cost in its place, an error status 0; where nobody knows (no answer, no usage) the worst case stands.
    usage: calls sent, and tokens_in and tokens_out of those answered.
    """

    def __init__(self, service: Service, limits: Limits, *, mode: str = "explicit", replies_per_call: int = 8,
                 both_orders: bool = False) -> None:
        self.service, self.limits = service, limits
        self.name = service.name
        self.form = (mode, replies_per_call, both_orders)
        self.failures: Counter[str] = Counter()
        self.usage: Counter[str] = Counter()
        self.spent = 0.0
        self._counting = threading.Lock()
        self._slots = asyncio.Semaphore(limits.concurrency)
        self._next_call = 0.0  # by the loop's clock
        self._loop = _background_loop()

    @property
    def identity(self) -> str:
        return identity(self.name, self.form)

    def score(self, items: Sequence[JudgeItem]) -> list[Result]:
        """One result an item, within `limits.batch_seconds` and a few more. Raises ValueError as `score_sheets`."""
        results = score_sheets(items, self._ask, *self.form)
        with self._counting:
            self.failures.update(result.cause for result in results if isinstance(result, JudgeFailure))
        return results

    def _ask(self, sheets: list[ScoreSheet]) -> list[list[Result]]:
        batch = asyncio.run_coroutine_threadsafe(self._batch(sheets), self._loop)
        try:
            return batch.result(self.limits.batch_seconds + 3 * GRACE)
        except TimeoutError:  # something blocks the loop itself
            return [self._failed(sheet, "timeout", "the loop did not answer") for sheet in sheets]
        finally:
            batch.cancel()  # an interrupt ends the calls, too

    async def _batch(self, sheets: list[ScoreSheet]) -> list[list[Result]]:
        deadline, denied = self._loop.time() + self.limits.batch_seconds, []
        tasks = [asyncio.create_task(self._answer(sheet, deadline, denied)) for sheet in sheets]
        try:
            done, late = await asyncio.wait(tasks, timeout=self.limits.batch_seconds)
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
                stop=stop_after_attempt(self.limits.attempts) | stop_before_delay(deadline - self._loop.time()),
                wait=lambda state: state.outcome.exception().retry_after + backoff(state), reraise=True)
            try:
                text = await retrying(self._attempt, sheet, denied)
            except CallError as error:
                return self._failed(sheet, error.cause, str(error))
        return sheet.read(self._redacted(text))

    async def _attempt(self, sheet: ScoreSheet, denied: list[CallError]) -> str:
        prompt, schema = sheet.prompt, sheet.schema
        most_in = len(prompt.encode()) + len(json.dumps(schema)) + OVERHEAD
        reserved = self._dollars(most_in, self.service.max_tokens)
        self._refuse(reserved, denied)  # what can't be sent need not wait for its turn
        start = self._next_call = max(self._loop.time(), self._next_call)
        self._next_call += 60 / self.limits.calls_per_minute
        await asyncio.sleep(start - self._loop.time())
        self._refuse(reserved, denied)
        self.spent += reserved
        self.usage["calls"] += 1
        try:
            async with asyncio.timeout(self.limits.call_seconds):
                answer = await self.service.call(prompt, schema)
        except Exception as error:  # whatever goes wrong is no signal
            failure = call_error(error)
            if failure.cause in UNBILLED:
                self.spent -= reserved
            if failure.cause == "auth":
                denied.append(failure)
            raise failure from None
        if answer.tokens_in is not None and answer.tokens_out is not None:
            self.spent += self._dollars(answer.tokens_in, answer.tokens_out) - reserved
            self.usage.update(tokens_in=answer.tokens_in, tokens_out=answer.tokens_out)
        return answer.text

    def _refuse(self, reserved: float, denied: list[CallError]) -> None:
        if denied:
            raise denied[0]
        if self.spent + reserved > self.limits.dollars:
            raise CallError("spending_limit", f"{self.spent:.6f} of {self.limits.dollars:g} dollars are spent or "
                            f"reserved, and this call may cost {reserved:.6f}")

    def _dollars(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self.limits.dollars_in + tokens_out * self.limits.dollars_out) / 1e6

    def _failed(self, sheet: ScoreSheet, cause: str, detail: str) -> list[Result]:
        return sheet.fail(cause, f"{self.name}: {self._redacted(detail)[:300]}")

    def _redacted(self, text: str) -> str:
        """Services repeat keys in their messages."""
        return text.replace(self.service.secret, "[key]") if self.service.secret else text


@cache
def _background_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="reasonkit-judge-api", daemon=True).start()
    return loop


def from_secrets(limits: Limits, *, max_tokens: int = 4096, **form: Any) -> ApiJudge | None:
    """The judge that a secret switches on, or None without one; see `services.service_from_secrets`.

    The prices in `limits` are those of the model that is found. form: as for `ApiJudge`.
    """
    service = service_from_secrets(max_tokens)
    return ApiJudge(service, limits, **form) if service else None

"""`ApiCalls`: many prompts asked of an `api_client.Service` at once, within limits of money and time.

Every prompt ends as a text or as a `CallError`, whose cause is one of these: "timeout", "connection", "rate_limit"
(429) and "server" (5xx), each after retries. "auth" (401, 403: no further call in that batch), "request" (any other
4xx), "blocked" (no text), "too_long" (cut at `max_tokens`), "unparsable", "spending_limit", "backend".
"""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache, partial
from typing import Any

from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, stop_before_delay, wait_random_exponential

from reasonkit.session.run_log import NullLog, RunLog
from reasonkit.session.secrets import redact
from recipes.judges.api_client import PRICES, CallError, Service

RETRIED = {"timeout", "connection", "rate_limit", "server"}
UNBILLED = {"rate_limit", "server", "auth", "request"}  # answered with an error status
OVERHEAD = 256  # tokens that a service may put around a prompt
GRACE = 1.0     # seconds that cancelled calls get to end

Request = tuple[str, dict[str, Any] | None]  # a prompt, and the JSON schema of its answer, None for free text


@dataclass(frozen=True)
class ApiLimits:
    """Limits on money and time. `dollars` is for all calls together. `prices` are dollars per million tokens, in and
    out, for models that `api_client.PRICES` lacks or has wrong.

    `call_seconds` is for one attempt. A batch (one `ask`) takes at most `batch_seconds` and a few more. Before a retry
    it waits a random time up to backoff_seconds * 2^n, plus as long as the service asks. `calls_per_minute` spaces the
    attempts evenly. Raises ValueError for numbers that are out of range and for unusable prices.
    """

    dollars: float
    prices: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    concurrency: int = 8
    attempts: int = 5
    backoff_seconds: float = 1.0
    call_seconds: float = 60.0
    batch_seconds: float = 300.0
    calls_per_minute: float = math.inf

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "prices" and not (_number(value) and (value > 0 or name == "dollars" and value == 0)):
                raise ValueError(f"{name}={value!r}: give a number above 0 (the dollars may be 0)")
        if not isinstance(self.prices, Mapping):
            raise ValueError(f"prices={self.prices!r}: give them by model, such as {{'gpt-6-luna': (0.1, 0.5)}}")
        for model, price in self.prices.items():
            if not (isinstance(price, tuple | list) and len(price) == 2
                    and all(_number(p) and 0 <= p < math.inf for p in price)):
                raise ValueError(f"prices[{model!r}]={price!r}: give dollars per million tokens, in and out, each a "
                                 "number of at least 0, such as (0.3, 2.5)")


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class ApiCalls:
    """Threads may share it, and it works under a running event loop, because the calls run in a separate loop.

    spent: dollars, never less than the service bills. Each attempt first reserves its worst case, which is a token per
    byte of the prompt and `max_tokens` out, and is not sent if that would pass `limits.dollars`. An answer replaces it
    by the real cost, and an error status by 0. Without an answer, or with token counts that can't be true, it stands.
    usage: calls sent, and tokens_in and tokens_out of those answered.
    log: gets a row "paid" for each change in `spent`. Earlier rows count too, so the limit applies across restarts.

    Raises ValueError for a model whose price is neither in `limits` nor in `api_client.PRICES`.
    """

    def __init__(self, service: Service, limits: ApiLimits, log: RunLog | None = None) -> None:
        self.service, self.limits, self.log = service, limits, log or NullLog()
        self.usage: Counter[str] = Counter()
        self._prices = limits.prices.get(service.name) or PRICES.get((service.endpoint, service.name))
        if self._prices is None:
            raise ValueError(f"no price is known for model {service.name!r} ({service.endpoint or 'no endpoint'}), "
                             "and without one no spending limit holds: look it up and write it into PRICES of "
                             "recipes/judges/api_client.py, in dollars per million tokens in and out (in notebook 1b: "
                             f"PRICE; in code: ApiLimits(dollars, prices={{{service.name!r}: (0.3, 2.5)}})), or name "
                             f"another model, such as {', '.join(model for _, model in PRICES)}")
        # exact, so reserving and settling leave no rounding error
        self._spent = sum((Fraction(row["dollars"]) for row in self.log.read("paid")), Fraction(0))
        self._slots = asyncio.Semaphore(limits.concurrency)
        self._loop = _background_loop()
        self._next_start = 0.0

    @property
    def spent(self) -> float:
        return float(self._spent)

    def deadline(self) -> float:
        """When a batch that starts now must end, by the clock of the loop."""
        return self._loop.time() + self.limits.batch_seconds

    def ask(self, requests: Sequence[Request], deadline: float, denied: list[CallError],
            on_text: Callable[[int, str], None] = lambda number, text: None) -> list[str | CallError]:
        """The answer to each request, with the key removed, at most a few seconds after `deadline`.

        If the key is refused, the error goes to `denied` and nothing more is sent. Batches that share a deadline share
        `denied`. `on_text(number, text)` is called in the loop's thread as soon as a text arrives.
        """
        batch = asyncio.run_coroutine_threadsafe(self._batch(requests, deadline, denied, on_text), self._loop)
        try:
            return batch.result(self._seconds_left(deadline) + 3 * GRACE)
        except TimeoutError:  # something blocks the loop itself
            return [CallError("timeout", "the loop did not answer")] * len(requests)
        finally:
            batch.cancel()  # an interrupt ends the calls, too

    def _seconds_left(self, deadline: float) -> float:
        return max(0.0, deadline - self._loop.time())

    async def _batch(self, requests: Sequence[Request], deadline: float, denied: list[CallError],
                     on_text: Callable[[int, str], None]) -> list[str | CallError]:
        tasks = [asyncio.create_task(self._answer(request, deadline, denied, partial(on_text, number)))
                 for number, request in enumerate(requests)]
        try:
            done, late = await asyncio.wait(tasks, timeout=self._seconds_left(deadline))
        finally:
            for task in tasks:
                task.cancel()
        if late:
            await asyncio.wait(late, timeout=GRACE)
        detail = f"the batch has {self.limits.batch_seconds:g} s, and the answer was not there by then"
        return [task.result() if task in done and not task.cancelled() else CallError("timeout", detail)
                for task in tasks]

    async def _answer(self, request: Request, deadline: float, denied: list[CallError],
                      on_text: Callable[[str], None]) -> str | CallError:
        async with self._slots:
            backoff = wait_random_exponential(self.limits.backoff_seconds)
            retrying = AsyncRetrying(
                retry=retry_if_exception(lambda error: isinstance(error, CallError) and error.cause in RETRIED),
                stop=stop_after_attempt(self.limits.attempts) | stop_before_delay(self._seconds_left(deadline)),
                wait=lambda state: state.outcome.exception().retry_after + backoff(state), reraise=True)
            try:
                text = redact(await retrying(self._attempt, request, denied), self.service.secret)
            except CallError as error:
                return error
        on_text(text)
        return text

    async def _attempt(self, request: Request, denied: list[CallError]) -> str:
        prompt, schema = request
        most_in = len(prompt.encode()) + len(json.dumps(schema)) + OVERHEAD
        reserved = self._dollars(most_in, self.service.max_tokens)
        if denied:
            raise denied[0]
        if self._spent + reserved > self.limits.dollars:
            raise CallError("spending_limit", f"{self.spent:.6f} of {self.limits.dollars:g} dollars are spent or "
                            f"reserved, and this call may cost {float(reserved):.6f}")
        self._pay(reserved)
        cost = Fraction(0)
        try:
            await self._turn()
            if denied:
                raise denied[0]
            cost = reserved  # from here on it may be billed
            self.usage["calls"] += 1
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
            self._pay(cost - reserved)

    async def _turn(self) -> None:
        """Wait until the pace allows another attempt."""
        start = max(self._next_start, self._loop.time())
        self._next_start = start + 60 / self.limits.calls_per_minute
        await asyncio.sleep(start - self._loop.time())

    def _pay(self, dollars: Fraction) -> None:
        self._spent += dollars
        if dollars:
            self.log.write("paid", dollars=float(dollars))

    def _dollars(self, tokens_in: int, tokens_out: int) -> Fraction:
        price_in, price_out = map(Fraction, self._prices)
        return (tokens_in * price_in + tokens_out * price_out) / 10**6


@cache
def _background_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="reasonkit-api", daemon=True).start()
    return loop

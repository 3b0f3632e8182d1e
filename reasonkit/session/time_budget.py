"""The clock of one session: how long each stage may train, kept in a ledger that outlives a restart of the kernel.

It counts in time since boot, which the wall clock does not move. `TimeBudget.guard` ends a trainer's batches in time
for the last checkpoint, because Tunix saves and stops cleanly when its data end. A trainer that fetches n batches
ahead, as Tunix's SFT trainer does, needs up to n steps of the reserve.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from reasonkit.session.files import read, write_atomic
from reasonkit.session.interrupts import boot_id, session_age
from reasonkit.session.records import Ledger

Batch = TypeVar("Batch")

WINDOW = 5  # steps whose maximum predicts the next one
SAVE_SECONDS = 5.0  # the ledger is at most this and one step behind
MARGIN = 1.25  # factor on the measured time of what comes after the stages


class BudgetError(ValueError):
    """The session has no time left for a stage, or its ledger can't be read."""


class TimeBudget:
    """The minutes of one session, shared among its stages.

    hours: length of the session. reserve_minutes: kept free at its end for the last checkpoint, the evaluation and
    the export. ahead: what is done there, name -> how often. `measure` times each, and the reserve grows with it.
    ledger: JSON file, continued if it is of this boot and younger than `hours`, else replaced. None: kept in memory.
    shares: stage -> positive weight. clock: seconds since boot. agree: called before each batch with the reason to
    end, or None. Its answer counts. grows: `hours` is a forecast that grows with the pace of the first steps, and the
    clock ends no stage.

    Raises BudgetError for impossible numbers and a corrupt ledger, DiskFullError if a new ledger can't be written.
    """

    def __init__(self, hours: float = 9.0, reserve_minutes: float = 20.0, ledger: Path | None = None,
                 shares: Mapping[str, float] | None = None, clock: Callable[[], float] = time.monotonic,
                 ahead: Mapping[str, int] | None = None, agree: Callable[[str | None], str | None] = lambda why: why,
                 grows: bool = False) -> None:
        if not 0 <= reserve_minutes < hours * 60 < math.inf:
            raise BudgetError(f"reserve_minutes={reserve_minutes:g} takes all of the session's {hours * 60:g} minutes: "
                              "raise `minutes` or lower `reserve_minutes`")
        self.shares, self.hours, self.reserve_minutes = dict(shares or {}), float(hours), float(reserve_minutes)
        for stage, share in self.shares.items():
            if not 0 < share < math.inf:
                raise BudgetError(f"shares[{stage!r}]={share!r}: give a positive weight, or leave it out")
        self.ledger, self._clock, self._ahead, self._agree = ledger, clock, ahead or {}, agree
        self.grows, self._forecast, self._opened = grows, self.hours, clock()
        # Of the running stage: the seconds of its steps, the first with its compilation; when and why it is to end.
        self._took: list[float] = []
        self._deadline, self._why = math.inf, None
        self._begun: set[str] = set()  # by this object; such a stage is over once another begins
        self._reported = False  # that the ledger is not written
        self._record = self._read_ledger()
        if self._record is None:
            started = clock() - session_age(self.hours * 3600)
            self._record = {"started": started, "boot_id": boot_id(), "stages": {}, "took": {}}
            self._write()  # raises for a full disk before anything is trained

    @property
    def minutes_used(self) -> float:
        return (self._clock() - self._record["started"]) / 60

    @property
    def minutes_here(self) -> float:
        """Minutes of one notebook or command."""
        return (self._clock() - self._opened) / 60

    @property
    def minutes_left(self) -> float:
        """Until the reserve begins, 0 inside it."""
        return max(0.0, self.hours * 60 - self.minutes_reserved - self.minutes_used)

    @property
    def minutes_reserved(self) -> float:
        """`reserve_minutes`, or half of it plus MARGIN x the last measured time of what is `ahead` if that is more."""
        took = self._record["took"]
        seconds = sum(count * took.get(name, 0.0) for name, count in self._ahead.items())
        return max(self.reserve_minutes, self.reserve_minutes / 2 + MARGIN * seconds / 60)

    @contextlib.contextmanager
    def measure(self, name: str, times: float = 1.0) -> Iterator[None]:
        """Time one of the things `ahead`, or a part: the whole takes `times` as long. The last time counts."""
        began = self._clock()
        yield
        self._record["took"][name] = times * (self._clock() - began)
        self._save()

    @property
    def steps_left(self) -> float:
        """Steps that fit before the stage's deadline at its mean pace. Infinite if that is unknown, or it grows."""
        if self.grows or not self._mean:
            return math.inf
        return max(0.0, self._deadline - self._clock()) / self._mean

    @property
    def _mean(self) -> float:
        return fmean(self._took[1:] or (0.0,))  # seconds per step without the first, 0 if there is no other

    def end(self, why: str | None) -> None:
        """End the stage before its next batch, with `why` as the reason in `stopped`. None takes that back."""
        self._why = why

    def stage_minutes(self, stage: str) -> float:
        """Minutes `stage` gets if it begins now: time left x its share / sum of the shares of the stages not yet done.
        A stage without a share gets all the time left. Raises BudgetError when there is none."""
        if self.grows and not self.minutes_left:
            self._grow(self._forecast * 60)
        left = self.minutes_left
        if left <= 0:
            raise BudgetError(
                f"stage {stage!r} would begin with 0 minutes: {self.minutes_used:.1f} of {self.hours * 60:g} are used "
                f"and {self.minutes_reserved:g} reserved (ledger: {self.ledger or 'none, kept in memory'}). Run the "
                "stage in a new session; if this is one, delete the ledger")
        return left * self._share(stage)

    def part(self, stage: str, share: float) -> float:
        """Minutes for what a stage makes before it trains: a share of those it would get. Infinite if it grows."""
        return math.inf if self.grows else share * self.minutes_left * self._share(stage)

    def stop_reason(self, stage: str) -> str | None:
        """Why the stage ended in this session: "data" (all batches passed), "time", what `end` was given, or "closed"
        (by the consumer or an exception). None: never begun, running, or killed."""
        return self._record["stages"].get(stage, {}).get("stopped")

    def guard(self, batches: Iterable[Batch], stage: str, steps: int = 0) -> Iterator[Batch]:
        """Pass batches through, and end before the first that would not be done by the stage's deadline.

        Chain all epochs into one guard. `steps` is the number of batches, which decides how far a session grows. The
        deadline is set now and again after the first step, because all stages pay for its compilation. A step lasts
        from one pull to the next. The ledger has the stage's steps (batches passed) and seconds, which add up over its
        runs in a session, first_seconds and stopped.

        Raises BudgetError, in this call, if the stage begins with no time left, unless `end` was called.
        """
        source, started = iter(batches), self._clock()
        self._deadline = started + (0 if self._why else 60 * self.stage_minutes(stage))
        self._begun.add(stage)
        return self._pass(source, stage, started, steps)

    def _pass(self, source: Iterator[Batch], stage: str, started: float, steps: int) -> Iterator[Batch]:
        row = self._record["stages"].setdefault(stage, {"steps": 0, "seconds": 0.0})
        row.update(first_seconds=None, stopped=None)
        earlier, stopped, saved, number = row["seconds"], "closed", started, 0
        self._took = took = []
        try:
            while True:
                pulled = self._clock()
                if why := self._reason_to_end(stage, pulled, steps - number, steps):
                    stopped = why
                    return
                try:
                    batch = next(source)
                except StopIteration:
                    stopped = "data"
                    return
                row["steps"], number = row["steps"] + 1, number + 1
                yield batch
                now = self._clock()
                took.append(now - pulled)
                if number == 1:
                    self._deadline = now + 60 * self.minutes_left * self._share(stage)
                row.update(seconds=earlier + now - started, first_seconds=took[0])
                if now - saved >= SAVE_SECONDS:
                    self._save()
                    saved = now
        finally:
            row.update(seconds=earlier + self._clock() - started, stopped=stopped)
            self._save()

    def _reason_to_end(self, stage: str, now: float, left: int, steps: int) -> str | None:
        """Why the stage ends before its next batch, None if it goes on. It has `left` of its `steps` to do."""
        # at least the mean: batches fetched ahead must not make a step look free
        step = max(*self._took[1:][-WINDOW:], self._mean, 0.0)
        if self.grows and now + step * left > self._deadline:
            self._grow(MARGIN * step * left / 60 / self._share(stage))
            self._deadline = now + 60 * self.minutes_left * self._share(stage)
            print(f"{stage}: {step * left / 60:.0f} minutes to go at this pace; all {steps} steps will be run")
        session_end = self._record["started"] + 60 * (self.hours * 60 - self.minutes_reserved)
        self._deadline = min(self._deadline, session_end)  # the reserve may have grown
        late = not self.grows and (now >= self._deadline or now + step > self._deadline)
        return self._agree(self._why or ("time" if late else None))

    def _grow(self, minutes: float) -> None:
        """Lengthen the session until this many minutes are left."""
        self.hours = max(self.hours, (self.minutes_used + self.minutes_reserved + minutes) / 60)
        self._record["hours"] = self.hours
        self._save()

    def _share(self, stage: str) -> float:
        left = [share for name, share in self.shares.items()
                if name == stage or name not in self._begun and self.stop_reason(name) is None]
        return self.shares[stage] / sum(left) if stage in self.shares else 1.0

    def _read_ledger(self) -> dict[str, Any] | None:
        """The record of the ledger if this session wrote it, else None."""
        if self.ledger is None or not self.ledger.exists():
            return None
        found = read(self.ledger, Ledger, "delete it to count the session from now", error=BudgetError)
        record = found.model_dump(exclude_unset=True)
        grown = record.get("hours") or self.hours if self.grows else self.hours
        age = self._clock() - record["started"]
        if record["boot_id"] != boot_id() or not 0 <= age < grown * 3600:  # below 0: a later boot, of no known id
            return None
        self.hours = grown
        return record

    def _save(self) -> None:
        """Write the ledger. An error of the disk does not end the stage, because the next save tries again."""
        try:
            self._write()
            self._reported = False
        except OSError as error:
            if not self._reported:
                print(f"{error}. The stage goes on; a kernel that is restarted knows what the last ledger says",
                      file=sys.stderr)
            self._reported = True

    def _write(self) -> None:
        if self.ledger is not None:
            write_atomic(self.ledger, json.dumps(self._record, indent=1))

"""The clock of one session: how long each stage may train, kept on disk so that a restart does not forget it.

A `TimeBudget` counts from the session's start, not from the cell that made the object. Its `guard` stands
between the batches and a trainer and ends the data in time for the last checkpoint: Tunix stops cleanly, and
saves, when its iterator ends at a full batch.

All times are read off the clock that counts since boot: it is one for all processes, so that a restarted kernel goes on
with it, and setting the wall clock does not move it. It interrupts nothing (`session` does). A consumer that runs n
batches ahead (Tunix's SFT trainer keeps two steps in flight) passes its deadline by up to n steps; the reserve pays.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from reasonkit.session.files import RecordError, read, write_atomic
from reasonkit.session.interrupts import boot_id, session_age
from reasonkit.session.records import Ledger

Batch = TypeVar("Batch")

WINDOW = 5  # steps whose maximum predicts the next one
SAVE_SECONDS = 5.0  # the ledger is at most this much, and one step, behind
MARGIN = 1.25  # on what is measured of what is still to be done after the stages


class BudgetError(ValueError):
    """The session has no time for what was asked, or its ledger can't be read."""


class _Pace:
    """Predicts the next step, in seconds, from the steps so far."""

    def __init__(self) -> None:
        self.first: float | None = None  # carries the compilation: says nothing about the next step
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._total, self._count = 0.0, 0

    def add(self, seconds: float) -> None:
        if self.first is None:
            self.first = seconds
        else:
            self._recent.append(seconds)
            self._total, self._count = self._total + seconds, self._count + 1

    def predict(self) -> float:
        """The longest recent step, never less than the mean of all but the first; 0 while only that is known.

        The mean is there for bursts of fast pulls (a consumer that fetches ahead, a resumed run that skips
        what it has seen): they must not make a step look free.
        """
        return max(*self._recent, self.mean) if self._count else 0.0

    @property
    def mean(self) -> float:
        """Of all steps but the first; 0 while only that is known."""
        return self._total / self._count if self._count else 0.0


class TimeBudget:
    """The minutes of one session, shared out among its stages.

    hours: length of the session. reserve_minutes: kept free at its end, at least, for the last checkpoint, the
    evaluation and the export. ahead: what is to be done there, name -> how often; `timed` measures each, and
    the half of reserve_minutes is for what is not measured.
    ledger: JSON file; one of the same boot and younger than `hours` is continued, as after a kernel restart;
    any other belongs to an ended session and is replaced. None keeps the record in memory.
    shares: stage -> positive weight, for the stages that will run under `guard`. clock: seconds since boot.
    grows: nobody ends the session, as on one's own machine: `hours` is a forecast, which grows with the pace of the
    first steps, and the clock ends no stage.
    agree: asked before each batch with the reason why the stage should end, or None; what it answers is done.

    Raises BudgetError when a number makes no sense, the reserve takes all the time, or the ledger is corrupt;
    DiskFullError when a new ledger can't be written.
    """

    def __init__(
        self,
        hours: float = 9.0,
        reserve_minutes: float = 20.0,
        ledger: Path | None = None,
        shares: Mapping[str, float] | None = None,
        clock: Callable[[], float] = time.monotonic,
        ahead: Mapping[str, int] | None = None,
        agree: Callable[[str | None], str | None] = lambda why: why,
        grows: bool = False,
    ) -> None:
        if not (math.isfinite(hours) and hours > 0):
            raise BudgetError(f"hours={hours!r}: give the session's length as a positive number")
        if not (math.isfinite(reserve_minutes) and reserve_minutes >= 0):
            raise BudgetError(f"reserve_minutes={reserve_minutes!r}: give zero or more minutes")
        if reserve_minutes >= hours * 60:
            raise BudgetError(f"reserve_minutes={reserve_minutes:g} takes all of the session's {hours * 60:g} minutes: "
                              "raise hours or lower the reserve")
        self.shares = dict(shares or {})
        for stage, share in self.shares.items():
            if not (math.isfinite(share) and share > 0):
                raise BudgetError(f"shares[{stage!r}]={share!r}: give a positive weight, or leave it out")
        self.hours, self.reserve_minutes = float(hours), float(reserve_minutes)
        self.ledger = Path(ledger) if ledger is not None else None
        self._clock, self._ahead, self._agree = clock, dict(ahead or {}), agree
        self.grows, self._forecast, self._opened = grows, self.hours, clock()
        self._pace, self._deadline = _Pace(), math.inf  # of the running stage
        self._why: str | None = None
        self._begun: set[str] = set()  # by this object; such a stage is over once another begins
        self._told = False  # that the ledger is not written
        self._record = self._continued()
        if self._record is None:
            started = clock() - session_age(self.hours * 3600)
            self._record = {"started": started, "boot_id": boot_id(), "stages": {}, "took": {}}
            self._write()  # a disk that is full is told before anything is trained

    @property
    def minutes_used(self) -> float:
        """Minutes since the session started."""
        return (self._clock() - self._record["started"]) / 60

    @property
    def minutes_here(self) -> float:
        """Minutes since this object was made: those of one notebook, or of one command."""
        return (self._clock() - self._opened) / 60

    @property
    def minutes_left(self) -> float:
        """Minutes until the reserve begins; 0 inside it."""
        return max(0.0, self.hours * 60 - self.minutes_reserved - self.minutes_used)

    @property
    def minutes_reserved(self) -> float:
        """`reserve_minutes`; if that is more, a half of it and what lies `ahead` as long as each took last x MARGIN."""
        took = self._record["took"]
        seconds = sum(count * took.get(name, 0.0) for name, count in self._ahead.items())
        return max(self.reserve_minutes, self.reserve_minutes / 2 + MARGIN * seconds / 60)

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Measure one of the things `ahead`; the ledger keeps the last of each for the session."""
        began = self._clock()
        yield
        self._record["took"][name] = self._clock() - began
        self._save()

    @property
    def steps_left(self) -> float:
        """More steps that fit before the deadline of the running stage, at its mean pace; inf until it has one, and
        where the clock ends no stage."""
        mean = 0.0 if self.grows else self._pace.mean
        return max(0.0, self._deadline - self._clock()) / mean if mean else math.inf

    def end(self, why: str | None) -> None:
        """Let the stage end before its next batch, as if its data did; `stopped` then says why. None: no more."""
        self._why = why

    def stage_minutes(self, stage: str) -> float:
        """Minutes `stage` gets if it begins now; all the time left for a stage without a share, else

            time left x its share / sum of the shares of the stages not yet done, itself included.

        Raises BudgetError when nothing is left, if the session does not grow.
        """
        if self.grows and not self.minutes_left:
            self._grow(self._forecast * 60)
        left = self.minutes_left
        if left <= 0:
            raise BudgetError(
                f"stage {stage!r} would begin with 0 minutes: {self.minutes_used:.1f} of {self.hours * 60:g} are used "
                f"and {self.minutes_reserved:g} reserved (ledger: {self.ledger or 'none, kept in memory'}). Run the "
                "stage in a new session; if this is one, delete the ledger")
        return left * self._share(stage)

    def stopped(self, stage: str) -> str | None:
        """Why the stage ended, in this session: "data" (every batch passed), "time" (the guard ended it), what
        `end` was told, or "closed" (the consumer let go, or an exception ended it). None: never begun,
        running, or killed."""
        return self._record["stages"].get(stage, {}).get("stopped")

    def guard(self, batches: Iterable[Batch], stage: str, steps: int = 0) -> Iterator[Batch]:
        """Pass full batches through, and end before the first that would not be done by the stage's deadline.

        The deadline is set by this call, and anew after the first step, which compiles: that is paid for by
        all stages. A step lasts from one pull to the next; the first is timed apart.
        The ledger gets the stage's row every ~5 s and at the end: steps (batches passed, those a resumed
        trainer skips included), seconds, first_seconds, stopped. Steps and seconds add up when the stage runs
        again in the session. Chain all epochs into one guard. steps: how many there are, by which a session grows.

        Raises BudgetError, here and not at the first pull, when the stage begins with nothing left.
        """
        if not isinstance(stage, str) or not stage:
            raise BudgetError(f"stage={stage!r}: name the stage with a non-empty string")
        source, started = iter(batches), self._clock()
        deadline = started + 60 * self.stage_minutes(stage)
        self._begun.add(stage)
        return self._passed(source, stage, started, deadline, steps)

    def _passed(self, source: Iterator[Batch], stage: str, started: float, deadline: float,
                steps: int) -> Iterator[Batch]:
        row = self._record["stages"].setdefault(stage, {"steps": 0, "seconds": 0.0})
        row.update(first_seconds=None, stopped=None)
        earlier = row["seconds"]  # of this stage's former runs in the session
        pace, stopped, saved = _Pace(), "closed", started
        self._pace, number = pace, 0
        try:
            while True:
                pulled = self._clock()
                needed = pace.predict() * (steps - number)
                if self.grows and pulled + needed > deadline:
                    self._grow(MARGIN * needed / 60 / self._share(stage))
                    deadline = pulled + 60 * self.minutes_left * self._share(stage)
                    print(f"{stage}: {needed / 60:.0f} minutes to go at this pace; all {steps} steps will be run")
                # the reserve may have grown
                deadline = min(deadline, self._record["started"] + 60 * (self.hours * 60 - self.minutes_reserved))
                self._deadline = deadline
                late = not self.grows and (pulled >= deadline or pulled + pace.predict() > deadline)
                if why := self._agree(self._why or ("time" if late else None)):
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
                pace.add(now - pulled)
                if number == 1:
                    deadline = now + 60 * self.minutes_left * self._share(stage)
                row.update(seconds=earlier + now - started, first_seconds=pace.first)
                if now - saved >= SAVE_SECONDS:
                    self._save()
                    saved = now
        finally:
            row.update(seconds=earlier + self._clock() - started, stopped=stopped)
            self._save()

    def _grow(self, minutes: float) -> None:
        """Let the session last until so many minutes are left."""
        self.hours = max(self.hours, (self.minutes_used + self.minutes_reserved + minutes) / 60)
        self._record["hours"] = self.hours
        self._save()

    def _share(self, stage: str) -> float:
        """The share of the time left that is the stage's."""
        if stage not in self.shares:
            return 1.0
        waiting = (share for name, share in self.shares.items() if name == stage or not self._done(name))
        return self.shares[stage] / sum(waiting)

    def _done(self, stage: str) -> bool:
        return stage in self._begun or self.stopped(stage) is not None

    def _continued(self) -> dict[str, Any] | None:
        """The ledger's record if this session wrote it, else None."""
        if self.ledger is None or not self.ledger.exists():
            return None
        try:
            record = read(self.ledger, Ledger, "delete it to count the session from now").model_dump(exclude_unset=True)
        except RecordError as error:
            # ledgers are replaced whole, so this is no torn write but another file or a damaged disk
            raise BudgetError(str(error)) from None
        grown = record.get("hours") or self.hours if self.grows else self.hours
        age = self._clock() - record["started"]
        if record["boot_id"] != boot_id() or not 0 <= age < grown * 3600:  # below 0: a later boot, of no known id
            return None
        self.hours = grown
        return record

    def _save(self) -> None:
        """Write the ledger; a disk that does not take it ends no stage, and the next saving tries again."""
        try:
            self._write()
            self._told = False
        except OSError as error:
            if not self._told:
                print(f"{error}. The stage goes on; a kernel that is restarted knows what the last ledger says",
                      file=sys.stderr)
            self._told = True

    def _write(self) -> None:
        if self.ledger is not None:
            write_atomic(self.ledger, json.dumps(self._record, indent=1))

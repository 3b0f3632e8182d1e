"""The process that a run lives in: whether it is alone, how old its session is, how it is told to stop, and what
becomes of a hung step.

A stage is stopped by its data alone, at the boundary of a step: only there are weights and optimiser state whole. So a
SIGTERM or an interrupt (Ctrl-C, the notebook's stop button) is noted, the stage ends and saves, and the signal then
does what it would have done at once. A second one does not wait.

A step that hangs pulls no more batches. The watchdog writes down what is known and sends the main thread a SIGINT,
which ends a wait in Python (a judge that does not answer, a queue). It cannot end a call into C that never returns, a
deadlocked collective say: nothing in Python can. Then the process ends itself, in a notebook the kernel: the session's
hours would be lost otherwise, while *Run all* continues from the last checkpoint. Where such a call also keeps Python's
lock, which JAX's do not, the watchdog cannot run either.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import fcntl
import gc
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

STOPS = (signal.SIGINT, signal.SIGTERM)
FIRST_SECONDS = 2700.0  # to load, and to compile the first step: 20 minutes were seen on a TPU
LEAST_SECONDS = 600.0  # no step is hung before, whatever the others took
FACTOR = 10.0  # times the longest step so far
GRACE_SECONDS = 60.0  # for the main thread to come back
HUNG_EXIT = 75  # the exit status "temporary failure" of sysexits.h
LOCK = "kernel.lock"
CLAIM_SECONDS = 10.0  # for a kernel that was just told to end
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_claimed: dict[tuple[int, int], int | None] = {}  # open locks by device and inode; None where a fork's parent has it
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PROC = Path("/proc")


class StageHung(RuntimeError):
    """A step did not end; names the report of what is known."""


class FolderInUseError(RuntimeError):
    """Another process works on the run."""


def lock_run(folder: Path) -> None:
    """Make this process the only one that works on a run, until `unlock_run` or until it ends, however it ends.

    The lock is the operating system's (flock), on the file LOCK in the folder: it goes with the process, and the file
    says no more than whose it was. Asked again, or in a process that was forked off, nothing happens. Raises
    FolderInUseError when another process has it, and still has it after CLAIM_SECONDS.
    """
    path, deadline = folder / LOCK, time.monotonic() + CLAIM_SECONDS
    if path.exists() and _identity(path.stat()) in _claimed:  # not opened: where NFS plays flock, to close it lets go
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno in _NO_LOCKS:
                os.close(lock)
                print(f"{folder} cannot be locked ({error.strerror}): see to it that no second kernel works on it")
                return
            if not isinstance(error, BlockingIOError):
                raise
            if time.monotonic() > deadline:
                other = os.read(lock, 200).decode(errors="replace")
                os.close(lock)
                raise FolderInUseError(
                    f"{folder} is in use by {other or 'another process'}: two kernels would write over each other's "
                    "steps. Run its last cell, or shut it down (Jupyter: Running Terminals and Kernels; "
                    "elsewhere: kill it by its number), or set REASONKIT_ARTIFACTS to another folder, and run this "
                    "cell again") from None
            time.sleep(0.1)
    os.ftruncate(lock, 0)
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()} since {since}".encode(), 0)
    _claimed[_identity(os.fstat(lock))] = lock


def unlock_run(folder: Path) -> None:
    """Let another process have the run. Nothing happens where this one has not claimed it."""
    path = folder / LOCK
    lock = _claimed.pop(_identity(path.stat()), None) if path.exists() else None
    if lock is not None:
        os.close(lock)


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _disown() -> None:
    """In a process that was forked off: closed there, the locks end with the process that took them."""
    for file, lock in _claimed.items():
        if lock is not None:
            os.close(lock)
            _claimed[file] = None


os.register_at_fork(after_in_child=_disown)


def boot_id() -> str:
    """The kernel's name for the machine's current run, "unknown" where it has none."""
    return _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else "unknown"


def _age(pid: str) -> float:
    """Seconds since the process started; 0 where the system does not tell."""
    try:
        ticks = (_PROC / pid / "stat").read_text().rsplit(")", 1)[1].split()[19]
        return float((_PROC / "uptime").read_text().split()[0]) - int(ticks) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


def session_age(limit: float) -> float:
    """Seconds that a Kaggle session is old: the age of its container's first process, else of this one; 0 elsewhere.

    There the host's limit runs from before the first cell. An age of `limit` seconds or more is none of this session's.
    Elsewhere the limit is the user's own, and counts from when the ledger was first written.
    """
    if not os.environ.get("KAGGLE_KERNEL_RUN_TYPE"):
        return 0.0
    return max((age for age in (_age("1"), _age("self")) if 0 <= age < limit), default=0.0)


def free_last_error() -> None:
    """Let go of what the last error's traceback holds, in a notebook until the next error: every local variable of the
    stage that it ended, so the model and the trainer. A debugger sees none of them afterwards."""
    error, seen = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None), set()
    while error and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        for frame, _ in traceback.walk_tb(error.__traceback__):
            frame.f_locals.keys()  # until Python 3.12 a copy, made when IPython printed: this has it follow
        error = error.__cause__ or error.__context__
    gc.collect()


@contextlib.contextmanager
def clean_exit(end: Callable[[str | None], None], hung: Callable[[], Path | None] = lambda: None) -> Iterator[None]:
    """Let SIGTERM and SIGINT `end` the stage by their name; when the block is done, the first of them comes again.

    Handlers are put back as they were. Outside the main thread, where Python has none, the block just runs. `hung` is
    the watchdog's report, once it has one: the signal is then its own, and raises StageHung where the step waits.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        if report := hung():
            raise StageHung(f"a step did not end; what is known is in {report}. The last good checkpoint is kept: "
                            "mend the cause, a service that does not answer for one, and run the stage again")
        if received:
            restore()
            signal.raise_signal(number)
        received.append(number)
        end(signal.Signals(number).name)
        with contextlib.suppress(RuntimeError):  # if the signal came in the middle of another print
            print(f"{signal.Signals(number).name}: the stage ends and saves after this step; again: at once",
                  file=sys.stderr, flush=True)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    before = {number: signal.signal(number, note) for number in STOPS}
    try:
        yield
    finally:
        restore()
        end(None)
    if received:
        signal.raise_signal(received[0])


class Watchdog:
    """Looks, from a thread of its own, whether `pulse()` still changes, and acts as this module says when it does not.

    pulse: the stage and the number of its batch. report: the file to write, with every thread's stack.
    The limit is `first` seconds for each of the first two batches, which compile, then `FACTOR` times the longest of
    the others, and at least `least`. Times are measured here, so that no clock but the machine's moves them.
    """

    def __init__(self, pulse: Callable[[], tuple[str, int]], report: Path, first: float = FIRST_SECONDS,
                 least: float = LEAST_SECONDS, grace: float = GRACE_SECONDS) -> None:
        self._pulse, self._report, self._first, self._least, self._grace = pulse, report, first, least, grace
        self._main = threading.current_thread() is threading.main_thread()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watchdog", daemon=True)
        self.hung: Path | None = None

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        seen, last, idle, longest = self._pulse(), time.monotonic(), 0.0, 0.0
        poll = min(self._first, self._least) / 20
        while not self._over.wait(poll):
            now, pulse = time.monotonic(), self._pulse()
            idle += min(now - last, 2 * poll)  # no more: a process that was stopped as a whole does not hang
            last = now
            if pulse != seen:
                longest = max(longest, idle) if seen[1] > 2 else longest
                seen, idle = pulse, 0.0
            limit = max(self._least, FACTOR * longest) if seen[1] > 2 else self._first
            if idle > limit:
                self._end(seen, idle, limit)
                return

    def _end(self, pulse: tuple[str, int], seconds: float, limit: float) -> None:
        self._report.parent.mkdir(parents=True, exist_ok=True)
        with open(self._report, "w", encoding="utf-8") as file:
            print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}: no progress for {seconds:.0f} s, the limit "
                  f"is {limit:.0f} s, at batch {pulse[1]} of stage {pulse[0]!r}. The threads, most recent call first:",
                  file=file, flush=True)
            faulthandler.dump_traceback(file, all_threads=True)
        self.hung = self._report
        if self._main:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        if not self._over.wait(self._grace):
            os._exit(HUNG_EXIT)

"""What a run needs of its process: `lock_run`, `session_age`, `clean_exit` between two steps, and a `Watchdog`.

Weights and optimiser state match only between two steps. So a stage ends through its data: the first SIGTERM or SIGINT
lets it finish the step and save, and then takes effect. A second signal takes effect at once.
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

from reasonkit.session.files import DiskFullError, disk_full_message

STOPS = (signal.SIGINT, signal.SIGTERM)
FIRST_SECONDS = 2700.0  # for a step that compiles: 20 minutes were seen on a TPU
LEAST_SECONDS = 600.0  # no later step counts as hung before
FACTOR = 10.0  # times the longest step so far, a step counts as hung
LOCK = "kernel.lock"
CLAIM_SECONDS = 10.0  # a kernel that is being shut down still has the lock for a moment
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
# Open locks by device and inode, so that a folder may be moved. None: the parent of this fork has it.
_claimed: dict[tuple[int, int], int | None] = {}
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PROC = Path("/proc")


class FolderInUseError(RuntimeError):
    """Another process is using the run's folder."""


def lock_run(folder: Path) -> None:
    """Lock a run for this process, until `unlock_run` or the end of the process.

    The lock is the operating system's (flock), on the file LOCK in the folder, whose text only names its last owner. A
    second call does nothing, nor does one in a forked child. Raises FolderInUseError when another process still has the
    lock after CLAIM_SECONDS, and DiskFullError if the folder can't be written.
    """
    path, deadline = folder / LOCK, time.monotonic() + CLAIM_SECONDS
    if path.exists() and _identity(path.stat()) in _claimed:  # not opened: on NFS, closing a second descriptor unlocks
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:  # such as an attached input, which is read-only
        raise DiskFullError(f"{disk_full_message(path, error)}, or set REASONKIT_ARTIFACTS to it") from error
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                owner = os.read(lock, 200).decode(errors="replace")
                os.close(lock)
                raise FolderInUseError(
                    f"{folder} is in use by {owner or 'another process'}: two kernels would write over each other's "
                    "steps. Run its last cell, or shut it down (Jupyter: Running Terminals and Kernels; "
                    "elsewhere: kill it by its number), or set REASONKIT_ARTIFACTS to another folder, and run this "
                    "cell again") from None
            time.sleep(0.1)
        except OSError as error:
            os.close(lock)
            if error.errno not in _NO_LOCKS:
                raise
            print(f"{folder} cannot be locked ({error.strerror}): see to it that no second kernel works on it")
            return
    os.ftruncate(lock, 0)
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()} since {since}".encode(), 0)
    _claimed[_identity(os.fstat(lock))] = lock


def unlock_run(folder: Path) -> None:
    """Does nothing if this process has no lock on the run."""
    path = folder / LOCK
    if path.exists() and (lock := _claimed.pop(_identity(path.stat()), None)) is not None:
        os.close(lock)


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _disown() -> None:
    """In a forked child, so that the locks end with the parent."""
    for file, lock in _claimed.items():
        if lock is not None:
            os.close(lock)
            _claimed[file] = None


os.register_at_fork(after_in_child=_disown)


def boot_id() -> str:
    """The operating system's name for the current boot, or "unknown"."""
    return _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else "unknown"


def _age(pid: str) -> float:
    """Seconds since the process started, 0 if that is unknown."""
    try:
        ticks = (_PROC / pid / "stat").read_text().rsplit(")", 1)[1].split()[19]
        return float((_PROC / "uptime").read_text().split()[0]) - int(ticks) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


def session_age(limit: float) -> float:
    """Age of a Kaggle session in seconds, from its container's first process, else from this process. 0 elsewhere.

    Kaggle's limit counts from before the first cell. A process of `limit` seconds or more is older than the session.
    Elsewhere the limit is the user's own and counts from the ledger's first entry.
    """
    ages = (_age("1"), _age("self")) if os.environ.get("KAGGLE_KERNEL_RUN_TYPE") else ()
    return max((age for age in ages if 0 <= age < limit), default=0.0)


def free_last_error() -> None:
    """Free the last traceback's local variables, such as a trainer, which a notebook keeps until the next error."""
    error, seen = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None), set()
    while error and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        for frame, _ in traceback.walk_tb(error.__traceback__):
            frame.f_locals.keys()  # until Python 3.12 IPython's print left a copy here, which this updates
        error = error.__cause__ or error.__context__
    gc.collect()


@contextlib.contextmanager
def clean_exit(end: Callable[[str | None], None]) -> Iterator[None]:
    """Within the block, SIGTERM and SIGINT call `end` with their name. After it, the first of them is raised again and
    the handlers are restored. Outside the main thread, where Python handles no signals, the block just runs.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def note(number: int, frame: object) -> None:
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
    """Ends the process if a step hangs, so that a rerun can resume before the session's hours are lost.

    Within the block, call `step_begins` at each step. When the next call is late, `faulthandler` writes the stack of
    every thread to the file `report` and ends the process (in a notebook, the kernel) with status 1, even in a call
    into C that never returns, such as a deadlocked collective. Steps 1 and 2 compile and have `first` seconds each.
    Later ones have FACTOR times the longest since step 2, but at least `least` seconds.
    """

    def __init__(self, report: Path, first: float = FIRST_SECONDS, least: float = LEAST_SECONDS) -> None:
        self._report, self._first, self._least = report, first, least
        self._step, self._began, self._longest = 0, 0.0, 0.0

    def __enter__(self) -> Watchdog:
        self._report.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self._report, "a", encoding="utf-8")  # an earlier report stays
        faulthandler.dump_traceback_later(self._first, exit=True, file=self._file)
        return self

    def step_begins(self) -> None:
        now = time.monotonic()
        if self._step > 1:
            self._longest = max(self._longest, now - self._began)
        self._step, self._began = self._step + 1, now
        limit = max(self._least, FACTOR * self._longest) if self._step > 2 else self._first
        faulthandler.dump_traceback_later(limit, exit=True, file=self._file)

    def __exit__(self, *error: object) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        if not self._report.stat().st_size:
            self._report.unlink()

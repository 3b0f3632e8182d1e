"""Compares answers with sympy, pint and RDKit in separate processes, because on model text they may never end.

Entry point: `decide`, from any thread. A worker (`python -m recipes.graders.worker TASK`) loads its library once. For
each comparison it forks a child with limited memory and time. Surprise: multiprocessing and pebble would run an
unguarded script again in each worker, and pass the environment on with its keys.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from reasonkit.text.answers import seconds_left, time_limit

LIMIT_SECONDS = 2.0  # for one comparison
MEMORY_BYTES = 2 * 2**30
BUSY = 3  # a comparison may take this many times longer by the wall clock, because the machine may be busy
# The environment that a worker gets: enough to find programs and packages, but no key, token or password.
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONUSERBASE")
# kind -> the module whose `load()` returns `same(answer, gold)`, and the package that it needs
TASKS = {
    "expression": ("recipes.graders.algebra", "sympy"),
    "quantity": ("recipes.graders.quantity", "pint"),
    "smiles": ("recipes.graders.smiles", "rdkit"),
}


def decide(task: str, answer: object, gold: object, seconds: float = LIMIT_SECONDS) -> bool | None:
    """Whether a library finds the two equal. None if it raises, or needs more than `seconds` or `seconds_left()`.

    The seconds are processor time, and the wall clock allows `BUSY` times as many. `answer` and `gold` are JSON values
    for the task's `same`. Raises ImportError if the task's package is missing.
    """
    seconds = min(seconds, seconds_left())  # before the start, which may take longer than a comparison may
    worker = start(task)
    if seconds <= 0:
        return None
    try:
        return worker.ask([answer, gold, seconds])
    except BaseException as error:  # it was killed, or interrupted before its verdict: the next call starts another
        with _LOCK:
            if _WORKERS.get((os.getpid(), task)) is worker:
                del _WORKERS[os.getpid(), task]
        worker.close()
        if isinstance(error, (OSError, ValueError)):
            return None
        raise


def gold_reader(read: Callable, same: Callable) -> Callable[[str], object | None]:
    """The reader of a gold answer that its library knows: one that it finds equal to itself."""
    def read_gold(text: str) -> object | None:
        gold = read(text)
        with time_limit(LIMIT_SECONDS):  # its own time, not the completion's
            return gold if gold and same(gold, gold) else None
    return read_gold


def start(task: str) -> _Worker:
    """The running worker of a task. Raises ImportError, naming the package, if it is missing."""
    key = (os.getpid(), task)  # a forked process must not use its parent's pipes
    with _LOCK:
        if key not in _WORKERS:
            _WORKERS[key] = _Worker(task)
        return _WORKERS[key]


class _Worker:
    def __init__(self, task: str) -> None:
        _, package = TASKS[task]
        path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
        # Only a process with a single thread is safe to fork.
        env = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        env |= {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        self._lock = threading.Lock()
        self._process = subprocess.Popen([sys.executable, "-m", "recipes.graders.worker", task], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, env=env)
        try:
            error = self._reply()
        except ValueError:
            error = "its process ended"
        if error:
            self.close()
            raise ImportError(f"answers of kind {task!r} need {package}: pip install {package} ({error})")

    def ask(self, question: list) -> bool | None:
        """The verdict. Raises OSError or ValueError if the process has ended or another thread has closed it."""
        with self._lock:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
            return self._reply()

    def _reply(self) -> bool | str | None:
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


_LOCK = threading.Lock()
_WORKERS: dict[tuple[int, str], _Worker] = {}


@atexit.register
def _close_all() -> None:
    for (pid, _), worker in _WORKERS.items():
        if pid == os.getpid():
            worker.close()


# The rest runs in the worker.


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # interrupting a notebook cell must not end the worker
    replies = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not be read as a reply
    same, error = None, None
    try:
        same = import_module(TASKS[sys.argv[1]][0]).load()
    except ImportError as missing:
        error = str(missing)
    os.write(replies, json.dumps(error).encode() + b"\n")
    for line in sys.stdin if same else ():
        verdict = compare(same, *json.loads(line))
        with contextlib.suppress(BrokenPipeError):  # then there are no more lines
            os.write(replies, json.dumps(verdict).encode() + b"\n")


def compare(same: Callable[[object, object], bool], answer: object, gold: object, seconds: float) -> bool | None:
    """The verdict of a forked child, read from its exit code. None if it ran out of time or memory."""
    child = os.fork()
    if not child:
        code = 2
        try:
            signal.setitimer(signal.ITIMER_PROF, seconds)  # processor time, which a busy machine does not change
            signal.setitimer(signal.ITIMER_REAL, BUSY * seconds)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
            code = 1 if same(answer, gold) else 0
        finally:  # whatever a library raises on model text gives no verdict
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return bool(code) if code in (0, 1) else None


if __name__ == "__main__":
    main()

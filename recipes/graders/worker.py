"""Third parties that read model text, each in a process of its own: sympy, pint and RDKit.

What it is: `decide(task, answer, gold)`, which works in any thread. A worker (`python -m recipes.graders.worker TASK`)
imports its library once, outside any limit, and forks a child that answers one line of JSON after another. The child's
own alarm ends it at the limit, whatever it is computing and in whatever language, its memory is limited, and the worker
then forks the next one in milliseconds. Worker and child end with the process that asked. What it is not: a sandbox
against code; no model text is executed in it either.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from math import isclose
from pathlib import Path

from reasonkit.text.allowance import LIMIT_SECONDS, current, is_spent

MEMORY_BYTES = 2 * 2**30
TOLERANCE = 1e-9  # relative, for the rounding of a unit's conversion
# What a worker gets of the environment, to find its programs and packages: no key, token or password.
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONUSERBASE")
ENDED = object()  # what a worker that is gone replies


def decide(task: str, answer: object, gold: object, seconds: float = LIMIT_SECONDS) -> bool | None:
    """Whether the two are equal by `task`; None where that is undecided, at the limit, by an error in the library or
    because the reply's allowance is spent (see `allow`).

    Tasks: "expression" takes two formulas as in `algebra.same`, "smiles" two SMILES strings, "quantity" two lists of
    [magnitude as a fraction in text, unit, unit as it may be meant]. Raises ImportError if the task's package is
    missing.
    """
    worker, verdict, allowance = start(task), ENDED, current()
    if is_spent():
        return None
    began = time.monotonic()
    try:
        verdict = worker.ask([answer, gold, min(seconds, allowance.left) if allowance else seconds])
    finally:  # killed from outside, or its reply not waited for: the next call starts another
        if verdict is ENDED:
            with _LOCK:
                if _WORKERS.get((os.getpid(), task)) is worker:
                    del _WORKERS[os.getpid(), task]
            worker.close()
        if allowance:
            allowance.left -= time.monotonic() - began
    return None if verdict is ENDED else verdict


def start(task: str) -> _Worker:
    """The running worker of a task. Raises ImportError, naming the extra, if the task's package is missing."""
    # A forked process must not talk through its parent's pipes.
    key = (os.getpid(), task)
    with _LOCK:
        if key not in _WORKERS:
            _WORKERS[key] = _Worker(task)
        return _WORKERS[key]


class _Worker:
    def __init__(self, task: str) -> None:
        _, package, extra = TASKS[task]
        path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
        # Only a process with a single thread is safe to fork.
        passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        env = {**passed, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._lock = threading.Lock()
        self._process = subprocess.Popen([sys.executable, "-m", "recipes.graders.worker", task], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, env=env)
        if (first := self._reply()) is not True:
            self.close()
            why = "its process ended" if first is ENDED else first
            raise ImportError(f"answers of kind {task!r} need {package}: pip install 'reasonkit[{extra}]' ({why})")

    def ask(self, question: list) -> object:
        with self._lock:
            try:
                self._process.stdin.write(json.dumps(question).encode() + b"\n")
                self._process.stdin.flush()
                return self._reply()
            except (OSError, ValueError):  # it has ended, or another thread has closed it
                return ENDED

    def _reply(self) -> object:
        line = self._process.stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else ENDED

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


# From here on: what runs in the worker.


def _load_expression() -> Callable[[list, list], bool]:
    from recipes.graders.algebra import same

    same(("", "\\frac { x + 1 } { 2 }"), ("", "\\sqrt { x }"))  # what sympy does once, here for all children
    return same


def _load_quantity() -> Callable[[list, list], bool]:
    from itertools import product

    from pint import UnitRegistry

    registry = UnitRegistry(autoconvert_offset_to_baseunit=True)
    # 5 mol% are not 5 wt%; what medicine measures in has no fixed worth in moles
    for name in ("mol_percent", "mass_percent", "volume_percent", "Eq", "Osm", "IU"):
        registry.define(f"{name} = [{name}]")

    def total(parts: list, reading: int):
        """The sum of "5 ft 10 in": each part less than one of the unit before."""
        first, *rest = (registry.Quantity(float(Fraction(part[0])), registry.parse_units(part[reading]))
                        for part in parts)
        for part in rest:
            if not 0 <= part.m_as(first.units) < 1:
                raise ValueError("the parts are no single quantity")
            first += part
        return first

    def angular(quantity) -> bool | None:
        """True for an angle or its rate, False for what counts turns, None for others."""
        names = re.findall(r"hertz|count|radian|degree(?!_)", str(quantity.units))
        return None if not names else names[0] in ("radian", "degree")

    def same(answer: list, gold: list) -> bool:
        for readings in product((1, -1), repeat=2):  # J/kg·K may be meant as J/(kg·K)
            found, expected = map(total, (answer, gold), readings)
            if found.is_compatible_with(expected):
                break
        else:
            return False
        if None is not angular(found) != angular(expected) is not None:  # a turn is 2 pi radians
            found, expected = (side if angular(side) else side * registry.turn for side in (found, expected))
        return isclose(found.m_as(expected.units), expected.magnitude, rel_tol=TOLERANCE, abs_tol=1e-300)

    return same


def _load_smiles() -> Callable[[str, str], bool]:
    from rdkit import Chem, RDLogger

    RDLogger.DisableLog("rdApp.*")

    def canonical(smiles: str) -> str | None:
        molecule = Chem.MolFromSmiles(smiles)
        return None if molecule is None else Chem.MolToSmiles(molecule)

    def same(answer: str, gold: str) -> bool:
        found = canonical(answer)
        return bool(found) and found == canonical(gold)

    return same


TASKS = {
    "expression": (_load_expression, "sympy", "verify"),
    "quantity": (_load_quantity, "pint", "verify"),
    "smiles": (_load_smiles, "rdkit", "chem"),
}


def _serve(same: Callable, replies: int) -> None:
    """Answer lines until there are no more, or the alarm or the memory ends this process."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with contextlib.suppress(ValueError):  # a system that has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    for line in sys.stdin:
        answer, gold, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            verdict = bool(same(answer, gold))
        except Exception:  # whatever a library raises on model text, it is no verdict
            verdict = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.write(replies, json.dumps(verdict).encode() + b"\n")


def main() -> None:
    task = sys.argv[1]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted notebook cell is no reason to end
    replies = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no reply
    try:
        same = TASKS[task][0]()
    except ImportError as error:
        os.write(replies, json.dumps(str(error)).encode() + b"\n")
        return
    os.write(replies, b"true\n")
    while True:
        child = os.fork()
        if not child:
            try:
                _serve(same, replies)
            finally:
                os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            return
        with contextlib.suppress(BrokenPipeError):  # then the next child finds no more lines
            os.write(replies, b"null\n")


if __name__ == "__main__":
    main()

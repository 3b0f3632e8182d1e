"""The time that a reply's decisions may take: `allow` it for a block, and what decides looks at it with `current`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

LIMIT_SECONDS = 2.0


@dataclass
class Allowance:
    """Seconds that the decisions of one reply may still take, all of them together."""

    left: float


_ALLOWANCE: ContextVar[Allowance | None] = ContextVar("allowance", default=None)


@contextlib.contextmanager
def allow(seconds: float) -> Iterator[Allowance]:
    """Let the decisions of this block, in this thread, take so long together; later ones are undecided at once."""
    token = _ALLOWANCE.set(allowance := Allowance(seconds))
    try:
        yield allowance
    finally:
        _ALLOWANCE.reset(token)


def is_spent() -> bool:
    """Whether this thread's allowance has no time left; without one there is no end."""
    allowance = _ALLOWANCE.get()
    return allowance is not None and allowance.left <= 0


def current() -> Allowance | None:
    """This thread's allowance; None without one."""
    return _ALLOWANCE.get()

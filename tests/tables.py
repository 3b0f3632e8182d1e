"""Golden tables: thousands of small rows, each table one test."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence

SHOWN = 20  # failing rows, at most


def each_row(rows: Sequence) -> Callable:
    """Makes a test of one `row` a test of all `rows`. It fails after the last row and names each that failed.

    pytest spends more time on a test of its own for a row than most rows take.
    """

    def decorate(test: Callable) -> Callable:
        @functools.wraps(test)
        def run(**fixtures):
            failures = []
            for number, row in enumerate(rows, 1):
                try:
                    test(row=row, **fixtures)
                except Exception as error:
                    failures.append(f"row {number}, {row!r:.500}: {type(error).__name__}: {error}")
            assert not failures, "\n".join([f"{len(failures)} of {len(rows)} rows", *failures[:SHOWN]])

        signature = inspect.signature(test)
        run.__signature__ = signature.replace(parameters=[p for p in signature.parameters.values() if p.name != "row"])
        return run

    return decorate

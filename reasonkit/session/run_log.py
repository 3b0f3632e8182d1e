"""The run log: one JSON object per line, appended and flushed, so that a killed run loses one line at most. A full disk
does not end a stage: rows wait in memory until they can be written.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reasonkit.session.files import RecordError, disk_full_message, parse_json
from reasonkit.session.records import is_row


def plain(value: Any, name: str) -> Any:
    """`value` as strict JSON, with NaN and infinities as "nan", "inf" and "-inf". A TypeError names `name`."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{name}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{name}[{index}]") for index, item in enumerate(value)]
    if hasattr(value, "tolist"):  # arrays and scalars of NumPy and JAX
        return plain(value.tolist(), name)
    kind = type(value).__name__
    raise TypeError(f"{name} is a {kind}: give numbers, strings, lists, mappings, paths or arrays")


class RunLog:
    """An append-only JSON lines file. Every row has "t" (epoch seconds) and "event". Threads may share it.

    A stage sets `step` to its current step, and rows record it as "at". It begins with a row "start", with its name,
    its number of steps, and the one that it continues after. `read` leaves out its earlier rows of later steps, because
    their weights were lost. It also leaves out lines that are not rows, such as a torn one, and counts them in
    `skipped`. Raises ValueError when `path` is a folder or a pipe.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if self.path.is_dir() or self.path.is_fifo():
            raise ValueError(f"run log {self.path} is a folder or a pipe: give a file, such as run.jsonl")
        self.step: int | None = None
        self.skipped = 0
        self._waiting = b""  # rows that the disk did not take
        self._lock = threading.Lock()

    def write(self, event: str, **fields: Any) -> None:
        """Append one row and flush it. Raises TypeError for a field that `plain` refuses."""
        at = {} if self.step is None else {"at": self.step}
        row = {"t": time.time(), "event": event, **at, **plain(fields, event)}
        with self._lock:
            reported = bool(self._waiting)
            self._waiting += json.dumps(row).encode("ascii") + b"\n"
            try:
                self._append()
                self._waiting = b""
            except OSError as error:
                if not reported:
                    print(f"{disk_full_message(self.path, error, len(self._waiting))}: until then its rows wait in "
                          "memory, and the stage goes on", file=sys.stderr)

    def _append(self) -> None:
        """Write all rows that wait, or none."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab+", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(end - 1, 0))
            torn = file.read(1) not in (b"", b"\n")  # a killed run left half a line: end it
            left = memoryview(b"\n" * torn + self._waiting)
            try:
                while left:
                    left = left[file.write(left):]
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(end)
                raise

    def read(self, event: str | None = None, every: bool = False) -> list[dict[str, Any]]:
        """The rows of one event or of all, oldest first. With `every`, also those whose weights were lost."""
        data = self.path.read_bytes() if self.path.is_file() else b""
        rows: list[dict[str, Any]] = []
        began: dict[str, int] = {}  # stage -> the number of rows before its own
        self.skipped = 0
        for line in filter(None, (data + b"\n" + self._waiting).split(b"\n")):
            try:
                row = parse_json(line)
            except RecordError:
                row = None
            if not is_row(row):
                self.skipped += 1
                continue
            if row["event"] == "start" and not every:
                first = began.setdefault(row["stage"], len(rows))
                rows[first:] = [old for old in rows[first:] if old.get("step", old.get("at", 0)) <= row["step"]]
            rows.append(row)
        return [row for row in rows if event in (None, row["event"])]

    def last(self, event: str) -> dict[str, Any] | None:
        """The newest row of the event, or None."""
        return next(reversed(self.read(event)), None)


class NullLog(RunLog):
    """A log that keeps nothing."""

    def __init__(self) -> None:
        super().__init__(Path(os.devnull))

    def write(self, event: str, **fields: Any) -> None:
        pass


def earlier_minutes(log: RunLog, stage: str) -> float:
    """Minutes of all sessions but the newest, from "start" to last step, with steps that were lost and repeated."""
    seconds, began, last = 0.0, None, None
    for row in log.read(every=True):
        if row["event"] == "start" and row["stage"] == stage:
            seconds += last - began if last else 0.0
            began, last = row["t"], None
        elif row["event"] == f"{stage}_step" and began is not None:
            last = row["t"]
    return seconds / 60

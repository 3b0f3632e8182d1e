"""What happened, on disk: the run log (JSON lines) and each stage's manifest.

The log is append-only: one object a line, written whole and flushed, so a killed run loses at most the line
it was writing. The manifest is how a stage hands over to the next one: what went in, what came out, and
whether the prompt and the adapter are still the same.

A disk that takes no more does not end a stage: rows wait in memory, and are written once it does.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import math
import os
import re
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reasonkit.session.files import RecordError, disk_full_message, parse_json, read, write_atomic
from reasonkit.session.records import Manifest, Trained, is_row

MANIFEST = "manifest.json"
PACKAGES = ("jax", "flax", "google-tunix", "qwix", "reasonkit")
NOTEBOOKS = {
    "data": "01 (01_data_curation)",
    "sft": "02 (02_sft_warm_start)",
    "grpo": "03 (03_grpo_with_judge)",
    "evaluation": "04 (04_evaluation)",
}


class ManifestError(ValueError):
    """A stage's manifest is missing, unreadable, or of another stage, prompt or adapter."""


def plain(value: Any, name: str) -> Any:
    """`value` as strict JSON, NaN and infinities as "nan", "inf", "-inf"; a TypeError names `name`."""
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
    if hasattr(value, "tolist"):  # numpy and jax, arrays and scalars
        return plain(value.tolist(), name)
    kind = type(value).__name__
    raise TypeError(f"{name} is a {kind}: give numbers, strings, lists, mappings, paths or arrays")


class RunLog:
    """An append-only JSON lines file; every row has "t" (epoch seconds) and "event". Threads may share it.

    A stage sets `step` to what it works on, and rows get it as "at". It writes a row "start" (its stage, the step it
    begins after): rows of later steps that the stage wrote before came to nothing with the weights, and are not read.

    What is no row, a line that a killed run left half-written, say, is passed over: `skipped` counts the lines of the
    last reading. Raises ValueError when `path` is a folder or a pipe.
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
        """Append one row and flush it. Numbers, strings, lists, mappings, paths and arrays may be its fields.

        Raises ValueError for an empty event or a field named "t", TypeError for a field of another type.
        """
        if not isinstance(event, str) or not event:
            raise ValueError(f"event={event!r}: name the event with a non-empty string")
        if "t" in fields:
            raise ValueError(f"event {event!r} has a field 't', which is the row's time: rename the field")
        at = {} if self.step is None else {"at": self.step}
        row = {"t": time.time(), "event": event, **at, **plain(fields, event)}
        with self._lock:
            told, self._waiting = bool(self._waiting), self._waiting + json.dumps(row).encode("ascii") + b"\n"
            try:
                self._append()
                self._waiting = b""
            except OSError as error:
                if not told:
                    print(f"{disk_full_message(self.path, error, len(self._waiting))}: until then its rows wait in "
                          "memory, and the stage goes on", file=sys.stderr)

    def _append(self) -> None:
        """Write all that waits, or nothing."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab+", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(end - 1, 0))
            torn = file.read(1) not in (b"", b"\n")  # keeps what a killed run left half-written off these rows
            left = memoryview(b"\n" * torn + self._waiting)
            try:
                while left:
                    left = left[file.write(left):]
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(end)
                raise

    def read(self, event: str | None = None, every: bool = False) -> list[dict[str, Any]]:
        """All rows that count, or one event's, oldest first; with `every` also those that came to nothing. A missing
        file has no rows."""
        data = self.path.read_bytes() if self.path.is_file() else b""
        rows: list[dict[str, Any]] = []
        began: dict[str, int] = {}  # stage -> the number of rows before its own
        self.skipped = 0
        for line in filter(None, [*data.split(b"\n"), *self._waiting.split(b"\n")]):
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
        return [row for row in rows if event is None or row["event"] == event]

    def last(self, event: str) -> dict[str, Any] | None:
        """The newest row of the event, None if there is none."""
        rows = self.read(event)
        return rows[-1] if rows else None


class NullLog:
    """A log that keeps nothing, for callers that want none."""

    step: int | None = None
    skipped = 0

    def write(self, event: str, **fields: Any) -> None:
        """Keep nothing."""

    def read(self, event: str | None = None, every: bool = False) -> list[dict[str, Any]]:
        """No rows."""
        return []

    def last(self, event: str) -> dict[str, Any] | None:
        """None."""
        return None


def prompt_hash(template: str) -> str:
    """SHA-256, in hex, of the prompt template's UTF-8 bytes."""
    return hashlib.sha256(template.encode("utf-8")).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256, in hex, of a file; of a folder, over the sorted relative paths and contents of its files.

    Raises ManifestError when there is nothing at `path`.
    """
    path = Path(path)
    if path.is_file():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if not path.is_dir():
        raise ManifestError(f"input {path} does not exist: nothing to hash")
    digest = hashlib.sha256()
    files = {item.relative_to(path).as_posix(): item for item in path.rglob("*") if item.is_file()}
    for name in sorted(files):
        digest.update(f"{name}\0{file_sha256(files[name])}\n".encode())
    return digest.hexdigest()


def base_sha256(folder: Path) -> str:
    """SHA-256 over what makes a base model in its folder: settings, tokenizer and weights, of which a large file counts
    with its size, its first and its last MiB. A card or a helper's file beside them changes nothing."""
    digest, end = hashlib.sha256(), 1 << 20
    files = {item.relative_to(folder).as_posix(): item for item in Path(folder).rglob("*") if item.is_file()}
    for name in sorted(files):
        path, size = files[name], files[name].stat().st_size
        if path.suffix in (".md", ".txt") or path.name in ("NOTICE", "tokenizer.json", "tokenizer_config.json"):
            continue
        with open(path, "rb") as file:
            ends = file.read(end)
            file.seek(max(size - end, 0))
            digest.update(f"{name}\0{size}\n".encode() + ends + file.read(end))
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # a stage without JAX, or the library run from its folder
    return found


def write_manifest(
    folder: Path,
    stage: str,
    *,
    inputs: Mapping[str, Path],
    metrics: Mapping[str, Any],
    prompt_sha256: str,
    lora: Mapping[str, Any] | None,
    minutes: float,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write <folder>/manifest.json, whole or not at all, and return its path.

    inputs: name -> file or folder, recorded with its SHA-256, and by its path from the run's folder, the one above
    `folder`, where it lies there: a run may move. lora: the adapter's shape (rank, alpha,
    modules), None for a stage without one. minutes: what the stage took. extra: anything else.

    Raises ManifestError for a missing input or a bad stage, hash or time; TypeError for a non-JSON value.
    """
    if not isinstance(stage, str) or not stage:
        raise ManifestError(f"stage={stage!r}: name the stage with a non-empty string")
    if not re.fullmatch("[0-9a-f]{64}", str(prompt_sha256)):
        raise ManifestError(f"prompt_sha256={prompt_sha256!r} is no SHA-256: use prompt_hash(TAGS.template)")
    if not (math.isfinite(minutes) and minutes >= 0):
        raise ManifestError(f"minutes={minutes!r} of stage {stage!r}: give zero or more minutes")
    manifest = {
        "stage": stage,
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "minutes": float(minutes),
        "prompt_sha256": prompt_sha256,
        "lora": plain(lora, "lora"),
        "metrics": plain(metrics, "metrics"),
        "inputs": {name: {"path": _place(path, Path(folder).parent), "sha256": file_sha256(path)}
                   for name, path in inputs.items()},
        "versions": _versions(),
        "extra": plain(extra or {}, "extra"),
    }
    path = Path(folder) / MANIFEST
    write_atomic(path, json.dumps(manifest, indent=1))
    return path


def _place(path: Path, root: Path) -> str:
    whole, root = Path(path).resolve(), root.resolve()
    return whole.relative_to(root).as_posix() if whole.is_relative_to(root) else str(path)


def read_manifest(
    folder: Path,
    *,
    stage: str,
    prompt_sha256: str | None = None,
    lora: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The manifest that `stage` left in `folder`, checked against the prompt and the adapter where given, and against
    its inputs where they lie in the run's folder.

    Raises ManifestError, saying what to run first, when it is missing or unreadable, or of another stage,
    prompt or adapter, and when one of its inputs has changed since.
    """
    path = Path(folder) / MANIFEST
    first = f"run notebook {NOTEBOOKS[stage]} first" if stage in NOTEBOOKS else f"run stage {stage!r} first"
    if not path.exists():
        raise ManifestError(f"{first}: {path} does not exist")
    try:
        model = Manifest if stage in ("data", "evaluation") else Trained
        manifest = read(path, model, "delete it").model_dump(exclude_unset=True)
    except RecordError as error:
        raise ManifestError(f"{first}: {error}") from None
    found, found_prompt, found_lora = manifest["stage"], manifest["prompt_sha256"], manifest["lora"]
    if found != stage:
        raise ManifestError(f"{first}: {path} was written by stage {found!r}, not by {stage!r}")
    if prompt_sha256 is not None and found_prompt != prompt_sha256:
        raise ManifestError(
            f"{path}: stage {stage!r} used another prompt (SHA-256 {str(found_prompt)[:12]}…, now "
            f"{prompt_sha256[:12]}…): restore the prompt, or {first} with this one"
        )
    if lora is not None and found_lora != (wanted := plain(lora, "lora")):
        raise ManifestError(
            f"{path}: stage {stage!r} has the adapter {found_lora}, this run wants {wanted}: "
            f"set the same adapter, or {first} with this one"
        )
    for entry in manifest["inputs"].values():
        path = Path(folder).parent / entry["path"]
        inside = not Path(entry["path"]).is_absolute()
        if inside and path.exists() and file_sha256(path) != entry["sha256"]:
            raise ManifestError(f"{path} has changed since stage {stage!r} was finished with it: put the old one back, "
                                f"or {first} with this one, and then the stages after it")
    return manifest

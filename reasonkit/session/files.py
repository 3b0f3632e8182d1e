"""One reader and one writer for every file of a run: `read` with a model of `records`, and `write_atomic`.

Wrong content raises a RecordError that names the file, the line or key, the value and the remedy. Unlike Python's JSON,
this one refuses NaN, infinities and repeated keys.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import threading
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.EROFS)


class RecordError(ValueError):
    """A file's content is not what it should be."""


class DiskFullError(OSError):
    """The disk has no room for a file or a checkpoint, or can't be written."""


def preview(value: object, length: int = 80) -> str:
    """The first `length` characters of a value's `repr`."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # deeply nested, or a number of thousands of digits
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= length else f"{text[:length]}…"


def parse_json(data: bytes | str) -> Any:
    """The value of a strict JSON text, with or without a byte order mark. Raises RecordError for anything else."""
    return _parse(data, lambda text: json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_finite,
                                                parse_float=_finite), "JSON")


def parse_toml(data: bytes | str) -> dict[str, Any]:
    """As `parse_json`, for TOML."""
    return _parse(data, tomllib.loads, "TOML")


def _parse(data: bytes | str, parse: Callable[[str], Any], format: str) -> Any:
    try:
        return parse(data.removeprefix("\ufeff") if isinstance(data, str) else data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RecordError(f"no UTF-8 (byte {error.start} is {data[error.start]:#04x}): save it as UTF-8") from None
    except RecursionError:
        raise RecordError(f"not {format}: nested too deeply") from None
    except ValueError as error:
        raise RecordError(f"not {format}: {error}" if data.strip() else "empty") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {preview(key)} comes twice")
        found[key] = value
    return found


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{preview(text)} is no finite number")
    return value


def read_file(path: Path) -> bytes:
    """The bytes of a plain file. Raises RecordError, which says what is there instead."""
    try:
        if path.is_file():
            return path.read_bytes()
        found = "a folder" if path.is_dir() else "no plain file" if path.exists() else "not there"
    except OSError as error:
        found = f"not readable ({error.strerror})"
    raise RecordError(found)


Model = TypeVar("Model", bound=BaseModel)


def read(path: Path, model: type[Model], remedy: str, parse: Callable[[bytes], Any] = parse_json,
         error: type[ValueError] = RecordError) -> Model:
    """The file at `path` as a `model`. Raises `error`, which calls the file `model.what` and ends with `remedy`."""
    try:
        return check(parse(read_file(path)), model)
    except RecordError as found:
        raise error(f"{path} is no {model.what} ({found}): {remedy}") from None


def check(value: object, model: type[Model]) -> Model:
    """`value` as a `model`. Raises RecordError with the key and the value of up to three faults."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)
        more = f"; {len(faults) - 3} more" * (len(faults) > 3)
        raise RecordError("; ".join(map(_describe, faults[:3])) + more) from None


def _describe(fault: Mapping[str, Any]) -> str:
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"])[1:] or "the whole"
    place = place if len(place) <= 80 else f"{place[:80]}…"
    if fault["type"] == "missing":
        return f"{place} is missing"
    if fault["type"] == "extra_forbidden":
        return f"{place} is no key that is known here"
    expected = fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{place} is {preview(fault['input'])}, and {expected}"


@contextlib.contextmanager
def replace_file(path: Path, size: int | None = None) -> Iterator[Path]:
    """Yield a temporary file to write, which replaces `path` after the block. Makes the folder. Raises DiskFullError,
    with the `size` in bytes that the file needs, when the disk takes no more.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise DiskFullError(f"{disk_full_message(path, error, size)}, or put the run on another one, and run the cell "
                            "again: what was saved before is kept") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def disk_full_message(path: Path, error: OSError, size: int | None = None) -> str:
    """Which file was not written and why, how many bytes it needs and the disk has, and the remedy."""
    if error.errno in (errno.EROFS, errno.EACCES):
        return f"{path} can't be written ({error.strerror}). Copy {path.parent} to a folder that can be written"
    try:
        free = f", {shutil.disk_usage(path.parent).free / 1e6:.3f} MB are free"
    except OSError:
        free = ""
    needed = "" if size is None else f" It needs {size / 1e6:.3f} MB{free}."
    return f"{path} can't be written ({error.strerror or error}).{needed} Make room on the disk of {path.parent}"


def write_atomic(path: Path, text: str) -> None:
    """Replace `path` with `text` in UTF-8, completely or not at all. Raises DiskFullError as `replace_file`."""
    with replace_file(path, len(text)) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # else a crash may leave the new name on an empty file

"""One way to read a file and one to write it: `read`, `check`, `write_atomic`.

What is wrong with a file is a RecordError, which names the file, the line or key, the value and the remedy; a disk that
takes no more is a DiskFullError. The models are in `records`. Departure from Python's JSON: NaN, infinities and a key
that comes twice are refused.
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

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.EROFS)  # what a disk says that takes no more


class RecordError(ValueError):
    """What a file holds is not what it should hold."""


class DiskFullError(OSError):
    """A file, or a checkpoint with the older ones gone, has no room on its disk, or the disk takes no more."""


def preview(value: object, length: int = 80) -> str:
    """The beginning of a value, as Python writes it, whatever it is."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # deeply nested, or a number of thousands of digits
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= length else f"{text[:length]}…"


def parse_json(data: bytes | str) -> Any:
    """The value that strict JSON stands for; a byte order mark is passed over. Raises RecordError for what is none."""
    return _parsed(data, lambda text: json.loads(text, object_pairs_hook=_once, parse_constant=_finite,
                                                 parse_float=_finite), "JSON")


def parse_toml(data: bytes | str) -> dict[str, Any]:
    """As `parse_json`, for TOML."""
    return _parsed(data, lambda text: tomllib.loads(text.replace("\r\n", "\n")), "TOML")


def _parsed(data: bytes | str, parse: Callable[[str], Any], form: str) -> Any:
    try:
        text = data.removeprefix("\ufeff") if isinstance(data, str) else data.decode("utf-8-sig")
        return parse(text)
    except UnicodeDecodeError as error:
        raise RecordError(f"no UTF-8 (byte {error.start} is {data[error.start]:#04x}): save it as UTF-8") from None
    except RecursionError:
        raise RecordError(f"not {form}: nested too deeply") from None
    except ValueError as error:
        raise RecordError(f"not {form}: {error}" if data.strip() else "empty") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {preview(next(key for key in keys if keys.count(key) > 1))} comes twice")
    return found


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{preview(text)} is no finite number")
    return value


def read_file(path: Path) -> bytes:
    """What a plain file holds. Raises RecordError, which says what is in its place, for anything else."""
    try:
        if path.is_file():
            return path.read_bytes()
        found = ("a folder" if path.is_dir() else "a link to nothing" if path.is_symlink() else
                 "no plain file" if path.exists() else "not there")
    except OSError as error:
        found = f"not readable ({error.strerror})"
    raise RecordError(found)


Model = TypeVar("Model", bound=BaseModel)


def read(path: Path, model: type[Model], remedy: str, parse: Callable[[bytes], Any] = parse_json) -> Model:
    """What the file at `path` holds; `model.what` is its name. Raises RecordError, with the `remedy`."""
    try:
        return check(parse(read_file(path)), model)
    except RecordError as error:
        raise RecordError(f"{path} is no {model.what} ({error}): {remedy}") from None


def check(value: object, model: type[Model]) -> Model:
    """`value` as a `model`. Raises RecordError, which names key and value of at most three faults."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)
        more = f"; {len(faults) - 3} more" * (len(faults) > 3)
        raise RecordError("; ".join(map(_fault, faults[:3])) + more) from None


def _fault(fault: Mapping[str, Any]) -> str:
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"])[1:] or "the whole"
    place = place if len(place) <= 80 else f"{place[:80]}…"
    if fault["type"] in ("missing", "extra_forbidden"):
        return f"{place} is {'missing' if fault['type'] == 'missing' else 'no key that is known here'}"
    asked = fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{place} is {preview(fault['input'])}, and {asked}"


@contextlib.contextmanager
def replacing(path: Path, size: int | None = None) -> Iterator[Path]:
    """Give a file to write, which then replaces `path`, whole or not at all; the folder is made if it is missing.

    Raises DiskFullError, with what it needs (`size` in bytes) and the remedy, when the disk takes no more.
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
    """Which file was not written and why, what it needs, and to make room."""
    try:
        free = f", {shutil.disk_usage(path.parent).free / 1e6:.3f} MB are free"
    except OSError:
        free = ""
    needed = "" if size is None else f" It needs {size / 1e6:.3f} MB{free}."
    return f"{path} can't be written ({error.strerror or error}).{needed} Make room on the disk of {path.parent}"


def write_atomic(path: Path, text: str) -> None:
    """Replace `path` with `text` (UTF-8), as `replacing` does."""
    with replacing(path, len(text)) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # else a crash may leave the new name on an empty file

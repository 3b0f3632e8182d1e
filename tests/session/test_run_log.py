"""reasonkit.session.run_log: the log survives what runs do to it; a manifest refuses what does not belong to it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonkit.session import run_log as module
from reasonkit.session.files import DiskFullError
from reasonkit.session.run_log import (
    ManifestError,
    NullLog,
    RunLog,
    file_sha256,
    prompt_hash,
    read_manifest,
    write_manifest,
)

PROMPT = prompt_hash("{question}")
LORA = {"rank": 64, "alpha": 64.0, "modules": ("q_einsum", "kv_einsum")}


@pytest.fixture
def log(tmp_path):
    return RunLog(tmp_path / "artifacts" / "run.jsonl")


@pytest.fixture
def write(tmp_path):
    """write(**changes): a manifest in tmp_path/sft, with one input file."""
    data = tmp_path / "train.jsonl"
    data.write_text("{}\n")

    def write(stage="sft", **changes):
        fields = {
            "inputs": {"train": data},
            "metrics": {"loss": np.float32(0.5), "steps": 282},
            "prompt_sha256": PROMPT,
            "lora": LORA,
            "minutes": 22.5,
        }
        return write_manifest(tmp_path / "sft", stage, **(fields | changes))

    return write


# -- the log


def test_rows_come_back_in_order_with_time_and_event(log):
    before = time.time()
    log.write("step", stage="sft", loss=1.5)
    log.write("eval", mean=0.25)
    log.write("step", stage="sft", loss=1.0)
    first, second, third = log.read()
    assert before <= first["t"] <= second["t"] <= third["t"] <= time.time()
    assert {key: first[key] for key in ("event", "stage", "loss")} == {
        "event": "step",
        "stage": "sft",
        "loss": 1.5,
    }
    assert log.read("step") == [first, third] and log.last("step") == third
    assert log.read("reward") == [] and log.last("reward") is None


def test_a_log_nobody_wrote_to_is_empty_and_makes_no_file(log):
    assert log.read() == [] and log.last("step") is None
    assert not log.path.exists()


def test_numpy_paths_and_nesting_become_plain_json(log):
    log.write(
        "x",
        scalar=np.float32(0.5),
        integer=np.int64(3),
        flag=np.bool_(True),
        zero_d=np.array(2),
        array=np.arange(4).reshape(2, 2),
        path=Path("a") / "b",
        nested={"k": [np.float64(1.0), (None, "s")], 3: True},
    )
    row = log.last("x")
    del row["t"], row["event"]
    assert row == {
        "scalar": 0.5,
        "integer": 3,
        "flag": True,
        "zero_d": 2,
        "array": [[0, 1], [2, 3]],
        "path": str(Path("a/b")),
        "nested": {"k": [1.0, [None, "s"]], "3": True},
    }


def test_nan_and_infinities_stay_readable_by_strict_parsers(log):
    log.write(
        "x", values=[float("nan"), float("inf"), -np.inf, np.float32("nan")], array=np.array([np.nan, 1])
    )

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    row = json.loads(log.path.read_text(), parse_constant=refuse)
    assert row["values"] == ["nan", "inf", "-inf", "nan"] and row["array"] == ["nan", 1.0]


@given(st.text())
def test_any_text_makes_one_line_and_comes_back(tmp_path_factory, text):
    log = RunLog(tmp_path_factory.mktemp("log") / "run.jsonl")
    log.write("sample", text=text)
    assert log.path.read_bytes().count(b"\n") == 1
    assert log.last("sample")["text"] == text


def test_a_lone_surrogate_survives(log):
    log.write("sample", text="\ud83d")
    assert log.last("sample")["text"] == "\ud83d"


def test_a_torn_last_line_is_skipped_and_does_not_swallow_the_next_row(log):
    log.write("step", index=1)
    log.write("step", index=2)
    log.path.write_bytes(log.path.read_bytes()[:-9])  # killed while writing
    assert [row["index"] for row in log.read()] == [1]
    RunLog(log.path).write("step", index=3)
    assert [row["index"] for row in log.read()] == [1, 3]


def test_steps_that_came_to_nothing_are_not_read(log):
    """A run killed at step 4 and gone on with after step 2, with a stage before it in the same log."""
    def train(stage, *steps):
        for step in steps:
            log.step = step
            log.write("reward", mean=step)
            log.write(f"{stage}_step", step=step)
        log.step = None

    log.write("start", stage="sft", step=0)
    train("sft", 1, 2, 3)
    log.write("start", stage="grpo", step=0)
    train("grpo", 1, 2, 3, 4)
    log.write("start", stage="grpo", step=2)
    assert [row["step"] for row in log.read("grpo_step")] == [1, 2] and log.last("grpo_step")["step"] == 2
    train("grpo", 3, 4, 5)
    assert [row["step"] for row in log.read("grpo_step")] == [1, 2, 3, 4, 5]
    assert [row["mean"] for row in log.read("reward")] == [1, 2, 3, 1, 2, 3, 4, 5]
    assert [row["step"] for row in log.read("sft_step")] == [1, 2, 3]
    assert log.path.read_bytes().count(b'"grpo_step"') == 7, "it is append-only"


def test_reading_does_not_touch_a_log_that_another_process_writes(log):
    log.path.parent.mkdir()
    log.path.write_bytes(b'{"t": 1.0, "event": "step"')
    assert RunLog(log.path).read() == []
    assert log.path.read_bytes() == b'{"t": 1.0, "event": "step"'


def test_threads_and_two_logs_on_one_file_lose_nothing(log):
    other = RunLog(log.path)
    long = "x" * 20_000  # longer than a write buffer

    def work(mine, name):
        for index in range(50):
            mine.write("step", name=name, index=index, text=long)

    threads = [threading.Thread(target=work, args=(log, "a")), threading.Thread(target=work, args=(log, "b"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.write("end")
    rows = log.read("step")
    for name in "ab":
        assert [row["index"] for row in rows if row["name"] == name] == list(range(50))
    assert len(log.path.read_bytes().splitlines()) == 101


@pytest.mark.parametrize(
    "event, fields, error, said",
    [
        ("", {}, ValueError, "event=''"),
        (None, {}, ValueError, "event=None"),
        ("step", {"t": 1}, ValueError, "field 't'"),
        ("step", {"fn": print}, TypeError, r"step\['fn'\] is a builtin_function_or_method"),
        ("step", {"deep": [1, {"k": {1, 2}}]}, TypeError, r"step\['deep'\]\[1\]\['k'\] is a set"),
    ],
)
def test_rows_that_cannot_be_read_back_are_refused_and_not_written(event, fields, error, said, log):
    with pytest.raises(error, match=said):
        log.write(event, **fields)
    assert not log.path.exists()


def test_a_folder_or_a_pipe_is_no_log(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ValueError, match="is a folder or a pipe"):
            RunLog(path)


def test_the_null_log_takes_everything_and_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = NullLog()
    log.write("step", loss=1.0)
    assert log.read() == log.read("step") == [] and log.last("step") is None
    assert list(tmp_path.iterdir()) == []


# -- a disk that takes no more


@contextlib.contextmanager
def room(size):
    """Files of this process may have so many bytes: beyond them a write is cut short, and the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("left", [0, 1, 20, 59, 150])
@pytest.mark.parametrize("torn", [b"", b'{"t": 1.0, "ev'])
def test_rows_wait_while_the_disk_is_full_and_are_written_when_it_is_not(left, torn, log, capsys):
    log.write("step", index=0)
    with log.path.open("ab") as file:
        file.write(torn)
    before = log.path.read_bytes()
    with room(len(before) + left):
        for index in range(1, 5):
            log.write("step", index=index)
        assert [row["index"] for row in log.read()] == [0, 1, 2, 3, 4] and log.last("step")["index"] == 4
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and f"{log.path} can't be written (File too large). It needs 0.000 MB" in told
    assert "Make room on the disk of" in told and "its rows wait in memory, and the stage goes on" in told
    assert log.path.read_bytes().startswith(before) and len(log.path.read_bytes()) <= len(before) + left
    log.write("step", index=5)
    assert [row["index"] for row in RunLog(log.path).read()] == [0, 1, 2, 3, 4, 5]
    assert log.skipped == bool(torn) == len(log.path.read_bytes().splitlines()) - 6, "none twice, none torn"
    assert not capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENOENT])
@pytest.mark.parametrize("where", ["open", "mkdir"])
def test_a_disk_that_says_no_ends_no_stage(number, where, log, monkeypatch, capsys):
    def refuse(*args, **options):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(*((module, "open") if where == "open" else (Path, "mkdir")), refuse, raising=where != "open")
        log.write("step", index=1)
        log.write("step", index=2)
    assert os.strerror(number) in capsys.readouterr().err and not log.path.exists()
    assert [row["index"] for row in log.read()] == [1, 2]
    log.write("step", index=3)
    assert [row["index"] for row in RunLog(log.path).read()] == [1, 2, 3]


def test_a_device_without_room_ends_no_stage(log, capsys):
    log.path = Path("/dev/full")
    log.write("step", index=1)
    assert "/dev/full can't be written (No space left on device)" in capsys.readouterr().err
    assert log.last("step")["index"] == 1


@pytest.mark.parametrize("size", [0, 1, 100])
def test_a_manifest_that_does_not_fit_names_itself_and_keeps_the_old_one(size, write, tmp_path):
    path = write(minutes=1)
    with room(size), pytest.raises(DiskFullError, match=rf"{path} can't be written \(File too large\). It needs 0.00\d "
                                   r"MB, [\d.]+ MB are free. Make room on the disk of .*sft, or put the run on another "
                                   "one, and run the cell again: what was saved before is kept"):
        write(minutes=2)
    assert read_manifest(tmp_path / "sft", stage="sft")["minutes"] == 1
    assert [item.name for item in path.parent.iterdir()] == ["manifest.json"]


# -- hashes


def test_hashes_are_sha256():
    assert prompt_hash("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert prompt_hash("{question}\n") != prompt_hash("{question} \n")


def test_a_file_hash_is_that_of_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_folder_hash_depends_on_names_and_contents_alone(tmp_path, monkeypatch):
    def folder(name, files):
        for path, text in files:
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_text(text)
        return file_sha256(tmp_path / name)

    files = [("a.txt", "1"), ("b/c.txt", "2")]
    original = folder("one", files)
    assert folder("two", files) == original
    assert folder("renamed", [("a.txt", "1"), ("b/d.txt", "2")]) != original
    assert folder("changed", [("a.txt", "1"), ("b/c.txt", "3")]) != original
    assert folder("moved", [("a.txt", "1"), ("c.txt", "2")]) != original
    listed = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda *args: reversed(list(listed(*args))))
    assert file_sha256(tmp_path / "one") == original


def test_a_missing_input_is_named(tmp_path):
    with pytest.raises(ManifestError, match="absent does not exist"):
        file_sha256(tmp_path / "absent")


# -- manifests


def test_a_manifest_comes_back_with_what_went_in(write, tmp_path):
    path = write(extra={"accuracy": float("nan")})
    assert path == tmp_path / "sft" / "manifest.json"
    manifest = read_manifest(tmp_path / "sft", stage="sft", prompt_sha256=PROMPT, lora=LORA)
    assert manifest["stage"] == "sft" and manifest["minutes"] == 22.5
    assert manifest["metrics"] == {"loss": 0.5, "steps": 282}
    assert manifest["lora"] == {"rank": 64, "alpha": 64.0, "modules": ["q_einsum", "kv_einsum"]}
    data = tmp_path / "train.jsonl"
    assert manifest["inputs"] == {"train": {"path": "train.jsonl", "sha256": file_sha256(data)}}
    assert manifest["extra"] == {"accuracy": "nan"}
    time.strptime(manifest["written"], "%Y-%m-%dT%H:%M:%SZ")


def test_an_input_that_has_changed_since_is_named_also_where_the_run_was_moved(write, tmp_path):
    outside = tmp_path.parent / f"{tmp_path.name}.txt"
    outside.write_text("1")
    write(inputs={"train": tmp_path / "train.jsonl", "outside": outside})
    outside.write_text("2")
    assert read_manifest(tmp_path / "sft", stage="sft")["inputs"]["outside"]["path"] == str(outside)
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    read_manifest(moved / "sft", stage="sft")
    (moved / "train.jsonl").write_text("{}\n{}\n")
    with pytest.raises(ManifestError, match=f"{moved}/train.jsonl has changed since stage 'sft' was finished with it: "
                       r"put the old one back, or run notebook 02 \(02_sft_warm_start\) first with this one, and then"):
        read_manifest(moved / "sft", stage="sft")
    (moved / "train.jsonl").unlink()
    assert read_manifest(moved / "sft", stage="sft")["stage"] == "sft", "what is not there is not looked at"


def test_versions_are_those_installed(write, monkeypatch):
    import importlib.metadata as metadata

    def version(package):
        if package in ("qwix", "reasonkit"):
            raise metadata.PackageNotFoundError(package)
        return f"{package} 1.0"

    monkeypatch.setattr(metadata, "version", version)
    versions = json.loads(write().read_text())["versions"]
    assert versions == {name: f"{name} 1.0" for name in ("jax", "flax", "google-tunix")}


def test_a_new_manifest_replaces_the_old_one(write, tmp_path):
    write(minutes=1)
    write(minutes=2)
    assert read_manifest(tmp_path / "sft", stage="sft")["minutes"] == 2
    assert [item.name for item in (tmp_path / "sft").iterdir()] == ["manifest.json"]


@pytest.mark.parametrize(
    "changes, error, said",
    [
        ({"stage": ""}, ManifestError, "stage=''"),
        ({"prompt_sha256": "{question}"}, ManifestError, r"prompt_sha256='\{question\}' is no SHA-256"),
        ({"prompt_sha256": PROMPT + "\n"}, ManifestError, "is no SHA-256"),
        ({"minutes": -1}, ManifestError, "minutes=-1"),
        ({"minutes": float("nan")}, ManifestError, "minutes=nan"),
        ({"inputs": {"train": Path("absent.jsonl")}}, ManifestError, "absent.jsonl does not exist"),
        ({"metrics": {"loss": object()}}, TypeError, r"metrics\['loss'\] is a object"),
    ],
)
def test_a_manifest_that_would_mislead_is_not_written(changes, error, said, write, tmp_path):
    with pytest.raises(error, match=said):
        write(**changes)
    assert not (tmp_path / "sft").exists()


@pytest.mark.parametrize(
    "stage, said",
    [
        ("sft", r"run notebook 02 \(02_sft_warm_start\) first: .*manifest\.json"),
        ("simpo", "run stage 'simpo' first"),
    ],
)
def test_a_missing_manifest_says_what_to_run(stage, said, tmp_path):
    with pytest.raises(ManifestError, match=said):
        read_manifest(tmp_path / "absent", stage=stage)


@pytest.mark.parametrize("text", [
    "", '{"stage": "sft"', "[]", "null", '{"stage": "sft"}',
    '{"stage": "sft", "prompt_sha256": "", "lora": null, "inputs": {"train": "x"}}'])
def test_a_broken_manifest_says_what_to_do(text, tmp_path):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ManifestError, match=r"run notebook 02 .*manifest\.json is no manifest"):
        read_manifest(tmp_path, stage="sft")


def test_a_manifest_of_another_stage_is_refused(write, tmp_path):
    write(stage="grpo")
    with pytest.raises(ManifestError, match="written by stage 'grpo', not by 'sft'"):
        read_manifest(tmp_path / "sft", stage="sft")


def test_another_prompt_is_refused_even_by_one_space(write, tmp_path):
    write()
    other = prompt_hash("{question} ")
    with pytest.raises(ManifestError, match=f"another prompt .*{PROMPT[:12]}.*{other[:12]}"):
        read_manifest(tmp_path / "sft", stage="sft", prompt_sha256=other)


@pytest.mark.parametrize("trained", [LORA | {"rank": 32}, LORA | {"modules": ["q_einsum"]}, None])
def test_another_adapter_is_refused(trained, write, tmp_path):
    write(lora=trained)
    with pytest.raises(ManifestError, match="has the adapter .* this run wants .*64"):
        read_manifest(tmp_path / "sft", stage="sft", lora=LORA)
    assert read_manifest(tmp_path / "sft", stage="sft")["stage"] == "sft"  # not asked, not checked

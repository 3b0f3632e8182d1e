"""reasonkit.session.run_log: the log survives what runs do to it."""

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
from reasonkit.session.run_log import NullLog, RunLog, earlier_minutes


@pytest.fixture
def log(tmp_path):
    return RunLog(tmp_path / "artifacts" / "run.jsonl")


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


# -- the minutes of earlier sessions


def log_of(path, *rows):
    path.write_text("".join(json.dumps({"t": t, "event": event, **more}) + "\n" for t, event, more in rows))
    return RunLog(path)


def start(t, step, stage="sft"):
    return t, "start", {"stage": stage, "step": step}


def test_earlier_minutes_are_those_up_to_the_newest_start(tmp_path):
    log = log_of(tmp_path / "log.jsonl", start(0, 0), (60, "sft_step", {"step": 1}), (120, "sft_step", {"step": 2}),
                 (9000, "probe", {"mean": 0}), start(9060, 1), (9120, "sft_step", {"step": 2}))
    assert earlier_minutes(log, "sft") == 2, "the step that was made again took its time"
    assert earlier_minutes(log, "grpo") == 0


def test_a_session_that_made_no_step_took_none(tmp_path):
    log = log_of(tmp_path / "log.jsonl", start(0, 0), start(500, 0), (560, "sft_step", {"step": 1}), start(900, 1))
    assert earlier_minutes(log, "sft") == 1
    assert earlier_minutes(RunLog(tmp_path / "none.jsonl"), "sft") == earlier_minutes(NullLog(), "sft") == 0

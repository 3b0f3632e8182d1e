"""One process on a run's folder, however the one before it ended."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from reasonkit.session import interrupts
from reasonkit.session.files import DiskFullError
from reasonkit.session.interrupts import LOCK, FolderInUseError, Watchdog, lock_run, unlock_run

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import os, subprocess, sys, time
from pathlib import Path
from reasonkit.session.interrupts import lock_run
lock_run(Path(sys.argv[1]))
"""
WAIT = "print('held', flush=True); time.sleep({})"
LONG = WAIT.format(60)
# What outlives the process that took the folder.
FORKED = "child = os.fork()\nif child == 0:\n    time.sleep(60); os._exit(0)\nprint('child', child, flush=True)\n"
STARTED = ("child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], stdout=sys.stderr)\n"
           "print('child', child.pid, flush=True)\n")


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(interrupts, "CLAIM_SECONDS", 0.3)
    monkeypatch.setattr(interrupts, "_claimed", {})


@contextlib.contextmanager
def other(folder, code=LONG):
    """A second process that has the folder; gives it, and the number of its child if it made one."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER + code, folder], cwd=ROOT, stdout=subprocess.PIPE,
                               text=True)
    child = None
    try:
        while not (line := process.stdout.readline()).startswith("held"):
            assert line.startswith("child"), "it ended"
            child = int(line.split()[1])
        yield process, child
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        if child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def test_the_second_process_is_told_whose_the_folder_is(tmp_path):
    with other(tmp_path) as (holder, _), pytest.raises(FolderInUseError) as caught:
        lock_run(tmp_path)
    since = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
    assert re.match(rf"{tmp_path} is in use by process {holder.pid} on \S+ since {since}: two kernels would write "
                    "over each other's steps. Run its last cell, or shut it down .*, or set REASONKIT_ARTIFACTS to ",
                    str(caught.value))


def test_a_process_that_lets_go_holds_nothing(tmp_path):
    """As a notebook's kernel that is done, and stays open."""
    code = f"from reasonkit.session.interrupts import unlock_run; unlock_run(Path(sys.argv[1])); {LONG}"
    with other(tmp_path, code) as (holder, _):
        lock_run(tmp_path)
        assert holder.poll() is None
    unlock_run(tmp_path)
    unlock_run(tmp_path)  # it is nobody's
    with other(tmp_path), pytest.raises(FolderInUseError):
        lock_run(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGABRT])
def test_a_process_that_was_ended_holds_nothing(tmp_path, number):
    with other(tmp_path) as (holder, _):
        holder.send_signal(number)
        holder.wait()
        lock_run(tmp_path)
    assert f"process {os.getpid()} on" in (tmp_path / LOCK).read_text()


@pytest.mark.parametrize("code", ["print('held')", "print('held', flush=True); os._exit(3)",
                                  "print('held', flush=True); raise SystemExit(1)"])
def test_a_process_that_came_to_its_end_holds_nothing(tmp_path, code):
    with other(tmp_path, code) as (holder, _):
        holder.wait()
        lock_run(tmp_path)


@pytest.mark.parametrize("code", [FORKED, STARTED], ids=["forked", "started"])
def test_a_child_that_outlives_the_holder_holds_nothing(tmp_path, code):
    """A worker of a pool, or a judge's server."""
    with other(tmp_path, code + LONG) as (holder, child):
        with pytest.raises(FolderInUseError):
            lock_run(tmp_path)
        holder.kill()
        holder.wait()
        os.kill(child, 0)
        lock_run(tmp_path)


def test_one_that_is_just_ending_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(interrupts, "CLAIM_SECONDS", 20.0)
    with other(tmp_path, WAIT.format(0.5)):
        lock_run(tmp_path)


@pytest.mark.parametrize("again", [lambda folder: lock_run(folder), lambda folder: [lock_run(folder) for _ in range(9)],
                                   lambda folder: threading.Thread(target=lock_run, args=(folder,)).run()],
                         ids=["again", "often", "in a thread"])
def test_asked_again_nothing_happens(tmp_path, again):
    lock_run(tmp_path)
    text, files = (tmp_path / LOCK).read_text(), len(os.listdir("/proc/self/fd"))
    again(tmp_path)
    assert (tmp_path / LOCK).read_text() == text and len(os.listdir("/proc/self/fd")) == files


def test_a_process_that_was_forked_off_may_ask_and_takes_nothing_away(tmp_path):
    code = (f"pid = os.fork()\nif pid == 0:\n    lock_run(Path(sys.argv[1])); os._exit(7)\n"
            f"assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7\n{LONG}")
    with other(tmp_path, code), pytest.raises(FolderInUseError):
        lock_run(tmp_path)


@pytest.mark.parametrize("text", [b"", b"process 1 on elsewhere since 2020-01-01 00:00:00 UTC", b"\xff\x00" * 300])
def test_what_an_earlier_session_left_locks_nothing(tmp_path, text):
    (tmp_path / LOCK).write_bytes(text)
    lock_run(tmp_path)
    assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")


@pytest.mark.parametrize(("text", "said"), [(b"", "another process"), (b"\xff\x00" * 300, "\ufffd"),
                                            (b"x" * 999, "x" * 200)])
def test_a_lock_that_does_not_say_whose_it_is_is_a_lock(tmp_path, text, said):
    path = tmp_path / LOCK
    path.write_bytes(text)
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(FolderInUseError, match=f"is in use by {said}") as caught:
            lock_run(tmp_path)
    assert len(str(caught.value)) < 600 + len(str(tmp_path))
    lock_run(tmp_path)


def test_a_folder_that_was_deleted_and_made_anew_is_taken_anew(tmp_path):
    lock_run(tmp_path)
    (tmp_path / LOCK).unlink()
    lock_run(tmp_path)
    with (tmp_path / LOCK).open("r+b") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_folder_that_was_moved_is_still_ones_own(tmp_path):
    lock_run(tmp_path / "here")
    lock_run((tmp_path / "here").rename(tmp_path / "there"))
    with (tmp_path / "there" / LOCK).open("r+b") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_runs_in_other_folders_do_not_meet(tmp_path):
    with other(tmp_path / "one"):
        lock_run(tmp_path / "two")
    assert (tmp_path / "two" / LOCK).is_file()


@pytest.mark.parametrize("number", sorted({errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}))
def test_a_file_system_without_locks_is_named_and_used(tmp_path, monkeypatch, capsys, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(interrupts.fcntl, "flock", flock)
    lock_run(tmp_path)
    assert capsys.readouterr().out == (f"{tmp_path} cannot be locked ({os.strerror(number)}): see to it that no second "
                                       "kernel works on it\n")


def test_another_error_of_the_file_system_is_not_hidden(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(interrupts.fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output error"):
        lock_run(tmp_path)


def test_a_folder_that_is_read_only_is_named_with_a_remedy(tmp_path, monkeypatch):
    """Such as yesterday's output, attached as an input."""
    def refuse(path, *_):
        raise OSError(errno.EROFS, "Read-only file system", path)

    monkeypatch.setattr(interrupts.os, "open", refuse)
    with pytest.raises(DiskFullError, match=rf"can't be written \(Read-only file system\). Copy {tmp_path} to a folder "
                                            "that can be written, or set REASONKIT_ARTIFACTS to it"):
        lock_run(tmp_path)


def test_two_that_come_at_once_are_one_and_one(tmp_path):
    """Each of ten processes takes the folder, or is told."""
    line = "from reasonkit.session.interrupts import lock_run"
    hasty = f"from reasonkit.session import interrupts; {line}; interrupts.CLAIM_SECONDS = 0.2"
    code = HOLDER.replace(line, hasty) + "time.sleep(3)"
    began = time.monotonic()
    many = [subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=ROOT, stderr=subprocess.PIPE, text=True)
            for _ in range(10)]
    ends = [(process.communicate()[1], process.returncode) for process in many]
    assert sorted(code for _, code in ends) == [0] + [1] * 9 and time.monotonic() - began < 60
    assert all("FolderInUseError" in errors for errors, code in ends if code)


def test_a_slow_second_step_gives_the_third_one_time(tmp_path, monkeypatch):
    """It may compile, too: for a judge, once per length of its batches."""
    limits, now = [], [0.0]
    monkeypatch.setattr(interrupts.faulthandler, "dump_traceback_later", lambda limit, **options: limits.append(limit))
    monkeypatch.setattr(interrupts.time, "monotonic", lambda: now[0])
    with Watchdog(tmp_path / "hung.txt", first=3600.0, least=600.0) as watchdog:
        for seconds in (0.0, 900.0, 150.0, 40.0):
            now[0] += seconds
            watchdog.step_begins()
    assert limits == [3600.0, 3600.0, 3600.0, 1500.0, 1500.0]

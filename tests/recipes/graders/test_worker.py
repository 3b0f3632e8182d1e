"""Isolated: any thread, a hard limit, other processes, and packages that are not there."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from reasonkit.text.answers import time_limit
from recipes.graders import worker as worker_module
from recipes.graders.worker import decide, start

ROOT = Path(__file__).resolve().parents[3]
TOWER = ("", "10 ^ { 10 ^ { 10 } }")
FIVE, SUM = ("", "5"), ("", "x + 1")


def seconds(call) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("task", "answer", "gold", "verdict"),
    [
        ("expression", ("", "1 + x"), SUM, True), ("expression", ("", "x"), SUM, False),
        ("expression", ("", "} {"), SUM, None), ("expression", ("y", "1 + x"), ("", "y - x = 1"), True),
        ("smiles", "OCC", "CCO", True), ("smiles", "C(", "C(", False),
        ("quantity", [["5000", "m"]], [["5", "km"]], True), ("quantity", [["5", "m"]], [["5", "kg"]], False),
        ("quantity", [["1", "h"], ["30", "min"]], [["3/2", "hours"]], True),
        ("quantity", [["5", "apples"]], [["5", "km"]], None),
        ("quantity", [["1", "h"], ["1", "h"]], [["2", "h"]], None),
    ],
)
def test_decide(task, answer, gold, verdict):
    assert decide(task, answer, gold) is verdict


def test_the_limit_is_hard_and_the_next_answer_comes_at_once():
    start("expression")
    assert seconds(lambda: decide("expression", TOWER, FIVE, seconds=0.3)) < 2
    assert seconds(lambda: decide("expression", ("", "1 + x"), SUM)) < 1
    assert decide("expression", FIVE, TOWER, seconds=0.3) is None
    assert decide("expression", ("", "1 + x"), SUM) is True


def test_the_start_of_a_worker_costs_the_first_answer_none_of_its_time(monkeypatch):
    """On a busy machine importing pint took longer than a comparison may, and a gold answer of "5 km" was refused."""
    ready = start("expression")
    monkeypatch.setattr(worker_module, "start", lambda task: time.sleep(0.7) or ready)
    with time_limit(0.5):
        assert decide("expression", ("", "1 + x"), SUM) is True
        assert decide("expression", ("", "1 + x"), SUM) is None, "the limit is over"


SECRETS = ("KAGGLE_API_TOKEN", "KAGGLE_KEY", "KAGGLE_USERNAME", "GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY",
           "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "WANDB_API_KEY", "DB_PASSWORD", "SSH_AUTH_SOCK",
           "GOOGLE_APPLICATION_CREDENTIALS", "HTTPS_PROXY", "PIP_INDEX_URL", "something_of_the_users", "PYTHONSTARTUP")


@pytest.fixture(scope="module")
def environment():
    """What a worker, and so each child that it forks, has of an environment with secrets."""
    with pytest.MonkeyPatch.context() as patch:
        for name in SECRETS:
            patch.setenv(name, f"s3cret of {name}")
        patch.setenv("LANG", "C.UTF-8")
        worker = worker_module._Worker("smiles")
        assert worker.ask(["OCC", "CCO", 2]) is True
        found = Path(f"/proc/{worker._process.pid}/environ").read_bytes().decode().split("\0")
        worker.close()
    return found


@pytest.mark.parametrize("name", SECRETS)
def test_a_worker_has_no_secret(environment, name):
    assert not [entry for entry in environment if entry.startswith(f"{name}=") or f"s3cret of {name}" in entry]


def test_a_worker_has_what_it_needs(environment):
    names = {entry.split("=")[0] for entry in environment if entry}
    assert {"PATH", "LANG", "PYTHONPATH"} <= names <= {*worker_module.PASSED_ON, "PYTHONPATH", "OMP_NUM_THREADS",
                                                       "OPENBLAS_NUM_THREADS"}


def test_memory_is_limited():
    code = ("from recipes.graders.worker import compare; "
            "print([compare(lambda size, gold: len(bytes(size)) == gold, *case, 2.0) "
            "for case in ((9, 9), (2**32, 2**32), (9, 8))])")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "[True, None, False]\n"


def test_any_thread():
    cases = [("1 + x", SUM, True), ("x + 2", SUM, False), ("x + 1.0", SUM, True),
             ("x + \\frac { 2 } { 2 }", SUM, False), (TOWER[1], SUM, False), (FIVE[1], TOWER, None)] * 3
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda case: decide("expression", ("", case[0]), case[1], seconds=0.5), cases))
    assert found == [verdict for *_, verdict in cases]


def test_a_killed_worker_is_replaced():
    worker = start("smiles")
    os.kill(worker._process.pid, signal.SIGKILL)
    worker._process.wait()
    verdicts = [decide("smiles", "OCC", "CCO") for _ in range(3)]
    assert set(verdicts[:2]) <= {True, None} and verdicts[2] is True


def test_an_interrupted_wait_leaves_no_stale_reply(monkeypatch):
    def interrupt(self):
        raise KeyboardInterrupt

    start("expression")
    with monkeypatch.context() as patch:
        patch.setattr(worker_module._Worker, "_reply", interrupt)
        with pytest.raises(KeyboardInterrupt):
            decide("expression", ("", "1 + x"), SUM)
    assert decide("expression", ("", "x + 2"), SUM) is False


def _in_child(queue):
    queue.put([decide("smiles", "OCC", "CCO"), start("smiles")._process.pid])
    worker_module._close_all()


@pytest.mark.filterwarnings("ignore:.*fork.*")  # to fork with threads about is what some loaders do
def test_a_forked_process_has_a_worker_of_its_own():
    pid = start("smiles")._process.pid
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_in_child, args=[queue])
    child.start()
    verdict, other = queue.get()
    child.join()
    assert verdict is True and other != pid
    assert decide("smiles", "OCC", "CCO") is True


def test_the_worker_ends_with_its_parent():
    code = ("import os; from recipes.graders.worker import start; "
            "print(start('smiles')._process.pid, flush=True); os._exit(1)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    pid, deadline = int(done.stdout), time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail(f"worker {pid} outlived its parent")


def test_it_runs_beside_files_in_a_working_folder(tmp_path):
    for package in ("reasonkit", "reasonkit/text", "recipes", "recipes/graders"):
        (tmp_path / package).mkdir()
        for path in (ROOT / package).glob("*.py"):
            (tmp_path / package / path.name).write_bytes(path.read_bytes())
    code = "from reasonkit.text import answers as a; print(a.check('1+x', 'x+1', 'expression').correct, a.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True,
                          env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"})
    assert done.stdout.split() == ["True", str(tmp_path / "reasonkit" / "text" / "answers.py")]
    assert done.stderr == ""


@pytest.mark.parametrize(("task", "gold", "module"), [
    ("expression", "x", "sympy"), ("quantity", "5 km", "pint"), ("smiles", "C", "rdkit")])
def test_a_missing_package_is_named_at_the_first_check(task, gold, module, tmp_path):
    (tmp_path / f"{module}.py").write_text(f"raise ImportError('no {module} here')")
    code = f"from reasonkit.text.answers import check; check({gold!r}, {gold!r}, {task!r})"
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": path})
    need = f"ImportError: answers of kind '{task}' need {module}: pip install {module}"
    assert f"{need} (no {module} here)" in done.stderr


def test_an_unknown_task():
    with pytest.raises(KeyError, match="algebra"):
        decide("algebra", "1", "1")

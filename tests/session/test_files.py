"""Each kind of file, broken in each way: it is read, or one error names it, the key, the value and the remedy."""

from __future__ import annotations

import copy
import json
import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from test_run_log import room
from tiny_run import ROWS

from reasonkit.choices import check_identity
from reasonkit.data import problems
from reasonkit.data.rows import read_rows, save_splits
from reasonkit.eval.evaluate import EvalResult
from reasonkit.judge import rubric
from reasonkit.rewards import monitors
from reasonkit.session.files import DiskFullError, RecordError, preview
from reasonkit.session.manifest import ManifestError, check_begun, read_manifest
from reasonkit.session.run_log import RunLog, earlier_minutes
from reasonkit.session.time_budget import BudgetError, TimeBudget
from reasonkit.show.dashboard import Dashboard
from reasonkit.show.report import write_report
from recipes.stages.curriculum import Curriculum
from tools.preflight.forecast import Forecast

SHA = "0" * 64
TOML = '''title = "t"
licence = "l"
families = ["coins"]
[split]
train = 80
validation = 10
test = 10
'''
RUBRIC = '[[rubric]]\ntitle = "a"\ndescription = "b"\nweight = "pitfall"\n'
SAMPLE = {"id": "a", "family": "f", "kind": "number", "question": "q", "gold": "1", "completion": "<answer>1</answer>",
          "answer": "1", "format_ok": False, "correct": True, "content": True, "steps": 0.5, "failures": ["x"]}
WHOLE = {
    "manifest": {"stage": "sft", "written": "2026-01-01T00:00:00Z", "minutes": 2.5, "prompt_sha256": SHA,
                 "lora": {"rank": 4}, "metrics": {"steps": 2}, "inputs": {"train": {"path": "t.jsonl", "sha256": SHA}},
                 "versions": {"jax": "1"}, "extra": {
                     "checkpoint_step": 2, "stopped": "data", "settings": {"steps": 2}}},
    "run": {"profile": "cpu", "recipe": "g_rar", "seed": 0},
    "asked": {"model": {"policy": "p"}, "settings": {"steps": 2}},
    "ledger": {"started": 1.0, "boot_id": "b", "took": {"save": 1.5}, "hours": 2.0, "stages": {
        "sft": {"steps": 2, "seconds": 3.5, "first_seconds": None, "stopped": "data"}}},
    "rows": ROWS[0],
    "recipe": TOML + RUBRIC,
    "domain": RUBRIC,
}
NAMES = {"manifest": "sft/manifest.json", "run": "run.json", "asked": "sft/asked.json", "ledger": "ledger.json",
         "rows": "train.parquet", "recipe": "mine.toml", "domain": "mine.toml"}
RAISED = (ValueError, RecordError, ManifestError, BudgetError)


def read(kind, folder, monkeypatch):
    """As a notebook reads it."""
    path = folder / NAMES[kind]
    match kind:
        case "manifest":
            return read_manifest(path.parent, stage="sft")
        case "run":
            return check_identity(folder, WHOLE["run"], begins=False)
        case "asked":
            return check_begun(folder, "sft", WHOLE["asked"], resumes=True, removed="sft", write=False)
        case "ledger":
            return TimeBudget(hours=2, ledger=path, clock=lambda: 100.0, grows=True)
        case "rows":
            return read_rows(path)
        case "recipe":
            (folder / "families").mkdir(exist_ok=True)
            (folder / "families" / "coins.py").touch()
            monkeypatch.setattr(problems, "RECIPES", folder)
            return problems.load_recipe("mine")
        case "domain":
            monkeypatch.setattr(rubric, "DOMAINS", folder)
            return rubric.load_domain("mine")


@pytest.fixture(scope="module")
def results():
    return {"stock": EvalResult([SAMPLE])}


def text_of(case) -> bytes:
    """The file of a case: `text` as it stands, `part` `times` over, or the whole one with `value` at `key`."""
    whole = WHOLE[case["kind"]]
    if "text" in case:
        text = case["text"].replace("HUGE", f"0x{'f' * 5000}")
        return text.replace("@", whole if isinstance(whole, str) else json.dumps(whole)).encode(
            case.get("coding", "utf-8"), "surrogateescape")
    if "part" in case:
        return (case["part"] * case["times"]).encode()
    whole = copy.deepcopy(whole)
    *way, last = case["key"]
    place = whole
    for key in way:
        place = place[key]
    if "value" in case:
        place[last] = case["value"]
    else:
        del place[last]
    return parquet(whole) if case["kind"] == "rows" else json.dumps(whole).encode()


def parquet(row) -> bytes:
    """A file with one row, whatever it holds."""
    file = pa.BufferOutputStream()
    pyarrow.parquet.write_table(pa.Table.from_pylist([row]), file)
    return file.getvalue().to_pybytes()


def caught(kind, folder, monkeypatch) -> str | None:
    """What the reader says: None where it reads the file."""
    try:
        read(kind, folder, monkeypatch)
    except Exception as error:
        assert type(error) in RAISED, f"{type(error).__name__} reached the user: {error}"
        assert not error.__cause__ or isinstance(error.__cause__, RAISED)
        return str(error)
    return None


CASES = [json.loads(line) for line in (Path(__file__).parents[1] / "golden" / "files.jsonl").read_text().splitlines()]
REMEDY = r"\b(?:delete|mend|put|run notebook|evaluate again|give|choose|set them back|a row needs|must give|train)\b"


@pytest.mark.parametrize("case", CASES, ids=[f"{n}-{case['kind']}" for n, case in enumerate(CASES)])
def test_a_file_is_read_or_refused_in_words(case, tmp_path, monkeypatch):
    path = tmp_path / NAMES[case["kind"]]
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text_of(case))
    found = caught(case["kind"], tmp_path, monkeypatch)
    if case["said"] is None:
        assert found is None
    else:
        assert found and case["said"] in found and len(found) < 1500
        assert path.stem in found and re.search(REMEDY, found, re.I), found


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("place", ["whole", "folder", "link to nothing", "loop", "pipe", "socket"])
def test_what_lies_in_a_files_place_is_told(kind, place, tmp_path, monkeypatch):
    """A link to nothing and a loop are as good as no file where one may be missing."""
    path = tmp_path / NAMES[kind]
    path.parent.mkdir(exist_ok=True)
    match place:
        case "whole":
            path.write_bytes(parquet(WHOLE["rows"]) if kind == "rows" else text_of({"kind": kind, "text": "@"}))
        case "folder":
            path.mkdir()
        case "link to nothing":
            path.symlink_to(tmp_path / "nowhere")
        case "loop":
            path.symlink_to(path)
        case "pipe":
            os.mkfifo(path)
        case "socket":
            os.mknod(path, 0o140600)
    found = caught(kind, tmp_path, monkeypatch)
    if place == "whole" or (kind in ("run", "ledger", "asked") and place in ("link to nothing", "loop")
                            and found is None):
        assert found is None
    else:
        assert found and re.search("folder|link|not there|no plain file|does not exist|not readable", found)


@pytest.mark.parametrize("size", [0, 10, 1000])
def test_a_full_disk_is_told_by_whatever_writes_a_file(size, tmp_path, results):
    """Rows, a report, results and curves: the old file stays, and nothing half-written beside it."""
    log = RunLog(tmp_path / "log.jsonl")
    log.write("sft_step", step=1, loss=1.0)
    board = Dashboard(log, TimeBudget(), "SFT", 2)
    writers = {"train.parquet": lambda folder: save_splits({"train": ROWS}, folder),
               "report.html": lambda folder: write_report(folder / "report.html", results, {}, [], []),
               "stock.json": lambda folder: EvalResult([SAMPLE] * 9).to_json(folder / "stock.json"),
               "curves.png": lambda folder: board.figure(folder / "curves.png")}
    for name, write in writers.items():
        folder = tmp_path / name.split(".")[0]
        write(folder)
        before = (folder / name).read_bytes()
        with room(size), pytest.raises(DiskFullError, match=rf"{name} can't be written \(File too large\)\. .*Make "
                                       "room on the disk of .*, or put the run on another one, and run the cell again"):
            write(folder)
        assert (folder / name).read_bytes() == before and len(list(folder.iterdir())) == 1


@pytest.mark.parametrize(("value", "text"), [
    (1, "1"), ("a" * 90, f"'{'a' * 79}…"), (2**20000, "a int too large to show"), (None, "None"), (float("nan"), "nan"),
    ("\ud800", r"'\ud800'"), ([[]], "[[]]"), ({"a": 2**20000}, "a dict too large to show"), (b"\xff", r"b'\xff'"),
], ids=range(9))
def test_a_value_is_shown_whatever_it_is(value, text):
    assert preview(value) == text


# -- the log

TABLE = Path(__file__).parents[1] / "golden" / "log_rows.jsonl"
LINES = [json.loads(line) for line in TABLE.read_text().splitlines()]
GOOD = [{"event": "start", "stage": "grpo", "step": 0},
        *({"event": name, "step": step, **fields} for step in range(1, 13) for name, fields in (
            ("reward", {"mode": "train", "mean": 1.0, "parts": {"form": {"mean": 0.5, "no_signal": 0.0}},
                        "sample": {"prompt": "p", "completion": "c", "parts": {"form": 0.5}}}),
            ("texts", {"shares": {"loops": 0.0, "tag_stuffing": 0.0, "judge_words": 0.0}, "examples": {}}),
            ("pass_rates", {"rates": {"p0": 0.5}}),
            ("probe", {"mean": 0.5}),
            ("grpo_step", {"loss": 1.0, "seconds": 2.0, "length": 9.0, "truncated": 0.0})))]


FORECAST = Forecast([], "v5e", {}, {"sft": 1.0, "grpo": 2.0}, {"sft": 4, "grpo": 4}, 60.0, 0.4)


def written(tmp_path, *odd):
    """A log with whole rows round these lines."""
    log = RunLog(tmp_path / "log.jsonl")
    good = [json.dumps({"t": float(n), **row}).encode() for n, row in enumerate(GOOD)]
    log.path.write_bytes(b"\n".join([*good[:-1], *odd, good[-1], b""]))
    return log


def line_of(case):
    return (case["part"] * case["times"] if "part" in case else case["line"]).encode("utf-8", "surrogateescape")


@pytest.mark.parametrize("case", LINES, ids=[str(n) for n in range(len(LINES))])
def test_a_line_that_is_no_row_ends_nothing_and_is_counted(case, tmp_path):
    """Whoever reads the log in training: the monitors, the curriculum, the clock and the forecast."""
    log = written(tmp_path, line_of(case))
    rows = log.read()
    assert (len(rows), log.skipped) == (len(GOOD) + case["kept"], 1 - case["kept"])
    monitors.watcher(log)()
    monitors.probe(lambda texts: [""] * len(texts), [], 1, log, 100)()
    Curriculum(log).resume(12)
    assert earlier_minutes(log, "grpo") >= 0
    assert FORECAST.correct(rows).minutes["grpo"] > 0


SHOWN = sorted({json.loads(case["line"])["event"] for case in LINES if case["kept"] and '"step": -' not in case["line"]
                and not case["line"].startswith("\ufeff")})


@pytest.mark.slow
@pytest.mark.parametrize("event", SHOWN)
def test_the_live_view_and_the_report_show_what_odd_rows_hold(event, tmp_path, results):
    lines = [line_of(case) for case in LINES if not case["kept"] or f'"event": "{event}"' in case["line"]]
    log = written(tmp_path, *lines)
    rows, board = log.read(), Dashboard(log, TimeBudget(), "GRPO", 20)
    board.update()
    assert log.skipped and f"{log.skipped} lines of the log are no rows" in board._status.value
    page = write_report(tmp_path / "report.html", results, {}, [], rows, log.skipped).read_text()
    assert f"{log.skipped} lines of the logs are no rows, and are left out." in page

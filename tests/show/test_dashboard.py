from __future__ import annotations

import os
import re
import sys

import matplotlib
import nbformat
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from nbclient import NotebookClient

from reasonkit.session.run_log import RunLog
from reasonkit.session.time_budget import TimeBudget
from reasonkit.show import dashboard as module
from reasonkit.show.dashboard import Dashboard
from reasonkit.show.figures import curves, escape

PNG = b"\x89PNG\r\n\x1a\n"
NASTY = "<img src=x onerror=alert(1)> & \"</pre>'<script>\ud800"


@pytest.fixture
def log(tmp_path):
    return RunLog(tmp_path / "run.jsonl")


@pytest.fixture
def board(log):
    return Dashboard(log, TimeBudget(hours=2, reserve_minutes=30), "GRPO", 40)


def write_stage(log, steps=30, first=1):
    """A stage as `RewardMix` and the training loop log it."""
    for step in range(first, first + steps):
        log.write("reward", mode="train", completions=8, mean=1.0 + step / 100, mean_length=60.0,
                  parts={"tag_format": {"weight": 0.5, "mean": -0.1, "no_signal": 0.0, "causes": {}},
                         "rubric": {"weight": 1.0, "mean": 0.5, "no_signal": 0.25, "causes": {"timeout": 2}}},
                  sample={"prompt": f"question {step}", "completion": NASTY, "total": 1.5,
                          "parts": {"tag_format": -0.5, "rubric": None}})
        log.write("grpo_step", step=step, reward=1.0, kl=0.01 * step, loss=0.1, seconds=30.0, length=12.0)


def reward(log, means, mean=None, mode="train", no_signal=0.0, **fields):
    log.write("reward", mode=mode, mean=mean, **fields,
              parts={name: {"mean": value, "no_signal": no_signal} for name, value in means.items()})


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def lines(figure, title):
    axes = figure.axes[titles(figure).index(title)]
    return {line.get_label(): list(map(float, line.get_ydata())) for line in axes.get_lines()
            if not line.get_label().startswith("_")}


# -- curves

def test_each_logged_quantity_has_a_panel(log):
    log.write("sft_step", step=1, loss=2.0, seconds=1.0)
    assert titles(curves(log.read())) == ["SFT loss"]
    write_stage(log)
    figure = curves(log.read())
    assert titles(figure) == [
        "Reward", "SFT loss", "GRPO loss", "GRPO completion length, tokens", "GRPO KL to the reference"]
    assert set(lines(figure, "Reward")) == {"total", "tag_format", "rubric"}
    assert lines(figure, "Reward")["rubric"] == pytest.approx([0.5] * 30)


def test_missing_fields_are_not_plotted_and_nan_is_a_gap(log):
    log.write("grpo_step", step=1, kl=float("nan"))
    log.write("sft_step", step=1, loss=1.0)
    log.write("sft_step", step=2, loss=float("inf"))
    log.write("sft_step", step=3, loss=3.0)
    log.write("something_else", kl=5)
    figure = curves(log.read())
    assert titles(figure) == ["SFT loss"]
    assert lines(figure, "SFT loss")["loss"] == pytest.approx([1.0, float("nan"), 3.0], nan_ok=True)


def test_a_part_that_comes_later_keeps_its_place(log):
    reward(log, {"a": 1.0})
    reward(log, {"a": 1.0, "b": 2.0})
    assert lines(curves(log.read()), "Reward")["b"] == pytest.approx([float("nan"), 2.0], nan_ok=True)


def test_evaluation_rollouts_stay_out(log):
    reward(log, {}, mean=1.0)
    reward(log, {}, mean=9.0, mode="eval")
    assert lines(curves(log.read()), "Reward") == {"total": [1.0]}


def test_a_repeated_step_counts_once_as_last_logged(log):
    for step, loss in [(1, 5.0), (2, 4.0), (3, 9.0), (2, 3.0), (3, 2.0)]:
        log.write("sft_step", step=step, loss=loss)
    assert lines(curves(log.read()), "SFT loss") == {"loss": [5.0, 3.0, 2.0]}


def test_long_curves_are_smoothed_without_bias(log):
    for step in range(100):
        log.write("sft_step", step=step, loss=1.0 + (-1) ** step if step != 50 else float("nan"))
    smooth = lines(curves(log.read()), "SFT loss")["loss"]
    assert len(smooth) == 100 and max(abs(value - 1.0) for value in smooth) < 0.4


def test_no_rows_make_an_empty_figure():
    figure = curves([])
    assert not figure.axes and figure._repr_png_().startswith(PNG)


def test_figures_leave_pyplot_and_the_backend_alone(log, board, tmp_path):
    write_stage(log)
    backend, open_figures = matplotlib.rcParams._get_backend_or_none(), pyplot.get_fignums()
    board.show()
    board.figure(tmp_path / "curves.png")
    assert pyplot.get_fignums() == open_figures
    assert matplotlib.rcParams._get_backend_or_none() == backend


# -- the live view

def test_an_empty_log_shows_the_start(board):
    board.show()
    assert board._progress.value == 0
    assert "step 0 of 40" in board._status.value and "90 min left in the session" in board._status.value
    assert bytes(board._plot.value).startswith(PNG) and board._samples.value == ""


def test_the_clock_is_shown_where_it_ends_a_stage(log):
    board = Dashboard(log, TimeBudget(hours=1, reserve_minutes=10, grows=True), "SFT", 40)
    board.show()
    assert "every step will be run, however long it takes" in board._status.value and "left" not in board._status.value


@pytest.mark.parametrize("first", [1, 21])
def test_progress_is_the_last_step_of_the_stage(log, board, first):
    log.write("sft_step", step=70, loss=1.0)  # an earlier stage in the same log
    write_stage(log, steps=31 - first, first=first)  # from 21 on: resumed, with a new log
    board.update()
    assert board._progress.value == 30 and board._progress.bar_style == ""
    assert "step 30 of 40 · 30 s per step · about 5 min to go" in board._status.value
    assert "no signal from rubric: 25%" in board._status.value
    assert "tag_format" not in board._status.value


def test_the_end_is_marked_and_never_passed(log, board):
    write_stage(log, steps=45)
    board.update()
    assert board._progress.value == 40 and board._progress.bar_style == "success"
    assert "to go" not in board._status.value


def test_the_last_samples_are_shown_escaped(log, board):
    write_stage(log, steps=5)
    board.update()
    text = board._samples.value
    assert [int(number) for number in re.findall(r"question (\d+)", text)] == [5, 4, 3]
    assert not set(re.findall(r"<(\w+)", text)) - {"div", "pre"}
    assert escape(NASTY) in text and "total 1.50 · tag_format -0.50 · rubric –" in text


def test_the_title_and_the_names_are_escaped(log):
    reward(log, {NASTY: 1.0}, sample={NASTY: NASTY, "parts": {NASTY: 1}}, no_signal=1.0)
    board = Dashboard(log, TimeBudget(), NASTY, 1)
    board.update()
    for box in (board.widget.children[0], board._status, board._samples):
        assert not set(re.findall(r"<(\w+)", box.value)) - {"div", "pre", "b"}
        box.value.encode("utf-8")


def test_flags_are_shown_escaped_with_their_example(log, board):
    board.update()
    assert board._flags.value == ""
    for step in range(5):
        log.write("flag", name="loops", step=step, value=0.25, limit=0.1, why="25 % & more", example=NASTY)
    board._due = 0.0
    board.update()
    text = board._flags.value
    assert [int(number) for number in re.findall(r"at step (\d+)", text)] == [4, 3, 2]
    assert not set(re.findall(r"<(\w+)", text)) - {"details", "summary", "b", "pre"}
    assert "25 % &amp; more (0.25, limit 0.10)" in text and text.count(escape(NASTY)) == 3


def test_probes_have_a_panel(log):
    for step, mean in ((5, 0.25), (10, 0.5)):
        log.write("probe", step=step, mean=mean, low=0.0, high=1.0, n=8)
    assert lines(curves(log.read()), "Held-out accuracy") == {"greedy": [0.25, 0.5]}


@pytest.mark.parametrize(
    "text, shown", [("<b>", "&lt;b&gt;"), ("'\"&", "&#x27;&quot;&amp;"), ("\ud800", "?"), (3, "3")])
def test_escape(text, shown):
    assert escape(text) == shown


def test_updates_are_seconds_apart_and_cost_little(log, board, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    drawn = []
    monkeypatch.setattr(module, "curves", lambda rows: drawn.append(now[0]) or Figure())
    monkeypatch.setattr(Figure, "_repr_png_", lambda self: PNG, raising=False)
    for now[0] in (100.0, 100.5, 101.9, 102.1, 103.0):
        board.update()
    assert drawn == [100.0, 102.1]

    def slow(rows):
        drawn.append(now[0])
        now[0] += 1.0
        return Figure()

    monkeypatch.setattr(module, "curves", slow)
    for now[0] in (110.0, 115.0, 130.9, 131.1):
        board.update()
    assert drawn[2:] == [110.0, 131.1]  # a second of drawing buys twenty of training


def test_figure_is_written_whole_and_returned(log, board, tmp_path):
    write_stage(log)
    path = tmp_path / "deep" / "curves.png"
    figure = board.figure(path)
    assert isinstance(figure, Figure) and "Reward" in titles(figure)
    assert path.read_bytes().startswith(PNG)
    assert [entry.name for entry in path.parent.iterdir()] == ["curves.png"]
    assert board._progress.value == 30  # the live view shows the end as well


@pytest.mark.parametrize("total", [0, -3])
def test_a_stage_has_steps(log, total):
    with pytest.raises(ValueError, match=f"total_steps={total}"):
        Dashboard(log, TimeBudget(), "SFT", total)


CELL = """
from reasonkit.session.time_budget import TimeBudget
from reasonkit.show.dashboard import Dashboard
from reasonkit.session.run_log import RunLog
log = RunLog("run.jsonl")
board = Dashboard(log, TimeBudget(), "SFT", 2)
board.show()
log.write("sft_step", step=1, loss=1.0, seconds=0.1)
board._due = 0.0
board.update()
board.figure("curves.png")
"""


def test_a_headless_notebook_keeps_the_view_and_shows_the_figure(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    view, figure = notebook.cells[0].outputs
    assert "application/vnd.jupyter.widget-view+json" in view.data
    assert "image/png" in figure.data
    state = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"].values()
    bars = [model["state"]["value"] for model in state if model["model_name"] == "IntProgressModel"]
    assert bars == [1] and (tmp_path / "curves.png").exists()

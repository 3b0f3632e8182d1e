from __future__ import annotations

import io
import os
import re
import sys
import time
from xml.etree import ElementTree

import matplotlib
import nbformat
import pytest
from matplotlib import image, pyplot
from matplotlib.figure import Figure
from nbclient import NotebookClient

from reasonkit.session.run_log import RunLog
from reasonkit.session.time_budget import TimeBudget
from reasonkit.show import dashboard as module
from reasonkit.show.dashboard import Dashboard
from reasonkit.show.figures import INK, curves, dots, escape

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
    assert board._plot.value.startswith("<svg") and board._samples.value == ""


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
    assert "step 30 of 40 · 30 s per step · about 5 min to go · 3 tokens per second" in board._status.value
    assert "no signal from rubric: 25%" in board._status.value
    assert "tag_format" not in board._status.value


def test_steps_that_the_clock_allows_are_said(log, board, monkeypatch):
    monkeypatch.setattr(TimeBudget, "steps_left", 6.2)
    write_stage(log, steps=30)
    board.update()
    assert "30 s per step · the clock has time for about 6 more" in board._status.value
    assert "to go" not in board._status.value


def test_a_stage_may_begin_with_fewer_steps_than_planned(log, board):
    log.write("start", stage="sft", step=0, steps=30)
    write_stage(log, steps=30)
    board.update()
    assert board._progress.value == board._progress.max == 30 and board._progress.bar_style == "success"
    assert "step 30 of 30" in board._status.value


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
        log.write("probe", step=step, mean=mean, low=mean - 0.2, high=mean + 0.2, n=8)
    figure = curves(log.read())
    assert lines(figure, "Held-out accuracy") == {"greedy": [0.25, 0.5]}
    axes = figure.axes[0]
    [band] = axes.collections
    assert band.get_paths()[0].get_extents().extents == pytest.approx([5, 0.05, 10, 0.7])
    assert axes.get_ylim() == (0.0, 1.0) and axes.yaxis.get_major_formatter()(0.5) == "50%"


def test_old_probes_without_an_interval_are_drawn(log):
    log.write("probe", step=5, mean=0.25)
    assert lines(curves(log.read()), "Held-out accuracy") == {"greedy": [0.25]}


def test_a_part_that_is_only_logged_is_dashed_and_says_so(log):
    log.write("reward", mean=1.0, flat_groups=0.25, parts={
        name: {"mean": 0.5, "no_signal": 0.0, "weight": weight} for name, weight in (("paid", 1.0), ("x" * 50, 0.0))})
    figure = curves(log.read())
    dashed = {line.get_label(): line.get_linestyle() for line in figure.axes[0].get_lines()}
    assert dashed == {"total": "-", "paid": "-", f"{'x' * 29} (weight 0)": "--"}
    assert lines(figure, "Groups whose rewards are all equal") == {"flat": [0.25]}


def test_steps_are_whole_numbers_and_the_legend_hides_no_line(log):
    write_stage(log, steps=2)
    figure = curves(log.read())
    figure._repr_png_()
    for axes in figure.axes:
        assert all(place == int(place) for place in axes.get_xticks())
        if legend := axes.get_legend():
            assert legend.get_window_extent().y1 < axes.get_window_extent().y0


def test_figures_read_on_white_and_on_black(log):
    write_stage(log)
    figure, plan = curves(log.read()), dots({"x": {"a": (0.5, 0.4, 0.6)}})
    for shown in (figure, plan):
        pixels = image.imread(io.BytesIO(shown._repr_png_()))
        assert pixels[0, 0, 3] == 0.0, "the ground is transparent"
        for ink in pixels[pixels[..., 3] > 0.9][:, :3]:
            assert 0.15 < 0.2126 * ink[0] + 0.7152 * ink[1] + 0.0722 * ink[2] < 0.85
    assert INK not in figure.svg() and "currentColor" in figure.svg()


def test_a_name_is_no_markup_in_the_live_figure(log):
    for step in (1, 2):
        reward(log, {NASTY: 1.0, "--><script>x": 2.0}, mean=1.0)
        log.write(f"{NASTY}_step", step=step, loss=1.0)
    root = ElementTree.fromstring(curves(log.read()).svg())
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert not tags & {"script", "img", "a", "image", "foreignObject"} and "text" in tags
    assert not [name for element in root.iter() for name in element.attrib if name.startswith("on")]


@pytest.mark.parametrize("points", [False, True])
def test_dots_have_a_row_per_name_and_a_panel_per_measure(points):
    found = {"base": (0.5, 0.4, 0.6, 0.01, 9), "$after$": (0.75, 0.7, 0.8, 0.01, 9)}
    figure = dots({"accuracy": found, "format": found}, points)
    for axes in figure.axes:
        bars, marks = axes.get_lines()[:4:2], axes.get_lines()[1:4:2]
        assert [list(bar.get_xdata()) for bar in bars] == [[40, 60], [pytest.approx(70), 80]]
        assert [list(mark.get_xdata()) for mark in marks] == [[50], [75]]
        assert len(axes.get_lines()) == 4 + points and axes.get_ylim()[0] > axes.get_ylim()[1]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["base", "$after$"]
    assert figure._repr_png_().startswith(PNG)


@pytest.mark.parametrize(
    "text, shown", [("<b>", "&lt;b&gt;"), ("'\"&", "&#x27;&quot;&amp;"), ("\ud800", "?"), (3, "3")])
def test_escape(text, shown):
    assert escape(text) == shown


def test_updates_are_seconds_apart_and_cost_little(log, board, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    drawn = []
    monkeypatch.setattr(module, "curves", lambda rows: drawn.append(now[0]) or Figure())
    monkeypatch.setattr(Figure, "svg", lambda self: "<svg/>", raising=False)
    for now[0] in (100.0, 100.5, 101.9, 102.1, 103.0):
        board.update()
    assert drawn == [100.0, 102.1]

    def slow(rows):
        drawn.append(now[0])
        now[0] += 1.0
        return Figure()

    monkeypatch.setattr(module, "curves", slow)
    for step, now[0] in enumerate((110.0, 115.0, 360.0, 363.0), 1):
        log.write("grpo_step", step=step, seconds=1.0)
        board.update()
        assert board._progress.value == step, "the status costs little, and is up to date"
    assert drawn[2:] == [110.0, 363.0]  # a second of drawing buys 250 of training


@pytest.mark.parametrize(("stage", "steps", "seconds"), [("sft", 120, 0.43), ("grpo", 64, 2.7)])
def test_the_view_takes_less_than_a_hundredth_of_the_demos_steps(log, monkeypatch, stage, steps, seconds):
    """By the processor's clock. The seconds per step are those of `benchmarks/overhead.py`."""
    trained, spent = 0.0, 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: trained + time.thread_time())
    board = Dashboard(log, TimeBudget(hours=9, grows=True), stage, steps)
    board._draw()  # as `show` does, before the first step
    shown = {board._plot.value}
    for step in range(1, steps + 1):
        if stage == "grpo":
            write_stage(log, 1, step)
        else:
            log.write("sft_step", step=step, loss=1 / step, seconds=seconds, tokens=2000)
        trained, began = trained + seconds, time.thread_time()
        board.update()
        spent += time.thread_time() - began
        shown.add(board._plot.value)
    assert spent / trained < 0.01 and len(shown) > 1, "drawn, and not too often"


def test_figure_is_written_whole_and_returned(log, board, tmp_path):
    write_stage(log)
    path = tmp_path / "deep" / "curves.png"
    figure = board.figure(path)
    assert isinstance(figure, Figure) and "Reward" in titles(figure)
    assert path.read_bytes().startswith(PNG)
    assert [entry.name for entry in path.parent.iterdir()] == ["curves.png"]
    assert board._progress.value == 30  # the live view shows the end as well
    assert board._plot.value == "", "and its curves are not there twice"


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

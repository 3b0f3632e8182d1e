"""The live view of a training stage and the static figure that it leaves, both drawn from the run log alone.

Not a metrics backend: it stores nothing and smooths only what it draws. It knows "reward" rows, those of a
stage's steps, "sft_step", "grpo_step" and so on (a number `step`, any of `FIELDS`, and the name of their
`series` where there are several), and the "probe" and "flag" rows of `monitors`. Model text reaches the page
escaped. Only what ipywidgets 7.7 and 8.1 both have is used. Figures are made without pyplot, so that no backend
is chosen and no figure stays open.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterable, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
from IPython.display import display
from matplotlib.figure import Figure

from reasonkit.session.files import replacing
from reasonkit.session.run_log import RunLog
from reasonkit.session.time_budget import TimeBudget
from reasonkit.show.report_style import escape, visible

Row = Mapping[str, Any]

STEP = "_step"  # ends the event of a row that counts as progress
FIELDS = {"loss": "loss", "accuracy": "accuracy", "margin": "reward margin", "length": "reply length, tokens",
          "kl": "KL to the reference", "entropy": "entropy", "truncated": "share of replies cut off at the limit"}
COLOURS = ("#1f3b57", "#c9822f", "#3b8ea5", "#8a6fa8", "#7a9e4b", "#b2545c")
EVERY = 2.0  # seconds between two drawings at least,
SHARE = 0.05  # and at most this share of the time goes into drawing
SAMPLES = 3
CLIP = 2000  # characters of one text that are shown
WRAP = "overflow-wrap:anywhere"
FRAME = f"border-left:3px solid #bbb;padding:.2em .8em;margin:.8em 0;line-height:1.35;{WRAP}"
LABEL = 40  # characters of a name that a figure or the status line shows
MOST = 1e30  # a value beyond it is a gap, as one that is no number


class Curves(Figure):
    """A figure that a notebook shows inline whatever backend is set, or none."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()


def curves(rows: Iterable[Row]) -> Curves:
    """One panel for each quantity that `rows` (of a run log) hold: losses, reward and its parts, length, KL.

    Faint: as logged; bold: running mean. Reward rows are numbered by rollout, the others by step. Values that
    are no finite numbers leave gaps.
    """
    panels = _panels(list(rows))
    columns = min(2, max(1, len(panels)))
    height = -(-max(1, len(panels)) // columns)
    figure = Curves(figsize=(6.4 if columns == 1 else 8.4, 2.5 * height), layout="constrained")
    for number, (title, axis, lines) in enumerate(panels, 1):
        axes = figure.add_subplot(height, columns, number)
        for colour, (name, (x, y)) in zip(cycle(COLOURS), lines.items(), strict=False):
            smooth = _running_mean(y)
            if smooth is not y:
                axes.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(x, smooth, color=colour, linewidth=1.6, label=_label(name),
                      marker="." if smooth is y else None)
        axes.set_title(_label(title), loc="left", fontsize=10, color="#222222", parse_math=False)
        axes.set_xlabel(axis, fontsize=8, color="#666666")
        axes.tick_params(labelsize=8, colors="#666666", length=2)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#bbbbbb")
        axes.grid(axis="y", color="#eeeeee", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.margins(x=0.01)
        if len(lines) > 1:
            low, high = axes.get_ylim()
            axes.set_ylim(low, high + 0.7 * (high - low))  # room for the legend above the lines
            legend = axes.legend(fontsize=7, frameon=False, labelcolor="#444444", loc="upper left", ncols=2)
            for text in legend.get_texts():
                text.set_parse_math(False)  # a name is no formula
    if not panels:
        figure.text(0.5, 0.5, "nothing logged yet", ha="center", va="center", color="#666666")
    return figure


def _label(name: object) -> str:
    """A name in a figure, on one line; one that begins with "_" would be left out of a legend."""
    text = " ".join(visible(name).split())[:LABEL]
    return f" {text}" if text.startswith("_") or not text else text


class Dashboard:
    """Progress, minutes left, curves and the last samples of one stage, redrawn from its run log.

    log: the stage's RunLog or its path. budget: whose `minutes_left` is shown. total_steps: where the bar
    ends. `show` puts it on the page, `update` is for the training loop (every step will do), `figure` leaves
    the picture. All work without a front end. ValueError when total_steps is below 1.
    """

    def __init__(self, log: RunLog | Path | str, budget: TimeBudget, title: str, total_steps: int) -> None:
        if total_steps < 1:
            raise ValueError(f"total_steps={total_steps}: a stage has at least 1 step")
        self._log = RunLog(Path(log)) if isinstance(log, (str, os.PathLike)) else log
        self._budget, self._total, self._due = budget, total_steps, 0.0
        self._progress = widgets.IntProgress(value=0, max=total_steps, layout=widgets.Layout(width="100%"))
        self._status, self._flags, self._samples = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self._plot = widgets.Image(
            format="png", layout=widgets.Layout(max_width="100%", align_self="flex-start"))
        named = widgets.HTML(f"<b style='{WRAP}'>{escape(title)}</b>")
        self.widget = widgets.VBox([named, self._progress, self._status, self._flags, self._plot, self._samples])

    def show(self) -> None:
        """Draw, and display the view in the cell that calls this."""
        self._draw()
        display(self.widget)

    def update(self) -> None:
        """Draw what is new, if the last drawing is long enough ago; otherwise it costs nothing."""
        if time.monotonic() >= self._due:
            self._draw()

    def figure(self, path: Path | str) -> Curves:
        """Draw a last time, write the curves to `path` as PNG, atomically, and return them to show inline."""
        figure, path = curves(self._draw()), Path(path)
        with replacing(path) as partial:
            figure.savefig(partial, format="png", dpi=160)
        return figure

    def _draw(self) -> list[dict[str, Any]]:
        began = time.monotonic()
        rows = self._log.read()
        done, status = _progress(rows, self._total)
        left = ("every step will be run, however long it takes" if self._budget.grows else
                f"{self._budget.minutes_left:.0f} min left in the session")
        self._progress.value = done
        self._progress.bar_style = "success" if done == self._total else ""
        lost = [f"{self._log.skipped} lines of the log are no rows"] * bool(self._log.skipped)
        self._status.value = " · ".join([*map(escape, status), left, *lost])
        self._plot.value = curves(rows)._repr_png_()
        self._flags.value = _flags_html(rows)
        self._samples.value = _samples_html(rows)
        now = time.monotonic()
        self._due = now + max(EVERY, (now - began) / SHARE)
        return rows


def _panels(rows: list[Row]) -> list[tuple[str, str, dict[str, tuple[np.ndarray, np.ndarray]]]]:
    """Title, x label and lines (x, y) of each panel that has a value to show."""
    rollouts = [row for row in rows if row["event"] == "reward" and row.get("mode", "train") == "train"]
    scored = [row.get("parts", {}) for row in rollouts]
    parts = {name: [part.get(name, {}) for part in scored] for part in scored for name in part}
    panels = [("Reward", "rollout", {"total": _by_number(rollouts)}
               | {name: _by_number(values) for name, values in parts.items()}),
              ("Held-out accuracy", "step", {"greedy": _by_step([r for r in rows if r["event"] == "probe"], "mean")})]
    for event in dict.fromkeys(row["event"] for row in rows if row["event"].endswith(STEP)):
        steps = [row for row in rows if row["event"] == event]
        series = dict.fromkeys(row.get("series") for row in steps)
        stage = event.removesuffix(STEP)
        stage = stage.upper() if stage in ("sft", "grpo") else stage.capitalize()
        panels += [(f"{stage} {title}", "step", {
            one or name: _by_step([row for row in steps if row.get("series") == one], name) for one in series})
            for name, title in FIELDS.items()]
    shown = [(title, axis, {name: line for name, line in lines.items() if np.isfinite(line[1]).any()})
             for title, axis, lines in panels]
    return [panel for panel in shown if panel[2]]


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and abs(value) < MOST else np.nan


def _by_number(rows: list[Row]) -> tuple[np.ndarray, np.ndarray]:
    """The means, one a rollout."""
    return np.arange(1, len(rows) + 1), np.array([_number(row.get("mean")) for row in rows])


def _by_step(rows: list[Row], name: str) -> tuple[np.ndarray, np.ndarray]:
    """A step that a resumed run repeated counts once, as it was the last time."""
    values = {row["step"]: _number(row.get(name)) for row in rows}
    steps = sorted(values)
    return np.array(steps), np.array([values[step] for step in steps])


def _running_mean(y: np.ndarray) -> np.ndarray:
    """Centred, over a fifteenth of the curve or 5 values, without the gaps; a short curve stays as it is."""
    if len(y) < 15:
        return y
    window = np.ones(max(5, len(y) // 15))
    known = np.isfinite(y)
    total = np.convolve(np.where(known, y, 0.0), window, "same")
    count = np.convolve(known.astype(float), window, "same")
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _progress(rows: list[Row], total: int) -> tuple[int, list[str]]:
    """Steps done and the words for the status line."""
    steps = [row for row in rows if row["event"].endswith(STEP)]
    if not steps:
        return 0, [f"step 0 of {total}", "preparing the first step"]
    stage = [row for row in steps if row["event"] == steps[-1]["event"]]
    done = min(stage[-1]["step"], total)
    words = [f"step {done} of {total}"]
    seconds = [_number(row.get("seconds")) for row in stage[1:][-20:]]  # the first one compiles
    if np.isfinite(seconds).any():
        pace = float(np.nanmedian(seconds))
        minutes = pace * (total - done) / 60
        words.append(f"{pace:.2g} s a step")
        if done < total:
            words.append(f"about {minutes:.0f} min to go" if minutes >= 1 else "less than a minute to go")
    rewards = [row for row in rows if row["event"] == "reward"]
    parts = rewards[-1].get("parts", {}) if rewards else {}
    silent = {name: part["no_signal"] for name, part in parts.items() if part["no_signal"]}
    words += [f"no signal from {_label(name)}: {share:.0%}" for name, share in silent.items()]
    return done, words


def _flags_html(rows: list[Row]) -> str:
    """The last flags, newest first, each with its example folded away."""
    return "".join(map(_flag_html, [row for row in rows if row["event"] == "flag"][:-SAMPLES - 1:-1]))


def _flag_html(flag: Row) -> str:
    line = (f"<b>{escape(flag['name'])}</b> at step {escape(flag['step'])}: {escape(flag['why'])} "
            f"({_number(flag['value']):.2f}, limit {_number(flag['limit']):.2f})")
    return (f"<details style='{FRAME};border-color:#c9822f'><summary>{line}</summary>"
            f"<pre style='white-space:pre-wrap;margin:0'>{escape(flag['example'][:CLIP])}</pre></details>")


def _samples_html(rows: list[Row]) -> str:
    """The last samples, newest first: numbers in a line, texts below it, all of it escaped."""
    samples = [row["sample"] for row in rows if row.get("sample")]
    return "".join(map(_sample_html, samples[:-SAMPLES - 1:-1]))


def _sample_html(sample: Row) -> str:
    texts = {name: value for name, value in sample.items() if isinstance(value, str)}
    numbers = {name: value for name, value in sample.items() if isinstance(value, (int, float))}
    line = " · ".join(f"{escape(name)} {_number(value):.2f}" if value is not None else f"{escape(name)} –"
                      for name, value in (numbers | sample.get("parts", {})).items())
    body = "".join(f"<div style='opacity:.6'>{escape(name)}</div>"
                   f"<pre style='white-space:pre-wrap;margin:0 0 .5em'>{escape(text[:CLIP])}</pre>"
                   for name, text in texts.items())
    return f"<div style='{FRAME}'><div>{line}</div>{body}</div>"

"""The live view of a training stage: progress, minutes left, curves and the last samples.

Entry point: `Dashboard`. It reads the stage's run log: the rows "start", "reward", "probe", "flag", "sft_step" and
"grpo_step". It uses only what ipywidgets 7.7 and 8.1 both have.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
from IPython.display import display

from reasonkit.session.files import replace_file
from reasonkit.session.run_log import RunLog
from reasonkit.session.time_budget import TimeBudget
from reasonkit.show.figures import STEP, Curves, Row, colour_tags, curves, escape, label, number

EVERY = 2.0  # seconds between two drawings at least
SHARE = 0.004  # of the time at most is for drawing curves, and as much for the rest
SAMPLES = 3  # shown samples, and shown flags, newest first
CLIP = 2000  # shown characters of a text
WRAP = "overflow-wrap:anywhere"
FRAME = f"border-left:3px solid #bbb;padding:.2em .8em;margin:.8em 0;line-height:1.35;{WRAP}"


class Dashboard:
    """Shows one stage of `total_steps` steps from its run log.

    Call `show` once, `update` as often as you like during training, and `figure` at the end. All three work without a
    front end.
    """

    def __init__(self, log: RunLog, budget: TimeBudget, title: str, total_steps: int) -> None:
        self._log, self._budget, self._total = log, budget, total_steps
        self._due = self._plot_due = 0.0
        self._progress = widgets.IntProgress(value=0, max=total_steps, layout=widgets.Layout(width="100%"))
        self._status, self._flags, self._plot, self._samples = (widgets.HTML() for _ in range(4))
        heading = widgets.HTML(f"<b style='{WRAP}'>{escape(title)}</b>")
        self.widget = widgets.VBox([heading, self._progress, self._status, self._flags, self._plot, self._samples])

    def show(self) -> None:
        self._draw()
        display(self.widget)

    def update(self) -> None:
        """Draw what is new. Does nothing if the last drawing was a moment ago."""
        if (now := time.monotonic()) >= self._due:
            self._draw(now >= self._plot_due)

    def figure(self, path: Path) -> Curves:
        """Draw a last time, write the curves to `path` as PNG, and return them. The live view no longer shows them."""
        figure = curves(self._draw(plot=False))
        self._plot.value = ""
        with replace_file(path) as partial:
            figure.savefig(partial, format="png", dpi=160)
        return figure

    def _draw(self, plot: bool = True) -> list[dict[str, Any]]:
        began = time.monotonic()
        rows = self._log.read()
        self._total = self._progress.max = _last(rows, "start").get("steps") or self._total  # SFT may need fewer
        done, status = _progress(rows, self._total, self._budget.steps_left)
        status.append("every step will be run, however long it takes" if self._budget.grows else
                      f"{self._budget.minutes_left:.0f} min left in the session")
        if self._log.skipped:
            status.append(f"{self._log.skipped} lines of the log are no rows")
        self._progress.value = done
        self._progress.bar_style = "success" if done == self._total else ""
        self._status.value = " · ".join(map(escape, status))
        flags = [row for row in rows if row["event"] == "flag"]
        samples = [row["sample"] for row in rows if row.get("sample")]
        self._flags.value = "".join(map(_flag_html, flags[:-SAMPLES - 1:-1]))
        self._samples.value = "".join(map(_sample_html, samples[:-SAMPLES - 1:-1]))
        now = time.monotonic()
        self._due = now + max(EVERY, (now - began) / SHARE)
        if plot:
            self._plot.value = curves(rows).svg()
            self._plot_due = time.monotonic() + (time.monotonic() - now) / SHARE
        return rows


def _last(rows: list[Row], event: str) -> Row:
    return next((row for row in reversed(rows) if row["event"] == event), {})


def _progress(rows: list[Row], total: int, fitting: float) -> tuple[int, list[str]]:
    """Steps done, and the words of the status line. `fitting` is how many more steps the clock allows."""
    steps = [row for row in rows if row["event"].endswith(STEP)]
    if not steps:
        return 0, [f"step 0 of {total}", "preparing the first step"]
    stage = [row for row in steps if row["event"] == steps[-1]["event"]]
    done = min(stage[-1]["step"], total)
    words = [f"step {done} of {total}"]
    seconds = [number(row.get("seconds")) for row in stage[1:][-20:]]  # the first step compiles
    if np.isfinite(seconds).any():
        pace = float(np.nanmedian(seconds))
        minutes = pace * (total - done) / 60
        words.append(f"{pace:.2g} s per step")
        if fitting < total - done:
            words.append(f"the clock has time for about {fitting:.0f} more")
        elif done < total:
            words.append(f"about {minutes:.0f} min to go" if minutes >= 1 else "less than a minute to go")
    step, reward = stage[-1], _last(rows, "reward")
    sampled = number(step.get("length")) * number(reward.get("completions"))
    speed = number(step.get("tokens", sampled)) / (number(step.get("seconds")) or np.nan)  # SFT logs what it read
    if np.isfinite(speed):
        words.append(f"{speed:,.0f} tokens per second")
    words += [f"no signal from {label(name)}: {part['no_signal']:.0%}" for name, part in reward.get("parts", {}).items()
              if part["no_signal"]]
    return done, words


def _flag_html(flag: Row) -> str:
    line = (f"<b>{escape(flag['name'])}</b> at step {escape(flag['step'])}: {escape(flag['why'])} "
            f"({number(flag['value']):.2f}, limit {number(flag['limit']):.2f})")
    return (f"<details style='{FRAME};border-color:#c9822f'><summary>{line}</summary>"
            f"<pre style='white-space:pre-wrap;margin:0'>{escape(flag['example'][:CLIP])}</pre></details>")


def _sample_html(sample: Row) -> str:
    texts = {name: value for name, value in sample.items() if isinstance(value, str)}
    numbers = {name: value for name, value in sample.items() if isinstance(value, (int, float))}
    line = " · ".join(f"{escape(name)} –" if value is None else f"{escape(name)} {number(value):.2f}"
                      for name, value in (numbers | sample.get("parts", {})).items())
    body = "".join(f"<div style='opacity:.6'>{escape(name)}</div>"
                   f"<pre style='white-space:pre-wrap;margin:0 0 .5em'>{colour_tags(text[:CLIP])}</pre>"
                   for name, text in texts.items())
    return f"<div style='{FRAME}'><div>{line}</div>{body}</div>"

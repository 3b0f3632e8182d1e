"""Training curves of a run log, a picture of the chips, and text from outside made safe to show.

Entry points: `curves`, `chips`, `escape`, `colour_tags`. Figures are made without pyplot, which would choose a backend
and keep figures open. Names from a log are drawn as they are, never as formulas.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import cycle
from typing import Any

import numpy as np
from jax.sharding import Mesh
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reasonkit.models.mesh import Plan
from reasonkit.text.tags import TAGS, printable

Row = Mapping[str, Any]
Line = tuple[np.ndarray, np.ndarray]  # x, y

STEP = "_step"  # how the event of a training step ends
FIELDS = {"loss": "loss", "margin": "reward margin", "length": "completion length, tokens",
          "kl": "KL to the reference", "entropy": "entropy", "truncated": "share cut off at the limit"}
COLOURS = ("#1f3b57", "#c9822f", "#3b8ea5", "#8a6fa8", "#7a9e4b", "#b2545c")
TAG_COLOURS = {TAGS.reasoning: COLOURS[2], TAGS.answer: COLOURS[1]}
LABEL = 40  # characters of a name in a figure
LARGEST = 1e30  # larger values are drawn as gaps
SMOOTHED = 15  # a shorter curve is drawn without a running mean

_TAG = re.compile(f"&lt;/?({TAGS.reasoning}|{TAGS.answer})&gt;")  # as `escape` writes it
# Marks, embeddings, overrides and isolates: they change the direction of the text around them.
_DIRECTIONS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def visible(text: object) -> str:
    """`text` with characters that change the writing direction spelled out, as [U+202E]."""
    return _DIRECTIONS.sub(lambda sign: f"[U+{ord(sign[0]):04X}]", printable(str(text)))


def escape(text: object) -> str:
    """`text` as HTML that shows it and does nothing else."""
    return html.escape(visible(text))


def colour_tags(text: object) -> Markup:
    """`text` as HTML, escaped, with its tags coloured. A misspelt tag stays as it is.

    >>> colour_tags("<answer><b>")
    Markup('<b style="color:#c9822f">&lt;answer&gt;</b>&lt;b&gt;')
    """
    return Markup(_TAG.sub(lambda tag: f'<b style="color:{TAG_COLOURS[tag[1]]}">{tag[0]}</b>', escape(text)))


def label(name: object) -> str:
    """A name on one line of a figure. Matplotlib leaves a name that begins with "_" out of a legend."""
    text = " ".join(visible(name).split())[:LABEL]
    return f" {text}" if text.startswith("_") or not text else text


def number(value: object) -> float:
    """A logged value as a float, NaN where it cannot be drawn."""
    return float(value) if isinstance(value, (int, float)) and abs(value) < LARGEST else np.nan


class Curves(Figure):
    """A figure that a notebook shows inline with any matplotlib backend."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()


def curves(rows: Iterable[Row]) -> Curves:
    """One panel per quantity in the rows of a run log: reward and its parts, held-out accuracy, loss, length, KL.

    Faint lines are the logged values, bold lines their running mean. Rewards are numbered by rollout, the rest by
    step. Values that are not finite numbers leave gaps.
    """
    panels = _panels(list(rows))
    columns = min(2, max(1, len(panels)))
    height = -(-max(1, len(panels)) // columns)
    figure = Curves(figsize=(6.4 if columns == 1 else 8.4, 2.5 * height), layout="constrained")
    for place, (title, axis, lines) in enumerate(panels, 1):
        _draw(figure.add_subplot(height, columns, place), title, axis, lines)
    if not panels:
        figure.text(0.5, 0.5, "nothing logged yet", ha="center", va="center", color="#666666")
    return figure


def chips(plan: Plan) -> Curves:
    """Which chips hold the policy and which the judge: a row of boxes per role, one per chip, with what it holds."""
    roles = {"policy": plan.policy} | ({"judge": plan.judge} if plan.judge else {})
    width = max(mesh.size for mesh in roles.values())
    figure = Curves(figsize=(max(4.0, 1.05 * width), 0.95 * len(roles)), layout="constrained")
    axes = figure.add_subplot()
    for row, (role, mesh) in enumerate(roles.items()):
        axes.text(-0.1, -row, role, ha="right", va="center", fontsize=10)
        for column, (device, part) in enumerate(zip(mesh.devices.flat, _parts(mesh, role in plan.gathered),
                                                    strict=True)):
            axes.barh(-row, 0.94, 0.86, left=column, color=COLOURS[row])
            axes.text(column + 0.47, -row, f"chip {device.id}\n{part}", ha="center", va="center", fontsize=8,
                      color="white")
    axes.set_xlim(-0.9, width)
    axes.set_ylim(-len(roles) + 0.5, 0.5)
    axes.set_axis_off()
    return figure


def _parts(mesh: Mesh, gathered: bool) -> list[str]:
    """What each chip of a mesh holds of the model's weights, in the mesh's order."""
    rows, columns = mesh.devices.shape
    if gathered:
        return [f"part {number} of {mesh.size}" for number in range(1, mesh.size + 1)]
    return [f"copy {row}" + f"\npart {part} of {columns}" * (columns > 1)
            for row in range(1, rows + 1) for part in range(1, columns + 1)]


def _draw(axes: Axes, title: str, axis: str, lines: Mapping[str, Line]) -> None:
    for colour, (name, (x, y)) in zip(cycle(COLOURS), lines.items(), strict=False):
        short = len(y) < SMOOTHED
        if not short:
            axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.25)
        axes.plot(x, y if short else _running_mean(y), color=colour, linewidth=1.6, marker="." if short else None,
                  label=label(name))
    axes.set_title(label(title), loc="left", fontsize=10, color="#222222", parse_math=False)
    axes.set_xlabel(axis, fontsize=8, color="#666666")
    axes.tick_params(labelsize=8, colors="#666666", length=2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#eeeeee", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.01)
    if len(lines) > 1:
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.7 * (high - low))  # room for the legend above the lines
        for text in axes.legend(fontsize=7, frameon=False, loc="upper left", ncols=2).get_texts():
            text.set_parse_math(False)


def _running_mean(y: np.ndarray) -> np.ndarray:
    """The mean over a centred window of a fifteenth of the curve; gaps are left out."""
    window, known = np.ones(max(5, len(y) // SMOOTHED)), np.isfinite(y)
    total = np.convolve(np.where(known, y, 0.0), window, "same")
    count = np.convolve(known.astype(float), window, "same")
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _panels(rows: list[Row]) -> list[tuple[str, str, dict[str, Line]]]:
    """Title, x label and lines of each panel that has a value to show."""
    rollouts = [row for row in rows if row["event"] == "reward" and row.get("mode", "train") == "train"]
    scored = [row.get("parts", {}) for row in rollouts]
    rewards = {"total": _by_rollout(rollouts, lambda row: row)}
    for name in dict.fromkeys(name for parts in scored for name in parts):
        rewards[name] = _by_rollout(scored, lambda parts, name=name: parts.get(name, {}))
    probes = [row for row in rows if row["event"] == "probe"]
    panels = [("Reward", "rollout", rewards), ("Held-out accuracy", "step", {"greedy": _by_step(probes, "mean")})]
    for event in dict.fromkeys(row["event"] for row in rows if row["event"].endswith(STEP)):
        steps = [row for row in rows if row["event"] == event]
        stage = event.removesuffix(STEP)
        stage = stage.upper() if stage in ("sft", "grpo") else stage.capitalize()
        panels += [(f"{stage} {title}", "step", {name: _by_step(steps, name)}) for name, title in FIELDS.items()]
    shown = [(title, axis, {name: line for name, line in lines.items() if np.isfinite(line[1]).any()})
             for title, axis, lines in panels]
    return [panel for panel in shown if panel[2]]


def _by_rollout(items: list[Row], part: Callable[[Row], Row]) -> Line:
    return np.arange(1, len(items) + 1), np.array([number(part(item).get("mean")) for item in items])


def _by_step(rows: list[Row], name: str) -> Line:
    """A step that a resumed run repeated counts once, with its last value."""
    values = {row["step"]: number(row.get(name)) for row in rows}
    steps = sorted(values)
    return np.array(steps), np.array([values[step] for step in steps])

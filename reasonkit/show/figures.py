"""Training curves of a run log, intervals, a picture of the chips, and text from outside made safe to show.

Entry points: `curves`, `dots`, `chips`, `escape`, `colour_tags`. Figures do without pyplot, which would choose a
backend and keep figures open. Their background is transparent, and their ink reads on white and on black.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from reasonkit.config import STAGES
from reasonkit.models.mesh import Plan
from reasonkit.text.tags import TAGS, printable

Row = Mapping[str, Any]
Line = tuple[np.ndarray, np.ndarray]  # x, y

STEP = "_step"  # how the event of a training step ends
FIELDS = {"loss": "loss", "margin": "reward margin", "length": "completion length, tokens",
          "kl": "KL to the reference", "entropy": "entropy", "truncated": "completions cut off at the limit"}
INK = "#808080"  # replaced by the page's text colour in SVG
COLOURS = ("#4a7fb5", "#c07a28", "#3593a5", "#9473bd", "#6f9440", "#c4606a")
TAG_COLOURS = {TAGS.reasoning: COLOURS[2], TAGS.answer: COLOURS[1]}
LABEL = 40  # characters of a name in a figure
UNPAID = " (weight 0)"  # ends the name of a part that is only logged, whose line is dashed
LARGEST = 1e30  # larger values leave a gap
SMOOTHED = 15  # values from which a curve has a running mean
# Inches of a panel with its margins, and of a name below it. Matplotlib's own layout takes three times as long.
PANEL, LEFT, RIGHT, TOP, BOTTOM, NAME = (3.7, 2.5), 0.55, 0.15, 0.3, 0.45, 0.16

# Decorates functions that draw names from outside, which may hold a "$": they are not formulas.
plain_names = matplotlib.rc_context({"text.parse_math": False})

_TAG = re.compile(f"&lt;/?({TAGS.reasoning}|{TAGS.answer})&gt;")  # as `escape` writes it
# Marks, embeddings, overrides and isolates, which change the direction of the text around them.
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
    Markup('<b style="color:#c07a28">&lt;answer&gt;</b>&lt;b&gt;')
    """
    return Markup(_TAG.sub(lambda tag: f'<b style="color:{TAG_COLOURS[tag[1]]}">{tag[0]}</b>', escape(text)))


def label(name: object) -> str:
    """A name cut to one line of a figure. A space before "_" keeps matplotlib from leaving the name out of a legend."""
    text = " ".join(visible(name).split())[:LABEL]
    return f" {text}" if text.startswith("_") or not text else text


def block(text: object) -> Markup:
    """`text` with its line breaks, escaped, with its tags coloured."""
    return Markup("<pre>{}</pre>").format(colour_tags(text))


def number(value: object) -> float:
    """A logged value as a float, NaN where it cannot be drawn."""
    return float(value) if isinstance(value, (int, float)) and abs(value) < LARGEST else np.nan


class Curves(Figure):
    """A figure, sized in inches, that a notebook shows inline with any matplotlib backend."""

    def __init__(self, width: float, height: float, layout: str = "constrained"):
        super().__init__(figsize=(width, height), layout=layout)
        self.patch.set_alpha(0.0)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()

    def svg(self) -> str:
        """The figure as an HTML element of full width, in the page's text colour."""
        buffer = io.StringIO()
        with matplotlib.rc_context({"svg.fonttype": "none"}):  # text as text
            self.savefig(buffer, format="svg", metadata={"Date": None})
        image = buffer.getvalue().partition("<svg")[2].replace(INK, "currentColor")
        return '<svg style="width:100%;height:auto"' + re.sub(r' (?:width|height)="[\d.]+pt"', "", image, count=2)


class Panel(NamedTuple):
    """Its lines by name, whether y is a share, and a band of x, low and high."""

    title: str
    axis: str
    lines: dict[str, Line]
    share: bool = False
    band: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None


@plain_names
def curves(rows: Iterable[Row]) -> Curves:
    """One panel per quantity in the rows of a run log, such as reward, held-out accuracy, loss, length or KL.

    Faint lines are the logged values, bold lines their running mean. Rewards are numbered by rollout, the rest by
    step. A value that is not a finite number leaves a gap. A part of weight 0 is dashed.
    """
    panels = _panels(list(rows))
    columns = min(3, max(1, len(panels)))
    lines = [panels[first:first + columns] for first in range(0, len(panels), columns)] or [[]]
    heights = [PANEL[1] + max(map(_names, line), default=0.0) for line in lines]
    width, bottom = max(6.4, PANEL[0] * columns), sum(heights)
    figure, cell = Curves(width, bottom, layout="none"), width / columns
    for line, height in zip(lines, heights, strict=True):
        bottom -= height
        for column, panel in enumerate(line):
            below = BOTTOM + _names(panel)
            axes = figure.add_axes(((column * cell + LEFT) / width, (bottom + below) / sum(heights),
                                    (cell - LEFT - RIGHT) / width, (height - below - TOP) / sum(heights)))
            _draw(axes, panel)
    if not panels:
        figure.text(0.5, 0.5, "nothing logged yet", ha="center", va="center", color=INK)
    return figure


@plain_names
def dots(panels: Mapping[str, Mapping[str, Sequence[float]]], points: bool = False) -> Curves:
    """Means with their intervals: one panel per measure, with one row per name of (mean, low, high, ...) in [-1, 1].

    With `points` they are differences around a line at 0, else shares on a scale from 0 to 100 %.
    """
    rows = max(map(len, panels.values()))
    figure = Curves(2.0 + max(4.6, 2.3 * len(panels)), 0.8 + 0.32 * rows)
    for place, (title, found) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, len(panels), place)
        style_axes(axes, title, "points" if points else "%")
        for row, (mean, low, high, *_) in enumerate(found.values()):
            axes.plot([100 * low, 100 * high], [row, row], color=COLOURS[0], linewidth=2.0)
            axes.plot(100 * mean, row, "o", color=COLOURS[0])
        axes.set_yticks(range(len(found)), map(label, found) if place == 1 else [""] * len(found))
        axes.set_ylim(rows - 0.5, -0.5)  # the first on top
        if points:
            axes.axvline(0.0, color=INK, linewidth=0.8)
        else:
            axes.set_xlim(-2.0, 102.0)
    return figure


def chips(plan: Plan) -> Curves:
    """The chips of the policy and of the judge: one row per role, one box per chip, with the weights it holds."""
    roles = {"policy": plan.policy} | ({"judge": plan.judge} if plan.judge else {})
    width = max(mesh.size for mesh in roles.values())
    figure = Curves(max(4.0, 1.05 * width), 0.95 * len(roles))
    axes = figure.add_subplot()
    for row, (role, mesh) in enumerate(roles.items()):
        axes.text(-0.1, -row, role, ha="right", va="center", fontsize=10, color=INK)
        of = mesh.devices.shape[1]
        for place, device in enumerate(mesh.devices.flat):
            weights = (f"part {place + 1} of {mesh.size}" if role in plan.gathered else
                       f"copy {place // of + 1}" + f"\npart {place % of + 1} of {of}" * (of > 1))
            axes.barh(-row, 0.94, 0.86, left=place, color=COLOURS[row])
            axes.text(place + 0.47, -row, f"chip {device.id}\n{weights}", ha="center", va="center", fontsize=8,
                      color="white")
    axes.set_xlim(-0.9, width)
    axes.set_ylim(-len(roles) + 0.5, 0.5)
    axes.set_axis_off()
    return figure


def style_axes(axes: Axes, title: str, axis: str) -> None:
    """The look of all figures: ink that follows the page, and no frame."""
    axes.set_title(label(title), loc="left", fontsize=10, color=INK)
    axes.set_xlabel(axis, fontsize=8, color=INK)
    axes.tick_params(labelsize=8, color=INK, labelcolor=INK, length=2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.patch.set_alpha(0.0)
    axes.set_axisbelow(True)


def _draw(axes: Axes, panel: Panel) -> None:
    if panel.band:
        axes.fill_between(*panel.band, color=COLOURS[0], alpha=0.25, linewidth=0)
    for colour, (name, (x, y)) in zip(cycle(COLOURS), panel.lines.items(), strict=False):
        short = len(y) < SMOOTHED
        if not short:
            axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.3)
        axes.plot(x, y if short else _running_mean(y), color=colour, linewidth=1.6, marker="." if short else None,
                  linestyle="--" if name.endswith(UNPAID) else "-", label=label(name))
    style_axes(axes, panel.title, panel.axis)
    axes.grid(axis="y", color=INK, alpha=0.25, linewidth=0.8)
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    if panel.share:
        axes.set_ylim(0.0, 1.0)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    if len(panel.lines) > 1:
        height = axes.get_position().height * axes.figure.get_figheight()
        axes.legend(fontsize=7, frameon=False, labelcolor=INK, loc="upper left", borderpad=0.0, borderaxespad=0.0,
                    bbox_to_anchor=(0.0, -BOTTOM / height))


def _names(panel: Panel) -> float:
    """Inches that the names of a panel's lines take below it."""
    return NAME * len(panel.lines) if len(panel.lines) > 1 else 0.0


def _running_mean(y: np.ndarray) -> np.ndarray:
    """The mean over a centred window of a fifteenth of the curve. Gaps are left out."""
    window, known = np.ones(max(5, len(y) // SMOOTHED)), np.isfinite(y)
    total = np.convolve(np.where(known, y, 0.0), window, "same")
    count = np.convolve(known.astype(float), window, "same")
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _panels(rows: list[Row]) -> list[Panel]:
    """The panels that have a value to show."""
    rollouts = [row for row in rows if row["event"] == "reward" and row.get("mode", "train") == "train"]
    scored = [row.get("parts", {}) for row in rollouts]
    rewards = {"total": _line(enumerate((row.get("mean") for row in rollouts), 1))}
    for name in dict.fromkeys(name for parts in scored for name in parts):
        unpaid = scored[-1].get(name, {}).get("weight") == 0
        rewards[label(name)[:LABEL - len(UNPAID)] + UNPAID if unpaid else name] = _line(
            enumerate((parts.get(name, {}).get("mean") for parts in scored), 1))
    mean, low, high = (_line((row["step"], row.get(name)) for row in rows if row["event"] == "probe")
                       for name in ("mean", "low", "high"))
    panels = [Panel("Reward", "rollout", rewards),
              Panel("Held-out accuracy", "step", {"greedy": mean}, share=True, band=(*low, high[1])),
              Panel("Groups whose rewards are all equal", "rollout",
                    {"flat": _line(enumerate((row.get("flat_groups") for row in rollouts), 1))}, share=True)]
    for event in dict.fromkeys(row["event"] for row in rows if row["event"].endswith(STEP)):
        steps = [row for row in rows if row["event"] == event]
        stage = event.removesuffix(STEP)
        stage = STAGES[stage].title if stage in STAGES else stage.capitalize()
        panels += [Panel(f"{stage} {title}", "step", {name: _line((row["step"], row.get(name)) for row in steps)},
                         share=name == "truncated") for name, title in FIELDS.items()]
    shown = [panel._replace(lines={name: line for name, line in panel.lines.items() if np.isfinite(line[1]).any()})
             for panel in panels]
    return [panel for panel in shown if panel.lines]


def _line(points: Iterable[tuple[int, object]]) -> Line:
    """Each x once, with its last value: a resumed run may have repeated a step."""
    values = dict(points)
    return np.array(sorted(values)), np.array([number(values[x]) for x in sorted(values)])

"""What a step of GRPO costs as the group, the reply and the model grow: `python benchmarks/cost.py [--figure PATH]`.

Measured with the tiny policy on one CPU device, in seconds of the processor, so other programs count little. No
completion meets a stop token. Beside it stands the roofline of this machine, from speeds measured in this run. For a
v5e-8 without a judge, profile `kaggle`, there is only the roofline.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import checkout  # noqa: F401
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.figure import Figure

from benchmarks.overhead import PROFILE, Bench
from reasonkit.config import PROFILES, Profile
from reasonkit.models.placement import (
    CHIPS,
    Chip,
    adapter_parameters,
    cache_bytes,
    config_of,
    parameters,
)
from reasonkit.show.figures import COLOURS
from reasonkit.train.rollout import Rollout
from tools.flax import init_random, tiny_config

WARM, REPEATS = 2, 3  # steps: those that compile, and those whose median counts
TINY = replace(PROFILE, grpo=replace(PROFILE.grpo, prompts_per_step=4))
KAGGLE = PROFILES["kaggle"]
SIZES = {(2, 64): 2, (4, 128): 4, (6, 256): 8, (8, 384): 12}  # layers and width of a small model: its heads
REAL = "gemma3-270m-it", "gemma3-1b-it", "gemma2-2b-it"
# How many times as long the last row takes as the first, on this CPU: rollout and update. A decode step is mostly fixed
# cost and weights, which more rows share. The update is arithmetic, so it follows the tokens. In the length it follows
# prompt and reply together, and the rollout the number of steps. The smallest model is all fixed cost.
GUESSED = {"completions per prompt": (3, 8), "new tokens": (8, 2.2), "parameters": (35, 85)}
OVER_ROOFLINE = 4, 2  # guessed, too: how many times the roofline the tiny policy's rollout and update take


@dataclass(frozen=True)
class Point:
    """A step of GRPO: what varies, and what was measured or is the least. Seconds of the rollout and of the update."""

    x: float
    seconds: tuple[float, float]


class Timed(Rollout):
    """Notes when each call began and ended. The device has nothing left to do then."""

    calls_made: list[tuple[float, float]] = []

    def generate(self, *args, **kwargs):
        jax.block_until_ready(nnx.state(self.model()))
        began = time.process_time()
        output = super().generate(*args, **kwargs)
        self.calls_made.append((began, time.process_time()))
        return output


def measure(bench: Bench, profile: Profile) -> tuple[float, float]:
    """Median seconds of a step's rollout and of its update."""
    bench.grpo = replace(profile.grpo, steps=WARM + REPEATS + 1, save_every=WARM + REPEATS + 2)
    Timed.calls_made = []
    with patch("reasonkit.train.grpo.Rollout", Timed), tempfile.TemporaryDirectory() as folder:
        bench.kit_grpo(Path(folder))
    calls = Timed.calls_made[WARM:]
    return (median(end - began for began, end in calls[:-1]),
            median(after - end for (_, end), (after, _) in zip(calls, calls[1:], strict=False)))


def roofline(config: Any, profile: Profile, chip: Chip, chips: int) -> tuple[float, float]:
    """Least seconds of a step's rollout and of its update. The rows are split over the chips, the weights copied.

    It adds up the programs of a step, each the longer of FLOP and bytes. A forward pass takes 2 FLOP per parameter and
    token. Gradients pass through frozen matrices once, and to the adapter and attention's two factors twice. A decode
    step reads all weights and the whole cache of its rows. Exchanges, activations, norms and the host cost nothing.
    """
    g, itemsize, passes = profile.grpo, jnp.dtype(profile.dtype).itemsize, 2 + profile.remat
    rows, size = g.prompts_per_step * g.num_generations / chips, g.max_prompt_length + g.max_new_tokens
    embedding, matrices = parameters(config)
    adapter, cache = adapter_parameters(profile, config), rows * size * cache_bytes(config, itemsize)
    weights = itemsize * (embedding + matrices + adapter)
    # FLOP of one token in each row
    frozen, head, trained = 2 * rows * matrices, 2 * rows * embedding, 2 * rows * adapter
    trained += 4 * rows * size * config.num_layers * config.num_heads * config.head_dim  # attention, like the adapter

    def least(flops: float, traffic: float) -> float:
        return max(flops / chip.flops, traffic / chip.bandwidth)

    prefill = least(g.max_prompt_length * (frozen + trained) + head, weights + cache)
    decode = least(frozen + trained + head, weights + cache)
    reference = least(size * (frozen + trained) + g.max_new_tokens * head, weights)
    train = least(size * (passes * frozen + (passes + 1) * trained) + 2 * g.max_new_tokens * head, passes * weights)
    return prefill + (g.max_new_tokens - 1) * decode, reference + train


def machine() -> Chip:
    """This machine's peaks: float32 FLOP/s of a matmul, bytes/s read and written by a copy of a quarter gigabyte."""
    square, source = jnp.ones((2048, 2048), jnp.float32), np.ones(2**26, np.float32)
    multiply, target = jax.jit(jnp.dot), np.empty_like(source)

    def usual(work: Callable[[], Any]) -> float:
        seconds = []
        for _ in range(10):
            began = time.process_time()
            jax.block_until_ready(work())
            seconds.append(time.process_time() - began)
        return median(seconds[1:])

    return Chip(2 * 2048**3 / usual(lambda: multiply(square, square)),
                2 * source.nbytes / usual(lambda: np.copyto(target, source)), math.inf)


def small(bench: Bench, layers: int, width: int) -> Any:
    """A configuration like the tiny policy's."""
    vocabulary = bench.base.config.num_embed
    return replace(tiny_config(vocabulary), num_layers=layers, embed_dim=width, hidden_dim=width * 15 // 4,
                   num_heads=SIZES[layers, width])


def with_grpo(profile: Profile, **changes) -> Profile:
    return replace(profile, grpo=replace(profile.grpo, **changes))


def panels(bench: Bench) -> dict[str, tuple[list, list]]:
    """What varies: on this CPU and on the v5e-8, (its value, configuration, profile) of each row."""
    tiny, real = bench.base.config, config_of("gemma2-2b-it")
    models = [small(bench, *size) for size in SIZES], [config_of(name) for name in REAL]
    return {
        "completions per prompt": tuple(
            [(group, config, with_grpo(profile, num_generations=group)) for group in (2, 4, 8, 16)]
            for config, profile in ((tiny, TINY), (real, KAGGLE))),
        "new tokens": tuple(
            [(length, config, with_grpo(profile, max_new_tokens=length)) for length in lengths]
            for config, profile, lengths in ((tiny, TINY, (16, 32, 64, 128)), (real, KAGGLE, (192, 384, 768, 1536)))),
        "parameters": tuple([(sum(parameters(config)), config, profile) for config in configs]
                            for configs, profile in zip(models, (TINY, KAGGLE), strict=True)),
    }


def table(name: str, measured: Sequence[Point], least: Sequence[Point], v5e: Sequence[Point]) -> str:
    """A panel as Markdown."""
    def count(value: float) -> str:
        return f"{value / 1e6:,.1f} M" if name == "parameters" else f"{value:g}"

    def growth(points: Sequence[Point], part: int) -> str:
        return f"{points[-1].seconds[part] / points[0].seconds[part]:.1f}"

    lines = [f"| {name} | rollout, s: measured | roofline | ratio | update, s: measured | roofline | ratio | "
             "on v5e-8 | rollout, s: roofline | update |", "|" + "---|" * 10]
    for row, (found, bound) in enumerate(zip(measured, least, strict=True)):
        cells = [count(found.x)]
        for part in (0, 1):
            a, b = found.seconds[part], bound.seconds[part]
            cells += [f"{a:.3g}", f"{b:.3g}", f"{a / b:.1f}"]
        far = v5e[row] if row < len(v5e) else None
        cells += [count(far.x), f"{far.seconds[0]:.2f}", f"{far.seconds[1]:.2f}"] if far else ["–"] * 3
        lines.append(f"| {' | '.join(cells)} |")
    cells = ["last / first"]
    for part, guess in enumerate(GUESSED[name]):
        cells += [f"{growth(measured, part)}, guessed {guess:g}", growth(least, part), "–"]
    cells += ["–", growth(v5e, 0), growth(v5e, 1)]
    return "\n".join([*lines, f"| {' | '.join(cells)} |"])


def draw(found: dict[str, list[list[Point]]], path: Path) -> None:
    """One panel per table: colours are rollout and update, lines are measured and rooflines."""
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    styles = (("measured on one CPU core", "o-"), ("roofline of that core", "--"),
              ("roofline of a Gemma on a v5e-8", "s:"))
    for axes, (name, series) in zip(figure.subplots(1, 3, sharey=True), found.items(), strict=True):
        for (label, style), points in zip(styles, series, strict=True):
            for part, colour in ((0, COLOURS[0]), (1, COLOURS[1])):
                axes.plot([point.x for point in points], [point.seconds[part] for point in points], style, color=colour,
                          markersize=4, label=f"{('rollout', 'update')[part]}: {label}")
        axes.set(xscale="log", yscale="log", xlabel=name)
        if name != "parameters":
            values = sorted({point.x for points in series for point in points})
            axes.set_xticks(values, [f"{value:g}" for value in values], fontsize=8)
            axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("seconds per step of GRPO")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure", type=Path, help="write it there")
    options = parser.parse_args()
    bench, here, found = Bench(1), machine(), {}
    base, known = bench.base, {}  # the three panels have one point in common
    print(f"this machine, one device: {here.flops / 1e9:.0f} GFLOP/s in float32, {here.bandwidth / 1e9:.1f} GB/s\n"
          f"{TINY.grpo.prompts_per_step} prompts of {TINY.grpo.max_prompt_length} tokens with "
          f"{TINY.grpo.num_generations} completions of {TINY.grpo.max_new_tokens}, on v5e-8 "
          f"{KAGGLE.grpo.prompts_per_step} of {KAGGLE.grpo.max_prompt_length} with {KAGGLE.grpo.num_generations} of "
          f"{KAGGLE.grpo.max_new_tokens}, unless the table says otherwise\n")
    for name, (ours, theirs) in panels(bench).items():
        measured = []
        for x, config, profile in ours:
            if (key := (parameters(config), profile.grpo)) not in known:
                bench.base = replace(base, model=init_random(config, bench.mesh), config=config)
                known[key] = measure(bench, profile)
            measured.append(Point(x, known[key]))
        found[name] = [measured, [Point(x, roofline(config, profile, here, 1)) for x, config, profile in ours],
                       [Point(x, roofline(config, profile, CHIPS["v5e"], 8)) for x, config, profile in theirs]]
        print(table(name, *found[name]) + "\n", flush=True)
    print(f"guessed before the first run: rollout {OVER_ROOFLINE[0]} and update {OVER_ROOFLINE[1]} times the roofline")
    if options.figure:
        draw(found, options.figure)


if __name__ == "__main__":
    main()

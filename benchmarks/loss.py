"""What logits in chunks are worth: `python benchmarks/loss.py`, with libtpu on the path (see `make preflight`).

The programs of SFT and GRPO with Tunix's own loss, which holds the logits of all tokens, and with ours, at equal rows.
First on this machine's CPU: a small Gemma 3 with the whole vocabulary, temporaries by the compiler and seconds by the
clock, the two sides in turn. Then compiled for a v5e-8 beside a judge, without --cpu-only. Exits with 1 when a target
is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from statistics import median
from unittest.mock import patch

import checkout  # noqa: F401
import jax
import jax.numpy as jnp
from tunix.rl import common
from tunix.sft.peft_trainer import _default_loss_fn

import tools.preflight.programs as programs
from reasonkit.config import PROFILES
from reasonkit.models.mesh import plan_mesh
from reasonkit.models.placement import CHIPS, GIB, config_of, plan
from tools.preflight.abstract import Program
from tools.preflight.compiled import ProgramStats, preflight, topology_devices

jax.config.update("jax_platforms", "cpu")

NAMES = "sft", "grpo"
MEMORY, SLOWER = 0.4, 1.2  # targets of the GRPO train step, at most


@contextlib.contextmanager
def side(chunked: bool) -> Iterator[None]:
    """The programs with our loss, or with Tunix's."""
    with contextlib.ExitStack() as stack:
        if not chunked:
            for name, stock in (("sft_loss", _default_loss_fn), ("completion_logprobs", common.compute_per_token_logps),
                                ("loss_config", functools.partial(programs.loss_config, chunked=False))):
                stack.enter_context(patch.object(programs, name, stock))
        yield


def on_cpu(rows: int, steps: int) -> Iterator[tuple[str, list[float], list[float]]]:
    """Of each program, Tunix's and ours: GiB of temporaries, and the median seconds of a step after the first."""
    config = replace(config_of("gemma3-270m"), num_layers=2, hidden_dim=512)
    profile = PROFILES["kaggle"]
    profile = replace(profile, lora_rank=16, sft=replace(profile.sft, batch_size=rows, max_length=256), grpo=replace(
        profile.grpo, micro_prompts=rows, num_generations=1, max_prompt_length=64, max_new_tokens=192))
    run = programs.Run(config, None, plan_mesh(jax.devices()[:1], judge=False), profile, jnp.float32)
    for name in NAMES:
        both: list[list[Program]] = []
        for chunked in (False, True):
            with side(chunked):
                both.append([(program, program.lower().compile()) for program in programs.PROGRAMS[name](run)])
        for pair in zip(*both, strict=True):
            seconds: list[list[float]] = [[], []]
            for _ in range(steps + 1):
                for (program, compiled), times in zip(pair, seconds, strict=True):
                    given = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype, device=leaf.sharding),
                                         (program.resident, *program.arguments))
                    jax.block_until_ready(given)
                    began = time.perf_counter()
                    jax.block_until_ready(compiled(*given))
                    times.append(time.perf_counter() - began)
            yield (pair[0][0].title, [compiled.memory_analysis().temp_size_in_bytes / GIB for _, compiled in pair],
                   [median(times[1:]) for times in seconds])


def on_v5e(model: str) -> Iterator[tuple[str, list[ProgramStats]]]:
    """Of each program, Tunix's and ours, of two shallow models, extrapolated. A judge has half of the chips."""
    profile, devices = replace(PROFILES["kaggle"], policy=model), topology_devices("v5e:2x4")
    for name in NAMES:
        made, both = plan(profile, devices, judge=name == "grpo"), []
        for chunked in (False, True):
            with side(chunked):
                config = config_of(model, profile.remat, "policy" not in made.gathered)
                both.append(preflight(programs.Run(config, None, made, profile, jnp.bfloat16), name, whole=False))
        for pair in zip(*both, strict=True):
            yield pair[0].program, list(pair)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=PROFILES["kaggle"].policy, help="compiled for v5e")
    parser.add_argument("--rows", type=int, default=4, help="on the CPU")
    parser.add_argument("--steps", type=int, default=5, help="on the CPU")
    parser.add_argument("--cpu-only", action="store_true")
    options = parser.parse_args()
    missed = False
    print("| on this CPU | temporaries, GiB: Tunix | ours | ratio | s per step: Tunix | ours | ratio |\n"
          "|---|---|---|---|---|---|---|")
    for title, memory, seconds in on_cpu(options.rows, options.steps):
        cells = [f"{a:.3g} | {b:.3g} | {b / a:.2f}" for a, b in (memory, seconds)]
        print(f"| {title}, {options.rows} rows | {' | '.join(cells)} |", flush=True)
        missed |= title == "GRPO train step" and (memory[1] / memory[0] > MEMORY or seconds[1] / seconds[0] > SLOWER)
    if options.cpu_only:
        return int(missed)
    print(f"\n| {options.model}, v5e-8 | rows | temporaries, GiB: Tunix | ours | ratio | roofline, ms: Tunix | ours | "
          "ratio |\n|---|---|---|---|---|---|---|---|")
    for title, rows in on_v5e(options.model):
        memory = [row.temporaries / GIB for row in rows]
        seconds = [1000 * row.roofline(CHIPS["v5e"])[0] for row in rows]
        cells = [f"{a:.3g} | {b:.3g} | {b / a:.2f}" for a, b in (memory, seconds)]
        print(f"| {title} | {rows[0].rows} | {' | '.join(cells)} |", flush=True)
        missed |= title == "GRPO train step" and (memory[1] / memory[0] > MEMORY or seconds[1] / seconds[0] > SLOWER)
    print(f"\ntargets, GRPO train step: temporaries at most {MEMORY:g}, time at most {SLOWER:g} times Tunix's")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())

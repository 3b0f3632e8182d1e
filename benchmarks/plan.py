"""What the mesh plan is worth in decoding: `python benchmarks/plan.py`, with libtpu on the path (see `make preflight`).

Compiles one decode step for a v5e-8, all layers, with the plan's sharding and with that of the Tunix demo: mesh (1, 4),
Tunix's default sharding, 16 rows, half of the chips idle. The rooflines leave out the collectives, which favours the
demo. Exits with 1 if a ratio falls below its limit.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace

import checkout  # noqa: F401
import jax
import jax.numpy as jnp

from reasonkit.config import PROFILES
from reasonkit.models.mesh import Plan, make_mesh
from reasonkit.models.placement import CHIPS, GIB, config_of, plan
from tools.preflight.compiled import ProgramStats, compile_program, topology_devices
from tools.preflight.programs import Run, rollout_programs

jax.config.update("jax_platforms", "cpu")

CHIP = CHIPS["v5e"]
LIMITS = {"all eight chips": 3.4, "half, the judge on the other": 1.7}  # ratios that were reached, less 3 %


@dataclass(frozen=True)
class Side:
    """One way to decode: where, and how many rows at once."""

    name: str
    plan: Plan
    rows: int


def decode(side: Side, model: str, reply: int) -> ProgramStats:
    """The decode step of a side, compiled whole."""
    profile, config = PROFILES["kaggle"], config_of(model, replicated="policy" not in side.plan.gathered)
    grpo = replace(profile.grpo, rollout_micro_prompts=side.rows, num_generations=1, max_new_tokens=reply)
    run = Run(config, None, side.plan, replace(profile, grpo=grpo), jnp.bfloat16)
    return compile_program(rollout_programs(run)[1])


def speed(row: ProgramStats) -> float:
    """Tokens per second at the roofline."""
    return row.rows / row.roofline(CHIP)[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="gemma2-2b-it")
    parser.add_argument("--rows", type=int, default=32, help="of the plan's, per chip")
    parser.add_argument("--reply", type=int, default=PROFILES["kaggle"].grpo.max_new_tokens, help="its tokens")
    options = parser.parse_args()
    devices, profile = topology_devices("v5e:2x4"), replace(PROFILES["kaggle"], policy=options.model)
    whole, half = plan(profile, devices, judge=False), plan(profile, devices, judge=True)
    sides = [Side("the demo", Plan(make_mesh(devices[:4], 1, 4), None, {}, ("policy",)), 16),
             Side("all eight chips", whole, 8 * options.rows),
             Side("half, the judge on the other", half, 4 * options.rows)]
    print(f"{options.model}, one decode step, prompt {profile.grpo.max_prompt_length}, reply {options.reply} tokens\n")
    print("| | fsdp,tp | rows | GiB per chip | HBM traffic, GB | collectives | tokens/s | ratio |\n"
          "|---|---|---|---|---|---|---|---|")
    stock, missed = 0.0, False
    for side in sides:
        row = decode(side, options.model, options.reply)
        stock = stock or speed(row)
        missed |= speed(row) / stock < LIMITS.get(side.name, 0.0)
        shape = ",".join(map(str, row.mesh.values()))
        print(f"| {side.name} | {shape} | {row.rows} | {row.needed / GIB:.1f} | {row.traffic / 1e9:.1f} | "
              f"{sum(row.collectives.values())} | {speed(row):,.0f} | {speed(row) / stock:.1f} |", flush=True)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())

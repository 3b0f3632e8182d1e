"""What the mesh plan is worth in decoding: `python benchmarks/plan.py`, with libtpu on the path (see `make preflight`).

Compiles one decode step for a v5e-8, all layers, with the plan's sharding and with that of the Tunix demo that entrants
fork: mesh (1, 4), Tunix's default sharding, 16 rows, half of the chips idle. Model, adapter and lengths are the same. A
roofline is the longer of FLOP at the chip's peak and bytes at its bandwidth, and the table has it for two counts of
bytes. "Accessed" is XLA's cost analysis, which counts data again when it is copied into the chip's scratch memory and
read there. The targets are for this count. HBM traffic counts the bytes that must move at least once. It favours the
demo, because neither count includes the time of collectives. Exits with 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402

jax.config.update("jax_platforms", "cpu")

import jax.numpy as jnp  # noqa: E402

from reasonkit.config import PROFILES  # noqa: E402
from reasonkit.models.mesh import Plan, make_mesh  # noqa: E402
from reasonkit.models.placement import CHIPS, GIB, config_of, plan, shapes_of  # noqa: E402
from tools.preflight.compiled import ProgramStats, compile_program, topology_devices  # noqa: E402
from tools.preflight.programs import Run, rollout_programs  # noqa: E402

CHIP = CHIPS["v5e"]
TARGETS = {"all eight chips": 10.0, "half, the judge on the other": 5.0}


@dataclass(frozen=True)
class Side:
    """One way to decode: where, and how many rows at once."""

    name: str
    plan: Plan
    rows: int


def decode(side: Side, model: str, reply: int) -> ProgramStats:
    """The decode step of a side, compiled whole."""
    profile, config = PROFILES["kaggle"], config_of(model, replicated="policy" not in side.plan.gathered)
    shapes = replace(shapes_of(profile), decode_rows=side.rows, max_new_tokens=reply)
    return compile_program(rollout_programs(Run(config, None, side.plan, shapes, profile.lora_rank, jnp.bfloat16))[1])


def speeds(row: ProgramStats) -> tuple[float, float]:
    """Tokens per second at the roofline, by bytes accessed and by HBM traffic."""
    compute = row.flops / CHIP.flops
    return tuple(row.rows / max(compute, count / CHIP.bandwidth) for count in (row.bytes, row.traffic))


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
    print("| | fsdp,tp | rows | GiB per chip | accessed, GB | HBM, GB | collectives | tokens/s by accessed | ratio "
          "| by HBM traffic | ratio |\n|---|---|---|---|---|---|---|---|---|---|---|")
    stock, missed = None, False
    for side in sides:
        row = decode(side, options.model, options.reply)
        found = speeds(row)
        stock = stock or found
        ratios = [ours / theirs for ours, theirs in zip(found, stock, strict=True)]
        missed |= ratios[0] < TARGETS.get(side.name, 0.0)
        shape = ",".join(map(str, row.mesh.shape.values()))
        print(f"| {side.name} | {shape} | {row.rows} | {row.needed / GIB:.1f} | "
              f"{row.bytes / 1e9:.1f} | {row.traffic / 1e9:.1f} | {sum(row.collectives.values())} | {found[0]:,.0f} | "
              f"{ratios[0]:.1f} | {found[1]:,.0f} | {ratios[1]:.1f} |", flush=True)
    print("\ntargets, by bytes accessed: " + ", ".join(f"{name} {ratio:g}" for name, ratio in TARGETS.items()))
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())

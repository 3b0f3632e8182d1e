"""What packing is worth in SFT: `python benchmarks/packing.py`, with libtpu on the path (see `make preflight`).

The worked rows of the mix `packaged` in sequences of Kaggle's length, packed and not. The tiny policy trains on both on
this machine's CPU, then both programs are compiled for a v5e-8. The tiny tokenizer cuts real text into twice as many
tokens as Gemma's, so packing gains less here. Exits with 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import replace
from statistics import median
from unittest.mock import patch

import checkout  # noqa: F401
import jax
import jax.numpy as jnp
from datasets import Dataset, disable_progress_bars
from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig
from tunix.sft.utils import build_positions_from_mask, make_causal_attn_mask

import reasonkit.train.sft as stage
import tools.preflight.programs as programs
from reasonkit.config import PROFILES
from reasonkit.data.curation import curate
from reasonkit.data.own_file import load_data
from reasonkit.data.rows import sft_batches, sft_pairs
from reasonkit.models.load import LoadedModel, load
from reasonkit.models.lora import add_lora
from reasonkit.models.mesh import make_mesh
from reasonkit.models.placement import CHIPS, GIB, config_of, plan
from reasonkit.train.tunix_compat import adamw
from tools.preflight.compiled import ProgramStats, preflight, topology_devices

jax.config.update("jax_platforms", "cpu")

PROFILE = PROFILES["kaggle"]
LENGTH = PROFILE.sft.max_length
PADDING, FASTER = 0.05, 2.0  # targets: at most, at least


def tunix_input(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """`sft.model_input` for one row per sequence, as in Tunix's examples."""
    present_BL = batch["tokens_BL"] != 0
    return {"input_tokens": batch["tokens_BL"], "input_mask": batch["loss_mask_BL"],
            "positions": build_positions_from_mask(present_BL), "attention_mask": make_causal_attn_mask(present_BL)}


def input_of(pack: bool):
    return stage.model_input if pack else tunix_input


def epoch(rows: Dataset, tokenizer, pack: bool) -> tuple[int, int, int]:
    """Rows, tokens without padding, and sequences of an epoch."""
    count, seen, tokens, sequences = len(sft_pairs(rows, tokenizer, LENGTH)), 0, 0, 0
    for batch in sft_batches(rows, tokenizer, 1, LENGTH, 0, pack):
        seen, tokens = seen + int(batch["piece_BL"].max()), tokens + int((batch["piece_BL"] > 0).sum())
        sequences += 1
        if seen == count:
            return count, tokens, sequences


def step_seconds(base: LoadedModel, mesh, rows: Dataset, steps: int, size: int) -> dict[bool, tuple[float, float]]:
    """The median step by the clock and in processor time, padded (False) and packed. The two take turns, so that what
    else the machine does slows both. The first of each compiles and does not count."""
    settings, sides = replace(PROFILE.sft, steps=steps + 1), {}
    for pack in (False, True):
        trainer = PeftTrainer(
            add_lora(base.model, mesh, PROFILE.lora_rank, PROFILE.lora_alpha), adamw(settings),
            TrainingConfig(eval_every_n_steps=steps, max_steps=steps)).with_gen_model_input_fn(input_of(pack))
        sides[pack] = trainer.jit_train_and_eval_step()[0], sft_batches(rows, base.tokenizer, size, LENGTH, 0, pack)
    times: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for _ in range(steps + 1):
        for pack, (train_step, batches) in sides.items():
            batch, clock, processor = next(batches), time.perf_counter(), time.process_time()
            jax.block_until_ready(train_step(batch))
            times[pack].append((time.perf_counter() - clock, time.process_time() - processor))
    return {pack: tuple(map(median, zip(*made[1:], strict=True))) for pack, made in times.items()}


def compiled(model: str, pack: bool, sequences: int) -> ProgramStats:
    """The train step for a v5e-8, of two shallow models, extrapolated."""
    profile = replace(PROFILE, policy=model, sft=replace(PROFILE.sft, batch_size=sequences))
    made = plan(profile, topology_devices("v5e:2x4"), judge=False)
    config = config_of(model, profile.remat, "policy" not in made.gathered)
    with patch.object(programs, "model_input", input_of(pack)):
        return preflight(programs.Run(config, None, made, profile, jnp.bfloat16), "sft", whole=False)[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=PROFILE.policy, help="compiled for v5e")
    parser.add_argument("--rows", type=int, default=8000, help="of the mix, worked or not")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--size", type=int, default=2, help="sequences of a step on the CPU")
    options = parser.parse_args()
    disable_progress_bars()
    mesh = make_mesh(jax.devices()[:1], 1, 1)
    base = load("tiny-policy", mesh, jnp.float32)
    recipe = load_data("packaged")
    train = curate(recipe, {"train": options.rows, "validation": 1, "test": 1}, 0)[0]["train"]
    made = {source.name for source in recipe.sources if source.kind_of == "family"}
    mixes = {"packaged": train, "its real rows": train.filter(lambda row: row["source"] not in made)}

    missed, filled = False, {}
    print("| mix | rows | tokens per row | | rows per sequence | padding | tokens/s | ratio | tokens per processor "
          "second | ratio |\n|---|---|---|---|---|---|---|---|---|---|")
    for name, rows in mixes.items():
        first, measured = None, step_seconds(base, mesh, rows, options.steps, options.size)
        for pack in (False, True):
            count, tokens, sequences = epoch(rows, base.tokenizer, pack)
            filled[name, pack] = tokens / sequences
            padding = 1 - tokens / (sequences * LENGTH)
            speeds = [options.size * tokens / sequences / seconds for seconds in measured[pack]]
            first = first or speeds
            ratios = [ours / theirs for ours, theirs in zip(speeds, first, strict=True)]
            cells = [f"{speed:,.0f} | {ratio:.2f}" for speed, ratio in zip(speeds, ratios, strict=True)]
            print(f"| {name} | {count} | {tokens / count:.0f} | {'packed' if pack else 'padded'} | "
                  f"{count / sequences:.2f} | {padding:.1%} | {' | '.join(cells)} |", flush=True)
        missed |= padding > PADDING or name == "packaged" and ratios[0] < FASTER

    print(f"\n{options.model}, an SFT step compiled for v5e-8. Per useful token, over all chips:\n")
    print("| mix | | sequences | GiB per chip | GFLOP | ratio | HBM MB | ratio | roofline, us | ratio |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    steps = {pack: compiled(options.model, pack, size) for pack, size in
             ((False, 2 * PROFILE.sft.batch_size), (True, PROFILE.sft.batch_size))}
    for name in mixes:
        first = None
        for pack, row in steps.items():
            tokens = row.rows * filled[name, pack] / math.prod(row.mesh.values())  # of one chip
            each = [row.flops / tokens / 1e9, row.traffic / tokens / 1e6,
                    row.roofline(CHIPS["v5e"])[0] / tokens * 1e6 / math.prod(row.mesh.values())]
            first = first or each
            cells = [f"{ours:.3g} | {theirs / ours:.2f}" for ours, theirs in zip(each, first, strict=True)]
            print(f"| {name} | {'packed' if pack else 'padded'} | {row.rows} | {row.needed / GIB:.2f} | "
                  f"{' | '.join(cells)} |", flush=True)
    print(f"\ntargets: padding at most {PADDING:.0%}, useful tokens per second of the mix at least {FASTER:g} times")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())

"""A stage as a command, on one host or on several: `python -m reasonkit.stage sft --profile cpu --recipe g_rar`."""

from __future__ import annotations

import argparse
import os
import random
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax

from reasonkit import data, hosts, lora, mesh, models, recipes
from reasonkit.budget import write_atomic
from reasonkit.sft import sft


def curate(run: recipes.Run) -> None:
    """Notebook 1: the splits and their manifest."""
    splits = data.curate(data.load_recipe(run.recipe.data), run.profile.rows, run.seed)
    paths = data.save(splits, run.stage("data"))
    run.finish("data", inputs=paths, metrics={name: len(rows) for name, rows in splits.items()},
               minutes=run.budget.minutes_used)


def warm_start(run: recipes.Run) -> None:
    """Notebook 2 without its samples: the adapter, the checkpoints and the manifest."""
    profile, _ = run.profile, run.manifest("data")
    train = data.read(run.stage("data") / "train.jsonl")
    chips = mesh.plan_mesh(jax.devices(), judge=False).policy
    policy = models.load(profile.policy, chips, profile.dtype)
    policy = replace(policy, model=lora.add_lora(policy.model, chips, profile.lora_rank, profile.lora_alpha, run.seed))
    result = sft(policy, chips, train, profile.sft, run.budget, run.log("sft"), run.checkpoints, run.seed)
    lora.save_lora(policy.model, run.stage("sft") / "adapter", result.checkpoint_step)
    if hosts.is_first():
        run.finish("sft", inputs={"train": run.stage("data") / "train.jsonl"}, metrics={"steps": result.steps},
                   minutes=result.minutes, checkpoint_step=result.checkpoint_step, stopped=result.stopped)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m reasonkit.stage")
    parser.add_argument("stage", choices=("data", "sft", "grpo"))
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--recipe", default="g_rar")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--coordinator")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int)
    args = parser.parse_args(argv)
    if args.coordinator:
        jax.config.update("jax_enable_preemption_service", False)
        jax.config.update("jax_num_cpu_devices", recipes.PROFILES[args.profile].devices // args.processes)
        jax.config.update("jax_platforms", "cpu")
        jax.distributed.initialize(args.coordinator, args.processes, args.process)
        jax.devices()
    run = recipes.open_run(args.profile, args.recipe, args.seed)
    print(jax.process_index(), jax.devices(), hosts.is_first())
    {"data": curate, "sft": warm_start}[args.stage](run)


if __name__ == "__main__":
    main()

"""Runs a stage as a command, on one host or several, where there is no notebook: a multi-host TPU slice, a cluster.

    python -m tools.train_stage data --profile kaggle              # one process: the splits (notebook 1)
    python -m tools.train_stage sft --profile kaggle --hosts auto  # on each host, all at once (notebook 2)

SimPO (`simpo`) and distillation (`distill`) run like `sft`. The notebooks' files are in $REASONKIT_ARTIFACTS (default
./artifacts), which all hosts must share. The same command again goes on from the last checkpoint. GRPO runs in one
process. docs/start.md, "Several hosts", has the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax

from reasonkit.config import PROFILES, STAGES, Profile
from reasonkit.data import curation, filters, golds
from reasonkit.data.rows import read_rows, save_splits
from reasonkit.eval.evaluate import evaluate
from reasonkit.models import distributed, placement
from reasonkit.models.checkpoints import restore_lora
from reasonkit.models.load import LoadedModel, load, tokenizer
from reasonkit.models.mesh import Plan
from reasonkit.run import Run, open_run
from reasonkit.session.files import write_atomic
from reasonkit.session.setup import find_recipe, recipe_names
from reasonkit.train.rollout import generator
from reasonkit.train.sft import sft
from recipes.stages.distill import distill, train_toy_teacher
from recipes.stages.simpo import read_or_sample_pairs, simpo
from tools.data_card import write_data_card


def curate(run: Run) -> None:
    """Notebook 1: the splits and their manifest. Raises ValueError as its steps do."""
    recipe = run.data_recipe("")
    if run.data_is_made(recipe):
        return
    limit = tokenizer(run.profile.policy), run.profile.grpo.max_prompt_length
    splits, ledger = curation.curate(recipe, run.profile.rows, run.seed, *limit)
    splits = filters.screen(splits, *limit, ledger, run.profile.grpo.max_new_tokens)
    splits["train"], _ = golds.check_golds(run.recipe, splits["train"], ledger)
    golds.check_worked(run.recipe, run.profile, splits)
    print(ledger)
    paths = save_splits(splits, run.stage("data"))
    write_data_card(recipe, splits, paths, ledger, run.seed)
    run.finish("data", inputs=paths, metrics={name: len(rows) for name, rows in splits.items()},
               minutes=run.budget.minutes_here, title=recipe.title, licence=recipe.licence, lengths=recipe.lengths,
               notes=ledger.notes, asked=run.data_asked(recipe))


def warm_start(run: Run) -> None:
    """Notebook 2 without its samples: checkpoints, adapter and manifest. A finished stage is left as it is. Raises
    ManifestError as `Run.begin` does."""
    profile, inputs = run.profile, run.inputs("sft")
    plan = placement.plan(profile, jax.devices(), judge=False)
    policy, _ = placement.load_policy(profile, plan, run.seed)
    if begins(run, "sft", policy, inputs):
        result = sft(policy, plan.policy, read_rows(inputs["train"]), profile.sft, run.budget, run.log("sft"),
                     run.checkpoints, run.seed)
        run.hand_over("sft", policy.model, result, inputs)


def prefer(run: Run) -> None:
    """Notebook 2b without its tables, as `warm_start`. An adapter that got worse is taken back."""
    profile, inputs = run.profile, run.inputs("simpo")
    plan = placement.plan(profile, jax.devices(), judge=False)
    policy, start = placement.load_policy(profile, plan, run.seed, inputs.get("adapter"))
    with compare(run, "simpo", policy, plan):
        pairs, file = read_or_sample_pairs(run, policy, plan.policy, read_rows(inputs["train"]))
        inputs |= file
        if begins(run, "simpo", policy, inputs):
            result = simpo(policy, plan.policy, pairs, profile.simpo, run.budget, run.log("simpo"), run.checkpoints,
                           run.seed, start)
            run.hand_over("simpo", policy.model, result, inputs, pairs=len(pairs))


def imitate(run: Run) -> None:
    """Notebook 3b without its tables, as `prefer`."""
    profile, inputs = run.profile, run.inputs("distill")
    plan = placement.plan_distillation(profile, distributed.halve_hosts(jax.devices()))
    train = read_rows(inputs["train"])
    policy, start = placement.load_policy(profile, plan, run.seed, inputs.get("adapter"))
    teacher = load(profile.teacher, plan.judge, profile.dtype, replicated="judge" not in plan.gathered)
    if profile.toy and not profile.distill.teacher:
        teacher = train_toy_teacher(teacher, plan.judge, train, run)
    with compare(run, "distill", policy, plan):
        if begins(run, "distill", policy, inputs, teacher=teacher.name):
            log = run.log("distill")
            result = distill(policy, teacher, plan.policy, plan.judge, train, profile.distill, run.budget, log,
                             run.checkpoints, run.seed, start)
            rest = (log.last("distill_step") or {}).get("rest")
            run.hand_over("distill", policy.model, result, inputs, teacher=teacher.name, rest=rest)


def begins(run: Run, stage: str, policy: LoadedModel, inputs: Mapping[str, Path], **choices) -> bool:
    """Whether the stage is to be trained. If it is finished, `policy` gets its adapter."""
    if distributed.broadcast_from_main(run.begin(stage, policy.folder, inputs, **choices)):
        return True
    restore_lora(policy.model, run.stage(stage) / "adapter")
    return False


@contextlib.contextmanager
def compare(run: Run, stage: str, policy: LoadedModel, plan: Plan) -> Iterator[None]:
    """Ask `policy` the same validation questions before and after what is done inside, and let `keep_better` decide."""
    profile, settings = run.profile, getattr(run.profile, stage)
    validation = read_rows(run.stage("data") / "validation.parquet")
    sample = validation.select(range(min(2 * profile.eval_batch, len(validation))))
    generate = generator(policy.model, policy.tokenizer, plan.policy, batch_size=profile.eval_batch,
                         max_prompt_length=settings.max_prompt_length, max_new_tokens=settings.max_new_tokens)
    evaluate(generate, sample.select(range(1)), 1)  # compiles, so that the next line measures an evaluation's time
    with run.budget.measure("probe", times=len(validation) / len(sample)):  # the clock keeps time for those to come
        before = evaluate(generate, sample, profile.eval_batch)
    yield
    run.keep_better(stage, policy.model, before, evaluate(generate, sample, profile.eval_batch))


COMMANDS = {"data": curate, "sft": warm_start, "simpo": prefer, "distill": imitate}


def join(profile: Profile, address: str, processes: int | None, process: int | None) -> None:
    """Become one of several processes. Raises ValueError if they can't share the virtual devices evenly."""
    jax.config.update("jax_enable_preemption_service", False)  # its handler would swallow a SIGTERM before training
    if profile.devices:
        if not processes or profile.devices % processes:
            raise ValueError(f"--processes {processes}: the profile's {profile.devices} virtual devices are shared out "
                             "among the processes, so give a number that divides them")
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", profile.devices // processes)
    jax.distributed.initialize(None if address == "auto" else address, processes, process)
    jax.devices()  # starts JAX with them


def check_shared(run: Run) -> None:
    """Raises ValueError if this run or its folder differs from the first process's. No later step would notice."""
    if not distributed.is_multiprocess():
        return
    path, number = run.folder / "shared_by_hosts", distributed.broadcast_from_main(random.getrandbits(20))
    mark = f"{number:.0f} {run.profile.name} {run.recipe.name} {run.seed}"
    if distributed.is_main_process():
        write_atomic(path, mark)
    distributed.barrier("check_shared")
    if not path.exists() or path.read_text() != mark:
        raise ValueError(f"process {jax.process_index()} is not in one run with process 0: give both the same "
                         f"arguments, and set REASONKIT_ARTIFACTS, here {run.folder}, to a folder that all hosts share")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.train_stage", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--profile", choices=PROFILES, default="cpu")
    parser.add_argument("--recipe", choices=recipe_names(), default="g_rar")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hosts", metavar="auto|ADDRESS", help="several processes, and how to find them")
    parser.add_argument("--processes", type=int, help="how many there are, where JAX can't tell")
    parser.add_argument("--process", type=int, help="which one this is, from 0")
    args = parser.parse_args(argv)
    if args.stage not in COMMANDS:
        parser.error(f"{args.stage} runs in one process, for all chips of one host (see --help). Run notebook "
                     f"{STAGES[args.stage].notebook}, which goes on from the same folder")
    if args.stage == "data" and args.hosts:
        parser.error("data is curated by one process: leave out --hosts, and run it on one host")
    if args.stage not in ("data", *find_recipe(args.recipe).stages):
        parser.error(f"recipe {args.recipe} has no stage {args.stage}: choose another with --recipe")
    if not args.hosts and (args.processes, args.process) != (None, None):
        parser.error("--processes and --process go with --hosts: without it, each would be a run of its own")
    if args.hosts:
        join(PROFILES[args.profile], args.hosts, args.processes, args.process)
    try:
        run = open_run(args.profile, args.recipe, args.seed, data="" if args.stage == "data" else None)
        check_shared(run)
        COMMANDS[args.stage](run)
    except BaseException:
        if not distributed.is_multiprocess():
            raise
        traceback.print_exc()
        sys.stdout.flush()
        os._exit(1)  # an orderly exit would wait for the others, which wait for this one


if __name__ == "__main__":
    main()

"""Curation, three SFT and three GRPO steps, and evaluation in a folder, for the fault tests, which make it fail.

`python tests/fault_run.py FOLDER TOKENIZER PLACE` kills the process, with SIGKILL, at the place named. The folder's
checkpoints and logs are what a rerun starts from.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

sys.path.append(str(Path(__file__).resolve().parents[1]))  # a script's own folder comes first, and has a folder `tools`

import jax
import numpy as np
from datasets import Dataset
from flax import nnx
from tiny_run import CONFIG, ROWS, new_policy
from tunix.sft.checkpoint_manager import CheckpointManager

from reasonkit.data.rows import read_rows, save_splits
from reasonkit.eval.evaluate import evaluate
from reasonkit.models import checkpoints
from reasonkit.models.checkpoints import restore_lora, save_lora
from reasonkit.models.load import Tokenizer
from reasonkit.models.mesh import make_mesh
from reasonkit.rewards.mix import RewardMix
from reasonkit.session.run_log import RunLog
from reasonkit.session.time_budget import TimeBudget
from reasonkit.settings import GrpoSettings, SftSettings
from reasonkit.train.grpo import grpo
from reasonkit.train.rollout import Rollout, generator
from reasonkit.train.sft import sft
from recipes.stages.curriculum import Curriculum
from tools.flax import init_random

SFT = SftSettings(steps=3, batch_size=8, max_length=48, learning_rate=2e-2, save_every=1)
GRPO = GrpoSettings(steps=3, prompts_per_step=4, num_generations=2, max_prompt_length=32, max_new_tokens=16,
                    learning_rate=2e-2, save_every=1, beta=0.0)
# Where a run can be killed, and at which time that it comes there: at the third update the first save is over.
PLACES = {"curation": 2, "sft before a save": 2, "sft update": 3, "sft save": 2, "sft copy before a save": 1,
          "sft copy save": 1, "sft adapter": 1, "sft manifest": 1, "grpo begun": 1, "grpo rollout": 2, "grpo judge": 2,
          "grpo update": 2, "grpo before a save": 2, "grpo save": 2, "grpo adapter": 1, "grpo manifest": 1,
          "evaluation": 2}
# A stage that was handed over without a manifest is handed over again: the second kill is between the two renames that
# replace the adapter.
TWICE = ("sft manifest", "sft adapter replaced")


def nothing(place: str) -> None:
    """The fault of a run without one."""


def odd(prompts, completions, **columns):
    return [float(len(text) % 2) for text in completions]


def run(folder: Path, tokenizer: Tokenizer, at: Callable[[str], None] = nothing, judge: Callable = odd,
        budget: TimeBudget | None = None) -> SimpleNamespace:
    """What *Run all* does: curation, SFT and GRPO unless their manifests are there, evaluation. `at` is called wherever
    a fault can come. ROWS stand for what `curate` gives, which is a function of the seed and leaves nothing behind."""
    save_splits({"train": ROWS, "test": ROWS.select(range(24))}, folder / "data")
    rows = read_rows(folder / "data" / "train.parquet")
    mesh = make_mesh(jax.devices()[:1], 1, 1)
    policy = new_policy(init_random(CONFIG, mesh), mesh, tokenizer)
    checkpoints, logs = folder / "checkpoints", {name: RunLog(folder / name / "log.jsonl") for name in ("sft", "grpo")}
    budget = budget or TimeBudget(1, 0)
    if (folder / "sft" / "manifest.json").exists():
        handed = restore_lora(policy.model, folder / "sft" / "adapter")
    else:
        handed = sft(policy, mesh, rows, SFT, budget, logs["sft"], checkpoints, 3,
                     on_step=lambda: at("sft update")).checkpoint_step
        save_lora(policy.model, folder / "sft" / "adapter", handed)
        at("sft manifest")
        (folder / "sft" / "manifest.json").touch()
    after_sft = weights(policy)
    curriculum = Curriculum(logs["grpo"])

    def scored(prompts, completions, **columns):
        at("grpo judge")
        return judge(prompts, completions, **columns)

    reward = RewardMix([(curriculum.watch(scored), 1.0)], logs["grpo"])
    if (folder / "grpo" / "manifest.json").exists():
        restore_lora(policy.model, folder / "grpo" / "adapter")
    else:
        last = grpo(policy, mesh, rows, reward, GRPO, budget, logs["grpo"], checkpoints, 3, handed,
                    lambda: at("grpo update"), curriculum).checkpoint_step
        save_lora(policy.model, folder / "grpo" / "adapter", last)
        at("grpo manifest")
        (folder / "grpo" / "manifest.json").touch()
    generate = generator(policy.model, tokenizer, mesh, max_prompt_length=GRPO.max_prompt_length,
                         max_new_tokens=GRPO.max_new_tokens, batch_size=8)
    test = read_rows(folder / "data" / "test.parquet")

    def answer(prompts):
        at("evaluation")
        return generate(prompts)

    evaluate(answer, test, 8).to_json(folder / "evaluation.json")
    return SimpleNamespace(sft=after_sft, grpo=weights(policy), logs=logs, checkpoints=checkpoints, budget=budget)


def weights(policy) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(policy.model, nnx.LoRAParam))]


def main() -> None:
    folder, tokenizer, place = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    seen: Counter[str] = Counter()

    def at(here: str) -> None:
        """Kills where and when PLACES says, and at the first time anywhere else."""
        seen[here] += 1
        if here == place and seen[here] == PLACES.get(place, 1):
            os.kill(os.getpid(), signal.SIGKILL)

    manager, copy = CheckpointManager, checkpoints.save_lora
    save, generate, to_json, rename = manager.save, Rollout.generate, Dataset.to_json, os.rename

    def copy_and_die(model, where, step):
        is_copy = where == folder / "checkpoints"
        if is_copy:
            at("sft copy before a save")
        copy(model, where, step)
        if is_copy:
            at("sft copy save")

    def save_and_die(self, step, *args, **options):
        stage = "sft" if step <= SFT.steps else "grpo"
        at(f"{stage} before a save")
        done = save(self, step, *args, **options)  # goes on in the background
        at(f"{stage} save")
        return done

    def rename_and_die(one, other):
        """Of `save_lora`: what is saved is named <stage>/adapter/actor/<step> or begun/<stage>/actor/<step>."""
        *_, owner, kind, actor, name = Path(other).parts
        place = f"{kind} {owner}" if owner == "begun" else f"{owner} {kind}"
        if actor == "actor" and name.isdigit():
            at(place)
        rename(one, other)
        if name.endswith(".replaced"):
            at(f"{place} replaced")

    def generate_and_die(self, *args, **options):
        at("grpo rollout")
        return generate(self, *args, **options)

    def to_json_and_die(self, *args, **options):
        done = to_json(self, *args, **options)  # a file that has not its name yet
        at("curation")
        return done

    manager.save, Rollout.generate, Dataset.to_json = save_and_die, generate_and_die, to_json_and_die
    os.rename, checkpoints.save_lora = rename_and_die, copy_and_die
    run(folder, Tokenizer(tokenizer, "gemma3"), at)


if __name__ == "__main__":
    main()

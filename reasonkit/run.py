"""One run, with its folder of artifacts and its clock.

`open_run` makes it from a profile, a recipe and a seed. `read_run` finds it again from its folder.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from reasonkit.choices import check_identity, identify, settle
from reasonkit.config import TRAINED, Profile, Recipe
from reasonkit.data.own_file import load_data, without_traces
from reasonkit.data.sources import DataRecipe, File
from reasonkit.eval.evaluate import EvalResult, compare_paired
from reasonkit.judge.rubric import DOMAINS
from reasonkit.models.checkpoints import latest_step, next_step, restore_lora, save_lora
from reasonkit.models.distributed import agree_on_end, broadcast_from_main, is_main_process, on_main_process
from reasonkit.models.mesh import use_virtual_devices
from reasonkit.session import manifest as manifests
from reasonkit.session.files import read, write_atomic
from reasonkit.session.interrupts import free_last_error, lock_run, unlock_run
from reasonkit.session.manifest import base_sha256, file_sha256, prompt_hash
from reasonkit.session.records import RunFile
from reasonkit.session.run_log import NullLog, RunLog, earlier_minutes
from reasonkit.session.time_budget import TimeBudget
from reasonkit.text.tags import TAGS
from reasonkit.train.loop import BEGUN, StageResult, has_steps


@dataclass(frozen=True)
class Run:
    """One run: its choices, its folder of artifacts and its clock."""

    profile: Profile
    recipe: Recipe
    seed: int
    folder: Path
    budget: TimeBudget

    @property
    def checkpoints(self) -> Path:
        """The judges' CKPT_DIR. All stages save here, with growing step numbers."""
        return self.folder / "checkpoints"

    @property
    def lora(self) -> dict:
        """The shape of the adapter, which must be the same in every stage."""
        return {"rank": self.profile.lora_rank, "alpha": self.profile.lora_alpha}

    def stage(self, name: str) -> Path:
        """The folder of a stage's artifacts."""
        return self.folder / name

    def log(self, stage: str) -> RunLog:
        """The log of a stage, to which every session appends. Of several processes only the first one writes."""
        return RunLog(self.stage(stage) / "log.jsonl") if is_main_process() else NullLog()

    def is_finished(self, stage: str) -> bool:
        return (self.stage(stage) / manifests.MANIFEST).exists()

    def has_begun(self, stage: str) -> bool:
        """Whether a training stage was begun. One that has ended without a step does not count."""
        asked = (self.stage(stage) / manifests.ASKED).exists()
        return has_steps(self.checkpoints, stage) or asked and not self._made_nothing(stage)

    def resumes(self, stage: str) -> bool:
        """Whether a training stage that is asked for again keeps to what it began with: it has steps, or is done."""
        return self.is_done(stage) or has_steps(self.checkpoints, stage)

    def is_done(self, stage: str) -> bool:
        """Whether a stage is finished. One that has made no step is not, as long as no later one has."""
        return self.is_finished(stage) and not (self._made_nothing(stage) and self._is_last(stage))

    def _made_nothing(self, stage: str) -> bool:
        """Whether a training stage has ended without a step, for want of time, say. Its inputs may be others now."""
        found = manifests.peek(self.stage(stage))
        return found is not None and found.metrics.get("steps") == 0

    def _is_last(self, stage: str) -> bool:
        return not any(map(self.has_begun, self.recipe.training_stages[self.recipe.training_stages.index(stage) + 1:]))

    def manifest(self, stage: str) -> dict:
        """The manifest that a stage left. Raises as `read_manifest` and `check_adapter`, also for notebook 1's data."""
        if stage != "data" and self.is_finished("data"):
            self.manifest("data")
        found = manifests.read_manifest(self.stage(stage), stage=stage, prompt_sha256=prompt_hash(TAGS.template),
                                        lora=self._lora_of(stage), step=latest_step(self.checkpoints))
        manifests.check_adapter(self.folder, found)
        return found

    def inputs(self, stage: str) -> dict[str, Path]:
        """What a stage trains on: "train", and the "adapter" of a trained stage before it. Raises as `manifest`."""
        self.manifest("data")
        found = {"train": self.stage("data") / "train.parquet"}
        if before := self.recipe.before(stage):
            self.manifest(before)
            if stage == "grpo" and "reward_model" in self.recipe.shares:
                self.manifest("reward_model")  # its inputs have the adapter whose completions it learned from
            found["adapter"] = self.stage(before) / "adapter"
        return found

    def _lora_of(self, stage: str) -> dict | None:
        return self.lora if stage in (*TRAINED, "evaluation") else None

    def data_recipe(self, data: str) -> DataRecipe:
        """The data recipe `data`, "" for the recipe's own, with the traces of this run's notebook 1b where it reads
        some, and without them if it has kept none. Raises as `load_data` does."""
        traces = self.stage("teacher") / "traces.jsonl"
        found = load_data(data or self.recipe.data_for(self.profile), traces, "teacher" in self.recipe.shares)
        left = manifests.peek(self.stage("teacher"))
        kept_none = left and left.metrics.get("traces") == 0 and not traces.exists()
        return without_traces(found, traces) if kept_none else found

    def data_asked(self, recipe: DataRecipe) -> dict[str, Any]:
        """What the rows of notebook 1 depend on, beside the seed, the code, and what the hub has of a branch today. Not
        where a file lies, because an attached one may be mounted elsewhere on another day."""
        files = {source.name: Path(source.path).expanduser() for source in recipe.sources if isinstance(source, File)}
        grpo, text = self.profile.grpo, recipe.model_dump_json(exclude={"sources": {"__all__": {"path"}}})
        return manifests.plain({
            "recipe": hashlib.sha256(text.encode()).hexdigest(), "rows": self.profile.rows,
            "lengths": [grpo.max_prompt_length, grpo.max_new_tokens], "rubrics": file_sha256(DOMAINS),
            "files": {name: file_sha256(path) for name, path in files.items() if path.is_file()}}, "asked")

    def data_is_made(self, recipe: DataRecipe) -> bool:
        """Whether notebook 1 has made the rows of `recipe` and they are still as it left them. If so, print that.

        Raises ManifestError if they are other rows than those asked for now, and a stage was begun with them.
        """
        try:
            found = self.manifest("data")
        except manifests.ManifestError:  # none, or rows that have changed since
            return False
        if not all((self.folder / entry["path"]).exists() for entry in found["inputs"].values()):
            return False
        then = found["extra"].get("asked")
        changed = manifests.differences(then, self.data_asked(recipe)) if then else []
        begun = any(map(self.has_begun, self.recipe.training_stages))
        if changed and begun:
            raise manifests.ManifestError(
                f"{self.stage('data')} has the rows that this run was begun with, and others are asked for now: "
                f"{'; '.join(changed)}. Set that back, or start {manifests.ELSEWHERE}")
        if changed or not (then or begun):
            return False
        print(f"data: made on {found['written']} and read back" + ("" if begun else (
            f". To make them anew, delete {self.stage('data') / manifests.MANIFEST} and run this cell again")))
        return True

    def close(self) -> None:
        """Release the run for the next notebook's kernel. This notebook may stay open."""
        unlock_run(self.folder)

    def begin(self, stage: str, base: Path, inputs: Mapping[str, Path], **choices) -> bool:
        """Whether the stage still has to be trained, from its start or its last step. If not, print that.

        `base` is the model's folder, `choices` whatever else the result depends on. ManifestError as `check_begun`.
        """
        if is_main_process():
            lock_run(self.folder)  # `close` may have let it go
        model = {"policy": self.profile.policy, "dtype": self.profile.dtype, "base": base_sha256(base), **self.lora}
        now = {"model": model, "prompt_sha256": prompt_hash(TAGS.template),
               "settings": getattr(self.profile, stage).identity(),
               "inputs": {name: file_sha256(path) for name, path in inputs.items()}, **choices}
        finished, stages = self.is_done(stage), self.recipe.stages
        later = ", ".join(stages[stages.index(stage):])
        # checkpoints/begun has the adapter that a later stage begins with, so it stays
        removed = f"{later} and checkpoints{'/actor' if self.recipe.before(stage) else ''}"
        manifests.check_begun(self.folder, stage, now, self.resumes(stage), removed, write=is_main_process())
        if finished and is_main_process():
            print(manifests.describe_finished(self.folder, self.manifest(stage), self._is_last(stage)))
        for earlier in stages[:stages.index(stage)]:  # they are over, also one that ended without a step
            self.budget.shares.pop(earlier, None)
        if not finished and stage in self.recipe.shares:  # its manifest may have been deleted since the run was opened
            self.budget.shares.setdefault(stage, self.recipe.shares[stage])
        return not finished

    def hand_over(self, stage: str, model, result: StageResult, inputs: Mapping[str, Path], **metrics) -> None:
        """Save the adapter and the manifest of a stage that has ended, for the next notebook."""
        adapter = self.stage(stage) / "adapter"
        on_main_process(shutil.rmtree)(adapter, ignore_errors=True)  # `keep_better` may have left a later step
        save_lora(model, adapter, result.checkpoint_step)
        if is_main_process():
            settings = getattr(self.profile, stage)
            self.finish(stage, inputs=inputs, metrics={"steps": result.steps, **metrics}, minutes=result.minutes,
                        checkpoint_step=result.checkpoint_step, stopped=result.stopped, settings=vars(settings))
            print(f"{stage}: {result.steps} of {max(result.steps, settings.steps)} steps in {result.minutes:.1f} "
                  f"minutes, ended by {manifests.ENDINGS.get(result.stopped, result.stopped)}")

    def keep_better(self, stage: str, model, before: EvalResult, after: EvalResult) -> None:
        """If a stage that was handed over has made the model worse, hand over the adapter it began with instead, which
        `model` then has. `before` and `after` are of the same validation problems. Worse is a paired interval of
        accuracy or format below zero, if neither lies above it. The checkpoints keep the trained one for a while. Does
        nothing once a later stage has begun.
        """
        if broadcast_from_main(not self._is_last(stage)):  # a later one goes on from what was handed over
            return
        accuracy, form = (compare_paired(before, after, field) for field in ("correct", "format_ok"))
        changes = {f"accuracy {accuracy}": accuracy, f"format {form}": form}
        worse = [told for told, change in changes.items() if change.high < 0]
        if is_main_process():
            print(f"{stage}, before and after: {'; '.join(changes)}")
        if broadcast_from_main(not worse or any(change.low > 0 for change in changes.values())):
            return
        restore_lora(model, self.checkpoints / BEGUN / stage)
        step = int(broadcast_from_main(next_step(self.checkpoints)))
        for folder in (self.checkpoints, self.stage(stage) / "adapter"):
            save_lora(model, folder, step)
        if is_main_process():
            path, found = self.stage(stage) / manifests.MANIFEST, self.manifest(stage)
            found["extra"] |= {"checkpoint_step": step, "worse": worse}
            write_atomic(path, json.dumps(found, indent=1))
            print(f"{stage} made the model worse, so the adapter it began with is handed over")

    def finish(self, stage: str, *, inputs: Mapping[str, Path], metrics: Mapping, minutes: float, **extra) -> Path:
        """Write the stage's manifest. `minutes` are this session's. Those of the stage's earlier sessions are added."""
        return manifests.write_manifest(
            self.stage(stage), stage, inputs=inputs, metrics=metrics, prompt_sha256=prompt_hash(TAGS.template),
            lora=self._lora_of(stage), minutes=minutes + earlier_minutes(self.log(stage), stage), extra=extra)


def open_run(profile: str, recipe: str, seed: int, folder: Path | str | None = None, data: str | None = None,
             settings: Mapping[str, Any] | None = None) -> Run:
    """Open or continue a run in `folder` (default: $REASONKIT_ARTIFACTS, else ./artifacts).

    `data` is a mix or a file, "" for the recipe's own mix, or None for whatever notebook 1 has used. It decides the
    profile's lengths. `settings` replace values of the profile. A run that has trained nothing gives way to one with
    other choices and `data`. Frees what the last error in this process still holds, such as a model and its trainer.

    Raises ValueError as `settle` does, and for a folder that holds another run. Raises FolderInUseError as `lock_run`.
    """
    folder = artifacts(folder)
    settings, plan, chosen = settle(profile, recipe, seed, settings or {}, folder, data)
    free_last_error()
    identity = identify(profile, recipe, seed, settings)
    other = check_identity(folder, identity, begins=data is not None)
    if chosen.devices:
        use_virtual_devices(chosen.devices)
    elif not jax.config.jax_compilation_cache_dir:  # in the folder, so that the next session need not compile
        jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    if is_main_process():
        lock_run(folder)
        if other:
            for path in (*(folder / stage / manifests.MANIFEST for stage in ("data", "teacher")),
                         *folder.glob(f"*/{manifests.ASKED}")):
                path.unlink(missing_ok=True)
        write_atomic(folder / "run.json", json.dumps(identity))
    # the evaluation asks the base model and each stage's model all test problems, and a stage its validation problems
    trained = len(plan.training_stages)
    probes = trained + math.ceil((1 + trained) * chosen.rows["test"] / chosen.rows["validation"])
    budget = TimeBudget(hours=chosen.minutes / 60, reserve_minutes=chosen.reserve_minutes,
                        ledger=folder / "ledger.json" if is_main_process() else None, shares=plan.shares,
                        ahead={"save": 1, "probe": probes}, agree=agree_on_end, grows=chosen.grows)
    run = Run(chosen, plan, seed, folder, budget)
    budget.shares = {stage: share for stage, share in plan.shares.items() if not run.is_done(stage)}
    return run


def read_run(folder: Path | str | None = None) -> Run:
    """The run in `folder` (default: as `open_run`), to read from: no lock, no clock, and no file is changed.

    Raises RecordError if no run is there, and ValueError as `settle` does.
    """
    folder = artifacts(folder)
    found = read(folder / "run.json", RunFile, "give the folder of a run, which its notebooks call artifacts")
    _, plan, chosen = settle(**found.model_dump(), folder=folder, data=None)
    return Run(chosen, plan, found.seed, folder, TimeBudget())


def artifacts(folder: Path | str | None = None) -> Path:
    return Path(folder or os.environ.get("REASONKIT_ARTIFACTS", "artifacts")).resolve()

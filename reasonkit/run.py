"""One run, with its folder of artifacts and its clock.

`open_run` makes it from a profile, a recipe and a seed. `read_run` finds it again from its folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from reasonkit.config import PROFILES, STAGES, Profile, Recipe, adapt_to_lengths, adapt_to_recipe
from reasonkit.data.curation import load_data
from reasonkit.data.sources import DataRecipe, File
from reasonkit.eval.evaluate import EvalResult, compare_paired
from reasonkit.judge.rubric import DOMAINS
from reasonkit.models.checkpoints import latest_step, next_step, restore_lora, save_lora
from reasonkit.models.distributed import agree_on_end, is_main_process, on_main_process
from reasonkit.models.load import MODELS
from reasonkit.models.mesh import use_virtual_devices
from reasonkit.session import manifest as manifests
from reasonkit.session.files import RecordError, read, write_atomic
from reasonkit.session.interrupts import free_last_error, lock_run, unlock_run
from reasonkit.session.manifest import base_sha256, file_sha256, prompt_hash
from reasonkit.session.records import Manifest, RunFile
from reasonkit.session.run_log import NullLog, RunLog, earlier_minutes
from reasonkit.session.setup import change, check_choices, find_recipe, suggest
from reasonkit.session.time_budget import TimeBudget
from reasonkit.text.tags import TAGS
from reasonkit.train.loop import BEGUN, StageResult, has_steps

FREE = ("minutes", "reserve_minutes", "api_dollars")  # settings that may differ between the sessions of a run


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

    def finished(self, stage: str) -> bool:
        return (self.stage(stage) / manifests.MANIFEST).exists()

    def manifest(self, stage: str) -> dict:
        """The manifest that a stage left. Raises ManifestError as `read_manifest` and `check_adapter` do, also for the
        data of notebook 1."""
        if stage != "data" and self.finished("data"):
            self.manifest("data")
        found = manifests.read_manifest(self.stage(stage), stage=stage, prompt_sha256=prompt_hash(TAGS.template),
                                        lora=self._lora_of(stage), step=latest_step(self.checkpoints))
        manifests.check_adapter(self.folder, found)
        return found

    def inputs(self, stage: str) -> dict[str, Path]:
        """The files that a training stage starts from: the "train" split and the "adapter" of the trained stage before
        it, if there is one. Raises ManifestError as `manifest` does."""
        self.manifest("data")
        found = {"train": self.stage("data") / "train.parquet"}
        if before := self.recipe.before(stage):
            self.manifest(before)
            found["adapter"] = self.stage(before) / "adapter"
        return found

    def _lora_of(self, stage: str) -> dict | None:
        """The adapter's shape for the manifest of a stage that trains or evaluates it, else None."""
        return self.lora if stage == "evaluation" or STAGES[stage].trains else None

    def data_asked(self, recipe: DataRecipe) -> dict[str, Any]:
        """What the rows of notebook 1 depend on, beside the seed, the code, and what the hub has of a branch today."""
        files = {source.name: Path(source.path).expanduser() for source in recipe.sources if isinstance(source, File)}
        grpo = self.profile.grpo
        return manifests.plain({
            "recipe": hashlib.sha256(recipe.model_dump_json().encode()).hexdigest(), "rows": self.profile.rows,
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
        begun = any((self.stage(stage) / manifests.ASKED).exists() for stage in self.recipe.trained)
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

        `base` is the model's folder. `choices` are whatever else the result depends on. Raises ManifestError as
        `check_begun` and `manifest` do.
        """
        if is_main_process():
            lock_run(self.folder)  # `close` may have let it go
        settings = {name: value for name, value in vars(getattr(self.profile, stage)).items()
                    if name not in ("save_every", "keep")}
        model = {"policy": self.profile.policy, "dtype": self.profile.dtype, "base": base_sha256(base), **self.lora}
        now = {"model": model, "prompt_sha256": prompt_hash(TAGS.template), "settings": settings,
               "inputs": {name: file_sha256(path) for name, path in inputs.items()}, **choices}
        finished, stages = self.finished(stage), self.recipe.stages
        later = ", ".join(stages[stages.index(stage):])
        # checkpoints/begun has the adapter that a later stage begins with, so it stays
        removed = f"{later} and checkpoints{'/actor' if self.recipe.before(stage) else ''}"
        manifests.check_begun(self.folder, stage, now, finished or has_steps(self.checkpoints, stage), removed,
                              write=is_main_process())
        if finished and is_main_process():
            print(manifests.describe_finished(self.folder, self.manifest(stage)))
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
        """If a stage that was handed over has made the model worse, hand over the adapter it began with instead.

        `before` and `after` are of the same validation problems. Worse is a paired interval of accuracy or format that
        lies below zero, if neither lies above it. The trained adapter stays among the checkpoints as long as they keep
        it. `model` has the adapter that is handed over.
        """
        changes = {name: compare_paired(before, after, field)
                   for name, field in (("accuracy", "correct"), ("format", "format_ok"))}
        told = {name: f"{name} {change}" for name, change in changes.items()}
        worse = [told[name] for name, change in changes.items() if change.high < 0]
        if is_main_process():
            print(f"{stage}, before and after: {'; '.join(told.values())}")
        if not worse or any(change.low > 0 for change in changes.values()):
            return
        restore_lora(model, self.checkpoints / BEGUN / stage)
        step = next_step(self.checkpoints)
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


def choose(profile: str, recipe: Recipe, settings: Mapping[str, Any], lengths: Mapping[str, int]) -> Profile:
    """The profile changed by the recipe, then by the lengths of its data, then by the checked settings. A teacher that
    the policy cannot learn from gives way to the profile's judge, unless it was asked for.

    Raises ValueError for a model that is unknown or not of the same kind as the profile's own, and for a teacher of
    another family than the policy's, because its tokens are others.
    """
    chosen = change(adapt_to_lengths(adapt_to_recipe(PROFILES[profile], recipe), lengths), settings)
    for role in ("policy", "judge"):
        own, name = getattr(PROFILES[profile], role), getattr(chosen, role)
        if name not in MODELS and not Path(name).is_dir():
            raise ValueError(f"{role}={name!r} is neither a folder nor a known model: {suggest(name, MODELS)}")
        if name in MODELS and bool(MODELS[name].asset) != bool(MODELS[own].asset):
            raise ValueError(f"{role}={name!r} does not go with the profile {profile!r}, whose lengths and learning "
                             f"rates are for {own}: choose the profile for it (tiny models: cpu; others: kaggle, "
                             "colab, gpu), or another model")
    if "distill_teacher" not in settings and not _same_tokens(chosen.policy, chosen.teacher):
        chosen = replace(chosen, distill=replace(chosen.distill, teacher="" if chosen.toy else chosen.larger))
    if "distill" in recipe.shares and not _same_tokens(chosen.policy, chosen.teacher):
        raise ValueError(f"the teacher {chosen.teacher!r} splits text into other tokens than the policy "
                         f"{chosen.policy!r}: set distill_teacher to one of "
                         f"{', '.join(name for name in MODELS if _same_tokens(chosen.policy, name))}")
    return chosen


def _same_tokens(policy: str, teacher: str) -> bool:
    """Whether two models are of one family, as far as their names tell. A folder's is not known before it is loaded."""
    known = [MODELS[name] for name in (policy, teacher) if name in MODELS]
    return len({(source.family, bool(source.asset)) for source in known}) < 2


def open_run(profile: str, recipe: str, seed: int, folder: Path | str | None = None, data: str | None = None,
             settings: Mapping[str, Any] | None = None) -> Run:
    """Open or continue a run in `folder` (default: $REASONKIT_ARTIFACTS, else ./artifacts).

    `data` is a mix or a file, "" for the recipe's own mix, or None for whatever notebook 1 has used. It decides the
    profile's lengths. `settings` replace values of the profile.

    Frees what the last error in this process still holds, such as a stage's model and trainer. Raises ValueError as
    `check_choices` and `choose` do, also for a folder that holds another run. Raises FolderInUseError as `lock_run`.
    """
    folder = artifacts(folder)
    settings, plan, chosen = _check(profile, recipe, seed, settings or {}, folder, data)
    free_last_error()
    kept = {name: value for name, value in settings.items() if name not in FREE}
    identity = {"profile": profile, "recipe": recipe, "seed": seed} | ({"settings": kept} if kept else {})
    path = manifests.check_identity(folder, identity)
    if chosen.devices:
        use_virtual_devices(chosen.devices)
    elif not jax.config.jax_compilation_cache_dir:  # in the folder, so that the next session need not compile
        jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    if is_main_process():
        lock_run(folder)
        write_atomic(path, json.dumps(identity))
    # the evaluation asks the base model and each stage's model all test problems, and a stage its validation problems
    trained = len(plan.trained)
    probes = trained + math.ceil((1 + trained) * chosen.rows["test"] / chosen.rows["validation"])
    left = {stage: share for stage, share in plan.shares.items()
            if not (folder / stage / manifests.MANIFEST).exists()}
    budget = TimeBudget(hours=chosen.minutes / 60, reserve_minutes=chosen.reserve_minutes,
                        ledger=folder / "ledger.json" if is_main_process() else None, shares=left,
                        ahead={"save": 1, "probe": probes}, agree=agree_on_end, grows=chosen.grows)
    return Run(chosen, plan, seed, folder, budget)


def read_run(folder: Path | str | None = None) -> Run:
    """The run in `folder` (default: as `open_run`), to read from: no lock, no clock, and no file is changed.

    Raises RecordError if no run is there, and ValueError as `check_choices` and `choose` do.
    """
    folder = artifacts(folder)
    found = read(folder / "run.json", RunFile, "give the folder of a run, which its notebooks call artifacts")
    _, plan, chosen = _check(**found.model_dump(), folder=folder, data=None)
    return Run(chosen, plan, found.seed, folder, TimeBudget())


def _check(profile: str, recipe: str, seed: int, settings: Mapping[str, Any], folder: Path,
           data: str | None) -> tuple[dict[str, Any], Recipe, Profile]:
    """The checked settings, the recipe, and the profile that follows from these and the data."""
    settings, plan = check_choices(profile, recipe, seed, settings), find_recipe(recipe)
    lengths = data_lengths(folder, data, plan.data_for(PROFILES[profile]))
    return settings, plan, choose(profile, plan, settings, lengths)


def artifacts(folder: Path | str | None = None) -> Path:
    """The folder of the run's artifacts."""
    return Path(folder or os.environ.get("REASONKIT_ARTIFACTS", "artifacts")).resolve()


def data_lengths(folder: Path, data: str | None, own: str) -> Mapping[str, int]:
    """The lengths in tokens that `data` asks for. "" is the mix `own`, and None whatever notebook 1 has used."""
    path = folder / "data" / manifests.MANIFEST
    if data is None and path.is_file():
        with contextlib.suppress(RecordError):  # `Run.manifest` says what is wrong with it
            return read(path, Manifest, "").extra.lengths
    return load_data(data or own).lengths

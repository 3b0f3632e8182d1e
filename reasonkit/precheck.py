"""Can this run begin? `precheck` shows what was chosen and what the session has, and stops if something is missing.

It loads no model. Of the data it reads one row per source. `session.setup.install` has already checked the packages.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shlex
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from IPython.display import display

from reasonkit.choices import check_identity, choose, data_lengths, identify, run_identity
from reasonkit.config import PROFILES, STAGES, TRAINED, Profile, adapt_to_recipe, models_of
from reasonkit.data.curation import used_sources
from reasonkit.data.filters import Ledger
from reasonkit.data.sources import DataRecipe, TeacherFile
from reasonkit.models import load, placement
from reasonkit.models.load import MODELS
from reasonkit.models.mesh import check_divides, use_virtual_devices
from reasonkit.run import Run, artifacts
from reasonkit.session import manifest as manifests
from reasonkit.session.files import RecordError, read
from reasonkit.session.records import RunFile
from reasonkit.session.secrets import kaggle_login
from reasonkit.session.setup import CHOOSE, check_choices, find_recipe, suggest, value_of
from reasonkit.session.time_budget import BudgetError, TimeBudget
from reasonkit.show.report import table

ALL = "submission"  # a notebook with all stages of its recipe, and without the cells that only a clone has
JUDGE_KEYS = ("GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY")


class StageNotInRecipe(Exception):
    """Ends a notebook that the recipe does not need. Jupyter shows only the message."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


def writer_of(run: Run, teacher: str, data: DataRecipe) -> str:
    """Who writes traces in notebook 1b, by its TEACHER: "api", "policy" (the run's own model after SFT), a model's
    name, or "" for nobody: if the data ask for no traces, or training has begun with those that are there, because
    others would be other rows. The policy does even then, for its pairs. Raises ValueError for an unknown name.
    """
    if teacher not in ("", "api", "policy", *MODELS) and not Path(teacher).is_dir():
        raise ValueError(f"TEACHER={teacher!r} is neither \"api\", \"policy\", a folder nor a known model: "
                         f"{suggest(teacher, MODELS)}")
    wanted = "teacher" in run.recipe.shares or any(isinstance(source, TeacherFile) for source in data.sources)
    trains = any(map(run.has_begun, run.recipe.training_stages))
    if wanted and teacher != "policy" and run.is_finished("teacher") and trains:
        return ""
    return teacher or (run.profile.larger if "teacher" in run.recipe.shares else "api" if wanted else "")


def precheck(profile: str, recipe: str, seed: int, settings: Mapping[str, Any], data: str | None = None,
             stage: str = "data", teacher: str = "", rater: str = "", api_judge: bool = True) -> None:
    """Show each choice and where it comes from, and whether the session has what the run needs, with a remedy if not.

    `data` is the DATA of a notebook that reads its sources. `stage` is that of the notebook, or ALL for a submission.
    `teacher` and `rater` are TEACHER and JUDGE of notebook 1b. `api_judge`: whether a cell makes a judge behind an API,
    as in a clone and in few submissions. Raises ValueError as `open_run` and `writer_of` do,
    RuntimeError with all the remedies if something is missing, and StageNotInRecipe if the recipe has no such stage.
    """
    chosen, plan, own = check_choices(profile, recipe, seed, settings), find_recipe(recipe), PROFILES[profile]
    if stage not in [*plan.stages, "teacher", ALL]:  # notebook 1b may also be run for its pairs
        others = ", ".join(STAGES[name].notebook for name in plan.stages)
        raise StageNotInRecipe(f"The recipe {recipe!r} has no {STAGES[stage].title}, so this notebook does nothing and "
                               f"changes nothing. Its notebooks are {others}")
    try:
        lengths = data_lengths(artifacts(), data, plan.data_for(own))
    except ValueError:
        lengths = {}  # `_sources` says what is wrong with the data
    fitted, identity = choose(profile, plan, chosen, lengths), identify(profile, recipe, seed, chosen)
    other = check_identity(artifacts(), identity, begins=data is not None)
    rows = [["profile", profile, "this cell"], ["recipe", f"{recipe}: {plan.summary}", "this cell"],
            ["seed", seed, "this cell"]]
    rows += [] if data is None else [["data", data or plan.data_for(own), "this cell" if data else "recipe"]]
    changed = {"profile": own, "recipe": adapt_to_recipe(own, plan), "data": choose(profile, plan, {}, lengths)}
    for name in settings:
        value = value_of(fitted, name)
        found = next((by for by, at in changed.items() if value_of(at, name) == value), "this cell")
        rows.append([name, value, "this cell" if name in chosen else found])
    display(table(["choice", "value", "set by"], rows, "All notebooks of a run must choose the same."))
    # a finished stage is read back, and its notebook loads its models for that
    ahead = plan.stages if stage in ("data", "teacher", ALL) else plan.stages[plan.stages.index(stage):]
    run = Run(fitted, plan, seed, artifacts(), TimeBudget())
    left = [name for name in plan.stages if not run.is_done(name)]
    writer = _writer(run, data, stage, teacher)
    models = models_of(fitted, plan, [name for name in ahead if name != "teacher"] + ["teacher"] * bool(writer), writer)
    asked = []
    if fitted.api_dollars and "judge" in models and "reward_model" not in left and not plan.judge:
        models.pop("judge")
        asked = [_api("judge", "leave api_dollars out of SETTINGS for the local judge", fitted.api_dollars,
                      api_judge)]
    if writer and rater == "local":
        models["rater"] = fitted.judge
    lines = [*_machine(fitted, left, models, plan.asks and not plan.uses_judge),
             *_models(dict.fromkeys(models.values())), *_session(fitted), *_earlier(identity, left),
             *_sources(run, data, stage, left, other), *_teacher(run, stage, teacher, writer, rater), *asked]
    display(table(["needed", "found", "to do"], lines, "Checked before anything is loaded."))
    if missing := "".join(f"\n- {name}: {remedy}" for name, _, remedy in lines if remedy):
        raise RuntimeError(f"this run can't begin:{missing}")


# Lines of the table: what is needed, what was found, and what to do about it, "" if all is well.
Lines = Iterator[tuple[str, str, str]]


def _machine(profile: Profile, left: Sequence[str], models: Mapping[str, str], asks_itself: bool) -> Lines:
    """`left` are the stages still to be run, and `models` what they load. Judge and teacher have their own chips, but a
    policy that judges itself does not."""
    if profile.devices:
        use_virtual_devices(profile.devices)
    devices = jax.devices()
    found, right = f"{len(devices)} × {devices[0].device_kind}", profile.accelerator in ("", devices[0].platform)
    yield "accelerator", found, "" if right else (
        f"profile {profile.name!r} is for a {profile.accelerator.upper()}: {CHOOSE}")
    if not right:
        return
    try:
        alone = placement.plan(profile, devices, judge=False)
        both = placement.plan(profile, devices, judge="judge" in models, grpo="grpo" in left)
        passes = profile.grpo.prompts_per_pass * profile.grpo.num_generations
        rows = [("sft", "sft_batch_size", profile.sft.batch_size, alone.policy),
                ("simpo", "2 x simpo_batch_size", 2 * profile.simpo.batch_size, alone.policy),
                ("grpo", "grpo_micro_prompts x grpo_num_generations", passes, both.policy)]
        rows += [("evaluation", "eval_batch", profile.eval_batch, made.policy) for made in (alone, both)]
        if "teacher" in models:
            both = placement.plan_distillation(profile, devices)
            rows += [("distill", "distill_batch_size", profile.distill.batch_size, mesh)
                     for mesh in (both.policy, both.judge)]
        if both.judge or asks_itself:
            rows.append(("evaluation", "judge_batch", profile.judge_batch, both.judge or both.policy))
        for _, what, count, mesh in (row for row in rows if row[0] in left):
            check_divides(count, mesh, what)
        if "writer" in models:
            placement.plan_teacher(replace(profile, policy=models["writer"]), devices, "rater" in models)
        yield "memory", " · ".join(both.reasons.values()), ""
    except ValueError as error:
        yield "memory", "the run does not fit", str(error)


def _models(names: Iterable[str]) -> Lines:
    absent = []
    for name in names:
        try:
            if folder := load.locate(name):
                load.tokenizer(name)
            else:
                absent.append(MODELS[name].handle)
            yield name, str(folder or f"not here. {load.list_inputs()}"), ""
        except (ValueError, FileNotFoundError) as error:
            yield name, "not usable", str(error)
    if absent:
        attach = f"attach {' and '.join(absent)} (Kaggle: Add Input, Models)"
        try:
            with kaggle_login() as known:
                yield "Kaggle's credentials", "there" if known else "none", "" if known else (
                    f"{attach}, or set the secret KAGGLE_API_TOKEN to download")
        except ValueError as error:
            yield "Kaggle's credentials", "cannot be used", str(error)
        try:
            socket.create_connection(("www.kaggle.com", 443), timeout=5).close()
            yield "internet", "on", ""
        except OSError:
            yield "internet", "off", f"{attach}, or turn Internet on in the notebook's settings"


def _writer(run: Run, data: str | None, stage: str, teacher: str) -> str:
    """Who writes traces in this notebook, "" if nobody does or it has no stage for that."""
    if stage != "teacher" and not (stage == ALL and "teacher" in run.recipe.shares):
        return ""
    try:
        found = run.data_recipe(data or "")
    except ValueError:  # `_sources` says what is wrong with the data
        return ""
    return writer_of(run, teacher, found)


def _teacher(run: Run, stage: str, teacher: str, writer: str, rater: str) -> Lines:
    if teacher and stage == ALL and "teacher" not in run.recipe.shares:
        yield "teacher", f"no stage for it in the recipe {run.recipe.name!r}", "leave TEACHER empty, or change RECIPE"
    if writer == "policy" and not run.is_finished("sft"):
        yield "teacher", "the policy, which has not been trained yet", "run notebook 2 first, or change TEACHER"
    if writer == "api":
        yield _api("teacher", "give TEACHER the name of a model that runs here")
    if writer and rater == "api":
        yield _api("the teacher's judge", 'set JUDGE = "local"')


def _api(role: str, instead: str, dollars: float = 0, with_cell: bool = True) -> tuple[str, str, str]:
    """A judge or a teacher behind an API, and whether a cell asks it. A price is needed only with `dollars`."""
    if not with_cell:
        return role, "no cell for an API", (
            f"take the notebooks of a clone or the submission of pinocchio, which have one, or {instead}")
    # by name: a submission carries what its library imports, and most of them ask no API
    client, calls = (importlib.import_module(f"recipes.judges.{name}") for name in ("api_client", "api_calls"))
    try:
        service = client.service_from_secrets()
        if service and dollars:
            calls.ApiCalls(service, calls.ApiLimits(dollars))
    except ImportError as error:
        return role, "no package for it", f"{error} in a cell above this one, or {instead}"
    except ValueError as error:
        return role, "not usable", f"{error}, or {instead}"
    if not service:
        return role, "no key for an API", f"set one of the secrets {', '.join(JUDGE_KEYS)}, or {instead}"
    return role, f"{service.name} ({service.endpoint})", ""


def _session(profile: Profile) -> Lines:
    yield "packages", ", ".join(f"{name} {version}" for name, version in manifests.versions().items()), ""
    folder = artifacts()
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free, needed = shutil.disk_usage(place).free, placement.disk_bytes(profile)
    yield "disk", f"{free / 1e9:.1f} GB free, {needed / 1e9:.1f} for checkpoints", "" if free > needed else (
        f"make room on the disk of {place}, or set REASONKIT_ARTIFACTS to a folder on another one")
    try:
        ledger = folder / "ledger.json"
        budget = TimeBudget(profile.minutes / 60, profile.reserve_minutes, ledger if ledger.exists() else None,
                            grows=profile.grows)
        yield "minutes", "all steps are run, however long they take" if profile.grows else (
            f"{budget.minutes_left:.0f} of {profile.minutes:g} left for training, {budget.minutes_reserved:.0f} kept "
            "for the evaluation"), ""
    except BudgetError as error:
        yield "minutes", f"{profile.minutes:g}", str(error)


def _earlier(identity: Mapping[str, Any], left: Sequence[str]) -> Lines:
    """The stages that are done, and an attached run that could be gone on with: the same choices, and no run here."""
    folder, inputs = artifacts(), Path(os.environ.get(*load.INPUTS))
    for name in (stage for stage in TRAINED if stage not in left):
        if found := manifests.peek(folder / name):
            steps, ending = manifests.progress(found.model_dump())
            yield STAGES[name].title, f"finished: {steps} steps, ended by {ending}", ""
    if (folder / "run.json").exists():
        return
    for path in sorted(found for depth in range(6) for found in inputs.glob("*/" * depth + "artifacts/run.json")):
        with contextlib.suppress(RecordError):
            found = read(path, RunFile, "").model_dump(exclude_unset=True)
            within = any((above / "run.json").exists() for above in path.parent.parents)
            if run_identity(found) == run_identity(identity) and not within:
                here, there = shlex.quote(str(folder)), shlex.quote(str(path.parent))
                yield "an earlier run", str(path.parent), (
                    f"to go on with it, put `![ -e {here}/run.json ] || (mkdir -p {here} && cp -r {there}/. {here}/)` "
                    "in a cell above this one. To begin anew, remove that input or choose another SEED")


def _sources(run: Run, data: str | None, stage: str, left: Sequence[str], other: bool) -> Lines:
    """What a teacher has yet to write in this run is not asked for. Nothing is if notebook 1 has made its rows, unless
    they are of the `other` run that this one replaces."""
    if data is None:
        return
    notes = Ledger()
    try:
        found = run.data_recipe(data)
        with contextlib.redirect_stdout(None):
            made = stage != "teacher" and not other and run.data_is_made(found)
        if made:
            yield "data", "made in an earlier session", ""
            return
        unwritten = stage == "teacher" or "teacher" in left
        now = [source for source in found.sources if not (unwritten and isinstance(source, TeacherFile))]
        used = used_sources(found.model_copy(update={"sources": now}), notes)
        remedy = "no source is left: write `other_licences = true` into the mix, or give a source an open licence"
        yield "data", " · ".join([f"{found.title}: {len(used or found.families)} sources", *notes.notes]), (
            "" if used or found.families else remedy)
    except ValueError as error:
        yield "data", "not whole", str(error)

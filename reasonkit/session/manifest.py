"""How stages hand over: what each began with (`check_begun`, asked.json) and left (`read_manifest`, manifest.json).

Inputs are compared by SHA-256, so no stage begins or resumes on inputs that have changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import inspect
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reasonkit.config import STAGES, TRAINED
from reasonkit.session.files import RecordError, check, read, write_atomic
from reasonkit.session.records import Asked, Manifest, Trained
from reasonkit.session.run_log import plain

ASKED, MANIFEST = "asked.json", "manifest.json"
PACKAGES = ("jax", "flax", "google-tunix", "qwix", "reasonkit")
NOTEBOOKS = {name: f"{stage.notebook.partition('_')[0]} ({stage.notebook})" for name, stage in STAGES.items()}
ELSEWHERE = """in another folder: `import os; os.environ["REASONKIT_ARTIFACTS"] = "artifacts-2"` in the first cell"""
ENDINGS = {"data": "its last step", "time": "the clock"}
FAILED = "a failure: "  # how `stopped` begins for a stage that failed


class ManifestError(ValueError):
    """A stage's manifest is missing or damaged, or its inputs, prompt or adapter are not those of the run."""


def prompt_hash(template: str) -> str:
    return hashlib.sha256(template.encode("utf-8")).hexdigest()


def file_sha256(path: Path) -> str:
    """The hash of a file, or of the relative paths and contents of a folder's. ManifestError if there is nothing."""
    if path.is_file():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if not path.is_dir():
        raise ManifestError(f"input {path} does not exist: nothing to hash")
    listed = "".join(f"{name}\0{file_sha256(file)}\n" for name, file in _files(path))
    return hashlib.sha256(listed.encode()).hexdigest()


def base_sha256(folder: Path) -> str:
    """The hash of a base model's settings, tokenizer and weights, without cards and helper files. A file's size, first
    and last MiB stand for its content, because weights are tens of GB.
    """
    parts, end = [], 1 << 20
    for name, path in _files(folder):
        if path.suffix in (".md", ".txt") or path.name in ("NOTICE", "tokenizer.json", "tokenizer_config.json"):
            continue
        size = path.stat().st_size
        with open(path, "rb") as file:
            parts += [f"{name}\0{size}\n".encode(), file.read(end)]
            file.seek(max(size - end, 0))
            parts.append(file.read(end))
    return hashlib.sha256(b"".join(parts)).hexdigest()


def code_sha256(functions: Iterable[Callable]) -> str:
    """The hash of the source of these functions and those in their closures, without those that are called by name."""
    sources, left = {}, list(functions)
    while left:
        function = left.pop(0)
        if inspect.isfunction(function) and function not in sources:
            sources[function] = inspect.getsource(function)
            left += inspect.getclosurevars(function).nonlocals.values()
    return hashlib.sha256("".join(f"{source}\0" for source in sources.values()).encode()).hexdigest()


def _files(folder: Path) -> list[tuple[str, Path]]:
    return sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())


def check_begun(run: Path, stage: str, now: Mapping[str, Any], resumes: bool, removed: str, write: bool = True) -> None:
    """Check that a stage that `resumes` goes on with what it began with, and record what it begins with.

    now: all that the result depends on. Its "model" is the same in all stages of a run. removed: what to move away to
    train it anew here. Raises ManifestError with each difference and what to do.
    """
    now = plain(now, "now")
    anew = f"train anew {ELSEWHERE}; or here, once {removed} are moved out of {run}"
    begun = {path.parent.name: read(path, Asked, f"put the old one back, or {anew}", error=ManifestError).model_dump()
             for path in sorted(run.glob(f"*/{ASKED}"))}
    then = begun.pop(stage, None)
    if resumes and then is None:
        raise ManifestError(f"{run / stage / ASKED} is not there, and without it nobody knows what stage {stage!r} was "
                            f"trained with: put it back, or {anew}")
    if resumes and (found := differences(then, now)):
        raise ManifestError(f"stage {stage!r} was trained with other inputs than it is asked for now: "
                            f"{'; '.join(found)}. Set them back, or {anew}")
    for other, asked in begun.items():
        if found := differences(asked["model"], now["model"], "model."):
            raise ManifestError(f"stage {other!r} was trained on another model than {stage!r} is asked for now, and "
                                f"one adapter goes through both: {'; '.join(found)}. Set it back, or train both anew "
                                f"{ELSEWHERE}")
    if write:
        write_atomic(run / stage / ASKED, json.dumps(now, indent=1))


def differences(then: Mapping[str, Any], now: Mapping[str, Any], inside: str = "") -> list[str]:
    """The differences between two nested mappings, with hashes cut short.

    >>> differences({"settings": {"steps": 2, "beta": 0.02}}, {"settings": {"steps": 50, "beta": 0.02}})
    ['settings.steps: 2 then, 50 now']
    """
    found = []
    for key in dict.fromkeys([*now, *then]):
        old, new = then.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{inside}{key}.")
        elif old != new or (key in then) != (key in now):
            before, after = (_brief(part[key]) if key in part else "absent" for part in (then, now))
            found.append(f"{inside}{key}: {before} then, {after} now")
    return found


def _brief(value: Any) -> str:
    hashed = isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)
    return f"SHA-256 {value[:12]}…" if hashed else repr(value)


def write_manifest(folder: Path, stage: str, *, inputs: Mapping[str, Path], metrics: Mapping[str, Any],
                   prompt_sha256: str, lora: Mapping[str, Any] | None, minutes: float,
                   extra: Mapping[str, Any] | None = None) -> Path:
    """Write <run>/<stage>/manifest.json, completely or not at all, and return its path. `folder` is <run>/<stage>.

    inputs: name -> file or folder, recorded with its hash. A path inside the run's folder is relative, because a run
    may be moved. lora: the adapter's shape (rank, alpha), None for a stage without one. Raises ManifestError for a
    missing input and for values that `read_manifest` would refuse, TypeError for a value that is not JSON.
    """
    run = folder.parent.resolve()
    places = {name: path.resolve() for name, path in inputs.items()}
    manifest = {
        "stage": stage,
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "minutes": minutes,
        "prompt_sha256": prompt_sha256,
        "lora": plain(lora, "lora"),
        "metrics": plain(metrics, "metrics"),
        "inputs": {name: {"path": place.relative_to(run).as_posix() if place.is_relative_to(run) else str(inputs[name]),
                          "sha256": file_sha256(place)} for name, place in places.items()},
        "versions": versions(),
        "extra": plain(extra or {}, "extra"),
    }
    try:
        check(manifest, Manifest)
    except RecordError as error:
        raise ManifestError(f"no manifest is written for stage {stage!r}: {error}") from None
    path = folder / MANIFEST
    write_atomic(path, json.dumps(manifest, indent=1))
    return path


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # the library may be run from its folder
            found[package] = importlib.metadata.version(package)
    return found


def read_manifest(folder: Path, *, stage: str, prompt_sha256: str | None = None, lora: Mapping[str, Any] | None = None,
                  step: int = 0) -> dict[str, Any]:
    """The manifest that `stage` left in `folder`. `step` is that of the run's last checkpoint.

    Raises ManifestError, with what to run, if the stage has not ended, if its manifest is missing, damaged or of
    another stage, prompt or adapter shape, and if an input inside the run's folder has changed since.
    """
    path, notebook = folder / MANIFEST, NOTEBOOKS.get(stage, stage)
    first = f"run notebook {notebook} first" if stage in NOTEBOOKS else f"run stage {stage!r} first"
    if not path.exists() and (folder / ASKED).exists():
        raise ManifestError(f"stage {stage!r} has begun and has not ended: run its training cell, in notebook "
                            f"{notebook}, again; it goes on from step {step}. To hand the stage over as it is, put "
                            '`run.budget.end("hand")` in a cell before that one')
    if not path.exists():
        raise ManifestError(f"{first}: {path} does not exist")
    try:
        model = Trained if stage in TRAINED else Manifest
        manifest = read(path, model, "delete it").model_dump(exclude_unset=True)
    except RecordError as error:
        raise ManifestError(f"{first}: {error}") from None
    if manifest["stage"] != stage:
        raise ManifestError(f"{first}: {path} was written by stage {manifest['stage']!r}, not by {stage!r}")
    if prompt_sha256 not in (None, manifest["prompt_sha256"]):
        raise ManifestError(f"{path}: stage {stage!r} used another prompt (SHA-256 {manifest['prompt_sha256'][:12]}…, "
                            f"now {prompt_sha256[:12]}…): restore the prompt, or {first} with this one")
    if lora is not None and manifest["lora"] != plain(lora, "lora"):
        raise ManifestError(f"{path}: stage {stage!r} has the adapter {manifest['lora']}, this run wants "
                            f"{plain(lora, 'lora')}: set the same adapter, or {first} with this one")
    for entry in manifest["inputs"].values():
        place = folder.parent / entry["path"]
        inside = not Path(entry["path"]).is_absolute()
        if inside and place.exists() and file_sha256(place) != entry["sha256"]:
            raise ManifestError(f"{place} has changed since stage {stage!r} was finished with it: put the old one "
                                f"back, or {first} with this one, and then the stages after it")
    return manifest


def peek(folder: Path) -> Manifest | None:
    """The manifest in `folder`, or None if none can be read there: `read_manifest` says what is wrong with it."""
    with contextlib.suppress(RecordError):
        return read(folder / MANIFEST, Manifest, "")
    return None


def check_adapter(run: Path, manifest: Mapping[str, Any]) -> None:
    """Raises ManifestError, with the remedy, if the adapter that a finished stage saved is gone."""
    stage, step = manifest["stage"], manifest["extra"].get("checkpoint_step")
    adapter = run / stage / "adapter" / "actor" / str(step)
    if step is not None and not adapter.is_dir():
        copies = sorted((run / "checkpoints").glob(f"**/actor/{step}"))
        remedy = (f"copy {copies[0]} there" if copies else
                  f"delete {run / stage / MANIFEST} and run notebook {NOTEBOOKS.get(stage, stage)} again")
        raise ManifestError(f"stage {stage!r} is finished, but its adapter {adapter} is gone: {remedy}")


def progress(manifest: Mapping[str, Any]) -> tuple[str, str]:
    """A training stage's steps and what ended it, ("17 of 64", "the clock"). ("", "") for other stages."""
    made, planned = _steps(manifest)
    if None in (made, planned):
        return "", ""
    stopped = str(manifest["extra"].get("stopped") or "")
    return f"{made} of {max(made, planned)}", ENDINGS.get(stopped, stopped)


def has_failed(manifest: Mapping[str, Any]) -> bool:
    return str(manifest.get("extra", {}).get("stopped")).startswith(FAILED)


def caveats(manifests: Sequence[Mapping[str, Any]]) -> list[str]:
    """A warning for each stage that made fewer steps than planned, had no fit judge, or whose adapter was not kept."""
    found = []
    for manifest in manifests:
        (made, planned), (steps, ending) = _steps(manifest), progress(manifest)
        stage, extra = manifest["stage"], manifest.get("extra", {})
        if has_failed(manifest):
            found.append(f"Stage {stage} ended after {made} steps by {ending}. What follows is of its last good step.")
        elif steps and made < planned and extra.get("stopped") != "data":  # its epochs, in SFT
            ended = f", ended by {ending}" if ending else ""
            found.append(f"Stage {stage} was cut short: {steps} steps{ended}. What follows is of that shorter run.")
        if fault := manifest["metrics"].get("unfit_judge"):
            found.append(f"The judge failed its exam ({fault}). So stage {stage} was trained without it.")
        if worse := extra.get("worse"):
            found.append(f"Stage {stage} made the model worse on validation problems ({'; '.join(worse)}). "
                         "So the adapter it began with was handed over.")
    return found


def _steps(manifest: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Made and planned."""
    return manifest["metrics"].get("steps"), manifest.get("extra", {}).get("settings", {}).get("steps")


def describe_finished(run: Path, manifest: Mapping[str, Any], last: bool = True) -> str:
    """What a notebook prints for a finished stage. Unless it is the `last`, a later one began with what it left."""
    stage, (made, ending) = manifest["stage"], progress(manifest)
    line = (f"{stage}: finished on {manifest['written']} and read back, {made or 'nobody knows how many'} steps, ended "
            f"by {ending or 'nobody knows what'}")
    if manifest["extra"].get("stopped") == "data" or not last:
        return line
    return f"{line}. To train it on, delete {run / stage / MANIFEST} and run this cell again"

"""What each stage was begun with, in <run>/<stage>/asked.json: no stage is taken up with other inputs in silence.

`check` writes it down when a stage begins, and compares when one that has steps, or is finished, is asked for again.
`left` is what a finished stage left for the next one.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from reasonkit.session.files import RecordError, read, write_atomic
from reasonkit.session.outcome import progress
from reasonkit.session.records import Asked, RunFile
from reasonkit.session.run_log import MANIFEST, NOTEBOOKS, ManifestError, plain, read_manifest

ASKED = "asked.json"
ELSEWHERE = """in another folder: `import os; os.environ["REASONKIT_ARTIFACTS"] = "artifacts-2"` in the first cell"""
# What to move away to train a stage anew here; the adapter that GRPO begins with stays in checkpoints/begun.
REMOVED = {"sft": "sft, grpo, evaluation and checkpoints", "grpo": "grpo, evaluation and checkpoints/actor"}


def identify(folder: Path, identity: Mapping[str, Any]) -> Path:
    """The file that says which run a folder holds. Raises ValueError when it holds another, or what is no such file."""
    path = folder / "run.json"
    if path.exists() and (found := read(path, RunFile, f"put the old one back, or start {ELSEWHERE}").model_dump()
                          ) != identity:
        raise ValueError(f"{folder} holds the run {found}, and {identity} was asked for: go on with that one, or start "
                         f"{ELSEWHERE}. The folder holds what was trained: delete it only if nobody needs that")
    return path


def check(run: Path, stage: str, now: Mapping[str, Any], taken_up: bool, write: bool = True) -> None:
    """Compare what `stage` is asked for with, in the run's folder, with what it was begun with; note it if it begins.

    now: whatever the outcome depends on; its "model" is one for all stages of a run. taken_up: the stage has steps, or
    is finished. Raises ManifestError with what differs, its value then and now, and what to do.
    """
    now = json.loads(json.dumps(plain(now, "now")))
    anew = f"train anew {ELSEWHERE}; or here, once {REMOVED.get(stage, stage)} are moved out of {run}"
    try:
        begun = {path.parent.name: read(path, Asked, f"put the old one back, or {anew}").model_dump()
                 for path in sorted(run.glob(f"*/{ASKED}"))}
    except RecordError as error:
        raise ManifestError(str(error)) from None
    then = begun.pop(stage, None)
    if taken_up and then is None:
        raise ManifestError(f"{run / stage / ASKED} is not there, and without it nobody knows what stage {stage!r} was "
                            f"trained with: put it back, or {anew}")
    if taken_up and (found := differences(then, now)):
        raise ManifestError(f"stage {stage!r} was trained with other inputs than it is asked for now: "
                            f"{'; '.join(found)}. Set them back, or {anew}")
    for other, asked in begun.items():
        if found := differences(asked["model"], now["model"], "model."):
            raise ManifestError(f"stage {other!r} was trained on another model than {stage!r} is asked for now, and "
                                f"one adapter goes through both: {'; '.join(found)}. Set it back, or train both anew "
                                f"{ELSEWHERE}")
    if write:
        write_atomic(run / stage / ASKED, json.dumps(now, indent=1))


def read_finished(run: Path, stage: str, step: int, **checks) -> dict[str, Any]:
    """The manifest of a stage that has ended, read with `run_log.read_manifest` and its `checks`; the checkpoints are
    at `step`. Raises ManifestError as that does, when the stage was begun and has not ended, and when its adapter is
    gone."""
    notebook = NOTEBOOKS.get(stage, stage)
    if (run / stage / ASKED).exists() and not (run / stage / MANIFEST).exists():
        raise ManifestError(f"stage {stage!r} has begun and has not ended: run its training cell, in notebook "
                            f"{notebook}, again; it goes on from step {step}. To hand the stage over as it is, put "
                            '`run.budget.end("hand")` in a cell before that one')
    manifest = read_manifest(run / stage, stage=stage, **checks)
    last = manifest["extra"].get("checkpoint_step")
    adapter = run / stage / "adapter" / "actor" / str(last)
    if last is not None and not adapter.is_dir():
        copies = sorted((run / "checkpoints").glob(f"**/actor/{last}"))
        remedy = (f"copy {copies[0]} there" if copies else
                  f"delete {run / stage / MANIFEST} and run notebook {notebook} again")
        raise ManifestError(f"stage {stage!r} is finished, but its adapter {adapter} is gone: {remedy}")
    return manifest


def read_back(run: Path, manifest: Mapping[str, Any]) -> str:
    """What to say of a finished stage that is not trained again."""
    stage, (made, ending) = manifest["stage"], progress(manifest)
    said = (f"{stage}: finished on {manifest['written']} and read back, {made or 'nobody knows how many'} steps, ended "
            f"by {ending or 'nobody knows what'}")
    if manifest["extra"].get("stopped") == "data":
        return said
    return f"{said}. To train it on, delete {run / stage / MANIFEST} and run this cell again"


def code_sha256(functions: Iterable[Callable]) -> str:
    """SHA-256 over the source of these functions and of those that they close over, wherever they were written: in a
    module or in a notebook's cell. What they call by name is not looked into."""
    digest, left, seen = hashlib.sha256(), list(functions), set()
    while left:
        function = left.pop(0)
        if not inspect.isfunction(function) or function in seen:
            continue
        seen.add(function)
        digest.update(inspect.getsource(function).encode() + b"\0")
        left += inspect.getclosurevars(function).nonlocals.values()
    return digest.hexdigest()


def differences(then: Mapping[str, Any], now: Mapping[str, Any], inside: str = "") -> list[str]:
    """What differs between two nested mappings, hashes cut short.

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

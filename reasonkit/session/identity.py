"""Which run a folder holds, by its run.json: `identify`, `binding`, `check_identity`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reasonkit.session.files import read
from reasonkit.session.manifest import ELSEWHERE, NOTEBOOKS
from reasonkit.session.records import RunFile

# Settings that may differ between the sessions of a run. The sizes among them change memory and speed, and results by
# rounding only. Where `grpo_micro_prompts` changes more, `GrpoSettings.binding` has it. With another `eval_batch`,
# completions at temperature 1 are other draws, but a stage that has begun keeps its own in a file.
FREE = ("minutes", "reserve_minutes", "api_dollars", "eval_batch", "judge_batch", "grpo_micro_prompts", *(
    f"{stage}_{name}" for stage in ("sft", "simpo", "grpo", "distill") for name in ("save_every", "keep")))


def identify(profile: str, recipe: str, seed: int, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What run.json says: the choices of the run's last session."""
    return {"profile": profile, "recipe": recipe, "seed": seed} | ({"settings": dict(settings)} if settings else {})


def binding(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The choices that are the same in all sessions of a run."""
    settings = identity.get("settings", {})
    return identify(**{**identity, "settings": {name: settings[name] for name in settings if name not in FREE}})


def check_identity(folder: Path, identity: Mapping[str, Any], begins: bool) -> bool:
    """Whether the folder holds another run that this one may replace, because no stage of it has made a step.

    Only notebooks 1 and 1b `begin` a run, because the others read its rows. Raises ValueError for another run that may
    not be replaced, with what to do, and for a damaged file.
    """
    path, asked = folder / "run.json", binding(identity)
    if not path.exists():
        return False
    found = binding(read(path, RunFile, f"put the old one back, or start {ELSEWHERE}").model_dump(exclude_unset=True))
    begun = any(any(folder.glob(trained)) for trained in ("checkpoints/actor/[0-9]*", "*/adapter"))
    if found == asked or begins and not begun:
        return found != asked
    holds = f"{folder} holds the run {found}, and {asked} was asked for: go on with that one, or"
    if not begun:
        raise ValueError(f"{holds}, because it has trained nothing yet, run notebook {NOTEBOOKS['data']} with these "
                         "choices first")
    raise ValueError(f"{holds} start {ELSEWHERE}, or `REASONKIT_ARTIFACTS=artifacts-2 make demo ...`. The folder holds "
                     "what was trained: delete it only if nobody needs that")

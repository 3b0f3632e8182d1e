"""What stages took and how they ended, read from their manifests and logs: `progress`, `cut_short`, `earlier_minutes`.

A stage that the clock ended has made fewer steps than its settings say, and its figures are those of a shorter run:
whatever shows them says so first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reasonkit.session.run_log import NullLog, RunLog

ENDINGS = {"data": "its last step", "time": "the clock"}


def progress(manifest: Mapping[str, Any]) -> tuple[str, str]:
    """How many of its steps a training stage made and what ended it, ("17 of 64", "the clock"); of others, ("", "")."""
    made, planned = _steps(manifest)
    if made is None or planned is None:
        return "", ""
    stopped = str(manifest["extra"].get("stopped") or "")
    return f"{made} of {planned}", ENDINGS.get(stopped, stopped)


def cut_short(manifests: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each stage that made fewer steps than it was to make."""
    found = []
    for manifest in manifests:
        made, planned = _steps(manifest)
        if made is not None and planned is not None and made < planned:
            told, ending = progress(manifest)
            ended = f", ended by {ending}" if ending else ""
            found.append(f"Stage {manifest['stage']} was cut short: {told} steps{ended}. What follows is of that "
                         "shorter run.")
    return found


def earlier_minutes(log: RunLog | NullLog, stage: str) -> float:
    """Minutes that sessions before the newest worked on a stage: each from its "start" to its last step, those included
    that came to nothing and were made again."""
    seconds, began, last = 0.0, None, None
    for row in log.read(every=True):
        if row["event"] == "start" and row["stage"] == stage:
            seconds += last - began if last else 0.0
            began, last = row["t"], None
        elif row["event"] == f"{stage}_step" and began is not None:
            last = row["t"]
    return seconds / 60


def _steps(manifest: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """The steps that were made and those that the settings ask for; None for what is no number of steps."""
    settings = manifest.get("extra", {}).get("settings", {})
    made, planned = manifest.get("metrics", {}).get("steps"), settings.get("steps")
    return (made if type(made) is int else None), planned

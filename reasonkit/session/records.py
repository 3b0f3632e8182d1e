"""Typed models of the kit's own files, for `files.read`, and of the rows of a run log, for `is_row`.

They are strict: a text or True does not pass for a number, and every number is finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model


class Record(BaseModel):
    """A file written by hand, in which an unknown key is an error. `what` is the file's name in errors."""

    what: ClassVar[str] = "record"
    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, extra="forbid")


class Written(Record):
    """A file that the kit writes. A newer kit may write more keys."""

    model_config = ConfigDict(extra="ignore")


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must be a text, not blank")
    return text


Text = Annotated[str, AfterValidator(_not_blank)]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Seconds = Annotated[float, Field(ge=0, lt=1e12)]
Share = Annotated[float, Field(ge=0, le=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Logged = float | Literal["nan", "inf", "-inf"] | None  # as `run_log.plain` writes a number


class Domain(Record):
    """data_recipes/rubrics/<name>.toml. `data.router` knows questions by `words`, and most of them ask for `task`."""

    what = "domain"
    rubric: Any
    words: str = ""
    task: str = ""


class RunFile(Record):
    """<run>/run.json."""

    what = "run"
    profile: str
    recipe: str
    seed: Count
    settings: dict[str, Any] = {}


class Asked(Written):
    """<run>/<stage>/asked.json."""

    what = "record of what a stage was begun with"
    model_config = ConfigDict(extra="allow")
    model: dict[str, Any]


class StageTime(Written):
    steps: Count
    seconds: Seconds
    first_seconds: Seconds | None = None
    stopped: str | None = None


class Ledger(Written):
    """<run>/ledger.json. `started` is in seconds since boot, below 0 for a session that began earlier."""

    what = "ledger"
    started: float
    boot_id: str
    stages: dict[str, StageTime]
    took: dict[str, Seconds]
    hours: Annotated[float, Field(gt=0, lt=1e9)] | None = None


class Input(Written):
    path: Text
    sha256: Sha256


class Settings(Written):
    model_config = ConfigDict(extra="allow")
    steps: Count | None = None


class Extra(Written):
    model_config = ConfigDict(extra="allow")
    title: str | None = None
    licence: str | None = None
    problems: Count | None = None
    checkpoint_step: Count | None = None
    stopped: str | None = None
    worse: list[str] = []
    settings: Settings = Settings()
    lengths: dict[Literal["prompt", "completion"], Annotated[int, Field(ge=16, le=8192)]] = {}


class Manifest(Written):
    """<run>/<stage>/manifest.json."""

    what = "manifest"
    stage: Text
    written: str
    minutes: Seconds
    prompt_sha256: Sha256
    lora: dict[str, Any] | None
    metrics: dict[str, Any]
    inputs: dict[str, Input]
    versions: dict[str, str]
    extra: Extra


class Trained(Manifest):
    metrics: Settings


class ExamFile(Written):
    """<run>/grpo/exam.json."""

    what = "exam"
    fault: str
    report: str


class VerdictRow(Written):
    """A row of <run>/grpo/verdicts.jsonl that has a score."""

    judge: Text
    item: Sha256
    score: Share
    per_criterion: Annotated[list[Share], Field(min_length=1)]
    cause: str | None = None


class Sample(Written):
    parts: dict[str, Logged] = {}


class Row(Written):
    """What every row of a run log has. EVENTS has the other fields of some events."""

    t: float
    event: Text
    at: Count = 0
    step: Count = 0
    sample: Sample | None = None


class Part(Written):
    mean: Logged = None
    no_signal: Share
    weight: Logged = None


_row = partial(create_model, "Row", __base__=Row)  # with fields, each a type, or (type, default) if it may be missing
STEP = _row(step=Count, series=(str | None, None), compiled=(dict[str, Logged], {}), **dict.fromkeys(
    ("loss", "accuracy", "margin", "length", "kl", "rollout_kl", "entropy", "truncated", "seconds"), (Logged, None)))
EVENTS = {
    "start": _row(stage=Text, step=Count, steps=(Count, 0)),
    "reward": _row(mode=(str, "train"), mean=(Logged, None), flat_groups=(Share | None, None),
                   parts=(dict[str, Part], {})),
    "group": _row(prompt=str, completions=list[str], weights=dict[str, float], totals=list[Logged],
                  parts=dict[str, list[Logged]]),
    "probe": _row(step=Count, mean=Share, low=(Share | None, None), high=(Share | None, None)),
    "flag": _row(name=str, step=Count, value=Logged, limit=Logged, why=str, example=str),
    "texts": _row(shares=dict[str, Share], examples=dict[str, str]),
    "pass_rates": _row(step=Annotated[Count, Field(ge=1)], rates=dict[str, Share | None]),
    "paid": _row(dollars=float),
    "completion": _row(teacher=Text, prompt=Sha256, text=str),
    "verdict": _row(cause=(str | None, None), score=(Share | None, None), titles=(list[str], []),
                    per_criterion=(list[Share], [])),
}


def is_row(value: object) -> bool:
    """Whether a value is a row of a run log, with the fields of its event."""
    event = value.get("event") if isinstance(value, Mapping) else None
    if not isinstance(event, str):
        return False
    try:
        EVENTS.get(event, STEP if event.endswith("_step") else Row).model_validate(value)
    except ValidationError:
        return False
    return True

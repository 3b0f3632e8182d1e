"""Trains a reward model within the run: a `ThoughtTeacher`, on right and wrong reasoning after SFT.

`examples` makes the traces. `fit` trains the head and measures it on other questions. A head that can't tell them
apart, or can't be trained, has a fault and gives no signal, so that the run goes on. `read_back` is for the days after
GRPO began. Source: the idea of the Gemma2-Deep entry, whose data are not public.
"""

from __future__ import annotations

import random
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from reasonkit.config import Profile
from reasonkit.data.screening import is_worked
from reasonkit.eval.intervals import interval
from reasonkit.models.load import LoadedModel
from reasonkit.run import Run
from reasonkit.text.tags import TAGS
from reasonkit.train.loop import out_of_memory
from recipes.rewards.thought_teacher import ThoughtJudge, ThoughtTeacher, train_teacher
from recipes.stages.traces import NO_WORK, WRONG, Sample, examine, own_completions

QUESTIONS = 400  # that the policy answers for examples, if notebook 2c is not changed. The forecast counts on it
HEAD = "head.safetensors"  # in the stage's folder
_STEP = re.compile(r".+?(?:; |[.!?]\s+|\n+|\Z)", re.DOTALL)  # with its separator
_NUMBER = re.compile(r"[0-9]{1,9}")

Trace = dict[str, Any]  # `question`, `reasoning`, whether it is `good`, and `by` whom: "policy", or a flaw


def examples(policy: LoadedModel, mesh: Mesh, rows: Sequence[Mapping[str, str]], profile: Profile, minutes: float,
             seed: int) -> list[Trace] | None:
    """The traces of these rows: the policy's own, sampled for so many `minutes`, and the corrupted ones.

    None if no time is left or the chips run out of memory. Prints why.
    """
    at_once = profile.grpo.prompts_per_call * profile.grpo.num_generations  # as many as GRPO samples, so they fit
    try:
        samples = own_completions(policy, mesh, rows, profile.grpo, at_once, minutes, seed)
    except jax.errors.JaxRuntimeError as error:
        if not (why := out_of_memory(error)):
            raise
        print(f"no examples for the reward model: {why}", file=sys.stderr)
        return None
    return [*policy_traces(samples), *corrupted_traces(rows, seed)] if minutes else None


def policy_traces(samples: Iterable[Sample]) -> list[Trace]:
    """The policy's own reasoning. It is good if it shows work and the answer is right, and bad if one of these fails.
    Completions with another fault, such as one of format, are left out."""
    return _distinct({"question": sample["question"], "reasoning": sample["reasoning"], "good": not sample["cause"],
                      "by": "policy"} for sample in samples if sample["cause"] in ("", WRONG, NO_WORK))


def corrupted_traces(rows: Iterable[Mapping[str, str]], seed: int) -> list[Trace]:
    """The worked solution of each row, and the same with one flaw: another number, a step left out, or one said twice.
    Rows whose solution shows no work are left out."""
    rng, made = random.Random(seed), []
    for row in rows:
        whole = TAGS.render(reasoning=row["reasoning"], answer=row["answer"]) if is_worked(row) else ""
        if not examine(row, whole)["cause"]:
            made += [{"question": row["question"], "reasoning": text, "good": by == "data", "by": by}
                     for by, text in (("data", row["reasoning"]), *_make_flawed(row["reasoning"], rng).items())]
    return _distinct(made)


def _make_flawed(text: str, rng: random.Random) -> dict[str, str]:
    """One flawed version, keyed by its flaw. Empty if there is neither a number nor a second step."""
    steps, numbers, versions = _STEP.findall(text), [*_NUMBER.finditer(text)], {}
    if numbers:
        found = rng.choice(numbers)
        changed = str(int(found[0]) + rng.randint(1, 9))
        versions["other number"] = text[:found.start()] + changed + text[found.end():]
    if len(steps) > 1:  # not the last one, which has no separator
        at = rng.randrange(len(steps) - 1)
        versions["step left out"] = "".join(steps[:at] + steps[at + 1:])
        versions["step said twice"] = "".join(steps[:at + 1] + steps[at:])
    return dict([rng.choice([*versions.items()])]) if versions else {}


def _distinct(traces: Iterable[Trace]) -> list[Trace]:
    return [*{(trace["question"], trace["reasoning"], trace["good"]): trace for trace in traces}.values()]


@dataclass(frozen=True)
class PairAuc:
    """How often good reasoning scores above bad reasoning to the same question, with a 95 % interval over questions.

    Only this order matters to GRPO. Each question counts once, and a tie counts half.
    """

    value: float
    low: float
    high: float
    questions: int
    pairs: int

    def __str__(self) -> str:
        return (f"{self.value:.3f} (95 % interval {self.low:.3f} to {self.high:.3f}, {self.pairs} pairs of "
                f"{self.questions} questions)")


def pair_auc(scores: Sequence[float], traces: Sequence[Trace]) -> PairAuc | None:
    """The AUC by question, or None if no question has both kinds. Scores that are NaN are left out.

    >>> kinds = [True, False, False, True]
    >>> print(pair_auc([0.9, 0.1, 0.9, 0.2], [{"question": "?", "good": good} for good in kinds]).value)
    0.625
    """
    groups: dict[str, dict[bool, list[float]]] = defaultdict(lambda: {True: [], False: []})
    for score, trace in zip(scores, traces, strict=True):
        if not np.isnan(score):
            groups[trace["question"]][trace["good"]].append(float(score))
    gaps = [np.subtract.outer(group[True], group[False]) for group in groups.values() if group[True] and group[False]]
    if not gaps:
        return None
    shares = [float(((gap > 0) + (gap == 0) / 2).mean()) for gap in gaps]
    return PairAuc(float(np.mean(shares)), *interval(shares, 0.0, 1.0), len(gaps), sum(gap.size for gap in gaps))


def read_back(run: Run) -> tuple[ThoughtTeacher, dict[str, PairAuc], list[float]] | None:
    """What `fit` gave, without scores, if GRPO goes on with that head, because its reward must not change on the way.
    Else None, and the head is fitted. Raises ManifestError as `Run.manifest` does."""
    path = run.stage("reward_model") / HEAD
    if not (run.resumes("grpo") and run.is_finished("reward_model") and path.exists()):
        return None
    found = run.manifest("reward_model")
    print(f"reward model: made on {found['written']} and read back, because GRPO has begun with it")
    return ThoughtTeacher.load(path), {part: PairAuc(**auc) for part, auc in found["metrics"].items()}, []


def fit(features: Callable[[Sequence[str], Sequence[str]], np.ndarray], name: str, train: Sequence[Trace],
        held_out: Sequence[Trace], least_auc: float,
        given: ThoughtTeacher | None = None) -> tuple[ThoughtTeacher, dict[str, PairAuc], Sequence[float]]:
    """The `given` head, or one trained on the `trace_features` of the model `name`, its AUC, and the held-out scores.

    The AUC is of held-out traces: "all", those of the "policy", and "worked" solutions against flawed ones, if there
    are any. If that of all is below `least_auc` or unknown, or that of the policy's surely below, the head's
    `fault` says so, and it scores nothing in GRPO. The same if the training traces that fit are not of both kinds, or
    the chips run out of memory. Raises ValueError for a head that was trained on another model.
    """
    if given and given.model != name:
        raise ValueError(f"the reward model was trained on {given.model}, and the judge model is {name}: take that one")

    def read(traces: Sequence[Trace]) -> np.ndarray:
        return features([trace["question"] for trace in traces], [trace["reasoning"] for trace in traces])

    def without_head(why: str) -> tuple[ThoughtTeacher, dict[str, PairAuc], Sequence[float]]:
        return ThoughtTeacher(name, np.zeros(0), 0.0, f"the reward model was not trained: {why}"), {}, []

    try:
        train_ND, held_ND = (None if given else read(train)), read(held_out)
    except jax.errors.JaxRuntimeError as error:
        if not (why := out_of_memory(error)):
            raise
        return without_head(why)
    try:
        teacher = given or train_teacher(name, train_ND, np.array([trace["good"] for trace in train]))
    except ValueError as error:
        return without_head(str(error))
    scores = teacher.score(held_ND)
    own = np.array([trace["by"] == "policy" for trace in held_out])
    found = {}
    for part, kept in (("all", own | True), ("policy", own), ("worked", ~own)):
        numbers = np.flatnonzero(kept)
        if auc := pair_auc(scores[numbers], [held_out[number] for number in numbers]):
            found[part] = auc
    fault = ""
    if "policy" in found and found["policy"].high < least_auc:  # on what it will score in GRPO
        fault = f"on the policy's own completions the reward model's held-out AUC is {found['policy']}"
    if "all" not in found or found["all"].value < least_auc:
        fault = f"the reward model's held-out AUC is {found.get('all', 'unknown, for want of pairs')}"
    if fault:
        fault += f", and {least_auc} is the least. Take more questions or a larger judge model"
    return replace(teacher, fault=fault), found, scores


def thought_judge(frozen: LoadedModel, mesh: Mesh, profile: Profile, folder: Path) -> ThoughtJudge:
    """The judge of a run in `folder`, by the head that this stage left there. Raises FileNotFoundError without one."""
    return ThoughtJudge(ThoughtTeacher.load(folder / "reward_model" / HEAD), frozen, mesh, profile.judge_max_length,
                        profile.judge_batch)

"""The judge's exam: before it may teach, it must score worked solutions above flawed ones, on the run's own problems.

A judge that fails is left out of training, because hours of a session must not be lost to it.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from reasonkit.eval.intervals import interval
from reasonkit.judge.judge import Judge, JudgeItem, JudgeVerdict, Result
from reasonkit.judge.rubric import Criterion, rubric_from_json
from reasonkit.session.files import read, write_atomic
from reasonkit.session.records import ExamFile
from reasonkit.text.tags import TAGS

EACH = 8  # problems per family
_LAST = re.compile(r"; |\s*\n\s*|(?<=[.!?]) +")  # between steps, in the data's own traces and in prose
_RESULT = re.compile(r"(?:(?<==)|(?<== ))[0-9]{1,9}|[0-9]{1,9}(?=\D*\Z)")  # the first right after "=", else the last
FALSE = "false number"  # this flaw is reported, and a judge that misses it may teach
MARGIN = 0.05  # of a score: a smaller difference is noise


class UnfitJudge(ValueError):
    """The judge failed its exam, and the recipe has no other reward."""


class Exam(NamedTuple):
    """`fault` says in a few words why the judge failed, and is empty if it passed."""

    fault: str
    report: str

    def __str__(self) -> str:
        return self.report


@dataclass(frozen=True)
class Anchors:
    """Two completions of one question, of which the good one is better by construction."""

    family: str
    flaw: str
    question: str
    rubric: tuple[Criterion, ...]
    good: str
    bad: str


class _Mark(NamedTuple):
    pair: Anchors
    good: Result
    bad: Result

    @property
    def gap(self) -> float | None:
        scored = isinstance(self.good, JudgeVerdict) and isinstance(self.bad, JudgeVerdict)
        return self.good.score - self.bad.score if scored else None


def anchors(rows: Iterable[Mapping[str, Any]]) -> list[Anchors]:
    """Pairs of a worked solution and a flawed one: its answer only, its last step only, the solution written twice, or
    one with a false number. They are made from the first `EACH` usable problems of each family."""
    taken, made = Counter[str](), []
    for row in rows:
        whole = row["reasoning"]
        flawed = {"terse": f"So {row['answer']}", "cut short": _LAST.split(whole)[-1], "padded": f"{whole}; {whole}",
                  FALSE: _RESULT.sub(lambda number: str(int(number[0]) + 1), whole, count=1)}
        try:
            good, *bad = (TAGS.render(reasoning=text, answer=row["answer"]) for text in (whole, *flawed.values()))
            rubric = rubric_from_json(row["rubric"])
        except ValueError:
            continue  # `screen` names such a row
        taken[row["family"]] += 1
        if taken[row["family"]] <= EACH:
            made += [Anchors(row["family"], flaw, row["question"], rubric, good, text)
                     for flaw, text in zip(flawed, bad, strict=True) if text != good]
    return made


def examine(judge: Judge, pairs: list[Anchors]) -> Exam:
    """Whether the judge passes, and how far above each flaw it scores good completions.

    It fails if more than half of the pairs lack a verdict, if one flaw in one family scores higher than the good
    completions, by more than `MARGIN` on average and with the whole interval below zero, or if over all pairs the good
    ones are not better by `MARGIN`. Then the report has the pair that it got most wrong. Pairs with a false number do
    not count. Raises ValueError without pairs.
    """
    if not pairs:
        raise ValueError("no pairs of replies to examine the judge by: give rows with worked solutions")
    items = [(JudgeItem(pair.question, pair.good, pair.rubric), JudgeItem(pair.question, pair.bad, pair.rubric))
             for pair in pairs]
    distinct = list(dict.fromkeys(item for both in items for item in both))
    results = dict(zip(distinct, judge.score(distinct), strict=True))
    marks = [_Mark(pair, results[good], results[bad]) for pair, (good, bad) in zip(pairs, items, strict=True)]
    families, flaws = defaultdict(list), defaultdict(list)
    for mark in marks:
        if mark.gap is not None:
            flaws[mark.pair.flaw].append(mark)
    marks = [mark for mark in marks if mark.pair.flaw != FALSE]
    scored = [mark for mark in marks if mark.gap is not None]
    for mark in scored:
        families[mark.pair.family, mark.pair.flaw].append(mark)
    if 2 * len(scored) < len(marks):
        shown = next(mark for mark in marks if mark.gap is None)
        fault = f"{len(marks) - len(scored)} of {len(marks)} pairs have no verdict"
    elif (_mean(lowest := min(families.values(), key=_mean)) < -MARGIN
          and interval([mark.gap for mark in lowest], -1, 1)[1] < 0):  # a few noisy scores may fall below by chance
        shown = min(lowest, key=lambda mark: mark.gap)
        fault = (f"{shown.pair.flaw} replies of family {shown.pair.family} score {-_mean(lowest):.2f} more than whole "
                 "ones")
    elif _mean(scored) < MARGIN:
        shown = min(scored, key=lambda mark: mark.gap)
        fault = f"whole replies score {_mean(scored):+.2f} over flawed ones, and {MARGIN} is the least"
    else:
        share = getattr(judge, "rating_share", math.nan)
        return Exam("", "The judge passes: whole replies score " + ", ".join(
            f"{_mean(part):+.2f} over {flaw}" for flaw, part in flaws.items()) + (
            "" if math.isnan(share) else f". Its next token is a rating with a probability of {share:.0%}"))
    return Exam(fault, f"The judge fails: {fault}. Asked {shown.pair.question!r}, it has\n"
                       f"  {_describe(shown.good)} for {shown.pair.good!r}\n"
                       f"  {_describe(shown.bad)} for {shown.pair.bad!r}\n"
                       "Take a better judge, or a larger judge_max_length if its prompts were too long")


def as_begun(exam: Exam, path: Path, begun: bool) -> Exam:
    """The exam that counts. For a stage that has `begun` it is the one in `path`, because a reward must not change in
    the middle of a stage. Else it is `exam`, which is written there. Raises RecordError for a damaged file."""
    if begun and path.exists():
        return Exam(**read(path, ExamFile, "delete it, and the judge's exam of today counts").model_dump())
    write_atomic(path, json.dumps(exam._asdict()))
    return exam


def is_judged(parts: Sequence[tuple[Any, float]]) -> bool:
    """Whether a part of a reward that a judge scores has a weight."""
    return any(weight for part, weight in parts if getattr(part, "rowwise", False))


def without_unfit_judge(parts: Sequence[tuple[Any, float]], exam: Exam | None) -> list[tuple[Any, float]]:
    """The parts of a reward with their weights, without those that a judge scores if it failed its exam.

    Raises UnfitJudge if then no part has a weight.
    """
    if exam is None or not exam.fault:
        return list(parts)
    kept = [(part, weight) for part, weight in parts if not getattr(part, "rowwise", False)]
    if not any(weight for _, weight in kept):
        raise UnfitJudge(f"nothing else in this recipe can teach. {exam}")
    return kept


def _mean(marks: Sequence[_Mark]) -> float:
    return sum(mark.gap for mark in marks) / len(marks)


def _describe(result: Result) -> str:
    if isinstance(result, JudgeVerdict):
        return f"{result.score:.2f}" + f" ({result.cause})" * bool(result.cause)
    return f"no verdict ({result.cause}: {result.detail:.200})"

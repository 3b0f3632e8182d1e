"""The judge's exam: before it may teach, it must score worked solutions above flawed ones, on the run's own problems.

Entry points: `anchors`, `examine`. If a judge with a weight fails, the stage stops, because going on without the judge
would be a different recipe. With weight 0 the failure is only reported.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from reasonkit.eval.intervals import interval
from reasonkit.judge.judge import Judge, JudgeItem, JudgeVerdict, Result
from reasonkit.judge.rubric import Criterion, rubric_from_json
from reasonkit.text.tags import TAGS

EACH = 8  # problems per family
_LAST = re.compile(r"; |\s*\n\s*|(?<=[.!?]) +")  # between steps, in the data's own traces and in prose
MARGIN = 0.05  # of a score: a smaller difference is noise


class UnfitJudge(ValueError):
    """The judge scores flawed work above good work, can't tell the two apart, or gives no verdicts."""


@dataclass(frozen=True)
class Anchors:
    """Two completions of one question. The good one is better by construction."""

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
    """Pairs of a worked solution and a flawed one: its answer only, its last step only, or the solution written twice.

    They are made from the first `EACH` problems of each family that have a rubric and worked steps. The rows have
    family, question, reasoning, answer and rubric, as `data.curate` makes them.
    """
    taken: Counter[str] = Counter()
    made = []
    for row in rows:
        whole = row["reasoning"]
        flawed = {"terse": f"So {row['answer']}", "cut short": _LAST.split(whole)[-1], "padded": f"{whole}; {whole}"}
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


def examine(judge: Judge, pairs: list[Anchors], weight: float) -> str:
    """A sentence that says whether the judge passes, and how far above each flaw it scores good completions.

    There are three ways to fail. More than half of the pairs lack a verdict. Or one flaw in one family scores higher
    than the good completions, by more than `MARGIN` on average and with the whole interval below zero. Or over all
    pairs the good ones are not better by `MARGIN`.

    `weight` is the rubric's weight in the reward. Raises UnfitJudge if a judge with a weight fails, with the pair that
    the judge got most wrong. Raises ValueError without pairs.
    """
    if not pairs:
        raise ValueError("no pairs of replies to examine the judge by: give rows with worked solutions")
    items = [(JudgeItem(pair.question, pair.good, pair.rubric), JudgeItem(pair.question, pair.bad, pair.rubric))
             for pair in pairs]
    distinct = list(dict.fromkeys(item for both in items for item in both))
    results = dict(zip(distinct, judge.score(distinct), strict=True))
    marks = [_Mark(pair, results[good], results[bad]) for pair, (good, bad) in zip(pairs, items, strict=True)]
    scored = [mark for mark in marks if mark.gap is not None]
    families, flaws = defaultdict(list), defaultdict(list)
    for mark in scored:
        families[mark.pair.family, mark.pair.flaw].append(mark)
        flaws[mark.pair.flaw].append(mark)
    if 2 * len(scored) < len(pairs):
        shown = next(mark for mark in marks if mark.gap is None)
        fault = f"{len(pairs) - len(scored)} of {len(pairs)} pairs have no verdict"
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
        return "The judge passes: whole replies score " + ", ".join(
            f"{_mean(part):+.2f} over {flaw}" for flaw, part in flaws.items()) + (
            "" if math.isnan(share) else f". Its next token is a rating with a probability of {share:.0%}")
    fault += (f". Asked {shown.pair.question!r}, it has\n  {_describe(shown.good)} for {shown.pair.good!r}\n"
              f"  {_describe(shown.bad)} for {shown.pair.bad!r}")
    if weight:
        raise UnfitJudge(f"the judge can't teach: {fault}\nTake a better judge, a larger judge_max_length if its "
                         "prompts were too long, or a recipe in which it has weight 0, such as g_exact")
    return f"The judge fails, and has weight 0 in this recipe: {fault}"


def _mean(marks: Sequence[_Mark]) -> float:
    return sum(mark.gap for mark in marks) / len(marks)


def _describe(result: Result) -> str:
    if isinstance(result, JudgeVerdict):
        return f"{result.score:.2f}" + f" ({result.cause})" * bool(result.cause)
    return f"no verdict ({result.cause}: {result.detail:.200})"

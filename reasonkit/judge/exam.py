"""The judge's exam: before it may teach, it must rate worked solutions above flawed ones, on the run's own problems.

`examine` asks any judge, through `score`. A judge with a vote that fails stops the stage: to go on without its vote
would be another recipe than the one asked for, and nobody might look for hours. One without a vote teaches nothing, and
what it got wrong is said.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from reasonkit.eval.intervals import interval
from reasonkit.judge.judge import Judge, JudgeFailure, JudgeItem, JudgeVerdict
from reasonkit.judge.rubric import Criterion, rubric_from_json
from reasonkit.text.tags import TAGS

EACH = 8  # problems of each family
MARGIN = 0.05  # of a score: what is closer is noise


class UnfitJudge(ValueError):
    """The judge rates flawed work above good work, does not tell the two apart, or has no verdict."""


@dataclass(frozen=True)
class Anchors:
    """Two replies to one question, of which the good one is better by construction."""

    family: str
    flaw: str
    question: str
    rubric: tuple[Criterion, ...]
    good: str
    bad: str


def anchors(rows: Iterable[Mapping[str, Any]]) -> list[Anchors]:
    """The worked solution against its answer alone, its last step alone and itself said twice, for the first `EACH`
    problems of each family that have a rubric and worked steps. rows: with family, question, reasoning, answer and
    rubric, as `data.curate` makes them."""
    taken: Counter[str] = Counter()
    made = []
    for row in rows:
        whole = row["reasoning"]
        flawed = {"terse": f"So {row['answer']}", "cut short": whole.split("; ")[-1], "padded": f"{whole}; {whole}"}
        try:
            good, *bad = (TAGS.render(reasoning=text, answer=row["answer"]) for text in (whole, *flawed.values()))
            rubric = rubric_from_json(row["rubric"])
        except ValueError:
            continue  # `screen` names such a row
        taken[row["family"]] += 1
        if taken[row["family"]] > EACH:
            continue
        made += [Anchors(row["family"], flaw, row["question"], rubric, good, text)
                 for flaw, text in zip(flawed, bad, strict=True) if text != good]
    return made


def examine(judge: Judge, pairs: list[Anchors], vote: float) -> str:
    """How far the judge rates the good replies above each flaw's, and whether it passes, in words.

    It fails when it rates those of one flaw in one family higher, by more than `MARGIN` in the mean and with the whole
    interval of it below zero; when the good ones are not better by as much over all; and when more than half of the
    pairs lack a verdict. vote: the rubric's weight
    in the reward. Raises UnfitJudge, with the pair it got most wrong, when a judge with a vote fails; ValueError
    without pairs.
    """
    if not pairs:
        raise ValueError("no pairs of replies to examine the judge by: give rows with worked solutions")
    items = [JudgeItem(pair.question, reply, pair.rubric) for pair in pairs for reply in (pair.good, pair.bad)]
    unlike = list(dict.fromkeys(items))
    verdicts = dict(zip(unlike, judge.score(unlike), strict=True))
    marked = [(pair, verdicts[good], verdicts[bad])
              for pair, good, bad in zip(pairs, items[::2], items[1::2], strict=True)]
    known = [(good.score - bad.score, pair, good, bad) for pair, good, bad in marked
             if isinstance(good, JudgeVerdict) and isinstance(bad, JudgeVerdict)]
    silent = next((mark for mark in marked if JudgeFailure in map(type, mark)), None)
    families, flaws = defaultdict(list), defaultdict(list)
    for gap in known:
        families[gap[1].family, gap[1].flaw].append(gap)
        flaws[gap[1].flaw].append(gap)
    if 2 * len(known) < len(pairs):
        fault, shown = f"{len(pairs) - len(known)} of {len(pairs)} pairs have no verdict", silent
    elif _mean(lowest := min(families.values(), key=_mean)) < -MARGIN and _below_zero(lowest):
        _, *shown = min(lowest, key=itemgetter(0))
        fault = f"{shown[0].flaw} replies of family {shown[0].family} score {-_mean(lowest):.2f} more than whole ones"
    elif _mean(known) < MARGIN:
        _, *shown = min(known, key=itemgetter(0))
        fault = f"whole replies score {_mean(known):+.2f} over flawed ones, and {MARGIN} is the least"
    else:
        return "The judge passes: whole replies score " + ", ".join(
            f"{_mean(part):+.2f} over {flaw}" for flaw, part in flaws.items())
    pair, good, bad = shown
    fault += f". Asked {pair.question!r}, it has\n  {_words(good)} for {pair.good!r}\n  {_words(bad)} for {pair.bad!r}"
    if vote:
        raise UnfitJudge(f"the judge can't teach: {fault}\nTake a better judge, or a recipe in which it has no vote, "
                         "such as g_exact")
    return f"The judge fails, and has no vote in this recipe: {fault}"


def _below_zero(gaps: list[tuple]) -> bool:
    """Whether chance alone is no explanation: few pairs of noisy scores fall below by themselves."""
    return interval([gap[0] for gap in gaps], -1, 1)[1] < 0


def _mean(gaps: list[tuple]) -> float:
    return sum(gap[0] for gap in gaps) / len(gaps)


def _words(mark: JudgeVerdict | JudgeFailure) -> str:
    return f"{mark.score:.2f}" if isinstance(mark, JudgeVerdict) else f"no verdict ({mark.cause}: {mark.detail:.200})"

"""Open questions, which no program can score: `judge_completions` before and after a stage, `compare_judged` and
`open_table`.

The judge is also the reward in GRPO. So a higher score means that the policy pleases it on questions that it was not
trained on. Whether the completions are better is for people to read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from markupsafe import Markup

from reasonkit.eval.evaluate import Difference, difference_of
from reasonkit.judge.judge import Judge, JudgeItem, JudgeVerdict
from reasonkit.judge.rubric import rubric_from_json
from reasonkit.show.figures import block
from reasonkit.show.report import Html, table
from reasonkit.text.tags import TAGS

SHOWN = 3  # open questions of the table


@dataclass(frozen=True)
class Judged:
    """A completion and the judge's score in [0, 1], or None without a verdict."""

    question: str
    completion: str
    score: float | None

    @property
    def is_finished(self) -> bool:
        """Whether the completion came to an answer and was not cut off."""
        return TAGS.parse(self.completion).is_finished


def judge_completions(generate: Callable[[list[str]], list[str]], rows: Iterable[Mapping[str, Any]], judge: Judge,
                      batch_size: int) -> list[Judged]:
    """One completion to each row's question, scored by the row's rubric. `generate` gets up to `batch_size` prompts."""
    rows = list(rows)
    completions = []
    for start in range(0, len(rows), batch_size):
        completions += generate([TAGS.prompt(row["question"]) for row in rows[start:start + batch_size]])
    results = judge.score([JudgeItem(row["question"], completion, rubric_from_json(row["rubric"]))
                           for row, completion in zip(rows, completions, strict=True)])
    return [Judged(row["question"], completion, result.score if isinstance(result, JudgeVerdict) else None)
            for row, completion, result in zip(rows, completions, results, strict=True)]


def compare_judged(before: list[Judged], after: list[Judged], field: str) -> Difference:
    """The change of the "score", over the questions with a verdict on both sides, or of "is_finished". Paired."""
    pairs = [(getattr(one, field), getattr(two, field)) for one, two in zip(before, after, strict=True)]
    return difference_of([float(two) - float(one) for one, two in pairs if None not in (one, two)])


def open_table(judged: Mapping[str, Sequence[Judged]]) -> Html:
    """The first completions to open questions side by side, with the judge's score of each."""
    lines = [[same[0].question, *(Markup("{}<small>{}</small>").format(
        block(one.completion), ("no verdict" if one.score is None else f"score {one.score:.2f}")
        + ", unfinished" * (not one.is_finished)) for one in same)]
        for same in islice(zip(*judged.values(), strict=True), SHOWN)]
    return table(["question", *judged], lines, f"The first {len(lines)} of the open questions.")

"""Open questions, which no program can score: `hold_out_open` and `without_open` choose the rows, `judge_completions`
has the policy answer before and after a stage, and `compare_judged` and `open_table` show the change.

The judge is also the reward in GRPO. So a higher score means that the policy pleases it on questions that it was not
trained on. Whether the completions are better is for people to read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from datasets import Dataset
from markupsafe import Markup

from reasonkit.data.screening import OPEN, is_worked
from reasonkit.eval.evaluate import Difference, difference_of
from reasonkit.judge.judge import Judge, JudgeItem, JudgeVerdict
from reasonkit.judge.rubric import rubric_from_json
from reasonkit.show.figures import block
from reasonkit.show.report import Html, table
from reasonkit.text.tags import TAGS, is_blank

SHOWN = 3  # open questions of the table


def hold_out_open(rows: Dataset, most: int) -> tuple[Dataset, Dataset]:
    """The rows for GRPO, and the open questions held out of them to measure it by. These are a tenth of those that SFT
    doesn't imitate, and at most `most`. The hash of a row's id decides, so all sessions of a run hold out the same."""
    unseen = {n: row["id"] for n, row in enumerate(rows) if row["kind"] == OPEN and not is_worked(row)}
    order = sorted(unseen, key=lambda n: hashlib.sha256(unseen[n].encode()).digest())
    held = set(order[:min(most, len(unseen) // 10)])
    return rows.select([n for n in range(len(rows)) if n not in held]), rows.select(sorted(held))


def without_open(rows: Dataset, references: bool = False) -> Dataset:
    """The rows with a right answer, or all of them if none has one. With `references`, also open ones that have one to
    compare with. Prints how many are left out."""
    kept = [n for n, row in enumerate(rows) if row["kind"] != OPEN or references and not is_blank(row["answer"])]
    if not kept or len(kept) == len(rows):
        return rows
    print(f"{len(rows) - len(kept)} of {len(rows)} questions are open and left out: no part of the reward scores them")
    return rows.select(kept)


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

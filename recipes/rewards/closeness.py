"""A reward for being near a number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from reasonkit.text.answers import answer_of, grade, kind_of
from reasonkit.text.numbers import value_pairs
from reasonkit.text.tags import TAGS


def numeric_closeness(prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], kind: Sequence[str],
                      **columns) -> list[float | None]:
    """1 - |x - gold| / |gold| for an answer x, at least 0.0, and 1.0 wherever `rules.exact_answer` is.

    0.0 for another unit than the gold answer's and for no readable number. None for a gold answer of another kind than
    "number", so a mix with few numbers needs a higher `max_no_signal`. Columns, and None with a cause, as in
    `exact_answer`. Source: the ratio steps of the answer reward in Tunix's GRPO demo, made continuous.

    >>> numeric_closeness(["2+2?"] * 2, ["<answer>4</answer>", "<answer>5</answer>"], ["4", "4"], ["number"] * 2)
    [1.0, 0.75]
    """
    return [_closeness(completion, gold) if str(k) == "number" else None
            for completion, gold, k in zip(completions, answer, kind, strict=True)]


numeric_closeness.failures = Counter()


def _closeness(completion: str, gold: str | None) -> float | None:
    (verdict,) = grade([completion], [gold], ["number"])
    if verdict is None:
        numeric_closeness.failures["unusable_gold"] += 1
        return None
    if verdict.correct or verdict.extracted is None:
        return float(verdict.correct)
    number, read = answer_of(TAGS.parse(completion), gold, "number"), kind_of("number").read
    return max((float(max(0, 1 - abs(x - expected) / abs(expected)))
                for x, expected in value_pairs(read(number), read(gold)) if expected), default=0.0)

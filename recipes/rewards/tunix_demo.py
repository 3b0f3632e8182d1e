"""The four rewards of Tunix's GRPO demo, with our tags. They add up to at most 9.5 points.

Source: examples/grpo_gemma.ipynb in google/tunix. It reads without the demo's regular expressions, because those take
quadratic time. So nothing may follow the answer's tag, while the demo lets another line follow.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from reasonkit.rewards.rules import LogExtra, no_extra
from reasonkit.text.tags import TAGS

_NUMBER = re.compile(r"[0-9.]{1,32}")


def _answer(completion: str) -> str | None:
    """The text in the answer tag, or None for a completion that is not in the demo's format."""
    text = completion.strip()
    thought, ended, rest = text.partition(TAGS.reasoning_end)
    _, begun, answer = rest.partition(TAGS.answer_start)
    form = ended and begun and text.startswith(TAGS.reasoning_start) and len(thought) > len(TAGS.reasoning_start)
    return answer.removesuffix(TAGS.answer_end) if form and answer.endswith(TAGS.answer_end) else None


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def demo_format(prompts: Sequence[str], completions: Sequence[str], **columns) -> list[float | None]:
    """3.0 for the whole format, else 0.0.

    >>> demo_format(["2+2?"] * 2, [TAGS.render(reasoning="2 + 2 = 4", answer="4"), "<answer>4</answer>"])
    [3.0, 0.0]
    """
    return [0.0 if _answer(completion) is None else 3.0 for completion in completions]


def demo_tags(prompts: Sequence[str], completions: Sequence[str], **columns) -> list[float | None]:
    """0.5 for each of the four tags that occurs once, -0.5 for each other one.

    >>> demo_tags(["2+2?"] * 2, [TAGS.render(reasoning="2 + 2 = 4", answer="4"), "<answer>4</answer>"])
    [2.0, 0.0]
    """
    tags = TAGS.reasoning_start, TAGS.reasoning_end, TAGS.answer_start, TAGS.answer_end
    return [sum(0.5 if completion.count(tag) == 1 else -0.5 for tag in tags) for completion in completions]


def demo_answer(prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str],
                log_extra: LogExtra = no_extra, **columns) -> list[float | None]:
    """3.0 for the gold answer as it is spelt, 1.5 with other white space, 0.5 within 10 % and 0.25 within 20 % of it.

    -1.0 for another number, -0.5 if either is not a number, and 0.0 without the format. Column: `answer`.

    >>> given = [TAGS.render(reasoning="2 + 2 = 4", answer=x) for x in ("40", "43", "47", "4", "four")]
    >>> demo_answer(["4 x 10?"] * 6, [*given, "40"], answer=["40"] * 6)
    [3.0, 0.5, 0.25, -1.0, -0.5, 0.0]
    """
    read = [_answer(completion) for completion in completions]
    log_extra("answer_read", read)
    return [0.0 if text is None else _points(text, str(gold)) for text, gold in zip(read, answer, strict=True)]


def _points(text: str, gold: str) -> float:
    if text == gold:
        return 3.0
    if text.strip() == gold.strip():
        return 1.5
    number, right = _float(text), _float(gold)
    if number is None or not right:
        return -0.5
    off = abs(number / right - 1)
    return 0.5 if off <= 0.1 else 0.25 if off <= 0.2 else -1.0


def demo_number(prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str],
                **columns) -> list[float | None]:
    """1.5 if the first number after the answer tag is the gold answer, else 0.0. Column: `answer`.

    >>> demo_number(["4 x 10?"] * 2, ["<answer>It is 40", "40"], answer=["40"] * 2)
    [1.5, 0.0]
    """
    found = [_NUMBER.search(completion.partition(TAGS.answer_start)[2]) for completion in completions]
    numbers = [None if match is None else _float(match[0]) for match in found]
    return [1.5 if number is not None and number == _float(str(gold)) else 0.0
            for number, gold in zip(numbers, answer, strict=True)]

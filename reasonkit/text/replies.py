"""The one answer of a reply: two blocks that say the same, each in its way, are one; two that differ are none.

Entry point: `answer_of`, for everything that checks a reply against a gold answer. `tags` finds the blocks and knows no
kinds, `answers` knows the kinds and no replies.
"""

from __future__ import annotations

from reasonkit.text.answers import check
from reasonkit.text.tags import Parsed


def answer_of(reply: Parsed, gold: str, kind: str) -> str | None:
    """The answer to be checked: the only one, or the first of several that `check` calls equal to it; else None.

    Raises ValueError, where there are several, for an unknown kind and for a gold answer that is not of its kind.

    >>> from reasonkit.tags import TAGS
    >>> reply = TAGS.parse("<answer>4</answer> in short, <answer>4.0</answer>")
    >>> reply.answer, answer_of(reply, "5", "number")
    (None, '4')
    """
    first, *others = reply.answers or (None,)
    return first if all(_same(first, other, gold, kind) for other in others) else None


def _same(a: str, b: str, gold: str, kind: str) -> bool:
    """Whether one is right where the other is the gold answer, or both are read as the same."""
    read = check(a, gold, kind).extracted
    alike = read is not None and read == check(b, gold, kind).extracted
    return alike or _is_right(a, b, kind) or _is_right(b, a, kind)


def _is_right(answer: str, gold: str, kind: str) -> bool:
    try:
        return check(answer, gold, kind).correct
    except (ValueError, RecursionError):  # model text that can't be a gold answer: a plan, an option's text alone
        return False

"""The one answer of a reply: two blocks that say the same, each in its way, are one; two that differ are none.

Entry points: `answer_of`, for everything that checks a reply against a gold answer, and `grade`, for a step's replies
within a time. `tags` finds the blocks and knows no kinds, `answers` knows the kinds and no replies.
"""

from __future__ import annotations

from collections.abc import Sequence

from reasonkit.text.allowance import allow
from reasonkit.text.answers import Verdict, check
from reasonkit.text.tags import TAGS, Parsed

MAX_BLOCKS = 8  # answers written differently; more are no one answer, and each costs a comparison
REPLY_SECONDS = 4.0  # two decisions of a library at their limit
BATCH_SECONDS = 120.0  # a fifth of the shortest time after which a step counts as hung (`session.LEAST_SECONDS`)


def grade(replies: Sequence[str], golds: Sequence[str | None], kinds: Sequence[str],
          seconds: float = BATCH_SECONDS) -> list[Verdict | None]:
    """The verdicts on a step's replies, whose decisions by a library take at most `seconds` together; None where a kind
    is unknown or a gold answer is not of its kind.

    Each reply has an equal share of what the ones before have left, at most REPLY_SECONDS, so that no reply takes
    another's. A reply that needs more is wrong, and says "out of time".
    """
    verdicts, left = [], seconds
    for number, (reply, gold, kind) in enumerate(zip(replies, golds, kinds, strict=True)):
        share = min(REPLY_SECONDS, left / (len(replies) - number))
        with allow(share) as allowance:
            verdicts.append(None if gold is None else _graded(reply, str(gold), str(kind)))
        left -= share - max(0.0, allowance.left)
    return verdicts


def _graded(reply: str, gold: str, kind: str) -> Verdict | None:
    try:
        check(None, gold, kind)
    except ValueError:
        return None
    try:
        return check(answer_of(TAGS.parse(reply), gold, kind), gold, kind)
    except (ValueError, ArithmeticError, LookupError, RecursionError) as error:  # a reply that blinds its own judgement
        return Verdict(False, None, f"not read ({type(error).__name__})")


def answer_of(reply: Parsed, gold: str, kind: str) -> str | None:
    """The answer to be checked: the only one, or the first of at most MAX_BLOCKS that `check` calls equal; else None.

    Raises ValueError, where there are several, for an unknown kind and for a gold answer that is not of its kind.

    >>> from reasonkit.text.tags import TAGS
    >>> reply = TAGS.parse("<answer>4</answer> in short, <answer>4.0</answer>")
    >>> reply.answer, answer_of(reply, "5", "number")
    (None, '4')
    """
    first, *others = reply.answers or (None,)
    if len(others) >= MAX_BLOCKS:
        return None
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

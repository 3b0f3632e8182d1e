"""Is this answer right? `check` grades one answer, and `grade` a batch of completions.

The readers (`numbers`, `choices`, `words`) read the whole answer as a person would. Kinds that only some data sets need
are in `recipes.graders`. A second candidate ("288, maybe 3"), a hedge or a leftover digit makes an answer wrong,
because credit for substrings teaches hedging. Model text is matched against patterns, never executed.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from operator import eq

from reasonkit.text.choices import read_choice, read_gold_choice, read_yes_no, same_choice
from reasonkit.text.cleaning import clean, clean_inside
from reasonkit.text.hedges import is_withdrawn
from reasonkit.text.numbers import read_number, read_plain, same_number
from reasonkit.text.tags import TAGS, Parsed
from reasonkit.text.words import read_date, read_text, same_text

KINDS = ("number", "choice", "yes_no", "expression", "list", "set", "text", "quantity", "smiles", "plan", "date")
MAX_CHARACTERS = 10_000
MAX_BLOCKS = 8  # different answers in one completion, because each costs a comparison
COMPLETION_SECONDS = 4.0  # two comparisons by a library
BATCH_SECONDS = 120.0  # a fifth of the shortest time after which a step counts as hung (`session.LEAST_SECONDS`)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`extracted` is the answer as it was read, or None if it could not be read. `why` is a phrase for logs."""

    correct: bool
    extracted: str | None
    why: str


@dataclass(frozen=True, slots=True)
class Kind:
    """`read` returns None for raw text that is not an answer of this kind, and `same(found, expected)` if it cannot
    decide. `read_gold` replaces `read` for gold answers."""

    read: Callable[[str], object | None]
    same: Callable[..., bool | None] = eq
    read_gold: Callable[[str], object | None] | None = None


def check(answer: str | None, gold: str, kind: str) -> Verdict:
    """Compare a model's answer, any text or None, with the gold answer.

    `KINDS` lists the kinds. The gold answer of a choice may include the option's text ("B) Paris"), and then the text
    without the letter is right too. The gold answer of a plan is its problem (see `recipes.graders.plan`). Raises
    ValueError for an unknown kind and for a gold answer that cannot be read as its kind. Raises ImportError if the
    package for expressions, quantities or SMILES is missing.

    >>> check("1,200 apples.", "1200", "number").correct
    True
    >>> check("288, maybe 3", "288", "number")
    Verdict(correct=False, extracted=None, why='not read as number')
    """
    if kind not in KINDS:
        raise ValueError(f"unknown answer kind {kind!r}: use one of {', '.join(KINDS)}")
    if len(gold) > MAX_CHARACTERS:
        raise ValueError(f"gold answer of {len(gold)} characters: at most {MAX_CHARACTERS} are compared")
    answer = answer or ""
    if len(answer) > MAX_CHARACTERS:
        return Verdict(False, None, f"longer than {MAX_CHARACTERS} characters")
    expected = _read_gold(gold, kind)
    if is_withdrawn(answer, gold):
        return Verdict(False, None, "asked back or struck out")
    found = kind_of(kind).read(answer)
    if found is None:
        return Verdict(False, None, f"not read as {kind}" if answer.strip() else "no answer")
    correct = kind_of(kind).same(found, expected)
    extracted = "; ".join(map(str, found)) if isinstance(found, tuple) else str(found)
    if correct is None:
        return Verdict(False, extracted, "undecided" if seconds_left() > 0 else "out of time")
    return Verdict(correct, extracted, "equal" if correct else "different")


def grade(completions: Sequence[str], golds: Sequence[str | None], kinds: Sequence[str],
          seconds: float = BATCH_SECONDS) -> list[Verdict | None]:
    """One verdict per completion, or None if its kind is unknown or its gold answer cannot be read as that kind.

    All comparisons together may take `seconds`. The remaining completions share the remaining time equally, up to
    COMPLETION_SECONDS each. A completion that needs more is wrong, with the reason "out of time".
    """
    end, verdicts = time.monotonic() + seconds, []
    for number, (completion, gold, kind) in enumerate(zip(completions, golds, kinds, strict=True)):
        share = (end - time.monotonic()) / (len(completions) - number)
        verdicts.append(None if gold is None else
                        _grade_one(completion, str(gold), str(kind), min(COMPLETION_SECONDS, share)))
    return verdicts


def _grade_one(completion: str, gold: str, kind: str, seconds: float) -> Verdict | None:
    try:
        check(None, gold, kind)
    except ValueError:
        return None
    try:
        with time_limit(seconds):
            return check(answer_of(TAGS.parse(completion), gold, kind), gold, kind)
    except (ValueError, ArithmeticError, LookupError, RecursionError) as error:  # crashing its grader is wrong
        return Verdict(False, None, f"not read ({type(error).__name__})")


def answer_of(completion: Parsed, gold: str, kind: str) -> str | None:
    """The answer to check: the first one, if all answers of the completion say the same. Otherwise None.

    More than MAX_BLOCKS different answers give None too. If there are several, it raises ValueError as `check` does.

    >>> completion = TAGS.parse("<answer>4</answer> in short, <answer>4.0</answer>")
    >>> completion.answer, answer_of(completion, "5", "number")
    (None, '4')
    """
    first, *others = completion.answers or (None,)
    if len(others) >= MAX_BLOCKS:
        return None
    for other in others:  # read as the same value, or right if one of the two is the gold answer
        read = check(first, gold, kind).extracted
        alike = read is not None and read == check(other, gold, kind).extracted
        if not (alike or _is_right(first, other, kind) or _is_right(other, first, kind)):
            return None
    return first


def _is_right(answer: str, gold: str, kind: str) -> bool:
    try:
        return check(answer, gold, kind).correct
    except (ValueError, RecursionError):  # model text that can't be a gold answer: a plan, an option's text
        return False


_DEADLINE: ContextVar[float] = ContextVar("deadline", default=math.inf)


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Limit the total time of the libraries called in this block and thread. After it, comparisons are undecided."""
    token = _DEADLINE.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _DEADLINE.reset(token)


def seconds_left() -> float:
    """The seconds until this thread's time limit, or infinity without a limit."""
    return _DEADLINE.get() - time.monotonic()


_COMMON = {
    "number": Kind(lambda text: read_plain(text) or read_number(clean_inside(text), prose=True), same_number),
    "choice": Kind(lambda text: read_choice(clean(text)), same_choice, lambda text: read_gold_choice(clean(text))),
    "yes_no": Kind(lambda text: read_yes_no(clean_inside(text))),
    "text": Kind(lambda text: read_text(clean(text)), same_text),
    "date": Kind(lambda text: read_date(clean_inside(text))),
}


def kind_of(name: str) -> Kind:
    """How answers of a kind in `KINDS` are read and compared. Kinds not in `_COMMON` are modules of `recipes.graders`,
    imported on first use."""
    return _COMMON.get(name) or importlib.import_module(f"recipes.graders.{name}").KIND


@lru_cache(maxsize=4096)  # the answers of a group share one gold answer
def _read_gold(gold: str, kind: str) -> object:
    expected = (kind_of(kind).read_gold or kind_of(kind).read)(gold)
    if expected is None:
        raise ValueError(f"gold answer {gold!r} cannot be read as {kind}: fix the row or its kind")
    return expected

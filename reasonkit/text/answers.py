"""Is this answer right? `check(answer, gold, kind)`, one small reader a kind of answer.

Readers (`numbers`, `choices`, `lists`, `dates`, `latex`, …) read the whole answer as a person would; what they
cannot decide goes to sympy, pint or RDKit in a process of its own (`worker`). Text is matched, never executed. Two
candidates ("288, maybe 3"), a hedge or a leftover digit are wrong: credit for substrings teaches to hedge.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from operator import eq

from reasonkit.text.allowance import LIMIT_SECONDS, allow, is_spent
from reasonkit.text.choices import read_choice, read_gold_choice, read_yes_no, same_choice
from reasonkit.text.cleaning import clean, unbracket
from reasonkit.text.dates import read_date
from reasonkit.text.hedges import is_withdrawn
from reasonkit.text.lists import read_list, read_set
from reasonkit.text.numbers import is_physical, read_amount, read_number, read_plain, same_number
from reasonkit.text.texts import read_text, same_text

MAX_CHARACTERS = 10_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """`extracted` is the answer as read, None when it cannot be read; `why` is a phrase for logs."""

    correct: bool
    extracted: str | None
    why: str


def check(answer: str | None, gold: str, kind: str) -> Verdict:
    """Compare a model's answer, any text or None, with the gold answer.

    Kinds: `KINDS`. The gold answer of a choice may bring its text ("B) Paris"), which is then right too; that of a plan
    is the problem (see `planning`). Raises ValueError for an unknown kind, and for a gold answer that cannot be read as
    its kind; ImportError, at the first check, if the package of an expression, a quantity or a SMILES is missing.

    >>> check("1,200 apples.", "1200", "number").correct
    True
    >>> check("288, maybe 3", "288", "number")
    Verdict(correct=False, extracted=None, why='not read as number')
    """
    if kind not in KINDS:
        raise ValueError(f"unknown answer kind {kind!r}: use one of {', '.join(KINDS)}")
    if len(gold) > MAX_CHARACTERS:
        raise ValueError(f"gold answer of {len(gold)} characters: at most {MAX_CHARACTERS} are compared")
    if answer is not None and len(answer) > MAX_CHARACTERS:
        return Verdict(False, None, f"longer than {MAX_CHARACTERS} characters")
    expected = _read_gold(gold, kind)
    if answer and is_withdrawn(answer, gold):
        return Verdict(False, None, "asked back or struck out")
    found = kind_of(kind).read(answer) if answer else None
    if found is None:
        return Verdict(False, None, f"not read as {kind}" if answer and answer.strip() else "no answer")
    correct = kind_of(kind).same(found, expected)
    extracted = "; ".join(map(str, found)) if isinstance(found, tuple) else str(found)
    if correct is None:
        return Verdict(False, extracted, "out of time" if is_spent() else "undecided")
    return Verdict(correct, extracted, "equal" if correct else "different")


def infer_kind(gold: str) -> str:
    """The kind that a gold answer is written as; "text" where no other fits. A set is not told from a list.

    >>> [infer_kind(gold) for gold in ("1,200", "5 km", "5 apples", "(B)", "No", "x^2 + 1", "[1, 2]", "CC(=O)O", "on")]
    ['number', 'quantity', 'number', 'choice', 'yes_no', 'expression', 'list', 'smiles', 'text']
    >>> [infer_kind(gold) for gold in ("3 PM", "204_5", "March 5, 2024", "03/05/2024")]
    ['number', 'number', 'date', 'text']
    """
    if gold.lstrip().startswith("{") and '"goal"' in gold:
        return "plan"
    text = clean(gold)
    if read_date(text):
        return "date"
    if _ONE_OF_TWO_DATES.fullmatch(text):
        return "text"
    if (number := read_number(text)) and is_physical(number):
        return "quantity"
    if (number or read_amount(text)) and not _PRODUCT.fullmatch(text):
        return "number"
    if read_yes_no(text):
        return "yes_no"
    if _LETTERED.match(text) and read_gold_choice(text):
        return "choice"
    if _SMILES.fullmatch(gold) and all(gold.count(digit) % 2 == 0 for digit in "123456789"):
        return "smiles"
    if "," in text and (_BRACKETS.fullmatch(text) or all(read_amount(part.strip()) for part in text.split(","))):
        return "list"
    formula = _ALGEBRA.search(gold) and not _WORD.search(gold) and kind_of("expression").read(gold)
    return "expression" if formula else "text"


_BRACKETS = re.compile(r"\[([^][(){}]*)\]|\(([^][(){}]*)\)|\{([^][(){}]*)\}")
_LETTERED = re.compile(r"[A-J](?:[).:]|\Z)|[(\[][A-Ja-j][)\]]")
_ONE_OF_TWO_DATES = re.compile(r"[0-9]{1,2}([/-])[0-9]{1,2}\1[0-9]{4}")  # as `dates` says
_PRODUCT = re.compile(r"[+-]?[0-9.]+[a-z]")  # 5k, of a formula
_SMILES = re.compile(r"(?=.*[=#()\[\]1-9])(?:(?:Br|Cl|[BCNOPSFIbcnops]|\[[^]]+\])[-=#:/\\.()1-9]*){3,}")
_ALGEBRA = re.compile(r"[\\^=+*/√π]|[0-9][a-z]\b|\b[a-z]\(|\b[a-z]\s*-\s*[0-9]|[0-9]\s*-\s*[a-z]\b")
_WORD = re.compile(r"(?<![\\A-Za-z])(?!(?:sqrt|sin|cos|tan|log|exp)\b)[A-Za-z]{3,}")


@dataclass(frozen=True, slots=True)
class Kind:
    """`read` raw text, None if that is no answer of this kind; `same(found, expected)`, None if that is undecided."""

    read: Callable[[str], object | None]
    same: Callable[..., bool | None] = eq
    read_gold: Callable[[str], object | None] | None = None


def _cleaned(read: Callable[[str], object | None]) -> Callable[[str], object | None]:
    return lambda text: read(clean(text))


def bare(read: Callable[[str], object | None]) -> Callable[[str], object | None]:
    """The reader of clean text without brackets around it."""
    def read_bare(text: str) -> object | None:
        return read(unbracket(clean(unbracket(text.strip()))))
    return read_bare


def known(read: Callable, same: Callable) -> Callable[[str], object | None]:
    """A gold answer that its library knows, which is one that it finds equal to itself."""
    def read_gold(text: str) -> object | None:
        gold = read(text)
        with allow(LIMIT_SECONDS):  # its own time, not the reply's
            return gold if gold and same(gold, gold) else None
    return read_gold


_read_amount = bare(read_amount)
_COMMON = {
    "number": Kind(lambda text: read_plain(text) or _read_amount(text), same_number),
    "choice": Kind(_cleaned(read_choice), same_choice, _cleaned(read_gold_choice)),
    "yes_no": Kind(bare(read_yes_no)),
    "list": Kind(_cleaned(read_list)),
    "set": Kind(_cleaned(read_set)),
    "text": Kind(_cleaned(read_text), same_text),
    "date": Kind(bare(read_date)),
}
KINDS = ("number", "choice", "yes_no", "expression", "list", "set", "text", "quantity", "smiles", "plan", "date")


def kind_of(name: str) -> Kind:
    """How answers of a kind in `KINDS` are read and compared. A kind that is not here is a module of `recipes.graders`,
    imported when it is needed."""
    return _COMMON.get(name) or importlib.import_module(f"recipes.graders.{name}").KIND


@lru_cache(maxsize=4096)  # the answers of a group share one gold answer
def _read_gold(gold: str, kind: str) -> object:
    expected = (kind_of(kind).read_gold or kind_of(kind).read)(gold)
    if expected is None:
        raise ValueError(f"gold answer {gold!r} cannot be read as {kind}: fix the row or its kind")
    return expected

"""Is this answer right? `check(answer, gold, kind)`, one small reader a kind of answer.

What it is: a cascade in which a later step can only turn wrong into right. Our own readers (`numerals`, `expressions`,
`planning`) read an answer as a human would and compare exactly; what they cannot decide goes to math-verify, pint or
RDKit in a process of its own (`isolated`). What it is not: an evaluator; text is matched against patterns, never
executed. Where it departs from the usual graders: the whole answer must be the answer. Two candidates ("288, maybe 3"),
a hedge or a leftover digit are wrong, because a policy that earns credit for substrings learns to hedge. Units are
compared when both answers have one; kind "quantity" also asks for one, and converts it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from operator import eq

from reasonkit.expressions import Expression, contradict, may_equal, read_expression
from reasonkit.isolated import decide, start
from reasonkit.numerals import Number, clean, is_physical, read_number, read_plain, same_number
from reasonkit.planning import Problem, read_problem, read_steps

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
    found = KINDS[kind].read(answer) if answer else None
    if found is None:
        return Verdict(False, None, f"not read as {kind}" if answer and answer.strip() else "no answer")
    correct = KINDS[kind].same(found, expected)
    extracted = "; ".join(map(str, found)) if isinstance(found, tuple) else str(found)
    return Verdict(bool(correct), extracted, "undecided" if correct is None else "equal" if correct else "different")


def infer_kind(gold: str) -> str:
    """The kind that a gold answer is written as; "text" where no other fits. A set is not told from a list.

    >>> [infer_kind(gold) for gold in ("1,200", "5 km", "5 apples", "(B)", "No", "x^2 + 1", "[1, 2]", "CC(=O)O", "on")]
    ['number', 'quantity', 'number', 'choice', 'yes_no', 'expression', 'list', 'smiles', 'text']
    """
    if gold.lstrip().startswith("{") and '"goal"' in gold:
        return "plan"
    text = clean(gold)
    if number := read_number(text):
        return "quantity" if is_physical(number) else "number"
    if _read_yes_no(text):
        return "yes_no"
    if _LETTERED.match(text) and _read_choice(text):
        return "choice"
    if _SMILES.fullmatch(gold) and all(gold.count(digit) % 2 == 0 for digit in "123456789"):
        return "smiles"
    if "," in text and (_BRACKETS.fullmatch(text) or all(read_number(part.strip()) for part in text.split(","))):
        return "list"
    return "expression" if _ALGEBRA.search(gold) and not _WORD.search(gold) and read_expression(gold) else "text"


_CHOICE = re.compile(
    r"(?ais)(?:(?:option|choice)\s+)?"
    r"(?:[(\[]([a-z])[)\]](?:[.:]?|[.:]?\s(.*))|([a-z])(?:[.):]?|(?:[.):]|\s-\s)(.*)))"
)
_OTHER_CHOICE = re.compile(r"\A[A-Za-z]\Z|(?<![\w(])\(?[A-Za-z]\)(?!\w)|\b(?:or|and)\s\(?[A-HJ-Z]\b")
_BRACKETS = re.compile(r"\[([^][(){}]*)\]|\(([^][(){}]*)\)|\{([^][(){}]*)\}")
_LETTERED = re.compile(r"[A-J](?:[).:]|\Z)|[(\[][A-Ja-j][)\]]")
_SMILES = re.compile(r"(?=.*[=#()\[\]1-9])(?:(?:Br|Cl|[BCNOPSFIbcnops]|\[[^]]+\])[-=#:/\\.()1-9]*){3,}")
_ALGEBRA = re.compile(r"[\\^=+*/√π]|[0-9][a-z]\b|\b[a-z]\(|\b[a-z]\s*-\s*[0-9]|[0-9]\s*-\s*[a-z]\b")
_WORD = re.compile(r"(?<![\\A-Za-z])(?!(?:sqrt|sin|cos|tan|log|exp)\b)[A-Za-z]{3,}")


@dataclass(frozen=True, slots=True)
class _Choice:
    letter: str | None
    text: str

    def __str__(self) -> str:
        return self.letter or self.text


def _read_choice(text: str) -> _Choice | None:
    """The letter of "B", "(B)", "B." or "B) its text", upper case; None if another letter is offered too."""
    match = _CHOICE.fullmatch(text)
    rest = (match[2] or match[4] or "").strip(" .") if match else ""
    if match is None or _OTHER_CHOICE.search(rest):
        return None
    return _Choice((match[1] or match[3]).upper(), _option(rest))


def _read_any_choice(text: str) -> _Choice | None:
    return _read_choice(text) or (_Choice(None, _option(text)) if text else None)


def _option(text: str) -> str:
    return str(read_number(text) or _read_text(text) or "")


def _same_choice(found: _Choice, expected: _Choice) -> bool:
    """The letter decides; without one, the text of the gold answer's option does."""
    return found.letter == expected.letter if found.letter else found.text == expected.text != ""


def _read_yes_no(text: str) -> str | None:
    """Yes or no, true or false; what follows a comma or stop may explain it, not doubt it."""
    match = re.fullmatch(r"(?s)(yes|true|no|false)(?:(?:[.,;:!\n—]|\s[—-])(.*))?", text.casefold())
    if match is None:
        return None
    value, opposite = ("yes", {"no", "false"}) if match[1] in ("yes", "true") else ("no", {"yes", "true"})
    doubts = (opposite | {"maybe", "perhaps"}) & set(re.findall(r"\w+", match[2] or ""))
    return None if doubts else value


def _read_list(text: str) -> str | None:
    """Items between semicolons, else commas, else lines, else spaces; brackets and "and" are optional."""
    match = _BRACKETS.fullmatch(text.rstrip(". "))
    text = match[match.lastindex] if match else text
    text = "\n".join(filter(None, (" ".join(line.split()) for line in text.splitlines())))
    separator = next((sign for sign in ";,\n" if sign in text), " ")
    items = [_item(part) for part in text.replace(" and ", separator).split(separator) if part.strip()]
    return "; ".join(items) if items or match else None


def _item(text: str) -> str:
    number = read_number(text.strip())
    bare = number is not None and not number.mark and not number.unit
    return str(number) if bare else text.strip(" \n\"'.").casefold()


def _read_set(text: str) -> str | None:
    items = _read_list(text)
    return None if items is None else "; ".join(sorted(set(items.split("; "))))


def _read_text(text: str) -> str | None:
    """Words without case, articles and punctuation; signs within numbers stay, so that -3.5 is not 35."""
    text = unicodedata.normalize("NFC", text.casefold())
    bare = re.sub(r"\.(?!\d)|'", "", text)
    bare = re.sub(r"(?<!\d)[,:]|[,:](?!\d)|[;!?\"(){}\[\]…«»*_]|(?<=[^\W\d])-(?=[^\W\d])", " ", bare)
    kept = [word for word in bare.split() if word not in ("a", "an", "the")]
    return " ".join(kept or bare.split()) or text or None


def _same_expression(found: Expression, expected: Expression) -> bool | None:
    if contradict(found, expected):
        return False
    if found.latex == expected.latex:
        return True
    # A comma may be decimal, unless both are lists.
    if found.number and expected.number and not ("," in found.tokens and "," in expected.tokens):
        return same_number(found.number, expected.number)
    return may_equal(found, expected) and decide("expression", found.spaced, expected.spaced)


def _read_quantity(text: str) -> tuple[Number, ...] | None:
    """A number with its unit, or up to three that are added: 1 h 30 min."""
    parts = re.split(r"(?<=[A-WYZa-wyz])(?<!\d and)\s+(?:and\s+)?(?=[0-9])", text)
    numbers = tuple(map(read_number, parts[:4]))
    return None if None in numbers or len(numbers) > 3 or any(number.mark == ":" for number in numbers) else numbers


def _same_quantity(found: tuple[Number, ...], expected: tuple[Number, ...]) -> bool | None:
    return decide("quantity", *([[str(number.value), number.tail or number.mark or number.unit] for number in side]
                                for side in (found, expected)))


def _read_smiles(text: str) -> str | None:
    """The one word that raw text is, without quotes or a label: in SMILES a backslash is a bond."""
    text = _LABEL.sub("", text.strip()).strip("`\"' \n").rstrip(".")
    return text if re.fullmatch(r"\S+", text) else None


_LABEL = re.compile(r"\A\W*+(?:the\s++)?+(?:smiles|answer)\s*+(?:is\b|[:=])\s*+", re.IGNORECASE)


def _same_smiles(found: str, expected: str) -> bool | None:
    return decide("smiles", found, expected)


def _is_plan(found: tuple[str, ...], problem: Problem) -> bool:
    return problem.reached_by(found) is None


@dataclass(frozen=True, slots=True)
class _Kind:
    """`read` raw text, None if that is no answer of this kind; `same(found, expected)`, None if that is undecided."""

    read: Callable[[str], object | None]
    same: Callable[..., bool | None] = eq
    read_gold: Callable[[str], object | None] | None = None


def _cleaned(read: Callable[[str], object | None]) -> Callable[[str], object | None]:
    return lambda text: read(clean(text))


def _known(read: Callable, same: Callable) -> Callable[[str], object | None]:
    """A gold answer that its library knows, which is one that it finds equal to itself."""
    def read_gold(text: str) -> object | None:
        gold = read(text)
        return gold if gold and same(gold, gold) else None
    return read_gold


def _read_gold_expression(text: str) -> Expression | None:
    start("expression")  # a missing package is told at once, not at the first answer that needs algebra
    return read_expression(text)


KINDS = {
    "number": _Kind(lambda text: read_plain(text) or read_number(clean(text)), same_number),
    "choice": _Kind(_cleaned(_read_any_choice), _same_choice, _cleaned(_read_choice)),
    "yes_no": _Kind(_cleaned(_read_yes_no)),
    "expression": _Kind(read_expression, _same_expression, _read_gold_expression),
    "list": _Kind(_cleaned(_read_list)),
    "set": _Kind(_cleaned(_read_set)),
    "text": _Kind(_cleaned(_read_text)),
    "quantity": _Kind(_cleaned(_read_quantity), _same_quantity, _known(_cleaned(_read_quantity), _same_quantity)),
    "smiles": _Kind(_read_smiles, _same_smiles, _known(_read_smiles, _same_smiles)),
    "plan": _Kind(read_steps, _is_plan, read_problem),
}


@lru_cache(maxsize=4096)  # the answers of a group share one gold answer
def _read_gold(gold: str, kind: str) -> object:
    expected = (KINDS[kind].read_gold or KINDS[kind].read)(gold)
    if expected is None:
        raise ValueError(f"gold answer {gold!r} cannot be read as {kind}: fix the row or its kind")
    return expected

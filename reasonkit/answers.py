"""Is this answer right? One small reader a kind of answer, and `check`, which picks it and compares.

What it is: a normaliser of our own, on the standard library, that reads an answer as a human would and
compares exactly. What it is not: an evaluator. Text is matched against patterns, never executed, and no
number is built whose size the text could choose. Where it departs from the usual graders: the whole answer
must be the answer. Two candidates ("288, maybe 3"), a hedge or a leftover digit are wrong, because a policy
that earns credit for substrings learns to hedge. Units are compared when both answers have one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from operator import eq

MAX_CHARACTERS = 10_000
MAX_NUMBER_CHARACTERS = 200
MAX_EXPONENT = 400


@dataclass(frozen=True)
class Verdict:
    """`extracted` is the answer as read, None when it cannot be read; `why` is a phrase for logs."""

    correct: bool
    extracted: str | None
    why: str


def check(answer: str | None, gold: str, kind: str) -> Verdict:
    """Compare a model's answer, any text or None, with the gold answer.

    Raises ValueError for an unknown kind, and for a gold answer that cannot be read as its kind.

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
    return KINDS[kind](answer or "", gold)


def _compare(kind: str, read: Callable, same: Callable[..., bool], answer: str, gold: str) -> Verdict:
    """The verdict of a kind whose answers are read one by one: `read` maps clean text to a value, or None."""
    expected = read(_clean(gold))
    if expected is None:
        raise ValueError(f"gold answer {gold!r} cannot be read as {kind}: fix the row or its kind")
    found = read(_clean(answer))
    if found is None:
        return Verdict(False, None, f"not read as {kind}" if answer.strip() else "no answer")
    correct = same(found, expected)
    return Verdict(correct, str(found), "equal" if correct else "different")


# Typography that stands for ASCII: minus signs, spaces, quotes, the fraction slash, vulgar fractions.
_TYPOGRAPHY = str.maketrans(
    dict.fromkeys("\u2212\u2013\ufe63\uff0d", "-") | {"\u2044": "/"}
    | dict.fromkeys("\u00a0\u2007\u2009\u202f", " ")
    | dict.fromkeys("\u2018\u2019", "'") | dict.fromkeys("\u201c\u201d", '"')
    | {c: " " + unicodedata.normalize("NFKC", c).replace("\u2044", "/") for c in "¼½¾⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"}
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_MARKUP = tuple((re.compile(pattern, re.IGNORECASE), replacement) for pattern, replacement in (
    (r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}", r" \1/\2"),
    (r"\\(?:boxed|text|mathrm|mathbf)\s*+\{([^{}]*)\}", r" \1"),
    (r"\^(?:\\circ|\{\\circ\})", "°"),
    (r"\^\{([^{}]*)\}", r"^\1"),
    (r"\\(?:times|cdot)\b", "×"),
    (r"\{,\}", ","),
    (r"\\[,;: ]", " "),
    (r"\\([%${}])", r"\1"),
    (r"\\[()\[\]]|`", ""),
    (r"(?<!\w)\*\*([^*]+)\*\*(?!\w)", r"\1"),
    (r"\$([^$]+)\$", r"\1"),
    (r"\A\W*+(?:(?:so|the|my|final|correct)\s++)*+answer\s*+(?:is\b|[:=])[\s:]*+(?=\S)", ""),
    (r"""\A\s*(["'])(.+)\1\s*\Z""", r"\2"),
))


def _clean(text: str) -> str:
    """`text` without typography, Markdown, LaTeX, quotes around it, or a leading "The answer is"."""
    text = text.translate(_TYPOGRAPHY)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+", lambda match: "^" + match[0].translate(_SUPERSCRIPTS), text)
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return text.strip()


# A shape of digits and its decimal sign; the first shape that fits the whole numeral decides.
_SHAPES = tuple((re.compile(shape), decimal) for shape, decimal in (
    (r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+", "."),
    (r"[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]+)?", "."),                 # 1,234,567.8
    (r"[1-9][0-9]?(?:,[0-9]{2})+,[0-9]{3}(?:\.[0-9]+)?", "."),            # 12,34,567.8
    (r"[1-9][0-9]{0,2}([ '])[0-9]{3}(?:\1[0-9]{3})*(?:\.[0-9]+)?", "."),  # 1 234 567.8
    (r"[1-9][0-9]{0,2}([ .'])[0-9]{3}(?:\1[0-9]{3})*,[0-9]+", ","),       # 1.234.567,8
    (r"[1-9][0-9]{0,2}(?:\.[0-9]{3}){2,}", ","),                          # 1.234.567
    (r"[0-9]+,[0-9]+", ","),                                              # 3,14
))
_NUMERAL = r"\.?[0-9](?:[0-9.,' ]*[0-9])?"
_NUMBER = re.compile(
    rf"""(?:[A-Za-z]?\s*=\s*)?  (?P<sign>[+-]?)\s*  (?P<money>[$€£¥₹]?)\s*  (?P<inner_sign>[+-]?)\s*
    (?: (?P<whole>[0-9]+)\s+(?:and\s+)?(?=[0-9]+\s*/) )?
    (?: (?P<power>10)(?=\s*\^\s*[+-]?[0-9]) | (?P<top>{_NUMERAL}) (?:\s*/\s*(?P<bottom>{_NUMERAL}))? )
    (?: [eE](?P<e>[+-]?[0-9]+) | (?(power)|\s*[x×*]\s*10)\s*\^\s*(?P<exponent>[+-]?[0-9]+) )?
    (?P<percent>\s*(?:%|per\s?cent\b))?  \s*(?P<tail>.*)""",
    re.VERBOSE | re.DOTALL,
)
_UNIT = re.compile(r"(?:(?:^|[\s/·*-])(?:[^\W\d_]+\.?(?:\^-?[0-9])?|°[A-Za-z]?|[$€£¥₹])){0,4}")
_MULTIPLIERS = dict(hundred=100, thousand=10**3, million=10**6, billion=10**9, trillion=10**12, dozen=12)
_CURRENCY = {"$": "dollar", "€": "euro", "£": "pound", "¥": "yen", "₹": "rupee"}
# Words after a number that change it or offer another, so that they cannot be its unit.
_NOT_UNITS = frozenset(
    "is no and or not but maybe perhaps plus minus over by to below under less negative squared cubed "
    "factorial half halves third thirds quarter quarters pi π k x y z n i e zero one two three four five six "
    "seven eight nine ten eleven twelve twenty thirty forty fifty sixty seventy eighty ninety".split()
)


@dataclass(frozen=True)
class _Number:
    value: Fraction
    percent: bool
    unit: str  # in normal form, empty without one

    def __str__(self) -> str:
        return f"{self.value}{'%' if self.percent else ''} {self.unit}".strip()


def _read_number(text: str) -> _Number | None:
    """A number alone: sign, currency, fraction or mixed number or power of ten, percent, multiplier, unit."""
    text = text.rstrip(".,; \n")
    match = _NUMBER.fullmatch(text) if len(text) <= MAX_NUMBER_CHARACTERS else None
    if match is None or match["sign"] and match["inner_sign"]:
        return None
    words = _unit_words(match["tail"])
    top = Fraction(1) if match["power"] else _numeral(match["top"])
    bottom = _numeral(match["bottom"]) if match["bottom"] else Fraction(1)
    exponent = int(match["e"] or match["exponent"] or 0)
    if words is None or top is None or not bottom or match["whole"] and top >= bottom:
        return None
    if abs(exponent) > MAX_EXPONENT or match["bottom"] and exponent:
        return None
    value = (int(match["whole"] or 0) + top / bottom) * Fraction(10) ** exponent
    while words and (factor := _MULTIPLIERS.get(words[0].removesuffix("s"))):
        value, words = value * factor, words[1:]
    unit = " ".join(_CURRENCY.get(word, word.removesuffix("s")) for word in (match["money"], *words) if word)
    negative = "-" in match["sign"] + match["inner_sign"]
    return _Number(-value if negative else value, bool(match["percent"]), unit)


def _numeral(text: str) -> Fraction | None:
    decimal = next((decimal for shape, decimal in _SHAPES if shape.fullmatch(text)), None)
    return decimal and Fraction(re.sub(f"[^0-9{decimal}]", "", text).replace(decimal, "."))


def _unit_words(tail: str) -> list[str] | None:
    """The casefolded words of a unit, none for an empty tail; None if the tail cannot be a unit."""
    words = re.findall(r"[^\s/·*.-]+", tail)
    # A single letter keeps its case: N and K are units, n and k change the number.
    if not _UNIT.fullmatch(tail) or any((w if len(w) == 1 else w.casefold()) in _NOT_UNITS for w in words):
        return None
    return [word.casefold() for word in words]


def _same_number(found: _Number, expected: _Number) -> bool:
    """Equal values, with 50% equal to both 50 and 1/2, and no two different units."""
    if found.unit and expected.unit and found.unit != expected.unit:
        return False
    if found.percent == expected.percent:
        return found.value == expected.value
    percent, plain = (found, expected) if found.percent else (expected, found)
    return percent.value in (plain.value, plain.value * 100)


_CHOICE = re.compile(
    r"(?ais)(?:(?:option|choice)\s+)?"
    r"(?:[(\[]([a-z])[)\]](?:[.:]?|[.:]?\s(.*))|([a-z])(?:[.):]?|(?:[.):]|\s-\s)(.*)))"
)
_OTHER_CHOICE = re.compile(r"\A[A-Za-z]\Z|(?<![\w(])\(?[A-Za-z]\)(?!\w)|\b(?:or|and)\s\(?[A-HJ-Z]\b")
_BRACKETS = re.compile(r"\[([^][(){}]*)\]|\(([^][(){}]*)\)|\{([^][(){}]*)\}")


def _read_choice(text: str) -> str | None:
    """The letter of "B", "(B)", "B." or "B) its text", upper case; None if another letter is offered too."""
    match = _CHOICE.fullmatch(text)
    if match is None or _OTHER_CHOICE.search((match[2] or match[4] or "").strip(" .")):
        return None
    return (match[1] or match[3]).upper()


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
    number = _read_number(text.strip())
    bare = number is not None and not number.percent and not number.unit
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


# Each kind is a function from a model's answer and the gold answer to a verdict.
KINDS: dict[str, Callable[[str, str], Verdict]] = {
    "number": partial(_compare, "number", _read_number, _same_number),
    "choice": partial(_compare, "choice", _read_choice, eq),
    "yes_no": partial(_compare, "yes_no", _read_yes_no, eq),
    "list": partial(_compare, "list", _read_list, eq),
    "set": partial(_compare, "set", _read_set, eq),
    "text": partial(_compare, "text", _read_text, eq),
}

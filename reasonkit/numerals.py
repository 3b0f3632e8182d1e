"""Text as a human reads it, and the number in it: what every reader of `answers` begins with.

What it is: `clean`, which takes away typography, Markdown, LaTeX and phrases around an answer, and `read_number`, which
reads one number, exactly, with its percent sign, clock time or unit. What it is not: an evaluator. Text is matched
against patterns, never executed, and no number is built whose size the text could choose. Where it departs from the
usual graders: the whole text must be the number, so that "288, maybe 3" is none.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from fractions import Fraction

from reasonkit.tags import INVISIBLE

MAX_NUMBER_CHARACTERS = 200
MAX_EXPONENT = 400

# Typography that stands for ASCII: minus signs, spaces, quotes, the fraction slash, wide digits, vulgar fractions; and
# what has no width, which stands for nothing.
_TYPOGRAPHY = str.maketrans(
    dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d", "-") | {"\u2044": "/"}
    | dict.fromkeys("\u00a0\u2007\u2009\u202f", " ")
    | dict.fromkeys(INVISIBLE, "")
    | dict.fromkeys("\u2018\u2019", "'") | dict.fromkeys("\u201c\u201d", '"')
    | {chr(0xFF10 + digit): str(digit) for digit in range(10)}
    | {c: " " + unicodedata.normalize("NFKC", c).replace("\u2044", "/") for c in "¼½¾⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"}
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")


def _rules(*pairs: tuple[str, str]) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(pattern, re.IGNORECASE), replacement) for pattern, replacement in pairs)


# What is written around an answer of any kind, and the LaTeX within one that is no formula.
_AROUND = _rules(
    (r"\\[()\[\]]|`", ""),
    (r"(?<!\w)\*\*([^*]+)\*\*(?!\w)", r"\1"),
    (r"\$\$?([^$]+)\$\$?", r"\1"),
    (r"\A\W*+(?:(?:so|the|my|final|correct)\s++)*+answer\s*+(?:is\b|[:=])[\s:]*+(?=\S)", ""),
    (r"""\A\s*(["'])(.+)\1\s*\Z""", r"\2"),
)
_WITHIN = _rules(
    (r"\\[dt]?frac\s*+([0-9])\s*+([0-9])", r" \1/\2"),
    (r"\\[dt]?frac\s*+\{([^{}]*)\}\s*+\{([^{}]*)\}", r" \1/\2"),
    (r"\\(?:text(?:bf|it|rm|normal)?|mathrm|mathbf|mbox)\s*+\{([^{}]*)\}", r" \1"),
    (r"\\!\s*+", ""),
    (r"\^(?:\\circ|\{\\circ\})", "°"),
    (r"°\s++(?=[CF]\b)", "°"),
    (r"\^\{([^{}]*)\}", r"^\1"),
    (r"\\(?:times|cdot)\b", "×"),
    (r"\{,\}", ","),
    (r"\\[,;: ]", " "),
    (r"\\boxed\s*+\{([^{}]*)\}", r" \1"),
    (r"\\([%${}])", r"\1"),
)
_BOXED = re.compile(r"\A\s*\\boxed\s*\{(.*)\}[\s.]*\Z", re.DOTALL)


def clean(text: str) -> str:
    """`text` without typography, Markdown, LaTeX, quotes around it, or a leading "The answer is"."""
    text = _apply(_WITHIN, _typography(text))
    return _apply(_AROUND, text).strip()


def unwrap(text: str) -> str:
    """`clean` for formulas: what is around them is taken away, \\boxed{} too, and their LaTeX stays."""
    text = _apply(_AROUND, _typography(text)).strip()
    boxed = _BOXED.match(text)
    return boxed[1].strip() if boxed else text


def _typography(text: str) -> str:
    text = text.translate(_TYPOGRAPHY)
    return re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+", lambda match: "^" + match[0].translate(_SUPERSCRIPTS), text)


def _apply(rules: tuple[tuple[re.Pattern[str], str], ...], text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


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
# Most answers are this plain: nothing in them is to be cleaned.
_PLAIN = re.compile(r"\s*([+-]?(?:[0-9]+|[1-9][0-9]{0,2}(?:,[0-9]{3})+)(?:\.[0-9]+)?)\.?\s*")
_TIME = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])(?::([0-5][0-9]))?(?:\s*([ap])\.?m\.?)?", re.IGNORECASE)
_UNIT = re.compile(r"(?:(?:^|[\s/·*-])(?:[^\W\d_]+\.?(?:\^-?[0-9])?|°[A-Za-z]?|[$€£¥₹])){0,4}")
_MULTIPLIERS = dict(hundred=100, thousand=10**3, million=10**6, billion=10**9, trillion=10**12, dozen=12)
_CURRENCY = {"$": "dollar", "€": "euro", "£": "pound", "¥": "yen", "₹": "rupee"}
# Words after a number that change it or offer another, so that they cannot be its unit.
_NOT_UNITS = frozenset(
    "is no and or not but maybe perhaps plus minus over by to below under less negative squared cubed "
    "factorial half halves third thirds quarter quarters pi π k x y z n i e zero one two three four five six "
    "seven eight nine ten eleven twelve twenty thirty forty fifty sixty seventy eighty ninety".split()
)
# Units of physics by their names, for a reader that has to tell "5 km" from "5 apples".
_PHYSICAL = frozenset(
    "m mm cm dm km µm nm in inch inches ft foot feet yd yard yards mi mile miles meter meters metre metres centimeter "
    "centimeters kilometer kilometers kilometre kilometres g mg kg µg t ton tons gram grams kilogram kilograms lb lbs "
    "pound pounds oz ounce ounces s sec second seconds ms min minute minutes h hr hour hours day days l ml cl liter "
    "liters litre litres n j kj cal kcal joule joules newton newtons w kw mw watt watts v kv volt volts a amp amps ω "
    "ohm ohms hz khz mhz ghz pa kpa mpa bar atm k °c °f °k mol moles mph kph ev kev mev kwh".split()
)


@dataclass(frozen=True, slots=True)
class Number:
    """`mark` is "%" for a percentage, ":" for a clock time (its value in hours), else empty; `unit` is in normal form,
    empty without one, and `tail` the unit as written."""

    value: Fraction
    mark: str = ""
    unit: str = ""
    tail: str = field(default="", compare=False)

    def __str__(self) -> str:
        if self.mark == ":":
            seconds = int(self.value * 3600)
            return f"{seconds // 3600}:{seconds // 60 % 60:02}" + (f":{seconds % 60:02}" if seconds % 60 else "")
        return f"{self.value}{self.mark} {self.unit}".strip()


def read_plain(text: str) -> Number | None:
    """The number of raw text that is digits with a sign, a decimal point or thousands commas; None for any other."""
    if len(text) > MAX_NUMBER_CHARACTERS or not (match := _PLAIN.fullmatch(text)):
        return None
    digits = match[1].replace(",", "")
    return Number(Fraction(digits) if "." in digits else Fraction(int(digits)))


def read_number(text: str) -> Number | None:
    """The number that clean text is: sign, currency, fraction or mixed number or power of ten, percent, multiplier and
    unit, or a time of day."""
    text = text.rstrip(".,; \n")
    match = _NUMBER.fullmatch(text) if len(text) <= MAX_NUMBER_CHARACTERS else None
    if match is None or match["sign"] and match["inner_sign"]:
        return None
    words = _unit_words(match["tail"])
    if words is None:
        return _read_time(text)
    top = Fraction(1) if match["power"] else _numeral(match["top"])
    bottom = _numeral(match["bottom"]) if match["bottom"] else Fraction(1)
    exponent = int(match["e"] or match["exponent"] or 0)
    if top is None or not bottom or match["whole"] and top >= bottom:
        return None
    if abs(exponent) > MAX_EXPONENT or match["bottom"] and exponent:
        return None
    value = (int(match["whole"] or 0) + top / bottom) * Fraction(10) ** exponent
    tail = match["tail"].strip()
    while words and (factor := _MULTIPLIERS.get(words[0].removesuffix("s"))):
        value, words, tail = value * factor, words[1:], tail[len(words[0]):].lstrip(" -")
    unit = " ".join(_CURRENCY.get(word, word.removesuffix("s")) for word in (match["money"], *words) if word)
    negative = "-" in match["sign"] + match["inner_sign"]
    return Number(-value if negative else value, "%" if match["percent"] else "", unit, tail)


def same_number(found: Number, expected: Number) -> bool:
    """Equal values, with 50% equal to both 50 and 1/2, no two different units, and a time only equal to a time."""
    if found.unit and expected.unit and found.unit != expected.unit:
        return False
    if found.mark == expected.mark:
        return found.value == expected.value
    if ":" in (found.mark, expected.mark):
        return False
    percent, plain = (found, expected) if found.mark else (expected, found)
    return percent.value in (plain.value, plain.value * 100)


def is_physical(number: Number) -> bool:
    """Whether the number has a unit of physics."""
    words = re.findall(r"°?[^\W\d_]+", number.tail.casefold())
    return bool(words) and _PHYSICAL.issuperset(words)


def _read_time(text: str) -> Number | None:
    match = _TIME.fullmatch(text)
    if match is None or match[4] and not 1 <= int(match[1]) <= 12:
        return None
    hours = int(match[1]) % 12 + 12 * (match[4] in "pP") if match[4] else int(match[1])
    return Number(hours + Fraction(int(match[2]), 60) + Fraction(int(match[3] or 0), 3600), ":")


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

"""Rewrites the text of a formula by rules, to leave fewer ways of writing it.

Entry points: `split_unit`, and `rewrite` for repeating decimals, bases, degrees, "or" and "and", matrices and words in
\\text{}. Each rule takes linear time on any text, because every run of white space becomes one space first.
"""

from __future__ import annotations

import re
from fractions import Fraction

from reasonkit.text.hedges import NUMBER_WORDS
from reasonkit.text.numbers import Number, read_number
from reasonkit.text.units import is_known, read_unit

OR, AND = r"\lor", r"\land"  # between candidates

_TEXT = r"\\(?:text(?:rm|bf|it|normal)?|math(?:rm|bf|it|sf)|operatorname|mbox) ?"
_BASES = {name: str(number) for name, number in NUMBER_WORDS.items() if 2 <= number <= 16}
_BASE = rf"([0-9]+|{'|'.join(_BASES)})\b"
_DECIMAL = re.compile(  # the blocks in braces, in brackets, under strokes, between dots, written three times or twice
    r"""(?<![\w.}])([0-9]{0,30}+)\.([0-9]{0,12}?)(?:
        \\(?:overline|bar)\s?(?:\{([0-9]{1,99})\}|([0-9])) | \(([0-9]{1,99})\) | ((?:[0-9][\u0304\u0305]){1,99})
        | \\dot\s?\{?([0-9])\}?(?:([0-9]{0,99})\\dot\s?\{?([0-9])\}?)?
        | (?:([0-9])\10{2,40}|([0-9]{2,6}?)\11{1,20})(?:\.\.\.|…|\\[lc]?dots))""", re.VERBOSE)


def _base(match: re.Match[str]) -> str:
    number = _BASES.get(match[match.lastindex], match[match.lastindex])
    return "" if number == "10" else f"_{{{number}}}"


# Typography that `cleaning` does not handle: indices, logic and degrees.
_UNICODE = str.maketrans({"∨": rf" {OR} ", "∧": rf" {AND} ", "º": "°", "˚": "°"}
                         | {chr(0x2080 + digit): f"_{{{digit}}}" for digit in range(10)})
_NO_TEMPERATURE = r"(?! ?(?:\\[a-z]+\{)? ?[CFcf](?:\b|elsius|ahrenheit))"
# (pattern, replacement), applied in this order.
_RULES = tuple((re.compile(pattern), replacement) for pattern, replacement in (
    (r"(= ?)\\boxed ?\{(.*)\} ?\Z", r"\1\2"),
    (r"(?<=[0-9])\}_\{(?=[0-9]\})", ""),                                   # two digits of an index
    (r",\\! ?(?=[0-9])|\{,\}", ""),
    (r"\\[dt]?frac ?([0-9]) ([0-9])", r"\\frac{\1}{\2}"),
    (r"\+/-|\bplus[ -]minus\b", r"\\pm"),
    (r",? ?(?:\\text ?\{ ?or ?\}|\bor\b) ?,?", rf" \{OR} "),
    (r",? ?(?:\\text ?\{ ?and ?\}|\band\b) ?,?", rf" \{AND} "),
    (rf"_ ?{_TEXT}\{{([^{{}}]*)\}}", r"_{\1}"),                               # x_\text{max}
    (rf"_ ?\{{ ?{_TEXT}\{{([^{{}}]*)\}}([^{{}}]*)\}}", r"_{\1\2}"),
    (r"\(([0-9A-F]+)\)(?=_)", r"\1"),                                       # (204)_5
    (rf"(?<=[0-9]) ?_ ?(?:[{{(] ?\(?(?:base[ -]*+)?{_BASE}\)? ?[}})]|{_BASE})", _base),
    (rf"(?<=[A-F]) ?_ ?\{{ ?(?:base[ -]*+)?({'|'.join(_BASES)}) ?\}}", _base),
    (rf"(?<=[0-9A-F])[ ,]*+(?:{_TEXT}\{{)? ?\(?(?:in )?base ?\}}?[ -]*+{_BASE} ?[)}}]*+ ?\Z", _base),
    (rf"\^ ?(?:\\circ|\{{ ?\\circ ?\}}){_NO_TEMPERATURE}", "°"),
    (rf"(?:\\degree\b|{_TEXT}\{{ ?deg(?:rees?)? ?\}}|(?<=[0-9]) ?deg(?:rees?)?\b){_NO_TEMPERATURE}", "°"),
    (rf"{_TEXT}\{{ ?([A-Za-z]|lcm|gcd|[0-9A-F]+|a(?:rc)?(?:sin|cos|tan)|[^A-Za-z{{}}]*) ?\}}", r" \1 "),
    (r"(\\log|\blog)_ ?([0-9])([0-9]+)(?= ?(?:\Z|[-+,)}\]=]))", r"\1_{\2}\3"),  # \log_23
    (r"(?<![\\A-Za-z])log(2|10) ?\(", r"log_{\1}("),
    (r"(?<=[\])}]) ?U ?(?=[\[({\\])", r"\\cup "),
    (r"\\mathbb ?\{? ?R ?\}?|\A ?(?:\\text\{)? ?all real numbers? ?\}?\Z", "ℝ"),
    (r"\\(begin|end) ?\{(?:array|[pbB]?matrix|smallmatrix)\*?\}(?: ?\{[clr| ]*\})?", r"\\\1{pmatrix}"),
    (r"\\\\ ?\[[0-9.]+ ?[a-z]{2}\]", r"\\\\"),
    (r"\A\[([^][;,]*,[^][;]*(?:;[^][;,]*,[^][;]*)+)\]\Z", lambda match: f"[[{match[1].replace(';', '],[')}]]"),
    (r"\A ?[Mm]atrix ?\((.*)\) ?\Z", r"\1"),
))
_UNIT = re.compile(rf"(?:{_TEXT}\{{([^{{}}]*)\}}| ([A-Za-z]{{2,}}))(?: ?\^ ?\{{?([23])\}}?)? ?\Z")


# Names of units that a formula may end with. "x cd" is a product, not candelas.
_PHYSICAL = frozenset(
    "m mm cm dm km µm nm in inch inches ft foot feet yd yard yards mi mile miles meter meters metre metres centimeter "
    "centimeters kilometer kilometers kilometre kilometres g mg kg µg t ton tons gram grams kilogram kilograms lb lbs "
    "pound pounds oz ounce ounces s sec second seconds ms min minute minutes h hr hour hours day days l ml cl liter "
    "liters litre litres n j kj cal kcal joule joules newton newtons w kw mw watt watts v kv volt volts a amp amps ω "
    "ohm ohms hz khz mhz ghz pa kpa mpa bar atm k °c °f °k mol moles mph kph ev kev mev kwh".split())


def is_physical(number: Number) -> bool:
    """Whether the number has a unit of physics or a product of units."""
    words = re.findall(r"°?[^\W\d_]+|%", number.tail.casefold())
    return bool(words) and number.mark[:1] != "_" and (
        _PHYSICAL.issuperset(words) or len(words) > 1 and is_known(read_unit(number.tail)))


def rewrite(text: str) -> str:
    """Apply the rules, and drop punctuation at the end."""
    text = _DECIMAL.sub(_repeating_decimal, " ".join(text.split())).rstrip(".,; ").translate(_UNICODE)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text.rstrip(".,; ")


def split_unit(text: str) -> tuple[str, str]:
    """Split a formula from the unit after it, in \\text{} or one of physics. The unit is in normal form or empty."""
    if (match := _UNIT.search(text)) and match.start():
        power = f"^{match[3]}" if match[3] else ""
        measured = read_number(f"1 {match[1] or match[2]}{power}")
        if measured and measured.unit and (match[1] or is_physical(measured)):
            return text[: match.start()], measured.unit
    return text, ""


def _repeating_decimal(match: re.Match[str]) -> str:
    """A repeating decimal as a fraction: 0.1(6) is (16 - 1) / 90."""
    whole, fixed, *blocks = (group or "" for group in match.groups())
    block = "".join(digit for digit in "".join(blocks) if digit.isdecimal())
    short = int(whole + fixed or "0")
    value = Fraction(int(whole + fixed + block) - short, 10 ** len(fixed) * (10 ** len(block) - 1))
    return str(value) if value.denominator == 1 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"

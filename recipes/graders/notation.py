"""How formulas are written: rules from text to text, which leave fewer ways of writing one.

Entry points: `rewrite`, for repeating decimals, numerals of other bases, degrees, "or" and "and", matrices, words in
\\text{}, and `split_unit`. Each rule is linear on any text, because runs of white space are one space first.
"""

from __future__ import annotations

import re
from fractions import Fraction

from reasonkit.text.numbers import is_physical, read_number

OR, AND = r"\lor", r"\land"  # between candidates

_TEXT = r"\\(?:text(?:rm|bf|it|normal)?|math(?:rm|bf|it|sf)|operatorname|mbox) ?"
_BASES = {name: str(base) for base, name in enumerate(
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split(), 2)}
_BASE = rf"([0-9]+|{'|'.join(_BASES)})\b"
_DECIMAL = re.compile(  # the blocks in braces, in brackets, under strokes, between dots, written three times or twice
    r"""(?<![\w.}])([0-9]{0,30}+)\.([0-9]{0,12}?)(?:
        \\(?:overline|bar)\s?(?:\{([0-9]{1,99})\}|([0-9])) | \(([0-9]{1,99})\) | ((?:[0-9][\u0304\u0305]){1,99})
        | \\dot\s?\{?([0-9])\}?(?:([0-9]{0,99})\\dot\s?\{?([0-9])\}?)?
        | (?:([0-9])\10{2,40}|([0-9]{2,6}?)\11{1,20})(?:\.\.\.|…|\\[lc]?dots))""", re.VERBOSE)


def _base(match: re.Match[str]) -> str:
    name = match[match.lastindex]
    number = _BASES.get(name, name)
    return "" if number == "10" else f"_{{{number}}}"


# Typography that `numbers` leaves: an index, logic and degrees.
_UNICODE = str.maketrans({"∨": rf" {OR} ", "∧": rf" {AND} ", "º": "°", "˚": "°"}
                         | {chr(0x2080 + digit): f"_{{{digit}}}" for digit in range(10)})
_NO_TEMPERATURE = r"(?! ?(?:\\[a-z]+\{)? ?[CFcf](?:\b|elsius|ahrenheit))"
# (what the text must have, pattern, replacement), read in this order.
_RULES = tuple((sign, re.compile(pattern), replacement) for sign, pattern, replacement in (
    ("\\boxed", r"(= ?)\\boxed ?\{(.*)\} ?\Z", r"\1\2"),
    ("}_{", r"(?<=[0-9])\}_\{(?=[0-9]\})", ""),                                   # two digits of an index
    (",\\!", r",\\! ?(?=[0-9])", ""),
    ("{,}", r"\{,\}", ""),
    ("frac", r"\\[dt]?frac ?([0-9]) ([0-9])", r"\\frac{\1}{\2}"),
    ("or", r",? ?(?:\\text ?\{ ?or ?\}|\bor\b) ?,?", rf" \{OR} "),
    ("and", r",? ?(?:\\text ?\{ ?and ?\}|\band\b) ?,?", rf" \{AND} "),
    ("_", rf"_ ?{_TEXT}\{{([^{{}}]*)\}}", r"_{\1}"),                               # x_\text{max}
    ("_", rf"_ ?\{{ ?{_TEXT}\{{([^{{}}]*)\}}([^{{}}]*)\}}", r"_{\1\2}"),
    (")_", r"\(([0-9A-F]+)\)(?=_)", r"\1"),                                       # (204)_5
    ("_", rf"(?<=[0-9]) ?_ ?(?:[{{(] ?\(?(?:base[ -]*+)?{_BASE}\)? ?[}})]|{_BASE})", _base),
    ("_", rf"(?<=[A-F]) ?_ ?\{{ ?(?:base[ -]*+)?({'|'.join(_BASES)}) ?\}}", _base),
    ("base", rf"(?<=[0-9A-F])[ ,]*+(?:{_TEXT}\{{)? ?\(?(?:in )?base ?\}}?[ -]*+{_BASE} ?[)}}]*+ ?\Z", _base),
    ("\\circ", rf"\^ ?(?:\\circ|\{{ ?\\circ ?\}}){_NO_TEMPERATURE}", "°"),
    ("deg", rf"(?:\\degree\b|{_TEXT}\{{ ?deg(?:rees?)? ?\}}|(?<=[0-9]) ?deg(?:rees?)?\b){_NO_TEMPERATURE}", "°"),
    ("{", rf"{_TEXT}\{{ ?([A-Za-z]|lcm|gcd|[0-9A-F]+|a(?:rc)?(?:sin|cos|tan)|[^A-Za-z{{}}]*) ?\}}", r" \1 "),
    ("log_", r"(\\log|\blog)_ ?([0-9])([0-9]+)(?= ?(?:\Z|[-+,)}\]=]))", r"\1_{\2}\3"),  # \log_23
    ("log", r"(?<![\\A-Za-z])log(2|10) ?\(", r"log_{\1}("),
    ("+/-", r"\+/-", r"\\pm"),
    ("plus", r"\bplus[ -](?:or[ -])?minus\b", r"\\pm"),
    ("U", r"(?<=[\])}]) ?U ?(?=[\[({\\])", r"\\cup "),
    ("\\mathbb", r"\\mathbb ?\{? ?R ?\}?", "ℝ"),
    ("all", r"\A ?(?:\\text\{)? ?all real numbers? ?\}?\Z", "ℝ"),
    ("\\begin", r"\\begin ?\{(?:array|[pbB]?matrix|smallmatrix)\*?\}(?: ?\{[clr| ]*\})?", r"\\begin{pmatrix}"),
    ("\\end", r"\\end ?\{(?:array|[pbB]?matrix|smallmatrix)\*?\}", r"\\end{pmatrix}"),
    ("\\\\", r"\\\\ ?\[[0-9.]+ ?[a-z]{2}\]", r"\\\\"),
    (";", r"\A\[([^][;]*,[^][;]*(?:;[^][;]*,[^][;]*)+)\]\Z", lambda match: f"[[{match[1].replace(';', '],[')}]]"),
    ("atrix", r"\A ?[Mm]atrix ?\((.*)\) ?\Z", r"\1"),
))
_UNIT = re.compile(rf"(?:{_TEXT}\{{([^{{}}]*)\}}| ([A-Za-z]{{2,}}))(?: ?\^ ?\{{?([23])\}}?)? ?\Z")


def rewrite(text: str) -> str:
    """The formula's text in fewer ways of writing, without a stop at its end."""
    text = " ".join(text.split())
    if "." in text:
        text = _DECIMAL.sub(_repeating, text).rstrip(".,; ")
    if not text.isascii():
        text = text.translate(_UNICODE)
    for sign, pattern, replacement in _RULES:
        if sign in text:
            text = pattern.sub(replacement, text)
    return text.rstrip(".,; ")


def split_unit(text: str) -> tuple[str, str]:
    """A formula and the unit behind it in normal form, empty without one: in \\text{}, or a unit of physics."""
    if (match := _UNIT.search(text)) and match.start():
        power = f"^{match[3]}" if match[3] else ""
        measured = read_number(f"1 {match[1] or match[2]}{power}")
        if measured and measured.unit and (match[1] or is_physical(measured)):
            return text[: match.start()], measured.unit
    return text, ""


def _repeating(match: re.Match[str]) -> str:
    """0.1(6) as the fraction that it is: (16 - 1) / 90."""
    whole, fixed, *blocks = (group or "" for group in match.groups())
    block = "".join(digit for digit in "".join(blocks) if digit.isdecimal())
    short = int(whole + fixed or "0")
    value = Fraction(int(whole + fixed + block) - short, 10 ** len(fixed) * (10 ** len(block) - 1))
    return str(value) if value.denominator == 1 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"

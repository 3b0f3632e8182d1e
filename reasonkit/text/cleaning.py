"""Removes typography, Markdown, LaTeX and introductory phrases from an answer, and leaves what a human reads.

Entry points: `clean`, and `unwrap` for formulas, which keep their LaTeX. Every pattern takes linear time on any text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from itertools import accumulate

from reasonkit.text.tags import INVISIBLE

# ASCII for typographic signs, spaces, quotes, full-width forms and fractions. Characters without width are dropped.
_TYPOGRAPHY = str.maketrans(
    dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\ufe63", "-") | {"\u2044": "/"}
    | dict.fromkeys("\u00a0\u2007\u2009\u202f\u3000", " ")
    | dict.fromkeys(INVISIBLE, "")
    | dict.fromkeys("\u2018\u2019\u2032", "'") | dict.fromkeys("\u201c\u201d\u201e\u2033«»", '"')
    | {chr(0xFEE0 + code): chr(code) for code in range(0x21, 0x7F)}
    | {"【": "[", "】": "]", "。": ".", "、": ",", "⋅": "·", "∙": "·", "º": "°", "℃": "°C", "℉": "°F", "\u2126": "Ω"}
    | {c: " " + unicodedata.normalize("NFKC", c).replace("\u2044", "/") for c in "¼½¾⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"}
)
_RAISED, _LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "₀₁₂₃₄₅₆₇₈₉₊₋"
_SCRIPTS = re.compile(f"[{_RAISED}]+|[{_LOWERED}]+")
_PLAIN_SIZE = str.maketrans(_RAISED + _LOWERED, "0123456789+-" * 2)

Rules = tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...]
_PRODUCT = re.compile(r"[^\W\d](?:\s*+(?:\\cdot\b|[·×])|\s)\s*+[^\W\d]", re.IGNORECASE)


def _rules(*pairs: tuple) -> Rules:
    return tuple((re.compile(pattern, re.IGNORECASE), replacement) for pattern, replacement in pairs)


def _divide(fraction: re.Match[str]) -> str:
    """\\frac with a slash, and with brackets around a product of units below it."""
    top, bottom = (group for group in fraction.groups() if group is not None)
    return f" {top}/({bottom})" if _PRODUCT.search(bottom) else f" {top}/{bottom}"


# What surrounds an answer of any kind, and LaTeX inside an answer that is not a formula.
_AROUND = _rules(
    (r"\\[()\[\]]|`", ""),
    (r"\A\s*+#{1,6}+\s++", ""),
    (r"(?<!\w)\*\*([^*]+)\*\*(?!\w)", r"\1"),
    (r"(?<![\w*])\*(?=[^\s*])([^*\n]+)(?<=\S)\*(?![\w*])", r"\1"),
    (r"\A\s*(_{1,2})([^_]+)\1([\s.]*)\Z", r"\2\3"),
    (r"\$\$?([^$]+)\$\$?", r"\1"),
    (r"\A\W*+(?:(?:so|thus|hence|therefore|the|my|final|correct)[\s,]++)*+answer\s*+(?:is\b|[:=])[\s:]*+(?=\S)", ""),
    (r"""\A\s*(["'])(.+)\1\s*\Z""", r"\2"),
)
_WITHIN = _rules(
    (r"(?<=[0-9}])~(?=[\\A-Za-z])|(?<=\{)~", " "),
    (r"\\[,;: ]", " "),
    (r"\{10\}(?=\s*\^)", "10"),
    (r"\\(?:left|right)(?![A-Za-z])", ""),
    (r"([\^_])\s*+\{([^{}]*)\}", r"\1\2"),
    (r"\\(?:SI|qty)\s*+\{([^{}]*)\}\s*+\{([^{}]*)\}", r"\1 \2"),
    (r"\\(?:text(?:bf|it|rm|normal)?|mathrm|mathbf|mbox|ce|unit|si)\s*+\{([^{}]*)\}", r" \1"),
    (r"\\[dt]?frac\s*+(?:\{([^{}]*+)\}|([0-9]))\s*+(?:\{([^{}]*+)\}|([0-9]))", _divide),
    (r"\\!\s*+", ""),
    (r"\^?\\(?:circ|degree)\b", "°"),
    (r"(?:\{\s*+\}\s*+)?°\s*+(?=[CF]\b)", "°"),
    (r"\\mu(?![A-Za-z])\s*+", "µ"),
    (r"(?:(?<=\b[kMG])\s++)?\\(?-i:Omega)\b", "Ω"),
    (r"\\(?-i:AA)\b", "Å"),
    (r"\\(?:times|cdot)(?![A-Za-z])", "×"),
    (r"\{,\}", ","),
    (r"\\boxed\s*+\{([^{}]*)\}", r" \1"),
    (r"\\([%${}])", r"\1"),
    (r"<(b|i|em|strong)>([^<]*)</\1>", r"\2"),
    (r"<sub>", "_"), (r"<sup>", "^"), (r"</su[bp]>", ""),
)
_IS_AROUND = re.compile(r"[\\`*_$\"'#]|answer", re.IGNORECASE)
_IS_WITHIN = re.compile(r"[\\~^_{°<]")
_BOXED = re.compile(r"\A\s*\\boxed\s*\{(.*)\}[\s.]*\Z", re.DOTALL)
_FENCED = re.compile(r"\s*+(```+|~~~+)[ \t]*+[\w+#.-]*+[ \t]*+\n(.*)\1\s*", re.DOTALL)


def clean(text: str) -> str:
    """`text` without typography, Markdown, LaTeX, quotes around it, or a leading "The answer is"."""
    return _unwrap(_apply(_WITHIN, _IS_WITHIN, to_ascii(unfence(text))))


def unwrap(text: str) -> str:
    """Strip what surrounds a formula, including \\boxed{}, and keep the formula's LaTeX."""
    text = _unwrap(to_ascii(unfence(text)))
    boxed = _BOXED.match(text)
    return boxed[1].strip() if boxed else text


def unfence(text: str) -> str:
    """The contents of a Markdown fence, without its language name. Other text is returned unchanged."""
    fence = _FENCED.fullmatch(text)
    return fence[2] if fence else text


def unbracket(text: str) -> str:
    """`text` without the brackets around the whole of it, up to three pairs."""
    for _ in range(3):
        bare = text.rstrip(".,; \n")
        if not is_bracketed(bare):
            break
        text = bare[1:-1].strip()
    return text


def clean_inside(text: str) -> str:
    """The cleaned text without the brackets around it."""
    return unbracket(clean(unbracket(text.strip())))


def is_bracketed(text: str, start: int = 0) -> bool:
    """Whether the bracket that opens at `start` is closed by the last character."""
    if text[start:start + 1] not in PAIRS or text[-1] != PAIRS[text[start]]:
        return False
    *depths, last = accumulate((sign in PAIRS) - (sign in ")]}") for sign in text[start:])
    return not last and all(depths)


PAIRS = {"(": ")", "[": "]", "{": "}"}


def to_ascii(text: str) -> str:
    """Write typography as ASCII: x² as x^2, H₂O as H_2O, ５ as 5. Characters without width are dropped."""
    if text.isascii():
        return text
    return _SCRIPTS.sub(lambda match: "^_"[match[0][0] in _LOWERED] + match[0].translate(_PLAIN_SIZE),
                        text.translate(_TYPOGRAPHY))


def _unwrap(text: str) -> str:
    return _apply(_AROUND, _IS_AROUND, text).strip()


def _apply(rules: Rules, needed: re.Pattern[str], text: str) -> str:
    for pattern, replacement in rules if needed.search(text) else ():
        text = pattern.sub(replacement, text)
    return text

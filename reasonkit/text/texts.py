"""Words and names as answers: equal without case, punctuation and articles; dates and formulas in any writing.

Entry points: `read_text` and `same_text`. Surprise: an article is left out only where it can be one. The letter of
"Vitamin A" is a name, as is any that ends a phrase, comes before a comma or a hyphen, or is a capital inside a text.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from reasonkit.text.cleaning import unbracket
from reasonkit.text.dates import read_date

# "A minor" is a key, "A positive" a blood group, and "A and B" are two names.
_NAMED = r"(?!\s+(?:and|or|nor|to|is|was|minor|major|sharp|flat|positive|negative)\b)"
_ARTICLE = re.compile(rf"(?<![\w'-])(?:the|an|(?P<letter>a){_NAMED})\s+(?=[\"'(\[]*\w)", re.IGNORECASE)
_SURE_ARTICLE = re.compile(r"(?<![\w'-])(?:the|an)\s+(?=[\"'(\[]*\w)", re.IGNORECASE)
_ARROW = re.compile(r" ?(?:\\(?:long)?rightarrow\b|\\to\b|[→⟶⇒]|(?<!-)-++>|=>) ?")
_FORMULA = re.compile(
    r"(?P<body>(?:[A-Z][a-z]?|_?[0-9]++|[()\[\]·×*•])+)(?P<charge>\^?\([0-9]?[+-]\)|\^?[0-9]?[+-]{1,3}|\^[+-][0-9])?")
# What a caret raises in chemistry without making a power of it: a charge, a mass number, an orbital's share.
_RAISED = re.compile(
    r"\^([0-9]*[+-])(?!\w)|(?<!\w)\^([0-9]+)\s*(?=[A-Z][a-z]?\b)|(?<=\bsp)\^([23])|(?<=\bsp\^[23]d)\^(2)")
_COEFFICIENT, _PLUS = re.compile(r"(?<!\w)([0-9]+)\s+(?=[A-Z])"), re.compile(r"(?<=[\w)])\+(?=[0-9]*[A-Z])")



@dataclass(frozen=True, slots=True)
class Text:
    """`words` as compared, `full` with every "a" that might be a name, and the `date` that the text is."""

    words: str
    full: str
    date: str | None = None

    def __str__(self) -> str:
        return self.words


def read_text(text: str) -> Text | None:
    """The words of clean text without case, articles and punctuation; signs within numbers stay: -3.5 is not 35."""
    text = " ".join(unicodedata.normalize("NFC", text).split())  # one space each, or a pattern reads a long run again
    if formula := read_formula(text):
        return Text(formula, formula.casefold())
    if "_" in text or "^" in text or ">" in text or not text.isascii():
        text = _RAISED.sub(lambda match: match[match.lastindex], _ARROW.sub(" -> ", text))
        text = re.sub(r"_([0-9]+)", r"\1", text)
        if "->" in text:
            text = _PLUS.sub(" + ", _COEFFICIENT.sub(r"\1", text))
    shouted = text.isupper()
    bare = _ARTICLE.sub(
        lambda match: match[0] if match["letter"] == "A" and match.start() and not shouted else "", text)
    words = _words(bare) or text.casefold()
    full = _words(_SURE_ARTICLE.sub("", text)) if " a " in f" {text.casefold()}" else words
    return Text(words, full, read_date(text)) if words else None


def same_text(found: Text, expected: Text) -> bool:
    """Equal words, or dates; "a" in the answer may be a name where it is one in the gold answer."""
    if found.date and expected.date:
        return found.date == expected.date
    return expected.words in (found.words, found.full) or found.words == expected.full != expected.words


def _words(text: str) -> str:
    bare = re.sub(r"\.(?!\d)|'", "", text.casefold())
    bare = re.sub(r"(?<!\d)[,:]|[,:](?!\d)|!(?!\w)|[;?\"(){}\[\]…«»*_]|(?<=[^\W\d])-(?=[^\W\d])", " ", bare)
    return " ".join(bare.split())


def read_formula(text: str) -> str | None:
    """A chemical formula in one writing, its charge after ^; None where the text is none.

    In SO42- and Ca2+ the digit before the sign is the charge's: the last of two, or the only one after one element.
    """
    text = text.rstrip(". ")
    text = unbracket(text) if text[:1] == "(" else text
    if len(text) > 80 or not any(map(str.isdecimal, text)) and text[-1:] not in ("+", "-"):
        return None
    spaced = re.search(r"[_^·×•]|\w [0-9]?[+-]\Z|\A(?:[A-Z][a-z]?[0-9]+ )+[A-Z][a-z]?[0-9]*\Z", text)
    match = _FORMULA.fullmatch("".join(text.split()) if spaced else text)
    if match is None or not any(map(str.isalpha, match["body"])):
        return None
    body, charge = re.sub("[×*•]", "·", match["body"]), (match["charge"] or "").strip("()")
    signs = charge.lstrip("^(0123456789")
    count = re.sub(r"\D", "", charge) or (str(len(signs)) if len(signs) > 1 else "")
    digits = re.search(r"(?:[0-9])?[0-9]\Z", body)
    if charge in ("+", "-") and digits and (
            len(digits[0]) == 2 or "_" not in body and re.fullmatch(r"[A-Z][a-z]?[0-9]|\[.*\][0-9]", body)):
        body, count = body[:-1], body[-1]
    body = body.replace("_", "")
    if body[:1] == "[" and body[-1:] == "]":
        body = unbracket(body)
    return body + (f"^{'' if count == '1' else count}{signs[:1]}" if signs else "")

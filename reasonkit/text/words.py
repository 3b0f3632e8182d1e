"""Reads words, names and dates as answers.

Entry points: `read_text` and `same_text`, which ignore case, punctuation and articles, and `read_date`. Surprises: "a"
is ignored only if it can be an article, because the letter of "Vitamin A" is a name. 03/05/2024 is not read as a date,
because it may mean either of two days.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from datetime import date

from reasonkit.text.cleaning import unbracket

# "A minor" is a key, "A positive" a blood group, and "A and B" are two names.
_NAMED = r"(?!\s+(?:and|or|nor|to|is|was|minor|major|sharp|flat|positive|negative)\b)"
_ARTICLE = re.compile(rf"(?<![\w'-])(?:the|an|(?P<letter>a){_NAMED})\s+(?=[\"'(\[]*\w)", re.IGNORECASE)
_SURE_ARTICLE = re.compile(r"(?<![\w'-])(?:the|an)\s+(?=[\"'(\[]*\w)", re.IGNORECASE)
_ARROW = re.compile(r" ?(?:\\(?:long)?rightarrow\b|\\to\b|[→⟶⇒]|(?<!-)-++>|=>) ?")
_FORMULA = re.compile(
    r"(?P<body>(?:[A-Z][a-z]?|_?[0-9]++|[()\[\]·×*•])+)(?P<charge>\^?\([0-9]?[+-]\)|\^?[0-9]?[+-]{1,3}|\^[+-][0-9])?")
# What is raised in chemistry without being a power: a charge, a mass number, the superscript of an orbital.
_RAISED = re.compile(
    r"\^([0-9]*[+-])(?!\w)|(?<!\w)\^([0-9]+)\s*(?=[A-Z][a-z]?\b)|(?<=\bsp)\^([23])|(?<=\bsp\^[23]d)\^(2)")
_COEFFICIENT, _PLUS = re.compile(r"(?<!\w)([0-9]+)\s+(?=[A-Z])"), re.compile(r"(?<=[\w)])\+(?=[0-9]*[A-Z])")


def words(text: str) -> list[str]:
    """The words of `text` in order, without case. Linear in its length.

    >>> words("Leo has 6 shells.")
    ['leo', 'has', '6', 'shells']
    """
    return re.findall(r"\w+", text.casefold())


@dataclass(frozen=True, slots=True)
class Text:
    """`words` are compared. `full` also keeps every "a" that may be a name. `date` is set if the text is a date."""

    words: str
    full: str
    date: str | None = None

    def __str__(self) -> str:
        return self.words


def read_text(text: str) -> Text | None:
    """The words of clean text without case, articles and punctuation, but with the signs of numbers: -3.5 is not 35."""
    text = " ".join(unicodedata.normalize("NFC", text).split())  # long runs would be slow to match
    if formula := read_formula(text):
        return Text(formula, formula.casefold())
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
    """Whether dates or words are equal. "a" in the answer may be a name if it is one in the gold answer."""
    if found.date and expected.date:
        return found.date == expected.date
    return expected.words in (found.words, found.full) or found.words == expected.full != expected.words


def _words(text: str) -> str:
    bare = re.sub(r"\.(?!\d)|'", "", text.casefold())
    bare = re.sub(r"(?<!\d)[,:]|[,:](?!\d)|!(?!\w)|[;?\"(){}\[\]…«»*_]|(?<=[^\W\d])-(?=[^\W\d])", " ", bare)
    return " ".join(bare.split())


def read_formula(text: str) -> str | None:
    """A chemical formula in normal form, with its charge after ^. None for other text.

    In SO42- and Ca2+ the digit before the sign is the charge: the last of two, or a single one after a single element.
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


# Dates.

MAX_DATE_CHARACTERS = 60

_MONTHS = {name: number for number, names in enumerate((
    "january jan januar janvier enero gennaio janeiro января",
    "february feb februar février febrero febbraio fevereiro февраля",
    "march mar märz mars marzo março марта", "april apr avril abril aprile апреля", "may mai mayo maggio maio мая",
    "june jun juni juin junio giugno junho июня", "july jul juli juillet julio luglio julho июля",
    "august aug août agosto августа", "september sep sept septembre septiembre settembre setembro сентября",
    "october oct oktober octobre octubre ottobre outubro октября", "november nov novembre noviembre novembro ноября",
    "december dec dezember décembre diciembre dicembre dezembro декабря"), 1) for name in names.split()}
_WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WEEKDAY = re.compile(r"\A(mon|tue|wed|thu|fri|sat|sun)[a-z]*\.?,?\s+|,?\s+\(?(mon|tue|wed|thu|fri|sat|sun)[a-z]*\)?\Z")
_BEFORE = re.compile(r"\A(?:(?:the\s+)?date\s*(?:is|was|:)\s*)?(?:(?:on|in)\s+)?(?=\w)")
_DAY = r"(?P<day>[0-3]?[0-9])(?:\s?(?:st|nd|rd|th|er|º|°)\b|\.)?"
_MONTH = r"(?P<month>[^\W\d_]{3,10})\.?"
_YEAR = r"(?P<year>[0-9]{4}|[0-9]{1,4}(?=\s*(?:a\.?d|b\.?c|c\.?e)))(?:\s*(?P<era>a\.?d\.?|b\.?c\.?(?:e\.?)?|c\.?e\.?))?"
_OF = r"(?:\s*-\s*|[\s,]+(?:(?:of|de|del)\s+)?)"
_FORMS = tuple(re.compile(form) for form in (
    rf"{_MONTH}(?:\s+the)?[\s-]+{_DAY}(?:(?:\s*,\s*|\s+|-){_YEAR})?",   # March 5th, 2024
    rf"(?:(?:the|le|el)\s+)?{_DAY}{_OF}{_MONTH}(?:{_OF}{_YEAR})?",      # the 5th of March, 2024
    rf"{_MONTH}{_OF}(?P<year>[0-9]{{4}})",                               # March 2024
    rf"(?P<year>[0-9]{{4}})[\s,-]+{_MONTH}[\s-]+{_DAY}",                  # 2024 March 5
    r"(?P<year>[0-9]{4})([-/.])(?P<month>[0-9]{1,2})\2(?P<day>[0-9]{1,2})(?:t00:00(?::00)?z?)?",
    r"(?P<year>[0-9]{4})-(?P<month>[0-9]{2})",
    r"(?P<year>[0-9]{4})\s?年\s?(?P<month>[0-9]{1,2})\s?月(?:\s?(?P<day>[0-9]{1,2})\s?日)?",
    r"(?P<day>[0-9]{1,2})\.\s?(?P<month>[0-9]{1,2})\.\s?(?P<year>[0-9]{4})",
    r"(?P<one>[0-9]{1,2})([/-])(?P<two>[0-9]{1,2})\2(?P<year>[0-9]{4})",
))


def read_date(text: str) -> str | None:
    """The date in clean text as ISO 8601, or None: "2024-03-05", "2024-03" without a day, "--03-05" without a year.

    With dots the day comes first (DIN 5008). With slashes or hyphens only a number above 12 tells which is the day.

    >>> [read_date(text) for text in ("Mar. 5, 2024", "5th of March", "25/03/2024", "03/05/2024")]
    ['2024-03-05', '--03-05', '2024-03-25', None]
    """
    if len(text) > MAX_DATE_CHARACTERS:
        return None
    text = _BEFORE.sub("", text.casefold().strip(" .,;\n"))
    if weekday := _WEEKDAY.search(text):
        text = text[:weekday.start()] + text[weekday.end():]
    match = next(filter(None, (form.fullmatch(text) for form in _FORMS)), None)
    return _date(weekday and (weekday[1] or weekday[2]), **match.groupdict()) if match else None


def _date(weekday: str | None, year: str | None = None, month: str | None = None, day: str | None = None,
          era: str | None = None, one: str | None = None, two: str | None = None) -> str | None:
    if one and two:
        day, month = (one, two) if int(one) > 12 else (two, one)
        if int(day) <= 12 and int(one) != int(two):
            return None
    number = int(month) if month.isdecimal() else _MONTHS.get(month, 0)
    sign = "-" if era and era.startswith("b") else ""
    known = year and not sign
    try:  # without a year, any leap year will do
        found = date(int(year) if known else 2000, number, int(day or 1))
    except ValueError:
        return None
    if weekday and known and day and _WEEKDAYS[found.weekday()] != weekday:
        return None
    return (f"{sign}{int(year):04}" if year else "-") + f"-{number:02}" + (f"-{int(day):02}" if day else "")

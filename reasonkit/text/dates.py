"""A date as people write it: `read_date` reads "March 5th, 2024", 05.03.2024 and 2024年3月5日 as 2024-03-05.

The rule for figures: after a year comes the month; between points the day comes first (DIN 5008); between slashes or
hyphens month and day are told apart by their size alone. 03/05/2024 may be two days, so it is no date.
"""

from __future__ import annotations

import re
from datetime import date

MAX_DATE_CHARACTERS = 60

_MONTHS = {name: number for number, names in enumerate((
    "january jan januar janvier enero gennaio janeiro января",
    "february feb februar février febrero febbraio fevereiro февраля",
    "march mar märz mars marzo março марта", "april apr avril abril aprile апреля", "may mai mayo maggio maio мая",
    "june jun juni juin junio giugno junho июня", "july jul juli juillet julio luglio julho июля",
    "august aug août agosto августа", "september sep sept septembre septiembre settembre setembro сентября",
    "october oct oktober octobre octubre ottobre outubro октября", "november nov novembre noviembre novembro ноября",
    "december dec dezember décembre diciembre dicembre dezembro декабря"), 1) for name in names.split()}
_WEEKDAYS = "mon tue wed thu fri sat sun".split()
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
    """The date that clean text is, as ISO 8601: "2024-03-05", without the day "2024-03", without the year "--03-05".

    None where it is no date, or might be two.

    >>> [read_date(text) for text in ("Mar. 5, 2024", "5th of March", "25/03/2024", "03/05/2024")]
    ['2024-03-05', '--03-05', '2024-03-25', None]
    """
    if len(text) > MAX_DATE_CHARACTERS:
        return None
    text = _BEFORE.sub("", text.casefold().strip(" .,;\n"))
    if weekday := _WEEKDAY.search(text):
        text = text[:weekday.start()] + text[weekday.end():]
    for form in _FORMS:
        if match := form.fullmatch(text):
            found = _date(**match.groupdict())
            break
    else:
        return None
    if found and weekday and not _falls_on(found, _WEEKDAYS.index(weekday[1] or weekday[2])):
        return None
    return found


def _date(year: str | None = None, month: str | None = None, day: str | None = None, era: str | None = None,
          one: str | None = None, two: str | None = None) -> str | None:
    if one and two:
        days, months = (one, two) if int(one) > 12 else (two, one)
        if int(days) <= 12 and int(one) != int(two):
            return None
        day, month = days, months
    number = int(month) if month.isdecimal() else _MONTHS.get(month, 0)
    try:  # a leap year where none is named
        date(int(year or 2000) if not era else 2000, number, int(day or 1))
    except ValueError:
        return None
    sign = "-" if era and era.startswith("b") else ""
    return (f"{sign}{int(year):04}" if year else "-") + f"-{number:02}" + (f"-{int(day):02}" if day else "")


def _falls_on(found: str, weekday: int) -> bool:
    try:
        return date.fromisoformat(found).weekday() == weekday
    except ValueError:  # no year, or no day
        return True

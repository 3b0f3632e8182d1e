"""The kind "list", and `read_set` for the kind "set": items between separators, lines or bullets.

Each item is a number, a tuple or words. A separator inside brackets does not split. A name before a value ("x = 2") is
dropped unless the list has several names. Surprise: round brackets in a set are a tuple, and its order counts.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import pairwise

from reasonkit.text.answers import Kind
from reasonkit.text.cleaning import PAIRS, clean, is_bracketed
from reasonkit.text.hedges import has_hedge
from reasonkit.text.numbers import read_number
from reasonkit.text.words import read_formula

MAX_DEPTH = 4

_STOPS = re.compile(r"[()\[\]{};,\n]|\s(?:and|&)\s|[→⇒]|[-=]>")
_NAME = r"(?:[^\W\d]\w*|\(\s*[A-Za-z](?:\s*,\s*[A-Za-z])+\s*\))"
_NAMED = re.compile(rf"\s*[\"']?({_NAME})[\"']?\s*(?:=|∈|\\in\b|\bin\b(?=\s*[{{\[])|:)\s*(?=\S)")
_BULLETED = re.compile(
    r"(?:[-+—*•◦▪▫●○■‣]\s+|[(\[]?([0-9]{1,3}|[a-z]|[ivx]{2,4})[])}.:]{1,2}(?:\s+|(?<=[0-9].)(?=[^\W\d])))(\S.*)",
    re.IGNORECASE)
_NUMBERED = re.compile(
    r"(?:(?<=[\s,;])|\A)(?:[•◦▪●‣]|\(?([0-9]{1,3}(?=[.)])|(?<=\()(?:[a-z]|[ivx]{2,4})(?=\)))[.)])\s+(?=\S)",
    re.IGNORECASE)
_ALONE = re.compile(r"[0-9(\[*•◦▪▫●○■‣]|[-+—]\s+[^\W\d]{2}")  # for a single line: "- 7" is -7, and "A. Lee" is a name
_TUPLES = re.compile(r"(?<=[)\]}])\s+(?=[(\[{])")
_ARROWS = ("→", "⇒", "->", "=>")
_NUMBERS, _LETTERS = [*map(str, range(1, 1000))], [*map(chr, range(97, 123))]
_ROMANS = "i ii iii iv v vi vii viii ix x xi xii".split()
_THEN, _BOTH = re.compile(r"(,|\sand)\s+then\s"), re.compile(r"(?is)both\s+(?=.*\sand\s)")
_OR_NAMED = re.compile(r"\sor\s+(?=[A-Za-z]\w*\s*=)")  # "x = 2 or x = 3" means both, but any other "or" is a hedge
_EMPTY = frozenset(("∅", "\\emptyset", "\\varnothing", "empty set", "the empty set"))


def read_list(text: str) -> str | None:
    """The items of raw text in normal form, joined by semicolons. None if there are no items.

    Bullets or item numbers divide the items. Without them, semicolons, commas, lines, arrows or spaces do.
    """
    items = _items(_THEN.sub(r"\1 ", clean(text)), "([{", 0)
    return None if items is None else "; ".join(items)


def read_set(text: str) -> str | None:
    """Like `read_list`, but without order and repetition. A tuple in round brackets keeps both."""
    text = clean(text)
    items = [] if text.strip(" .$").casefold() in _EMPTY else _items(_OR_NAMED.sub(" and ", text), "[{", 0)
    return None if items is None else "; ".join(sorted(set(items)))


def _items(text: str, around: str, depth: int) -> list[str] | None:
    text = text.strip(" .\n")
    if both := _BOTH.match(text):
        text = text[both.end():]
    if (name := _NAMED.match(text)) and is_bracketed(text, name.end()) and not has_hedge([name[1]]):
        text = text[name.end():]  # x ∈ {1, 2}
    bracketed = is_bracketed(text) and text[0] in around
    if bracketed:
        text = text[1:-1]
    items, names = [], set()
    for part in _bullets(text) or _split(text):
        match = _NAMED.match(part)
        name = match[1] if match and not has_hedge([match[1]]) else ""
        names |= {name} - {""}
        if part.strip():
            items.append((name, _item(part[match.end():] if name else part, depth)))
    items = [f"{name.casefold()} = {item}" if name and len(names) > 1 else item for name, item in items]
    return items if items or bracketed else None


def _bullets(text: str) -> list[str]:
    """The items of a list with bullets or item numbers, on several lines or on one. [] for other text."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and lines[0][-1] == ":":
        lines = lines[1:]  # "The cities are:"
    places = [match.start() for match in _NUMBERED.finditer(text)]
    inline = [text[start:end].strip() for start, end in pairwise([*places, len(text)])]
    for marked in (inline if len(lines) < 2 <= len(inline) and not places[0] else [], lines):
        found = [_BULLETED.fullmatch(line) for line in marked]
        if marked and all(found) and (len(marked) > 1 or _ALONE.match(marked[0])):
            marks = [match[1] for match in found]
            if marks[0] is None and len({line[0] for line in marked}) == 1 or _counts(marks):
                return [match[2].rstrip(" ,;.") for match in found]
    return []


def _counts(marks: list[str | None]) -> bool:
    written = [mark and mark.casefold() for mark in marks]
    return any(written == counted[:len(marks)] for counted in (_NUMBERS, _LETTERS, _ROMANS))


def _split(text: str) -> list[str]:
    """The parts between the separators outside all brackets."""
    depth, found = 0, []
    for match in _STOPS.finditer(text):
        sign = match[0]
        depth = max(0, depth + (sign in PAIRS) - (sign in ")]}"))
        if not depth and sign not in ")]}":
            found.append((match.start(), match.end(), "→" if sign in _ARROWS else sign.strip(" ") or "\n"))
    signs = {sign for *_, sign in found}
    separator = next((sign for sign in ";,\n→" if sign in signs), None)
    if separator is None and "and" not in signs and "&" not in signs:
        if not any(bracket in text for bracket in "([{"):
            return text.split(" ")
        parts = _TUPLES.split(text)
        return parts if all(map(is_bracketed, parts)) else [text]
    parts, start = [], 0
    for begin, end, sign in found:
        if sign in (separator, "and", "&"):
            parts.append(text[start:begin])
            start = end
    return [*parts, text[start:]]


@lru_cache(maxsize=512)  # the answers of a group share items
def _item(text: str, depth: int) -> str:
    text = " ".join(text.split())
    number = read_number(text, prose=True)
    if number is not None and not (number.unit or number.mark or number.quotient):
        return str(number)
    if depth < MAX_DEPTH and is_bracketed(text, 0):
        items = _items(text, "([{", depth + 1) or []
        return f"({', '.join(items)})" if text[0] != "{" else f"{{{', '.join(sorted(set(items)))}}}"
    return (read_formula(text) or text.strip("\"'. ")).casefold()


KIND = Kind(read_list)

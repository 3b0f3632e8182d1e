"""Numbers with units of physics: `read_quantity` reads "5 ft 10 in", 1h30m and 4186 J/(kg·K).

Equal units are compared here; others are converted by pint in a process of its own (`worker`). Surprise: a lone C or
F is a degree where the other answer is a temperature.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fractions import Fraction

from reasonkit.text.numbers import read_value
from reasonkit.text.units import read_unit, spell
from recipes.graders.worker import TOLERANCE, decide

MAX_PARTS = 3

_BETWEEN = re.compile(r"(?<=[A-WYZa-wyz.])(?<!times)(?<!of)(?<!\d and)(?:\s*,)?\s+(?:and\s+)?(?=[0-9])")
_DURATION = re.compile(r"(?:([0-9]+)\s*h(?:rs?|ours?)?\s*)?(?:([0-9]+)\s*m(?:ins?|inutes?)?\s*)?"
                       r"(?:([0-9.]+)\s*s(?:ecs?|econds?)?)?", re.IGNORECASE)
_FEET = re.compile(r"([0-9]+)\s*'\s*(?:([0-9.]+)\s*(?:\"|''))?")
_PER = re.compile(r"(?<=[0-9])\s+\(?1\s*/\s*(?=[A-Za-z(])([^()]*)\)?\Z")


@dataclass(frozen=True, slots=True)
class Part:
    """A value with its unit as pint reads it; `loose` where a product after a slash is meant to be below it.
    `quotient`: as of a number."""

    value: Fraction
    unit: str
    loose: str
    quotient: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        return f"{self.value} {self.unit}".strip()


def read_quantity(text: str) -> tuple[Part, ...] | None:
    """A number with its unit, or up to three that are added; None where clean text is neither."""
    text = text.rstrip(".,; \n")
    if len(text) > 200:
        return None
    if (match := _DURATION.fullmatch(text)) and sum(map(bool, match.groups())) > 1:
        written = [f"{value} {unit}" for value, unit in zip(match.groups(), ("h", "min", "s"), strict=True) if value]
    elif match := _FEET.fullmatch(text):
        written = [f"{match[1]} ft", *([f"{match[2]} in"] if match[2] else [])]
    else:
        written = _BETWEEN.split(_PER.sub(r" /\1", text))
    parts = tuple(map(_read_part, written[:MAX_PARTS + 1]))
    return None if None in parts or len(parts) > MAX_PARTS else parts


def _read_part(text: str) -> Part | None:
    number = read_value(text.rstrip("., "))
    if number is None or number.unit:
        return None
    unit, loose = (read_unit(number.mark + number.tail, loose) for loose in (False, True))
    return None if unit is None or loose is None else Part(
        number.value, spell(unit), spell(loose), number.quotient)


def same_quantity(found: tuple[Part, ...], expected: tuple[Part, ...]) -> bool | None:
    """Whether the two are equal once converted, to within the rounding of a unit's conversion; None where undecided."""
    if any(part.quotient for part in found) and not any(part.quotient for part in expected):
        return False
    units = [part.unit for part in expected]
    if len(found) == 1 and found[0].unit in ("C", "F") and units in (["degC"], ["degF"], ["K"]):
        found = (Part(found[0].value, *["deg" + found[0].unit] * 2),)
    if len(found) == 1 and [found[0].unit] == units and found is not expected:
        x, y = found[0].value, expected[0].value
        return abs(x - y) <= Fraction(TOLERANCE) * max(abs(x), abs(y))
    return decide("quantity", *([[str(part.value), part.unit, part.loose] for part in side]
                                for side in (found, expected)))

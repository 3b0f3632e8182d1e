"""The kind "quantity": a number with a unit of physics, such as "5 ft 10 in", 1h30m and 4186 J/(kg·K).

Values with equal units are compared here. For others pint converts the units in the worker. Surprise: C or F without a
degree sign is a degree if the gold answer is a temperature.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import product
from math import isclose

from reasonkit.text.answers import Kind
from reasonkit.text.cleaning import clean_inside
from reasonkit.text.numbers import read_value
from reasonkit.text.units import format_unit, read_unit
from recipes.graders.worker import decide, gold_reader

MAX_PARTS = 3
TOLERANCE = 1e-9  # relative, for the rounding of a unit's conversion

_BETWEEN = re.compile(r"(?<=[A-WYZa-wyz.])(?<!times)(?<!of)(?<!\d and)(?:\s*,)?\s+(?:and\s+)?(?=[0-9])")
_DURATION = re.compile(r"(?:([0-9]+)\s*h(?:rs?|ours?)?\s*)?(?:([0-9]+)\s*m(?:ins?|inutes?)?\s*)?"
                       r"(?:([0-9.]+)\s*s(?:ecs?|econds?)?)?", re.IGNORECASE)
_FEET = re.compile(r"([0-9]+)\s*'\s*(?:([0-9.]+)\s*(?:\"|''))?")
_PER = re.compile(r"(?<=[0-9])\s+\(?1\s*/\s*(?=[A-Za-z(])([^()]*)\)?\Z")


@dataclass(frozen=True, slots=True)
class Part:
    """A value with its unit as pint reads it. `loose` is the unit if J/kg·K is read as J/(kg·K). `quotient` is as in
    `Number`."""

    value: Fraction
    unit: str
    loose: str
    quotient: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        return f"{self.value} {self.unit}".strip()


def read_quantity(text: str) -> tuple[Part, ...] | None:
    """A number with its unit, or up to three that are added. None for other text."""
    text = clean_inside(text).rstrip(".,; \n")
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
    if unit is None or loose is None:
        return None
    return Part(number.value, format_unit(unit), format_unit(loose), number.quotient)


def same_quantity(found: tuple[Part, ...], expected: tuple[Part, ...]) -> bool | None:
    """Whether the two are equal after conversion, up to its rounding. None if undecided."""
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


def load() -> Callable[[list, list], bool]:
    """For the worker: a function that tells whether two lists of [value, unit, loose unit] are the same quantity."""
    from pint import UnitRegistry

    registry = UnitRegistry(autoconvert_offset_to_baseunit=True)
    # 5 mol% is not 5 wt%. The units of medicine have no fixed value in moles.
    for name in ("mol_percent", "mass_percent", "volume_percent", "Eq", "Osm", "IU"):
        registry.define(f"{name} = [{name}]")

    def total(parts: list, reading: int):
        """The sum of parts such as "5 ft 10 in". Each part must be less than one of the first unit."""
        first, *rest = (registry.Quantity(float(Fraction(part[0])), registry.parse_units(part[reading]))
                        for part in parts)
        for part in rest:
            if not 0 <= part.m_as(first.units) < 1:
                raise ValueError("the parts are no single quantity")
            first += part
        return first

    def is_angular(quantity) -> bool | None:
        """True for an angle or its rate, False for a count of turns, None for other quantities."""
        names = re.findall(r"hertz|count|radian|degree(?!_)", str(quantity.units))
        return names[0] in ("radian", "degree") if names else None

    def same(answer: list, gold: list) -> bool:
        for readings in product((1, -1), repeat=2):  # J/kg·K may be meant as J/(kg·K)
            found, expected = map(total, (answer, gold), readings)
            if found.is_compatible_with(expected):
                break
        else:
            return False
        if None is not is_angular(found) != is_angular(expected) is not None:  # a turn is 2 pi radians
            found, expected = (side if is_angular(side) else side * registry.turn for side in (found, expected))
        return isclose(found.m_as(expected.units), expected.magnitude, rel_tol=TOLERANCE, abs_tol=1e-300)

    return same


KIND = Kind(read_quantity, same_quantity, gold_reader(read_quantity, same_quantity))

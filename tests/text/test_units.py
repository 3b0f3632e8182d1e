"""Units: every writing of a unit is one product of symbols (the golden table is in test_answers)."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonkit.text import units
from reasonkit.text.units import MAX_UNIT_CHARACTERS, format_unit, is_known, read_unit

FRAGMENTS = ["m", "s", "kg", "J", "per ", "square ", "squared", "/", "(", ")", "·", "^", "-1", "2", " ", "%", "deg "]


@pytest.mark.parametrize(
    ("written", "spelled"),
    [
        ("J/(kg·K)", "J K^-1 kg^-1"), ("J/kg/K", "J K^-1 kg^-1"), ("J/kg K", "J K^-1 kg^-1"),
        ("joules per kilogram kelvin", "J K^-1 kg^-1"), ("J kg-1 K-1", "J K^-1 kg^-1"), ("J/kg·K", "J K kg^-1"),
        ("Nm", "N m"), ("kNm", "kN m"), ("nm", "nm"), ("As", "A s"), ("ms", "ms"), ("mAh", "h mA"), ("Pas", "Pa s"),
        ("m/s2", "m s^-2"), ("metres per second per second", "m s^-2"), ("m.s-2", "m s^-2"), ("(m/s)^2", "m^2 s^-2"),
        ("sq ft", "foot^2"), ("cubic metres", "m^3"), ("feet squared", "foot^2"), ("1/s", "s^-1"),
        ("per second", "s^-1"),
        ("degrees Celsius", "degC"), ("deg F", "degF"), ("degrees", "degree"), ("mol-%", "mol_percent"),
        ("% w/w", "mass_percent"), ("Cal", "kcal"), ("cal", "cal"), ("rpm", "count min^-1"), ("KM", "km"), ("mW", "mW"),
        ("MW", "MW"), ("lbs.", "pound"), ("μm", "um"), ("kΩ", "kohm"), ("foot-pounds", "foot_pound"), ("", ""),
        ("m/m", ""), ("apples", "apples"),
    ],
)
def test_read_unit(written, spelled):
    assert format_unit(read_unit(written)) == spelled
    assert is_known(read_unit(written)) == (spelled not in ("", "apples"))


@pytest.mark.parametrize("text", [
    "m^", "m/", "/", "kg(m", "m)", "(", "m,", "m 5", "^2", "square", "squared", "· m", "m || s",
    "m" * (MAX_UNIT_CHARACTERS + 1), "m " * 13,
])
def test_what_is_no_unit(text):
    assert read_unit(text) is None and not is_known(None)


@pytest.mark.parametrize(("written", "spelled"), [("J/kg·K", "J K^-1 kg^-1"), ("ms^-2", "m s^-2"), ("ms", "ms")])
def test_a_loose_reading(written, spelled):
    assert format_unit(read_unit(written, loose=True)) == spelled


@given(st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=2), max_size=10).map("".join))
def test_what_is_read_is_read_again(text):
    unit = read_unit(text)
    assert unit is None or not is_known(unit) or read_unit(format_unit(unit)) == unit


def test_doctests():
    result = doctest.testmod(units)
    assert result.attempted and not result.failed

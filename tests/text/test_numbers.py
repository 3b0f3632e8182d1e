"""Numerals: the number read from clean text, as value, mark and unit (the golden table is in test_answers)."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonkit.text.cleaning import clean, unwrap
from reasonkit.text.numbers import Number, read_number, read_plain, same_number


@pytest.mark.parametrize(
    ("text", "value", "mark", "unit", "tail"),
    [
        ("288", 288, "", "", ""), ("-3 1/2 cups", Fraction(-7, 2), "", "cup", "cups"), ("50 %", 50, "%", "", ""),
        ("$1,200", 1200, "", "dollar", ""), ("2 million km", 2_000_000, "", "km", "km"), ("3 dozen", 36, "", "", ""),
        ("9.8 m/s^2", Fraction(49, 5), "", "m s^-2", "m/s^2"), ("10:30 pm", Fraction(45, 2), ":", "", ""),
        ("0:00:36", Fraction(1, 100), ":", "", ""), ("12:00 am", 0, ":", "", ""), ("1 MW", 1, "", "MW", "MW"),
    ],
)
def test_read_number(text, value, mark, unit, tail):
    number = read_number(text)
    assert (number.value, number.mark, number.unit, number.tail) == (value, mark, unit, tail)


@pytest.mark.parametrize(
    "text", ["", "five", "5 or 6", "25:00", "13:00 pm", "0:30 am", "1:2", "1/0", "1e401", "9" * 201]
)
def test_what_is_no_number(text):
    assert read_number(text) is None and read_plain(text) is None


@pytest.mark.parametrize(
    ("text", "printed"), [("10:30", "10:30"), ("7:05:09", "7:05:09"), ("50%", "50%"), ("$2", "2 dollar")]
)
def test_printed(text, printed):
    assert str(read_number(text)) == printed


@given(st.text(alphabet="0123456789+-., \n"))
def test_the_short_way_reads_what_the_long_way_reads(text):
    assert read_plain(text) in (None, read_number(clean(text)))


def test_same_number():
    number = {text: read_number(text) for text in ("50%", "50", "0.5", "5 km", "5 mi", "5", "0:30", "0.5 km")}
    assert same_number(number["50%"], number["50"]) and same_number(number["0.5"], number["50%"])
    assert same_number(number["5"], number["5 km"]) and not same_number(number["5 mi"], number["5 km"])
    assert not same_number(number["0:30"], number["0.5"]) and not same_number(number["50"], number["0.5"])


@pytest.mark.parametrize(
    ("text", "cleaned", "unwrapped"),
    [
        ("$\\frac{1}{2}$", "1/2", "\\frac{1}{2}"), ("\\boxed{5\\text{km}}", "5 km", "5\\text{km}"),
        ("The answer is **x^{2}**", "x^2", "x^{2}"), ("2\u200b5", "25", "25"), ("50\\%", "50%", "50\\%"),
    ],
)
def test_clean_and_unwrap(text, cleaned, unwrapped):
    assert (clean(text), unwrap(text)) == (cleaned, unwrapped)


def test_a_number_is_compared_by_value_mark_and_unit():
    assert Number(Fraction(1), tail="m") == Number(Fraction(1), tail="M") != Number(Fraction(1), "%")


@pytest.mark.parametrize(("text", "value", "mark", "unit"), [
    ("5k", 5000, "", ""), ("5 K", 5, "", "K"), ("2.5 M", 2_500_000, "", ""), ("3 pm", 15, ":", ""),
    ("noon", 12, ":", ""),
    ("FF_16", 255, "_16", ""), ("5 bn euros", 5 * 10**9, "", "euro"),
])
def test_prose_has_what_a_formula_does_not_mean(text, value, mark, unit):
    number = read_number(text, prose=True)
    assert (number.value, number.mark, number.unit) == (value, mark, unit)
    assert read_number(text) in (None, number) if unit == "K" else read_number(text) != number


@pytest.mark.parametrize(("text", "value", "mark", "unit"), [
    ("$3m", 3_000_000, "", "dollar"), ("US$5", 5, "", "dollar"), ("5 USD", 5, "", "dollar"), ("$5 CAD", 5, "", "CAD"),
    ("5 sixths", Fraction(5, 6), "", ""), ("1 half", Fraction(1, 2), "", ""),
    ("5 fifth graders", 5, "", "fifth grader"),
    ("204_5", 54, "_5", ""), ("204 in base 5", 54, "_5", ""), ("54_{10}", 54, "", ""), ("5‰", 5, "‰", ""),
    ("5 J/(kg·K)", 5, "", "J K^-1 kg^-1"), ("5 per million", 5, "", "per million"),
    ("10 ** -2", Fraction(1, 100), "", ""),
])
def test_marks_and_words_that_multiply(text, value, mark, unit):
    number = read_number(text)
    assert (number.value, number.mark, number.unit) == (value, mark, unit)


@pytest.mark.parametrize("text", ["5 fine million", "209_5", "204_1", "204_37", "10^(2", "a_11", "5 lakh million or"])
def test_what_multiplies_nothing(text):
    assert read_number(text) is None

"""Dates: every writing of a day is one ISO date, and what might be two days is none."""

from __future__ import annotations

import datetime
import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonkit.text import words
from reasonkit.text.words import MAX_DATE_CHARACTERS, read_date


@pytest.mark.parametrize(
    ("written", "iso"),
    [
        ("2024-03-05", "2024-03-05"), ("2024/3/5", "2024-03-05"), ("2024.03.05", "2024-03-05"),
        ("2024-03-05T00:00:00Z", "2024-03-05"), ("March 5, 2024", "2024-03-05"), ("Mar. 5th 2024", "2024-03-05"),
        ("the 5th of March, 2024", "2024-03-05"), ("5-Mar-2024", "2024-03-05"), ("2024 March 5", "2024-03-05"),
        ("Tuesday, March 5, 2024", "2024-03-05"), ("March 5, 2024 (Tue)", "2024-03-05"), ("05.03.2024", "2024-03-05"),
        ("25/03/2024", "2024-03-25"), ("3-25-2024", "2024-03-25"), ("05/05/2024", "2024-05-05"),
        ("5. März 2024", "2024-03-05"), ("5 de marzo de 2024", "2024-03-05"), ("5 mars 2024", "2024-03-05"),
        ("5 марта 2024", "2024-03-05"), ("2024年3月5日", "2024-03-05"), ("March 2024", "2024-03"),
        ("2024-03", "2024-03"),
        ("8 May", "--05-08"), ("Friday, May 8", "--05-08"), ("March 15, 44 BC", "-0044-03-15"),
        ("March 15, 44 AD", "0044-03-15"), ("Feb 29, 2024", "2024-02-29"), ("February 29", "--02-29"),
    ],
)
def test_read_date(written, iso):
    assert read_date(written) == iso


@pytest.mark.parametrize("text", [
    "", "2024", "March", "03/05/2024", "3-5-2024", "5/3/24", "20240305", "2024-13-05", "30.02.2024", "February 30",
    "Feb 29, 2023", "March 5 or 6, 2024", "March 5-6, 2024", "Monday, March 5, 2024", "Smarch 5, 2024", "not March 5",
    "March 5, 2024" + " " * MAX_DATE_CHARACTERS + "x", "5 apples", "10:30",
])
def test_what_is_no_date(text):
    assert read_date(text) is None


@given(st.dates(datetime.date(1000, 1, 1)))
def test_every_day_in_every_writing(day):
    iso = day.isoformat()
    for form in ("%B %d, %Y", "%d %b %Y", "%A, %d %B %Y", "%d.%m.%Y", "%Y/%m/%d"):
        assert read_date(day.strftime(form)) == iso
    assert read_date(day.strftime("%m/%d/%Y")) in (iso, None)


def test_doctests():
    result = doctest.testmod(words)
    assert result.attempted and not result.failed

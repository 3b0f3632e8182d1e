"""Expressions: one LaTeX form for what is written in many ways, and what is no formula."""

from __future__ import annotations

import doctest
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonkit import expressions
from reasonkit.expressions import may_equal, read_expression

PIECES = st.lists(
    st.sampled_from(["x", "12", "^", "_", "{", "}", "(", ")", "[", "\\{", "\\frac", "\\sqrt", "sqrt", "-", "+", ",",
                     " ", "=", "\\pm", "\\", "π", "sin", "y ="]) | st.text(max_size=2), max_size=10)


def test_doctests():
    result = doctest.testmod(expressions)
    assert result.attempted and not result.failed


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("x**10", "x^{10}"), ("x^-1", "x^{-1}"), ("x^(n+1)", "x^{n+1}"), ("e^\\frac12", "e^{\\frac{1}{2}}"),
        ("\\dfrac12", "\\frac{1}{2}"), ("\\tfrac 1 2", "\\frac{1}{2}"), ("\\frac{\\sqrt2}{2}", "\\frac{\\sqrt{2}}{2}"),
        ("\\sqrt[3]{8}", "\\sqrt[3]{8}"), ("√(x+1)", "\\sqrt{x+1}"), ("2*pi*r", "2\\cdot\\pi\\cdot r"),
        ("π r²", "\\pi r^{2}"), ("log_2(8)", "\\log_{2}(8)"), ("asin(x)", "\\arcsin(x)"), ("[0, inf)", "[0,\\infty)"),
        ("\\left( x \\right)", "(x)"), ("f(x) = x", "x"), ("x \\in [0, 1)", "[0,1)"),
        ("\\theta = \\boxed{\\pi}", "\\pi"),
        ("$$x + 1$$", "x+1"), ("xy", "xy"), ("x \\le 5.", "x\\le5"), ("x ≤ 5", "x\\le5"),
        ("\\{1, 2\\}", "\\{1,2\\}"), ("x_1 + x_{2}", "x_{1}+x_{2}"), ("1{,}000x", "1000x"),
        ("x = 1 or x = 2", "1,2"), ("1, 2, and 3", "1,2,3"), ("6\\text{ and }8", "6,8"),
        ("a_1 = 2, b = 3", "a_{1}=2,b=3"), ("1,234", "1234"), ("1,\\!234", "1234"), ("3,5", "3,5"), ("1, 34", "1,34"),
        ("(p, q) = (3, 2)", "(3,2)"), ("-2 <= x < 7", "[-2,7)"), ("7 > x \\ge -2", "[-2,7)"), ("{1, 2}", "\\{1,2\\}"),
        ("1 - \\frac{1}{\\mathrm{e}}", "1-\\frac{1}{e}"), ("x \\neq 3", "x\\ne3"), ("x != 3", "x\\ne3"),
    ],
)
def test_one_form(text, latex):
    expression = read_expression(text)
    assert str(expression) == latex
    assert str(read_expression(latex)) == latex


@pytest.mark.parametrize(
    "text",
    ["", " ", "x+1 or x-1, maybe", "(x", "x)", "{x", "x}{", "(0, 1}", "x +", "x =", "2 3", "x?", "the answer",
     "\\text{no}", "\\boxed{1} \\boxed{2}", "C++", "5, maybe", "\\", "$", "import os"],
)
def test_no_formula(text):
    assert read_expression(text) is None


@pytest.mark.parametrize(
    ("found", "expected", "verdict"),
    [
        ("1 + x", "x + 1", True), ("x, y", "x", False), ("x", "x, y", False), ("x + 1 = 0", "x + 1", False),
        ("\\pm 2", "2, -2", True), ("(0, 1)", "[0, 1]", False), ("(0, 1)", "0, 1", False), ("a:b", "a/b", False),
        ("Gmm", "GMm", False), ("GmM", "GMm", True), ("X + 1", "x + 1", True), ("x or y", "x", False),
        ("\\{1, 2\\}", "2, 1", True), ("0 < x < 1", "(0, 1)", True), ("0 < x < 1", "[0, 1]", False),
        ("0 < x", "x", False), ("5 apples", "x", False), ("3,5", "3", False),
        ("e^x", "exp(x)", True), ("x + y", "5", False), ("x/x", "1", True), ("\\sum_{k=1}^n k", "n(n+1)/2", True),
        ("1 + x" * 99, "x", False), ("\\int_0^1 t dt", "1/2", True),
    ],
)
def test_may_equal(found, expected, verdict):
    assert may_equal(read_expression(found), read_expression(expected)) == verdict


@given(PIECES.map("".join) | st.text())
def test_no_text_reaches_out_of_its_braces(text):
    expression = read_expression(text)
    depth = 0
    for token in expression.tokens if expression else ():
        depth += (token == "{") - (token == "}")
        assert depth >= 0
    assert depth == 0


def test_a_unit_in_text_makes_it_a_number():
    unit = read_expression("5\\text{ cm}")
    assert (unit.tokens, str(unit), str(read_expression("5 inches").number)) == ((), "5 cm", "5 inch")


@pytest.mark.parametrize("unit", ["(", "{", "x^", "x^{", "\\frac{", "\\sqrt", "\\frac", "x^(", "1,", "- "])
def test_deep_and_long_texts_take_no_time(unit):
    start = time.process_time()
    for times in (30, 300, 2000):
        read_expression(unit * times + "x")
        read_expression(unit * times + "x" + "})"[unit[-1] == "("] * times)
    assert time.process_time() - start < 2

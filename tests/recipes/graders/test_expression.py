"""Expressions: one LaTeX form for what is written in many ways, and what is no formula."""

from __future__ import annotations

import doctest
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonkit.text.answers import check
from reasonkit.text.numbers import Number
from recipes.graders import expression as expressions
from recipes.graders.expression import MAX_NESTING, contradict, may_equal, read_expression

PIECES = st.lists(
    st.sampled_from(["x", "12", "^", "_", "{", "}", "(", ")", "[", "\\{", "\\frac", "\\sqrt", "sqrt", "-", "+", ",",
                     " ", "=", "\\pm", "\\", "π", "sin", "y ="]) | st.text(max_size=2), max_size=10)


def test_doctests():
    result = doctest.testmod(expressions)
    assert result.attempted and not result.failed


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("x**10", "x^{10}"), ("x^-1", "x^{-1}"), ("x^(n+1)", "x^{n+1}"), ("x^-(n+1)", "x^{-(n+1)}"),
        ("e^\\frac12", "e^{\\frac{1}{2}}"),
        ("\\dfrac12", "\\frac{1}{2}"), ("\\tfrac 1 2", "\\frac{1}{2}"), ("\\frac{\\sqrt2}{2}", "\\frac{\\sqrt{2}}{2}"),
        ("\\sqrt[3]{8}", "\\sqrt[3]{8}"), ("√(x+1)", "\\sqrt{x+1}"), ("2*pi*r", "2\\cdot\\pi\\cdot r"),
        ("π r²", "\\pi r^{2}"), ("log_2(8)", "\\log_{2}(8)"), ("asin(x)", "\\arcsin(x)"), ("[0, inf)", "[0,\\infty)"),
        ("\\left( x \\right)", "(x)"), ("f(x) = x", "x"), ("x \\in [0, 1)", "[0,1)"),
        ("\\theta = \\boxed{\\pi}", "\\pi"),
        ("$$x + 1$$", "x+1"), ("ax + by", "ax+by"), ("BEEF_{16}", "BEEF_{16}"), ("xy", "xy"),
        ("x \\le 5.", "(-\\infty,5]"), ("5 >= x", "(-\\infty,5]"),
        ("\\{1, 2\\}", "\\{1,2\\}"), ("x_1 + x_{2}", "x_{1}+x_{2}"), ("1{,}000x", "1000x"),
        ("x = 1 or x = 2", "1,2"), ("1, 2, and 3", "1,2,3"), ("6\\text{ and }8", "6,8"),
        ("a_1 = 2, b = 3", "a_{1}=2,b=3"), ("1,234", "1234"), ("1,\\!234", "1234"), ("3,5", "3,5"), ("1, 34", "1,34"),
        ("(p, q) = (3, 2)", "(3,2)"), ("-2 <= x < 7", "[-2,7)"), ("7 > x \\ge -2", "[-2,7)"), ("{1, 2}", "\\{1,2\\}"),
        ("1 - \\frac{1}{\\mathrm{e}}", "1-\\frac{1}{e}"), ("x \\neq 3", "(-\\infty,3)\\cup(3,\\infty)"),
        ("x != 3", "(-\\infty,3)\\cup(3,\\infty)"), ("1 \\pm \\sqrt2", "1+\\sqrt{2},1-\\sqrt{2}"), ("45^\\circ", "45"),
        ("\\sin 30^\\circ", "\\sin30°"), ("204_{\\text{five}}", "204_{5}"), ("\\log_2 3", "\\log_{2}3"),
        ("2\\sqrt{3} \\text{ cm}", "2\\sqrt{3}"), ("\\sum_{k=1}^5 3", "\\sum_{k=1}^{5}3"), ("5 = x", "5"),
        ("[[1,2],[3,4]]", "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}"), ("x + 1 = 0", "x+1=0"), ("y - x > 1", "y-x>1"),
    ],
)
def test_one_form(text, latex):
    expression = read_expression(text)
    assert str(expression) == latex
    assert str(read_expression(latex)) == latex


@pytest.mark.parametrize(
    "text",
    ["", " ", "x+1 or x-1, maybe", "(x", "x)", "{x", "x}{", "(0, 1}", "x +", "x =", "2 3", "x?", "the answer",
     "x < \\frac", "x <_", "\\frac1", "\\binom{5}", "\\sqrt[3]",
     "\\text{no}", "\\boxed{1} \\boxed{2}", "C++", "5, maybe", "\\", "$", "import os"],
)
def test_no_formula(text):
    assert read_expression(text) is None


@pytest.mark.parametrize(
    ("found", "expected", "verdict"),
    [
        ("1 + x", "x + 1", True), ("x, y", "x", False), ("x", "x, y", False), ("x + 1 = 0", "x + 1", False),
        ("\\pm x", "x, -x", True), ("(0, 1)", "[0, 1]", False), ("(0, 1)", "0, 1", False), ("a:b", "a/b", False),
        ("GmM", "GMm", True), ("X + 1", "x + 1", True), ("x or y", "x", False),
        ("\\{1, 2\\}", "2, 1", True), ("0 < x < 1", "(0, 1)", True), ("0 < x < 1", "[0, 1]", False),
        ("0 < x", "x", False), ("5 apples", "x", False), ("3,5", "3", False),
        ("y = 2x + 1", "2x - y + 1 = 0", True), ("2x - y + 1 = 0", "y = 2x + 1", True), ("2x = 6", "x = 3", False),
        ("x = 3", "x - 3 = 0", True), ("x + 1 = 0", "y = x + 1", True), ("2x > 6", "x > 3", False),
        ("x = 3 or x > 5", "\\{3\\} \\cup (6, \\infty)", True), ("x - y = 1", "(0, 1) \\cup (2, 3)", False),
        ("[[1, 2], [3, 4]]", "1, 2, 3, 4", False), ("2\\begin{pmatrix}1\\end{pmatrix}", "[[2]]", True),
        ("e^x", "exp(x)", True), ("x + y", "5", False), ("x/x", "1", True), ("\\sum_{k=1}^n k", "n(n+1)/2", True),
        ("1 + x" * 99, "x", False), ("\\int_0^1 t dt", "1/2", True),
    ],
)
def test_may_equal(found, expected, verdict):
    assert may_equal(read_expression(found), read_expression(expected)) or not verdict
    assert verdict or not check(found, expected, "expression").correct


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


@pytest.mark.parametrize("text", ["x = 5", "\\theta = 5", "AB = 5", "f(x) = 5", "P(A) = 5", "v_{\\text{max}} = 5",
                                  "\\vec{v} = 5", "5°", "5"])
def test_a_number_keeps_its_value_behind_a_name(text):
    assert read_expression(text).number == Number(Fraction(5))


@pytest.mark.parametrize("text", ["x = 1, y = 5", "x + 1 = 5", "2x = 5", "1 = 5", "x = y = 5"])
def test_an_equation_is_no_number(text):
    assert read_expression(text).number is None


@pytest.mark.parametrize(
    ("found", "expected", "verdict"),
    [("2π cm", "2π km", True), ("2π cm", "2π", False), ("45°", "45 cm", True), ("45°", "45", False),
    ("y > 3", "x > 3", True),
     ("x > 3", "(3, \\infty)", False), ("n = 3", "x = 3", False)],
)
def test_contradict(found, expected, verdict):
    assert contradict(read_expression(found), read_expression(expected)) == verdict


@pytest.mark.parametrize(
    ("text", "measure"),
    [("5 cm", "cm"), ("2\\pi \\text{ cm}^2", "cm^2"), ("2π cm²", "cm^2"), ("45°", "°"), ("50\\%", "%"), ("2\\pi", ""),
     ("\\sin 45°", "")],
)
def test_measure(text, measure):
    assert read_expression(text).measure == measure


@pytest.mark.parametrize("times", [MAX_NESTING, 2000])
@pytest.mark.parametrize("unit", ["^+", "^-", "_+", "\\frac{1}", "\\frac x", "\\sqrt[3]", "\\binom1", "^\\frac1",
                                  "_\\sqrt", "^^", "\\sqrt\\frac2", "\\frac-"])
def test_arguments_without_brackets_nest_no_deeper(unit, times):
    for end in ("x", "", "}", "=5", "{1}{2}"):
        expression = read_expression(unit * times + end)
        assert expression is None or times == MAX_NESTING


@pytest.mark.parametrize(
    "unit", ["(", "{", "x^", "x^{", "\\frac{", "\\sqrt", "\\frac", "x^(", "1,", "- ", " ", "\n", "11.", "1.1(", "5_",
    "_{\\text{",
             "±,", "x<2 or ", "[[1],", "(\\begin{pmatrix}", "\\{1,", "5 base", "x=", "1;"])
def test_deep_and_long_texts_take_no_time(unit):
    start = time.process_time()
    for times in (30, 300, 2000):
        read_expression(unit * times + "x")
        read_expression("5" + (unit * times)[:9990] + "x")
        read_expression(unit * times + "x" + "})"[unit[-1] == "("] * times)
    assert time.process_time() - start < 2

"""Notation: one way of writing for what is written in many, and the unit behind a formula."""

from __future__ import annotations

import pytest

from reasonkit.text.numbers import read_number
from recipes.graders.notation import is_physical, rewrite, split_unit


@pytest.mark.parametrize(
    "text",
    ["0.\\overline{3}", "0.\\overline3", "0.\\bar{3}", "0.\\bar 3", "0.(3)", ".(3)", "0.\\dot{3}", "0.3\u0305",
    "0.333...",
     "0.3333…", "0.333\\ldots", "0.\\overline{33}"],
)
def test_a_third(text):
    assert rewrite(text) == "\\frac{1}{3}"


@pytest.mark.parametrize(
    ("text", "fraction"),
    [("0.1(6)", "\\frac{1}{6}"), ("0.1666...", "\\frac{1}{6}"), ("1.\\overline{27}", "\\frac{14}{11}"),
     ("0.2727...", "\\frac{3}{11}"), ("0.\\dot{1}4285\\dot{7}", "\\frac{1}{7}"), ("-0.(6)", "-\\frac{2}{3}"),
     ("0.\\overline{9}", "1"), ("0.(3)x", "\\frac{1}{3}x")],
)
def test_repeating_decimals(text, fraction):
    assert rewrite(text) == fraction


@pytest.mark.parametrize("text", ["0.333", "3.14159", "12", "0.(x)", "1.(x + 1)", "0.\\overline{x}", "v1.(2)"])
def test_other_decimals(text):
    assert rewrite(text) == text


@pytest.mark.parametrize(
    "text",
    ["204_5", "204_{5}", "204₅", "(204)_5", "204_(5)", "204_{(5)}", "204_{five}", "204_five", "204_\\text{five}",
     "204_{\\text{five}}", "204_{\\text{base } 5}", "204_{\\mathrm{base-five}}", "204 base 5", "204 (base 5)",
     "204 in base five", "204 \\text{ base } 5", "204, base 5."],
)
def test_a_base(text):
    assert rewrite(text) == "204_{5}"


@pytest.mark.parametrize(
    ("text", "plain"),
    [("54_{10}", "54"), ("54_{ten}", "54"), ("2A_{\\text{sixteen}}", "2A_{16}"), ("A_{10}", "A_{10}"), ("x_5", "x_5"),
     ("\\log_2 3", "\\log_2 3"), ("\\log_23", "\\log_{2}3"), ("\\log_{23}", "\\log_{23}"), ("\\log_10 x", "\\log_10 x"),
     ("log10(x)", "log_{10}(x)"), ("x_{\\text{max}}", "x_{max}"), ("x_\\text{max}", "x_{max}")],
)
def test_other_indices(text, plain):
    assert rewrite(text) == plain


@pytest.mark.parametrize("text", ["45^\\circ", "45^{\\circ}", "45^{ \\circ }", "45 degrees", "45 degree", "45 deg",
                                  "45˚", "45º",
                                  "45\\degree", "45\\text{ degrees}", "45°"])
def test_degrees(text):
    assert rewrite(text).replace(" ", "") == "45°"


@pytest.mark.parametrize("text", ["25 degrees Celsius", "25^\\circ C", "25^\\circ\\text{F}", "f \\circ g", "a degree"])
def test_no_degrees_of_an_angle(text):
    assert "°" not in rewrite(text)


@pytest.mark.parametrize(
    ("text", "plain"),
    [("x = 1 or x = 2", "x = 1 \\lor x = 2"), ("6\\text{ and }8", "6 \\land 8"), ("1 +/- 2", "1 \\pm 2"),
     ("(1, 2) U (3, 4)", "(1, 2)\\cup (3, 4)"), ("\\mathbb{R}", "ℝ"), ("All real numbers", "All real numbers"),
     ("all real numbers", "ℝ"), ("\\begin{bmatrix}1\\end{bmatrix}", "\\begin{pmatrix}1\\end{pmatrix}"),
     ("\\begin{array}{c|c}1&2\\\\[4pt]3&4\\end{array}", "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}"),
     ("Matrix([[1]])", "[[1]]"), ("[1, 2; 3, 4]", "[[1, 2],[ 3, 4]]"), ("[1; 2]", "[1; 2]"), ("\\text{5}", " 5"),
     ("  a \n b ", "a b"), ("x + 1.,", "x + 1")],
)
def test_other_rules(text, plain):
    assert rewrite(text).strip() == plain.strip()


@pytest.mark.parametrize(
    ("text", "found"),
    [("2\\pi \\text{ cm}", ("2\\pi ", "cm")), ("2\\pi \\text{ cm}^2", ("2\\pi ", "cm^2")), ("2π cm^2", ("2π", "cm^2")),
     ("2\\pi\\mathrm{km/h}", ("2\\pi", "h^-1 km")), ("2\\pi \\text{ units}", ("2\\pi ", "unit")),
     ("2\\pi \\text{ or } 3", ("2\\pi \\text{ or } 3", "")), ("x \\text{ is}", ("x \\text{ is}", "")),
     ("2 ab", ("2 ab", "")),
     ("\\text{cm}", ("\\text{cm}", "")), ("2\\pi", ("2\\pi", ""))],
)
def test_split_unit(text, found):
    assert split_unit(text) == found


@pytest.mark.parametrize(("text", "expected"), [("5 km", True), ("9.8 m/s^2", True), ("5 apples", False), ("5", False),
                                                ("5 km per apple", False), ("$5", False)])
def test_is_physical(text, expected):
    assert is_physical(read_number(text)) == expected

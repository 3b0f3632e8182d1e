"""Symbolic: what a formula's tokens are worth, and what has no meaning here."""

from __future__ import annotations

import pytest
import sympy
from sympy import Rational, Symbol, log, pi, sqrt

from recipes.graders.expression import read_expression
from recipes.graders.symbolic import read

x, y, n = (Symbol(name, real=True) for name in "xyn")


def value(text: str):
    return read(read_expression(text).tokens)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1/2x", 1 / (2 * x)), ("2\\frac{1}{2}", Rational(5, 2)), ("-2\\frac12", Rational(-5, 2)), ("2\\frac{x}{2}", x),
        ("0.1 + 0.2", Rational(3, 10)), ("2^3^2", 512), ("-x^2", -x**2), ("2^{-1}", Rational(1, 2)),
        ("x - y - 1", x - y - 1),
        ("x/y/2", x / y / 2), ("x/2 * 3", 3 * x / 2), ("5!", 120), ("5!!", 15), ("\\binom{5}{2}", 10),
        ("\\sqrt[3]{-8}", -2),
        ("\\sqrt[3]{8}", 2), ("\\sin^2 x", sympy.sin(x)**2), ("\\sin^{-1} x", sympy.asin(x)),
        ("\\sin 2x + 1", sympy.sin(2 * x) + 1),
        ("\\sin x \\cos x", sympy.sin(x) * sympy.cos(x)), ("\\sin(x) y", y * sympy.sin(x)),
        ("\\sin \\pi/6", Rational(1, 2)),
        ("\\ln x/2", log(x) / 2), ("\\log 100", 2), ("\\log_2 8", 3), ("\\log_2 3", log(3, 2)),
        ("|x - 1|", sympy.Abs(x - 1)),
        ("\\lfloor 2.5 \\rfloor + \\lceil 2.5 \\rceil", 5), ("\\sin 30°", Rational(1, 2)), ("50\\%x", x / 2),
        ("i^2", -1),
        ("e^{i \\pi}", -1), ("exp(x)/e", sympy.exp(x - 1)), ("\\sum_{k=1}^n k", n**2 / 2 + n / 2),
        ("\\sum_{i=1}^3 i", 6), ("\\sum_{i=1}^2 \\ln(i)", log(2)),
        ("\\prod_{k=1}^4 k", 24), ("\\int_0^1 x^2 dx", Rational(1, 3)), ("\\int_0^2 dt", 2),
        ("\\lim_{x \\to 0} \\frac{\\sin x}{x}", 1),
        ("gcd(12, 18)", 6), ("max(1, x, 2)", sympy.Max(2, x)), ("x(x + 1)", x * (x + 1)), ("[x + 1]^2", (x + 1)**2),
        ("2π r", 2 * pi * Symbol("r", real=True)), ("\\sqrt2\\sqrt3", sqrt(6)), ("2 * -3", -6), ("--2", 2),
        ("f(x)", sympy.Function("f")(x)),
        ("\\vec{a} + x'", Symbol("\\vec{a}", real=True) + Symbol("x'", real=True)), ("x_1", Symbol("x_{1}", real=True)),
    ],
)
def test_read(text, expected):
    assert sympy.simplify(value(text) - expected) == 0


def test_a_numeral_of_another_base_is_no_number():
    assert value("204_5") == value("0204_5") != value("204_6")
    assert not value("204_5").is_number


def test_letters_keep_their_case():
    assert value("Mm") != value("m^2")


@pytest.mark.parametrize("tokens", ["", "+", "x +", "( x", "x )", "} {", "\\foo", "x ^ 2", "\\frac { 1 }", "1 , 2",
                                    "x = 1", "\\int x",
                                    "\\sum x", "\\lim _ { x } x", "|", "| x", "\\sin", "\\lfloor x", "!", "..."])
def test_no_meaning(tokens):
    with pytest.raises((ValueError, IndexError)):
        read(tuple(tokens.split()))

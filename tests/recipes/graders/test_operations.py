"""Operations: what a formula leaves to be done, by name, and what an answer may leave."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.graders.expression import read_expression
from recipes.graders.operations import _formulas, _functions, _operations, adds_functions, leaves_arithmetic

PIECES = ["\\frac", "{", "}", "(", ")", "[", "]", "x", "d", "1", "2.5", "+", "-", "\\cdot ", "/", "^", "_", "|", "!",
          "'", "\\sqrt", "\\sin", "\\sum", "\\lfloor", "\\rfloor", "\\begin{pmatrix}", "\\end{pmatrix}", "&", "\\\\",
          ",", "=", "<", "\\pm", "\\cup", "\\{", "\\}", "e", "i", "\\pi", "%", "°", "\\int", "10", "\\1"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("35", ""), ("1/2", ""), ("\\frac{2}{4}", ""), ("2x+2", "unknown"), ("3 1/2", ""),
        ("3\\frac12", ""), ("\\frac{1/2}{3}", "product"),
        ("1.5 \\times 10^{-20}", "power of ten"), ("2\\sqrt3", "power"), ("24-4+7+8", "sum, sum of constants"),
        ("2x+3x", "sum, unknown"), ("x+0", "sum, unknown"), ("x - 0i", "sum, unknown"), ("--5", "sum"),
        ("-(-5)", "sum"), ("\\sqrt2\\sqrt{10}", "power, product"),
        ("(1+i)+(2+i)", "sum, sum of constants"), ("1+\\sqrt2", "power, sum of constants"), ("2 \\cdot 3", "product"),
        ("2(3x)", "product, unknown"), ("2 \\cdot 2^3", "power, product"), ("\\sqrt2\\sqrt3", "power, product"),
        ("70/2", "quotient"), ("\\frac{6x}{2}", "quotient, unknown"), ("0.5/2", "quotient"), ("2^3", "power"),
        ("x^{1+1}", "sum, sum of constants, unknown"), ("1/x", "denominator, unknown"),
        ("x^{-1}", "denominator, unknown"), ("\\frac{x^2-1}{x-1}", "denominator, unknown"),
        ("|x|", "absolute value, unknown"), ("2, 1+2", "sum, sum of constants"),
        ("[1+2, 9)", "sum, sum of constants"), ("\\{1+2\\}", "sum, sum of constants"),
        ("x + y = 6/2", "quotient, unknown"),
        ("2\\begin{pmatrix}1 & 2^3\\end{pmatrix}", "power"),
    ],
)
def test_arithmetic(text, names):
    found = set().union(*map(_operations, _formulas(list(read_expression(text).tokens))))
    assert ", ".join(sorted(found)) == names


@pytest.mark.parametrize(
    ("text", "name"),
    [("\\binom{7}{3}", "factorial"), ("5!", "factorial"), ("\\sin 2x", "sine"), ("\\log_2 8", "logarithm"),
     ("\\tanh 2", "hyperbolic"), ("\\int_0^1 x dx", "integral"), ("\\sum_{k=1}^n k", "sum over an index"),
     ("\\prod_k k", "product over an index"), ("\\lim_{x\\to 0} x", "limit"), ("\\frac{d}{dx} x", "derivative"),
     ("\\frac{dy}{dx}", "derivative"), ("d/dx x", "derivative"), ("\\lfloor x \\rfloor", "rounding"),
     ("\\gcd(a, b)", "divisor"), ("\\max(a, b)", "extreme")],
)
def test_functions(text, name):
    assert _functions(list(read_expression(text).tokens)) == {name}


TEXTS = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)


@given(TEXTS)
def test_no_formula_leaves_more_than_itself(text):
    found = read_expression(text)
    if found and found.tokens:
        tokens = list(found.tokens)
        assert not adds_functions(tokens, tokens)
        with contextlib.suppress(ValueError, IndexError, TypeError, AttributeError):  # what can't be read is undecided
            assert not leaves_arithmetic(["(", *tokens, ")"], tokens)

"""Operations: what a formula leaves to be done, by name, and what an answer may leave."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.graders.expression import read_expression
from recipes.graders.operations import _operations, _tree, leaves_work

PIECES = ["\\frac", "{", "}", "(", ")", "[", "]", "x", "d", "1", "2.5", "+", "-", "\\cdot ", "/", "^", "_", "|", "!",
          "'", "\\sqrt", "\\sin", "\\sum", "\\lfloor", "\\rfloor", "\\begin{pmatrix}", "\\end{pmatrix}", "&", "\\\\",
          ",", "=", "<", "\\pm", "\\cup", "\\{", "\\}", "e", "i", "\\pi", "%", "°", "\\int", "10", "\\1"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("35", ""), ("1/2", ""), ("\\frac{2}{4}", ""), ("2x+2", ""), ("3 1/2", ""),
        ("1.5 \\times 10^{-20}", "scientific"),
        ("2\\sqrt3", "power"), ("24-4+7+8", "sum, sum of constants"), ("2x+3x", "sum"), ("x+0", "sum"),
        ("--5", "sum"),
        ("-(-5)", "sum"), ("(1+i)+(2+i)", "sum, sum of constants"), ("1+\\sqrt2", "power, sum of constants"),
        ("2 \\cdot 3", "product"), ("2(3x)", "product"), ("2 \\cdot 2^3", "power, product"),
        ("\\sqrt2\\sqrt3", "power, product"), ("70/2", "quotient"), ("\\frac{6x}{2}", "quotient"),
        ("0.5/2", "quotient"),
        ("\\frac{1/2}{3}", "product, quotient"), ("2^3", "power"), ("x^{1+1}", "sum, sum of constants"),
        ("1/x", "denominator"),
        ("x^{-1}", "denominator"), ("\\frac{x^2-1}{x-1}", "denominator"), ("\\binom{7}{3}", "factorial"),
        ("5!", "factorial"), ("\\sin 2x", "sine"), ("\\log_2 8", "logarithm"), ("\\tanh 2", "hyperbolic"),
        ("\\int_0^1 x dx", "integral"), ("\\sum_{k=1}^n k", "sum over an index"),
        ("\\prod_k k", "product over an index"),
        ("\\lim_{x\\to 0} x", "limit"), ("\\frac{d}{dx} x", "derivative"), ("d/dx x", "derivative"),
        ("|x|", "absolute value"),
        ("\\lfloor x \\rfloor", "rounding"), ("\\gcd(a, b)", "divisor"), ("\\max(a, b)", "extreme"),
        ("a_{1+1}", "sum, sum of constants"),
        ("\\frac{|x}{2}", "absolute value"), ("2, 1+2", "sum, sum of constants"),
        ("[1+2, 9)", "sum, sum of constants"),
    ],
)
def test_names(text, names):
    assert ", ".join(sorted(_operations(_tree(read_expression(text).tokens)))) == names


TEXTS = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)


@given(TEXTS, TEXTS)
def test_no_formula_raises_or_leaves_more_than_itself(text, other):
    found, expected = read_expression(text), read_expression(other)
    if found and found.tokens:
        assert not leaves_work(found.tokens, found.tokens)
        assert not expected or leaves_work(found.tokens, expected.tokens) in (True, False)

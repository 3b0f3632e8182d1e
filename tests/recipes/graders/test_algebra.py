"""Algebra: equal and unequal values at any size, equations with the same solutions, unions and matrices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import each_row

from reasonkit.text.answers import check
from recipes.graders.algebra import equal, same
from recipes.graders.expression import read_expression
from recipes.graders.symbolic import read

TABLE = Path(__file__).parents[2] / "golden" / "formulas.jsonl"  # more rows than the table of every kind has room for
GOLDEN = [json.loads(line) for line in TABLE.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
@each_row(GOLDEN)
def test_golden(row):
    verdict = check(row["answer"], row["gold"], row["kind"])
    assert verdict.correct == row["expected"], (row["note"], verdict)


def test_a_gold_formula_is_right():
    for gold in {row["gold"] for row in GOLDEN}:
        assert check(gold, gold, "expression").correct, gold


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["0", "10^{-400}", "0/0", "\\infty", "x = x", "f(x)", "[[0, 0], [0, 0]]", "x < x"])
def test_no_answer_is_right_for_many(answer):
    golds = {row["gold"] for row in GOLDEN} - {"y = 0", "0^\\circ"}
    assert not [gold for gold in golds if check(answer, gold, "expression").correct]


def value(text: str):
    return read(read_expression(text).tokens)


def alike(found: str, expected: str) -> bool:
    return same(read_expression(found).spelling, read_expression(expected).spelling)


TINY = ["\\frac{1}{2004!}", "\\frac{1}{2006!}", "2^{-40}", "10^{-300}", "10^{-400}", "e^{-100}", "e^{-1000}",
"\\frac{1}{n!}", "0",
        "\\ln(1 + 10^{-15})", "10^{-15}", "10^{-15}x", "10^{-16}x", "\\arctan(10^{30}) - \\pi/2",
        "\\sqrt{10^{40}+1} - \\sqrt{10^{40}}"]


@pytest.mark.parametrize("first", range(len(TINY)))
def test_no_two_tiny_values_are_equal(first):
    for second, text in enumerate(TINY):
        assert equal(value(TINY[first]), value(text)) == (first == second), text


@pytest.mark.parametrize(
    ("first", "second"),
    [("\\sqrt{10^{40}+1}", "\\sqrt{10^{40}+2}"), ("\\sqrt2", "\\sqrt{2+10^{-500}}"), ("\\pi", "\\pi + 10^{-500}"),
    ("x", "x + 10^{-30}"),
     ("x", "x + 10^{-30}y"), ("2^{2005}", "2^{2005}+1"), ("\\frac{52!}{5!47!}", "\\frac{52!}{6!46!}"),
     ("1", "1 + e^{-500}"),
     ("x", "|x|"), ("\\sqrt{x^2}", "x"), ("\\infty", "-\\infty"), ("\\infty", "10^{400}"),
     ("\\frac{0}{0}", "\\frac{0}{0}"),
     ("x", "y"), ("i", "-i"), ("(-1)^n", "1")],
)
def test_unequal(first, second):
    assert not equal(value(first), value(second))
    assert not equal(value(second), value(first))


@pytest.mark.parametrize(
    ("first", "second"),
    [("\\sqrt{5+2\\sqrt6}", "\\sqrt2+\\sqrt3"), ("\\sin^2 x + \\cos^2 x", "1"), ("\\frac{x^2-1}{x-1}", "x+1"),
    ("\\sqrt{x^2}", "|x|"),
     ("\\ln x^2", "2\\ln x"), ("\\frac{(n+1)!}{n!}", "n+1"), ("\\binom{n}{2}", "\\frac{n(n-1)}{2}"),
     ("\\cos 2x", "1-2\\sin^2 x"),
     ("(1+i)^2", "2i"), ("\\frac{1}{1+i}", "\\frac{1-i}{2}"), ("\\tan 75^\\circ", "2+\\sqrt3"), ("\\infty", "\\infty"),
     ("\\sqrt[3]{2+\\sqrt5}+\\sqrt[3]{2-\\sqrt5}", "1"), ("\\sum_{k=1}^n k^3", "\\frac{n^2(n+1)^2}{4}"),
     ("2^{x+1}", "2\\cdot 2^x"),
     ("\\log_2 3", "\\frac{\\ln 3}{\\ln 2}"), ("x^{1/2}x^{1/2}", "x")],
)
def test_equal(first, second):
    assert equal(value(first), value(second))
    assert equal(value(second), value(first))


@settings(max_examples=50, deadline=None)
@given(st.fractions(-9, 9), st.fractions(-9, 9), st.fractions(-9, 9), st.fractions(-9, 9).filter(bool))
def test_an_equation_is_the_same_times_a_constant(a, b, c, factor):
    def line(*parts):
        return "({})x + ({})y = {}".format(*parts)

    if a and b and c:  # "+ 0" is work left to be done
        assert alike(line(a, b, c), line(a * factor, b * factor, c * factor))
        assert not alike(line(a, b, c), line(a, b, c + factor))
        assert alike(f"y = ({-a / b})x + {c / b}".replace("+ -", "- "), line(a, b, c))


@pytest.mark.parametrize(
    ("found", "expected", "verdict"),
    [
        ("2x - y + 1 = 0", "y = 2x + 1", True), ("x = (y-1)/2", "y = 2x + 1", True), ("xy = 3", "y = 3/x", True),
        ("0 = 0", "y = x", False),
        ("y = y", "y = x", False), ("y = x^2", "y = x", False), ("x^2 = y^2", "x = y", False),
        ("y = x", "0 = 0", False),
        ("2x + 4y - 3 = 0", "y = -1/2x + 3/4", True), ("y > x", "x < y", True), ("-y < -x", "y > x", True),
        ("-y > -x", "y > x", False),
        ("y \\ge x", "y > x", False), ("2y > 2x", "y > x", True), ("y \\ne x", "x \\ne y", True),
        ("y = 3x", "y > 3x", False),
        ("1/2x", "\\frac{x}{2}", True), ("1/2x", "\\frac{1}{2x}", True), ("1/2x", "2x", False),
        ("X + 1", "x + 1", True),
        ("Gmm", "GMm", False), ("GmM", "GMm", True), ("a = 1, b = 2", "b = 2, a = 1", True),
        ("a = 2, b = 1", "a = 1, b = 2", False),
        ("1, 2", "2, 1", True), ("1, 1", "1, 2", False), ("(1, 2), (3, 4)", "(3, 4), (1, 2)", True),
        ("(2, 1)", "(1, 2)", False),
        ("[1, 2]", "(1, 2)", False), ("\\{1, 2\\}, 3", "\\{2, 1\\}, 3", True), ("1.4142135623", "\\sqrt2", True),
        ("1.4142135624", "\\sqrt2", True), ("1.4142135625", "\\sqrt2", False), ("1.41421356", "\\sqrt2", False),
        ("-1.4142135624", "\\sqrt2", False), ("(1.4142135624, 1)", "(\\sqrt2, 1)", True),
        ("0.5000000001", "\\frac12 x", False),
    ],
)
def test_same(found, expected, verdict):
    assert alike(found, expected) is verdict


@pytest.mark.parametrize(
    ("found", "expected", "verdict"),
    [
        ("\\{1\\} \\cup (2, 3)", "(2, 3) \\cup \\{1\\}", True), ("[0, 1] \\cup [1, 2]", "[0, 2]", True),
        ("[0, 1) \\cup (1, 2]", "[0, 2]", False),
        ("[0, 1) \\cup [1, 2]", "[0, 2]", True), ("[0, 2] \\cup [1, 3]", "[0, 3]", True),
        ("[0, 5] \\cup [1, 3]", "[0, 5]", True),
        ("[0, 2) \\cup \\{2\\}", "[0, 2]", True), ("\\{0\\} \\cup (0, 2)", "[0, 2)", True),
        ("(0, 2) \\cup (0, 2]", "(0, 2]", True),
        ("[0, 2) \\cup (0, 2)", "[0, 2)", True), ("\\{1\\} \\cup \\{2\\}", "\\{2, 1\\}", True),
        ("\\mathbb{R} \\setminus \\{0\\}", "x \\ne 0", True),
        ("[0, 2] \\setminus \\{0, 1\\}", "(0, 1) \\cup (1, 2]", True),
        ("[0, 2] \\setminus \\{3\\}", "[0, 2] \\cup [0, 1]", True),
        ("\\{1, 2\\} \\setminus \\{2\\}", "\\{1\\} \\cup \\{1\\}", True), ("\\emptyset", "\\{\\}", True),
        ("(0, \\sqrt2) \\cup (2, \\infty)", "(2, \\infty) \\cup (0, \\frac{2}{\\sqrt2})", True),
    ],
)
def test_unions(found, expected, verdict):
    assert alike(found, expected) is verdict


@pytest.mark.parametrize(
    ("found", "expected", "verdict"),
    [
        ("[[1, 2], [3, 4]]", "\\begin{bmatrix}1&2\\\\3&2^2\\end{bmatrix}", True), ("[[1, 2]]", "[[1], [2]]", False),
        ("2\\begin{pmatrix}1&2\\end{pmatrix}", "[[2, 4]]", True), ("-\\begin{pmatrix}1\\end{pmatrix}", "[[1]]", False),
        ("\\begin{pmatrix}1&2\\end{pmatrix}^T", "[[1], [2]]", True),
        ("\\frac12 \\cdot \\begin{pmatrix}1\\end{pmatrix}", "[[0.5]]", True),
    ],
)
def test_matrices(found, expected, verdict):
    assert alike(found, expected) is verdict

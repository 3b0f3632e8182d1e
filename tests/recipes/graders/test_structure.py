"""Structure: brackets and candidates among tokens, and one form for what has several."""

from __future__ import annotations

import pytest

from recipes.graders.structure import candidates, canonical, is_group, is_name, is_related, is_variable, split


def joined(text: str) -> tuple[str, str]:
    name, tokens = canonical(text.split())
    return " ".join(name), " ".join(tokens)


def test_split():
    assert split("1 , ( 2 , 3 ) , { 4 , 5 }".split(), ",") == [["1"], "( 2 , 3 )".split(), "{ 4 , 5 }".split()]
    assert split(["1"], ",") == [["1"]]
    assert split([",", "\\lor"], ",", "\\lor") == [[], [], []]
    assert split("\\begin{pmatrix} 1 , 2 \\end{pmatrix}".split(),
    ",") == ["\\begin{pmatrix} 1 , 2 \\end{pmatrix}".split()]


@pytest.mark.parametrize(("text", "group"), [("( 1 )", True), ("( 1 ) ( 2 )", False), ("( 1 , 2 ]", True), ("(", False),
                                             ("1", False), ("x ( 1 )", False), ("( ( 1 ) )", True)])
def test_is_group(text, group):
    assert is_group(text.split()) == group


def test_candidates():
    assert candidates("1 , ( 2 , 3 )".split()) == [["1"], "( 2 , 3 )".split()]
    assert candidates("\\{ 1 , 2 \\}".split()) == [["1"], ["2"]]
    assert candidates("\\{ \\}".split()) == []


@pytest.mark.parametrize("text", ["x", "\\theta", "x _ { 1 }", "v _ { \\max }", "f ( x )", "f ^ { - 1 } ( x )",
                                  "f ' ( x )", "( p , q )",
                                  "A B", "\\angle A B C", "\\vec { v }", "P ( A )", "| z |", "\\cos \\theta",
                                  "\\frac { d y } { d x }", "d y / d x"])
def test_names(text):
    assert is_name(text.split())


@pytest.mark.parametrize("text", ["3", "x + 1", "2 x", "\\pi", "x ^ { 2 }", "\\sqrt { x }", "x y", "f ( 2 )",
                                  "( 1 , 2 )", "\\infty", ""])
def test_no_names(text):
    assert not is_name(text.split())


def test_is_variable():
    assert is_variable(["x"]) and is_variable(("x", "_", "{", "1", "}")) and is_variable(["\\theta"])
    assert not is_variable("f ( x )".split()) and not is_variable([]) and not is_variable(["\\pi"])


def test_is_related():
    assert is_related("x = 1".split()) and not is_related("\\sum _ { k = 1 } ^ { n } k".split())


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("x = 3", "x", "3"), ("3 = x", "x", "3"), ("x = x + 1", "", "x = x + 1"), ("x \\in A", "x", "A"),
        ("x = 1 , x = 2", "x", "1 , 2"),
        ("x = 1 , 2", "x", "1 , 2"),
        ("a = 1 , b = 2", "", "a = 1 , b = 2"), ("x = 1 , 2 = 2", "", "x = 1 , 2 = 2"), ("2 x = 6", "", "2 x = 6"),
        ("x = y = 3", "", "x = y = 3"), ("x = 1 \\lor x = 2", "x", "1 , 2"), ("6 \\land 8", "", "6 , 8"),
        ("x > 3", "x", "( 3 , \\infty )"), ("3 \\ge x", "x", "( - \\infty , 3 ]"), ("y > 2 x", "", "y > 2 x"),
        ("x \\ne 3", "x", "( - \\infty , 3 ) \\cup ( 3 , \\infty )"), ("1 < x \\le 4", "x", "( 1 , 4 ]"),
        ("4 \\ge x > 1", "x", "( 1 , 4 ]"), ("1 < 2 < 3", "", "1 < 2 < 3"), ("1 < x > 0", "", "1 < x > 0"),
        ("x < 2 \\lor x > 3", "x", "( - \\infty , 2 ) \\cup ( 3 , \\infty )"),
        ("x < 2 \\lor x = 3", "x", "( - \\infty , 2 ) \\cup \\{ 3 \\}"),
        ("x > 1 \\land x \\le 4", "x", "( 1 , 4 ]"), ("x \\le 4 \\land x > 1", "x", "( 1 , 4 ]"),
        ("x > 1 \\land x > 2", "x", "( 1 , \\infty ) , ( 2 , \\infty )"),
        ("x > 5 , x < 3", "x", "( 5 , \\infty ) , ( - \\infty , 3 )"),
        ("x < 2 \\lor y > 3", "", "x < 2 , y > 3"),
        ("\\{ x | x > 3 \\}", "x", "( 3 , \\infty )"), ("\\{ x \\in ℝ : 1 < x < 2 \\}", "x", "( 1 , 2 )"),
        ("ℝ", "", "( - \\infty , \\infty )"),
        ("\\{ \\}", "", "\\emptyset"), ("{ 1 , 2 }", "", "\\{ 1 , 2 \\}"), ("{ x + 1 } y", "", "{ x + 1 } y"),
        ("\\pm 2", "", "2 , - 2"), ("1 \\pm 2", "", "1 + 2 , 1 - 2"), ("\\{ \\pm 1 \\}", "", "\\{ 1 , - 1 \\}"),
        ("( \\pm 1 , \\mp 2 )", "", "( 1 , - 2 ) , ( - 1 , 2 )"), ("\\pm 1 , 2", "", "1 , - 1 , 2"),
        ("\\pm 1 \\pm 2", "", "1 + 2 , 1 - 2 , - 1 + 2 , - 1 - 2"), ("( 3 , + \\infty )", "", "( 3 , \\infty )"),
        ("\\pm 1 \\pm 1 \\pm 1 \\pm 1 \\pm 1", "", "\\pm 1 \\pm 1 \\pm 1 \\pm 1 \\pm 1"),
        ("[ [ 1 , 2 ] , [ 3 , 4 ] ]", "", "\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}"),
        ("[ [ 1 ] , 2 ]", "", "[ [ 1 ] , 2 ]"),
        ("( \\begin{pmatrix} 1 \\\\ \\end{pmatrix} )", "", "\\begin{pmatrix} 1 \\end{pmatrix}"),
    ],
)
def test_canonical(text, name, value):
    assert joined(text) == (name, value)
    if name or "=" not in value and "<" not in value:
        assert joined(value)[1] == value

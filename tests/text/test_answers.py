"""Answers: the golden table (kind, gold, answer, expected, note), and properties on arbitrary text."""

from __future__ import annotations

import doctest
import itertools
import json
import random
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import each_row

from reasonkit.text import answers
from reasonkit.text.answers import KINDS, MAX_CHARACTERS, check

TABLE = Path(__file__).parents[1] / "golden" / "answers.jsonl"
GOLDEN = [json.loads(line) for line in TABLE.read_text(encoding="utf-8").splitlines()]
PLAN = '{"start": ["a"], "goal": ["b"], "actions": {"go": {"needs": ["a"], "deletes": ["a"], "adds": ["b"]}}}'
GOLD = {"number": "5", "choice": "B) Paris", "yes_no": "yes", "expression": "x + 1", "list": "1, 2", "set": "1, 2",
        "text": "on", "quantity": "5 km", "smiles": "CCO", "plan": PLAN, "date": "2024-03-05"}
RIGHT = GOLD | {"plan": "go"}
FRAGMENTS = [
    "1", "23", "000", ",", ".", "-", "−", "+", "/", " ", "\n", "%", "$", "e", "^", "10^", "×", "=", "½", "²", ":30",
    "km", ";", "(", ")", "x", "\\sqrt", "_", "go", "CC", "(B)", "b)", "yes", "no", "and", "or", "[", "]", "{", "}",
    "\\frac{", "\\boxed{", "**", '"',
]
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=12).map("".join)


def check_row(row):
    verdict = check(row["answer"], row["gold"], row["kind"])
    assert verdict.correct == row["expected"], (row["note"], verdict)
    assert (verdict.why == "equal") == row["expected"]


SLOW = [row for row in GOLDEN if "10^{10^" in (row["answer"] or "")]
test_golden = each_row([row for row in GOLDEN if row not in SLOW])(check_row)
test_slow_golden = pytest.mark.slow(each_row(SLOW)(check_row))
STRICT = [json.loads(line) for line in TABLE.with_name("strict.jsonl").read_text(encoding="utf-8").splitlines()]


@each_row(STRICT)
def test_strict(row):
    """What an answer may not leave to be done, hedge or take back, each beside its honest sibling."""
    check_row(row)


def test_golden_has_every_kind_and_enough_wrong_answers():
    assert [*KINDS] == list(dict.fromkeys(row["kind"] for row in GOLDEN))
    assert all(row["note"] for row in GOLDEN)
    for kind in KINDS:
        expected = [row["expected"] for row in GOLDEN if row["kind"] == kind]
        assert len(expected) / 3 <= expected.count(False) < len(expected), kind


def test_doctests():
    result = doctest.testmod(answers)
    assert result.attempted and not result.failed


@pytest.mark.parametrize("kind", ["numbers", "", None])
def test_unknown_kind(kind):
    with pytest.raises(ValueError, match="unknown answer kind .*number, choice, yes_no, .*quantity, smiles, plan"):
        check("5", "5", kind)


@pytest.mark.parametrize(
    ("kind", "gold"),
    [
        ("number", "five"), ("number", "5 or 6"), ("number", "1/0"), ("number", "1e99999999999"),
        ("choice", "Paris"), ("choice", "A or B"), ("yes_no", "maybe"),
        ("list", " "), ("list", ",,"), ("set", ""), ("text", " \n"),
        ("expression", "x + 1 or so"), ("expression", "(x"), ("quantity", "km"), ("quantity", "5 apples"),
        ("quantity", "$5"), ("quantity", "10:30"), ("smiles", "C("), ("smiles", "CCO OCC"),
    ],
)
def test_unreadable_gold(kind, gold):
    with pytest.raises(ValueError, match=f"cannot be read as {kind}"):
        check("5", gold, kind)


def test_overlong_gold():
    with pytest.raises(ValueError, match="gold answer of 10001 characters"):
        check("5", "5" * (MAX_CHARACTERS + 1), "text")


@pytest.mark.parametrize("kind", KINDS)
def test_why(kind):
    assert check(None, GOLD[kind], kind).why == check(" \n", GOLD[kind], kind).why == "no answer"
    assert "longer than" in check("x" * (MAX_CHARACTERS + 1), GOLD[kind], kind).why
    assert check(RIGHT[kind], GOLD[kind], kind).why == "equal"


@pytest.mark.parametrize(
    ("kind", "answer", "extracted"),
    [("number", "−1,234.50 dollars", "-2469/2 dollar"), ("number", "50%", "50%"), ("number", "7.", "7"),
     ("choice", "(b) text", "B"), ("yes_no", "False.", "no"), ("list", "[1, 1/2, Red]", "1; 1/2; red"),
     ("choice", "paris.", "paris"), ("expression", "y = x**10", "x^{10}"), ("quantity", "1 h 30 min", "1 h; 30 min"),
     ("smiles", "`CCO`", "CCO"), ("plan", "1. Go\n2. Go", "go; go"), ("number", "10:30", "10:30"),
     ("set", "3, 1, 3", "1; 3"), ("text", "The End!", "end"), ("number", "288, maybe 3", None)],
)
def test_extracted(kind, answer, extracted):
    assert check(answer, GOLD[kind], kind).extracted == extracted


@settings(max_examples=300)
@given(TEXTS | st.text())
def test_model_text_never_raises(text):
    for kind, gold in GOLD.items():
        verdict = check(text, gold, kind)
        assert not verdict.correct or verdict.extracted is not None


@settings(max_examples=300)
@given(TEXTS | st.text())
def test_a_gold_answer_is_right_or_refused(gold):
    for kind in set(KINDS) - {"plan"}:
        try:
            verdict = check(gold, gold, kind)
        except ValueError:
            continue
        assert verdict.correct, kind


@given(st.integers(-(10**30), 10**30), st.integers(1, 10**12))
def test_numbers_are_exact(top, bottom):
    value = Fraction(top, bottom)
    assert check(f"{top:,}", str(top), "number").correct
    assert check(f"{top:,}".replace(",", "\u202f"), str(top), "number").correct
    assert check(f"{top}/{bottom}", str(value), "number").correct == (value.denominator > 1)  # 70/2 is work left
    assert not check(str(top + 1), str(top), "number").correct
    assert not check(f"{top * 10**6 + 1}/{bottom * 10**6}", str(value), "number").correct


@given(st.decimals(-(10**6), 10**6, places=3))
def test_decimal_commas_and_scientific_notation(value):
    gold = str(value)
    assert check(gold.replace(".", ",") + "0", gold, "number").correct  # four decimals are no thousands
    assert check(f"{value:e}", gold, "number").correct
    assert check(f"{value * 10} × 10^-1", gold, "number").correct


BETWEEN = st.sampled_from([" or ", ", maybe ", "; ", ":", " = ", "\n"])


@given(st.integers(-999, 999), st.integers(-999, 999), BETWEEN)
def test_two_candidates_are_wrong(first, second, between):
    for gold in (first, second):
        assert not check(f"{first}{between}{second}", str(gold), "number").correct


@given(st.lists(st.integers(-99, 99), min_size=2, max_size=6, unique=True), st.randoms(use_true_random=False))
def test_lists_have_an_order_and_sets_have_none(items, rng: random.Random):
    shuffled = rng.sample(items, len(items))
    gold, answer = ", ".join(map(str, items)), "; ".join(map(str, shuffled))
    assert check(answer, gold, "set").correct
    assert check(answer, gold, "list").correct == (items == shuffled)
    assert not check(", ".join(map(str, items[1:])), gold, "set").correct


@pytest.mark.parametrize("form", ["{}", "({})", "{}.", "{}) it", "[{}]"])
def test_choices(form):
    for gold, letter in itertools.product("ABCDEFGHI", repeat=2):
        assert check(form.format(letter), gold, "choice").correct == (gold == letter)
        assert check(form.format(letter).lower(), f"({gold})", "choice").correct == (gold == letter)


HOSTILE = [
    "1e9", "1,000", "10^10^", "½", "**a", "\\frac{", "answer is ", "(B", "or ", "yes, ", " ", "\n", "move(", "then ",
    "x^", "{", "5 km ", "```\n", "_{", "*a", "A and B, ", "1. ", "(1, 2), ", "per second ", "March 5, ", "H_2",
    "million ", "\\mathrm{", "x = ", "not ", "~a ", "[s]", "<s ", "maybe, ", ",",
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unit", HOSTILE)
def test_hostile_text_takes_no_time(kind, unit):
    check(None, GOLD[kind], kind)  # what starts once is not counted
    start = time.process_time()
    for length in (60, 200, MAX_CHARACTERS):
        check(unit * (length // len(unit)), GOLD[kind], kind)
        check("1e" + unit * (length // len(unit) - 2), GOLD[kind], kind)
        check(f"[{unit * (length // len(unit) - 2)}]", GOLD[kind], kind)
    assert time.process_time() - start < 2


def test_a_plain_number_takes_microseconds():
    rng = random.Random(0)
    pairs = [(f"{value:,}", str(value + rng.randint(0, 1))) for value in rng.sample(range(-10**6, 10**6), 2000)]
    runs = []
    for _ in range(3):
        start = time.process_time()
        for answer, gold in pairs:
            check(answer, gold, "number")
        runs.append(time.process_time() - start)
    assert min(runs) / len(pairs) < 20e-6

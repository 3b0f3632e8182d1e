"""Hedges: the golden table (kind, gold, answer, expected, note), each way to hedge beside honest siblings."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from tables import each_row

from reasonkit.text.answers import check
from reasonkit.text.hedges import has_hedge, is_doubt, is_withdrawn, only_links

TABLE = Path(__file__).parents[1] / "golden" / "hedges.jsonl"
GOLDEN = [json.loads(line) for line in TABLE.read_text(encoding="utf-8").splitlines()]


@each_row(GOLDEN)
def test_golden(row):
    verdict = check(row["answer"], row["gold"], row["kind"])
    assert verdict.correct == row["expected"], (row["note"], verdict)


def test_every_kind_has_hedges_and_honest_siblings():
    counts = Counter((row["kind"], row["expected"]) for row in GOLDEN)
    kinds = {row["kind"] for row in GOLDEN}
    assert kinds == {"number", "quantity", "choice", "yes_no", "text", "list", "set", "date", "expression"}
    assert all(counts[kind, False] >= 100 and counts[kind, True] >= 10 for kind in kinds), counts


@pytest.mark.parametrize(
    ("words", "changed"),
    [("apples", False), ("wrong", True), ("wrong answers", False), ("apples are left", False), ("is wrong", True),
     ("or nineteen", True), ("lonely people", False), ("possibly apples", True), ("Alternatively nineteen", True),
     ("assembly lines", False), ("revised plans", False), ("revised", True), ("apples though", True)],
)
def test_has_hedge(words, changed):
    assert has_hedge(words.split()) is changed


@pytest.mark.parametrize(
    ("words", "changed"),
    [("mistake", False), ("wrong answer", False), ("revised plan", False), ("wrong", True), ("possibly", True),
     ("or mistake", True), ("maybe apple", True), ("or so", True)],
)
def test_has_hedge_after_one(words, changed):
    assert has_hedge(words.split(), singular=True) is changed
    assert has_hedge(words.split())  # the same after 20


@pytest.mark.parametrize(
    ("words", "doubt", "links"),
    [("i think", True, True), ("that is right", False, True), ("that is not right", True, True),
     ("on second thought", False, True), ("paris", False, False), ("the first", False, False), ("or", False, True)],
)
def test_clauses(words, doubt, links):
    assert is_doubt(words.split()) is doubt
    assert only_links(words.split()) is links


@pytest.mark.parametrize(
    ("answer", "gold", "withdrawn"),
    [("~~20~~", "20", True), ("~~a~~", "~~a~~", False), ("20?", "20", True), ("Who?", "who?", False),
     ("2\u0336", "2", True), ("≠", "≠", False), ("=\u0338", "≠", False), ("~/.bashrc", "~/.bashrc", False),
     ("\\cancel 20", "20", True), ("\\stackrel{a}{=}", "a", False), ("<strong>20</strong>", "20", False)],
)
def test_withdrawn(answer, gold, withdrawn):
    assert is_withdrawn(answer, gold) is withdrawn

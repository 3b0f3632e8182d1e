"""The answer of a reply: blocks that say the same are one, blocks that differ are none, for every kind."""

from __future__ import annotations

import json
import time

import pytest

from reasonkit.eval.evaluate import evaluate
from reasonkit.rewards.rules import exact_answer
from reasonkit.text.answers import KINDS, MAX_BLOCKS, answer_of, grade
from reasonkit.text.tags import TAGS

PLAN = json.dumps({"start": ["in hall"], "goal": ["in attic"], "actions": {
    "go ?a ?b": {"needs": ["in ?a"], "deletes": ["in ?a"], "adds": ["in ?b"]}}})


def reply(*blocks):
    return "<reasoning>x</reasoning>" + "".join(f"<answer>{block}</answer>" for block in blocks)


@pytest.mark.parametrize(("kind", "gold", "blocks", "expected"), [
    ("number", "4", ["4"], "4"),
    ("number", "4", [], None),
    ("number", "5", ["4", "4.0", "\u200b4", "**4**"], "4"),       # one answer, and a wrong one
    ("number", "1200", ["1,200", "1200 apples"], "1,200"),
    ("number", "4", ["4", "5"], None),
    ("number", "4", ["5", "4"], None),
    ("number", "4", ["4", "4", "5"], None),
    ("number", "4", ["4", "four, or 5"], None),
    ("choice", "B", ["B", "(b)"], "B"),
    ("choice", "B) Paris", ["Paris", "B"], None),                 # B may be any option's letter
    ("choice", "B) Paris", ["Paris", "paris"], "Paris"),
    ("choice", "B) Paris", ["Paris", "B) Paris"], "Paris"),
    ("choice", "B) Paris", ["B) Paris", "Paris"], "B) Paris"),
    ("choice", "B", ["A", "B"], None),
    ("yes_no", "yes", ["Yes", "true"], "Yes"),
    ("yes_no", "yes", ["yes", "no"], None),
    ("expression", "2x", ["x+1", "1+x"], "x+1"),
    ("expression", "x+1", ["x+1", "x+2"], None),
    ("list", "1, 2", ["1, 2", "[1; 2]"], "1, 2"),
    ("list", "1, 2", ["1, 2", "2, 1"], None),
    ("set", "1, 2", ["1, 2", "2, 1"], "1, 2"),
    ("text", "on", ["On.", "on"], "On."),
    ("text", "on", ["on", "off"], None),
    ("quantity", "5 km", ["5 km", "5000 m"], "5 km"),
    ("quantity", "5 km", ["5 km", "5 m"], None),
    ("smiles", "CCO", ["CCO", "OCC"], "CCO"),
    ("smiles", "CCO", ["CCO", "CCN"], None),
    ("date", "2024-03-05", ["March 5, 2024", "5.3.2024"], "March 5, 2024"),
    ("date", "2024-03-05", ["2024-03-05", "2024-05-03"], None),
    ("plan", PLAN, ["go hall attic", "1. Go hall attic."], "go hall attic"),
    ("plan", PLAN, ["go hall attic", "go hall cellar"], None),
    ("plan", PLAN, ["[" * 5000, "{" * 5000], None),               # model text never raises
])
def test_the_answer_of_a_reply(kind, gold, blocks, expected):
    assert answer_of(TAGS.parse(reply(*blocks)), gold, kind) == expected


def test_every_kind_is_there():
    (table,) = (mark.args[1] for mark in test_the_answer_of_a_reply.pytestmark)
    assert {row[0] for row in table} == set(KINDS)


@pytest.mark.parametrize(("gold", "kind", "message"), [("x", "riddle", "unknown answer kind"), ("?", "number", "'?'")])
def test_a_gold_answer_that_is_none_is_named(gold, kind, message):
    with pytest.raises(ValueError, match=message):
        answer_of(TAGS.parse(reply("4", "5")), gold, kind)


def test_the_reward_and_the_evaluation_read_the_same():
    texts = [reply("4", "4.0"), reply("4", "5"), reply("5", "5.0"), reply()]
    problems = [dict(id=str(n), family="f", kind="number", question="2+2?", answer="4", reasoning="2+2=4")
                for n in range(len(texts))]
    paid = exact_answer([""] * 4, texts, answer=["4"] * 4, kind=["number"] * 4)
    samples = evaluate(lambda prompts: texts, problems, batch_size=4).samples
    assert paid == [float(sample["correct"]) for sample in samples] == [1.0, 0.0, 0.0, 0.0]
    assert [sample["answer"] for sample in samples] == ["4", None, "5", None]
    assert [sample["failures"][-1] for sample in samples] == ["duplicated_answer", "no answer", "wrong answer",
                                                              "no answer"]


SLOW = [f"10^{{10^{{1{n}}}}}" for n in range(9)]  # no library ends on these


def test_a_reply_that_takes_too_long_is_wrong_and_takes_no_other_replys_time():
    grade([reply("1+x")], ["x+1"], ["expression"])  # what starts once is not timed
    texts = [reply(SLOW[0]), reply("x+1"), reply(*SLOW[:MAX_BLOCKS]), reply("10^{20}"), reply("5000 m")]
    golds, kinds = ["10^{20}", "1 + x", "10^{20}", "10^{20}", "5 km"], ["expression"] * 4 + ["quantity"]
    began = time.monotonic()
    found = grade(texts, golds, kinds, seconds=3.0)
    assert time.monotonic() - began < 9  # three seconds, and as much again on a loaded machine
    assert [verdict.correct for verdict in found] == [False, True, False, True, True]
    assert found[0].why == "out of time"


@pytest.mark.parametrize("count", [MAX_BLOCKS, MAX_BLOCKS + 1])
def test_a_reply_has_few_blocks(count):
    blocks = ["4", *(f"4.{'0' * zeros}" for zeros in range(1, count))]
    assert answer_of(TAGS.parse(reply(*blocks)), "4", "number") == ("4" if count == MAX_BLOCKS else None)


def test_replies_golds_and_kinds_are_as_many():
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        grade([reply("4"), reply("4")], ["4"], ["number", "number"])

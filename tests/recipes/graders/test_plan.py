"""Planning: steps as they are written, the world they change, and problems that are none."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.graders.plan import read_problem, read_steps

WORLD = {
    "start": ["at a", "road a b", "road b c"], "goal": ["at c"],
    "actions": {"go ?x ?y": {"needs": ["at ?x", "road ?x ?y"], "deletes": ["at ?x"], "adds": ["at ?y"]},
                "rest": {}},
}


def world(**changes):
    return json.dumps(WORLD | changes)


@pytest.mark.parametrize(
    ("steps", "solved"),
    [
        (["go a b", "go b c"], True), (["rest", "go a b", "rest", "go b c"], True),
        ([], False), (["go a b"], False),                              # the goal is not reached
        (["go a c"], False), (["go a b", "go a b", "go b c"], False),  # no such road, and no longer there
        (["go a b", "go b c", "fly c c"], False), (["go a"], False),   # no such action
    ],
)
def test_is_solved_by(steps, solved):
    assert read_problem(world()).is_solved_by(steps) is solved


def test_a_fact_that_is_deleted_and_added_holds():
    text = world(goal=["at a"], actions={"turn": {"needs": ["at a"], "deletes": ["at a"], "adds": ["at a"]}})
    assert read_problem(text).is_solved_by(["turn"])


def test_a_variable_stands_for_one_word():
    text = world(goal=["done"], actions={"pair ?x ?x": {"adds": ["done"]}})
    assert read_problem(text).is_solved_by(["pair a a"])
    assert not read_problem(text).is_solved_by(["pair a b"])


@pytest.mark.parametrize(
    "text",
    ["go a b, go b c", "go a b\ngo b c", "1. Go a b\n2. go b c.", "Step 1: go a b; step 2: go b c", "go a b -> go b c",
     "go(a, b), go(b, c)", "(go a b)\n(go b c)", '["go a b", "go b c"]', "- go a b\n* go b c", "go a b and then go b c",
     "`go a b`, then `go b c`", "1) go a b 2) go b c".replace(" 2)", "\n2)")],
)
def test_read_steps(text):
    assert read_steps(text) == ("go a b", "go b c")


@pytest.mark.parametrize(("text", "steps"), [("", None), (" \n", None), ("[]", ()), ("[ ]", ()), ("...", None)])
def test_no_steps(text, steps):
    assert read_steps(text) == steps


@given(st.text())
def test_any_text_is_simulated(text):
    steps = read_steps(text)
    assert steps is None or not read_problem(world()).is_solved_by(steps)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("go a b", "is JSON with start, goal and actions"), ("[]", "has exactly start, goal"),
        ('{"start": [], "goal": ["a"]}', "has exactly start, goal"), (world(goal=[]), "goal .not empty"),
        (world(actions={}), "actions are an object"), (world(actions=["go"]), "actions are an object"),
        (world(actions={"go": {"pre": []}}), "may have needs, deletes, adds"),
        (world(actions={"go": {"adds": ["at ?y"]}}), r"\['\?y'\] in its facts"),
        (world(actions={" ": {}}), "name them all"), (world(start="at a"), "start is a list of facts"),
        (world(goal=[" "]), "goal is a list of facts"), (world(goal=[1]), "goal is a list of facts"),
    ],
)
def test_bad_problems(text, message):
    with pytest.raises(ValueError, match=message):
        read_problem(text)

"""Rewards: form graded, answers checked, and a gate that pays for one only with the other."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonkit.rewards.rules import LARGEST, PENALTIES, ask, exact_answer, gate, tag_format
from reasonkit.text.tags import DEFECTS, TAGS, Parsed
from recipes.rewards.extra import numeric_closeness

GOOD = TAGS.render(reasoning="2 + 2 = 4", answer="4")


def returns(values, name="part"):
    """A reward that gives these values, whatever it is asked."""
    def reward(prompts, completions, **columns):
        return values
    reward.__name__ = name
    return reward


def form(defects, monkeypatch):
    # TAGS is frozen, so its class is patched
    monkeypatch.setattr(type(TAGS), "parse", lambda self, text: Parsed("r", "a", tuple(defects)))
    return tag_format(["q"], ["any"])[0]


# tag_format

@pytest.mark.parametrize(("reply", "expected"), [
    (GOOD, 0.0),
    (f"\n{GOOD}  ", 0.0),
    (f"Sure! {GOOD}", -0.2),
    ("<reasoning>2 + 2</reasoning><answer>4", -0.3),
    ("<answer>4</answer>", -0.4),
    ("<reasoning>2 + 2</reasoning><answer>", -0.5),
    ("<reasoning>2 + 2</reasoning>", -0.6),
    ("<reasoning>2 + 2", -0.8),
    ("It is 4.", -1.0),
    ("", -1.0),
])
def test_tag_format_is_graded(reply, expected):
    assert tag_format(["q"], [reply]) == [pytest.approx(expected)]


def test_every_defect_costs_and_a_missing_answer_most(monkeypatch):
    assert sorted(defect for row in PENALTIES for defect in row) == sorted(DEFECTS)
    scores = {defect: form([defect], monkeypatch) for defect in DEFECTS}
    assert all(-1.0 < score < 0.0 for score in scores.values())
    assert min(scores, key=scores.get) == "missing_answer"
    assert form(DEFECTS, monkeypatch) == -1.0


def test_a_defect_more_never_scores_higher(monkeypatch):
    for size in range(4):
        for defects in itertools.combinations(DEFECTS, size):
            base = form(defects, monkeypatch)
            assert all(form((*defects, more), monkeypatch) <= base for more in DEFECTS)


@given(st.one_of(st.text(), st.lists(st.sampled_from(
    ["<reasoning>", "</reasoning>", "<answer>", "</answer>", "4", " ", "<", ">"])).map("".join)))
@settings(max_examples=200)
def test_tag_format_takes_any_reply(reply):
    (score,) = tag_format(["q"], [reply])
    assert -1.0 <= score <= 0.0
    assert (score == 0.0) == TAGS.parse(reply).ok


# exact_answer

def test_exact_answer_reads_columns_as_tunix_passes_them():
    replies = [GOOD, "<answer>4", "4", "<answer>5</answer>", "<answer>no</answer>"]
    columns = {"answer": np.array(["4", "4", "4", "4", "no"]), "kind": np.array(["number"] * 4 + ["yes_no"])}
    scores = exact_answer(["q"] * 5, replies, trajectory_ids=["0"] * 5, mode="train", **columns)
    assert scores == [1.0, 1.0, 0.0, 0.0, 1.0]


# What slipped past notebook 1: a kind that there is not, and gold answers that their checkers can't read.
UNUSABLE = [("4", "colour"), ("four apples", "number"), (None, "number"), (None, "text"), ("", "number"), ("maybe",
            "yes_no"),
            ("AB", "choice"), ("4", None), ("4", ""), ("{", "plan"), ("31 February 2024", "date"), ("x +",
            "expression"),
            ("twelve-ish", "quantity"), ("4", "Number"), ("None", "number"), ("nan", "number")]


@pytest.mark.parametrize(("gold", "kind"), UNUSABLE)
@pytest.mark.parametrize("reply", [GOOD, "<answer>4</answer>", "<answer>4</answer> or <answer>5</answer>", ""])
def test_a_gold_answer_that_cannot_be_read_is_no_signal_for_its_row_alone(gold, kind, reply):
    columns = {"answer": ["4", gold, "4"], "kind": ["number", kind, "number"]}
    before = exact_answer.failures["unusable_gold"]
    assert exact_answer(["q"] * 3, [GOOD, reply, ""], **columns) == [1.0, None, 0.0]
    assert exact_answer.failures["unusable_gold"] == before + 1
    values, causes = ask(gate(exact_answer, tag_format), ["q"] * 3, [GOOD, GOOD, ""], columns)
    assert np.isnan(values).tolist() == [False, True, False] and causes == {"unusable_gold": 1}


def test_a_gold_answer_that_cannot_be_read_is_said():
    told = {}
    exact_answer(["q"], [GOOD], answer=["4"], kind=["colour"], log_extra=told.__setitem__)
    assert told == {"answer_read": [None], "answer_why": ["the gold answer can't be used"]}


def test_exact_answer_needs_its_columns_whole():
    with pytest.raises(TypeError, match="kind"):
        exact_answer(["q"], [GOOD], answer=["4"])
    with pytest.raises(ValueError, match="shorter"):
        exact_answer(["q"] * 2, [GOOD] * 2, answer=["4"], kind=["number"] * 2)


@given(st.text(), st.sampled_from(["number", "choice", "yes_no", "list", "set", "text"]))
@settings(max_examples=100)
def test_exact_answer_takes_any_reply(text, kind):
    golds = {"number": "4", "choice": "B", "yes_no": "yes", "list": "1, 2", "set": "1, 2", "text": "blue"}
    assert exact_answer(["q"], [f"<answer>{text}"], answer=[golds[kind]], kind=[kind])[0] in (0.0, 1.0)


def test_exact_answer_tells_what_it_read():
    told = {}
    replies = ["<answer>4.0</answer>", "<answer>5</answer>", "<answer>4 or 5</answer>", "no tags"]
    exact_answer(["q"] * 4, replies, answer=["4"] * 4, kind=["number"] * 4, log_extra=told.__setitem__)
    assert told["answer_read"] == ["4", "5", None, None]
    assert len(set(told["answer_why"])) == 4


# numeric_closeness

@pytest.mark.parametrize(("answer", "gold", "expected"), [
    ("20", "20", 1.0), ("20 apples", "20", 1.0), ("50%", "0.5", 1.0), ("0", "0", 1.0),
    ("21", "20", 0.95), ("19", "20", 0.95), ("20.2", "20", 0.99), ("-19", "-20", 0.95), ("1/2", "3/4", 2 / 3),
    ("40", "20", 0.0), ("1000", "20", 0.0), ("-20", "20", 0.0), ("0", "20", 0.0), ("1", "0", 0.0),
    ("19 m", "20 m", 0.95), ("19 m", "20", 0.95), ("20 kg", "20 m", 0.0), ("49%", "50%", 0.98),
    ("49%", "0.5", 0.98), ("0.49", "50%", 0.98), ("49", "50%", 0.98), ("$19", "20 dollars", 0.95),
    ("19 USD", "$20", 0.95),
    ("19 EUR", "$20", 0.0), ("95 cents", "$1", 0.95), ("5‰", "1%", 0.5), ("0:57", "1:00", 0.95), ("57", "1:00", 0.0),
    ("19, maybe 20", "20", 0.0), ("19 20 21", "20", 0.0), ("about", "20", 0.0), ("1e400", "20", 0.0), ("", "20", 0.0),
])
def test_numeric_closeness(answer, gold, expected):
    (score,) = numeric_closeness(["q"], [f"<answer>{answer}</answer>"], answer=[gold], kind=["number"])
    assert score == pytest.approx(expected)


def test_numeric_closeness_is_for_numbers_alone():
    replies = ["<answer>4</answer>"] * 3
    columns = {"answer": np.array(["4", "B", "4"]), "kind": np.array(["number", "choice", "text"])}
    assert numeric_closeness(["q"] * 3, replies, **columns) == [1.0, None, None]
    values, causes = ask(numeric_closeness, ["q"] * 3, replies, {**columns, "answer": ["four apples", "B", "4"]})
    assert np.isnan(values).all() and causes == {"unusable_gold": 1, "none": 2}


@given(st.one_of(st.text(), st.from_regex(r"-?[0-9]{1,12}([./][0-9]{1,9}|e[0-9]{1,3}|%)?( m| kg)?", fullmatch=True)),
       st.sampled_from(["4", "-0.001", "1/3", "50%", "12 m", "1e300", "0"]))
@settings(max_examples=300)
def test_numeric_closeness_takes_any_reply_and_is_1_where_the_answer_is_right(text, gold):
    columns = {"completions": [f"<answer>{text}"], "answer": [gold], "kind": ["number"]}
    (close,), (exact,) = (reward(["q"], **columns) for reward in (numeric_closeness, exact_answer))
    assert exact <= close <= 1.0


def test_two_blocks_that_say_the_same_are_one_answer():
    """In the rewards as in the evaluation; two that differ are none, however near they are."""
    same, other = ("<answer>20</answer> or in short <answer>20.0</answer>", "<answer>20</answer><answer>21</answer>")
    columns = {"answer": ["20", "20", "21"], "kind": ["number"] * 3}
    assert exact_answer(["p"] * 3, [same, other, other], **columns) == [1.0, 0.0, 0.0]
    assert numeric_closeness(["p"] * 3, [same, other, other], **columns) == [1.0, 0.0, 0.0]


# gate

@pytest.mark.parametrize(("value", "key", "expected"), [
    (1.0, 0.0, 1.0), (-0.5, 0.0, -0.5), (None, 0.0, None),       # open
    (1.0, -0.1, 0.0), (-0.5, -0.1, -0.5), (None, -0.1, 0.0),     # closed: no credit, and penalties stay
    (1.0, None, None), (None, None, None),                       # not known
    (1.0, math.nan, None), (-0.5, math.nan, None), (1.0, math.inf, None), (1.0, -math.inf, None),
    (math.nan, 0.0, None), (math.inf, 0.0, None), (math.nan, -0.1, 0.0), (-math.inf, -0.1, 0.0),
])
def test_gate(value, key, expected):
    gated = gate(returns([value, 1.0], "value"), returns([key, 0.0], "key"))
    assert gated.__name__ == "value_if_key" and gated(["p"] * 2, ["c"] * 2) == [expected, 1.0]


def test_gate_pays_nothing_where_the_whole_group_has_no_value():
    """Else a malformed completion of an open question would count as a wrong answer in the logs."""
    gated = gate(returns([None, None, None, 1.0], "value"), returns([-0.1, 0.0, -0.1, 0.0], "key"))
    assert gated(["open"] * 2 + ["checked"] * 2, ["c"] * 4) == [None, None, 0.0, 1.0]


def test_gate_opens_at_the_value_it_is_given():
    gated = gate(returns([1.0, 1.0], "value"), returns([0.4, 0.6], "key"), at_least=0.5)
    assert gated(["p"] * 2, ["c"] * 2) == [0.0, 1.0]


# ask

@pytest.mark.parametrize(("value", "cause"), [
    (None, "none"), (math.nan, "non_finite"), (math.inf, "non_finite"), (-math.inf, "non_finite"), (1e308, "too_large"),
    (-1e308, "too_large"), (LARGEST * 1.001, "too_large"), (10**400, "non_finite"), (np.float32(1e30), "too_large"),
    (np.float64("nan"), "non_finite"), (LARGEST, None), (-LARGEST, None), (0, None), (True, None),
    (np.float32(0.5), None),
])
def test_a_value_that_the_learner_cannot_use_is_no_signal(value, cause):
    values, causes = ask(returns([value, 1.0]), ["p"] * 2, ["c"] * 2, {})
    assert np.isnan(values[0]) == (cause is not None) and values[1] == 1.0
    assert causes == ({cause: 1} if cause else {})

"""Rewards: form graded, answers checked, judges heard or not, and what `compose` trains on and logs."""

import inspect
import itertools
import json
import math
from collections import Counter
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonkit.judge import DeterministicJudge, JudgeFailure, JudgeVerdict, LocalJudge
from reasonkit.rewards import (
    PENALTIES,
    NoSignalError,
    compose,
    exact_answer,
    gate,
    numeric_closeness,
    rubric,
    tag_format,
)
from reasonkit.rubrics import Criterion, rubric_to_json
from reasonkit.runlog import NullLog, RunLog
from reasonkit.tags import DEFECTS, TAGS, Parsed

GOOD = TAGS.render(reasoning="2 + 2 = 4", answer="4")
RUBRIC = rubric_to_json([Criterion("Steps", "Every step follows.", 1.0)])


def returns(values, name="part"):
    """A reward that gives these values, whatever it is asked."""
    def reward(prompts, completions, **columns):
        return values
    reward.__name__ = name
    return reward


def total(values, num_generations, weight=1.0, **settings):
    n = len(values)
    prompts = [f"p{i // num_generations}" for i in range(n)]
    return compose([(returns(values), weight)], NullLog(), **settings)(
        prompts=prompts, completions=["c"] * n, num_generations=num_generations)


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


def test_exact_answer_names_an_unknown_kind():
    with pytest.raises(ValueError, match="colour"):
        exact_answer(["q"], [GOOD], answer=["4"], kind=["colour"])


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
    with pytest.raises(ValueError, match="gold answer 'four apples' cannot be read as number"):
        numeric_closeness(["q"], replies[:1], answer=["four apples"], kind=["number"])


@given(st.one_of(st.text(), st.from_regex(r"-?[0-9]{1,12}([./][0-9]{1,9}|e[0-9]{1,3}|%)?( m| kg)?", fullmatch=True)),
       st.sampled_from(["4", "-0.001", "1/3", "50%", "12 m", "1e300", "0"]))
@settings(max_examples=300)
def test_numeric_closeness_takes_any_reply_and_is_1_where_the_answer_is_right(text, gold):
    columns = {"completions": [f"<answer>{text}"], "answer": [gold], "kind": ["number"]}
    (close,), (exact,) = (reward(["q"], **columns) for reward in (numeric_closeness, exact_answer))
    assert exact <= close <= 1.0


# rubric

def test_rubric_judges_the_whole_reply():
    seen = []
    reward = rubric(DeterministicJudge([lambda item: seen.append(item) or 0.3]))
    columns = {"question": np.array(["2+2?"]), "rubric": np.array([RUBRIC]), "mode": "train"}
    assert reward(["p"], [f"x {GOOD}"], **columns) == [0.3]
    assert (seen[0].question, seen[0].reply, seen[0].rubric[0].title) == ("2+2?", f"x {GOOD}", "Steps")
    assert reward.__name__ == "rubric"


def test_what_a_judge_cannot_tell_apart_makes_no_advantage():
    """At 0.98 against 1.00 a group whose answers are all right was pushed about as hard as by a wrong answer."""
    scores = iter([0.98, 1.0, 0.64, 0.58])
    reward = rubric(DeterministicJudge([lambda item: next(scores)]))
    assert reward(["p"] * 4, [GOOD] * 4, question=["2+2?"] * 4, rubric=[RUBRIC] * 4) == [1.0, 1.0, 0.6, 0.6]


def test_rubric_gives_none_where_the_judge_fails():
    judge = LocalJudge(lambda prompts: np.array([[0.0] * 5, [math.nan] * 5]), "fake")
    reward = rubric(judge)
    assert reward(["p"] * 2, ["a", "b"], question=["q"] * 2, rubric=[RUBRIC] * 2) == [0.5, None]
    assert reward.failures == judge.failures == {"non_finite": 1}


def test_rubric_tells_how_far_each_criterion_is_met():
    told = {}
    reward = rubric(DeterministicJudge([lambda item: 0.25, lambda item: {"a": 0.75}[item.reply]]))
    reward(["p"] * 2, ["a", "b"], question=["q"] * 2, rubric=[RUBRIC] * 2, log_extra=told.__setitem__)
    assert told["rubric"][0] == (0.25, 0.75) and "KeyError" in told["rubric"][1]


def test_rubric_names_what_is_wrong_with_a_rubric():
    reward = rubric(DeterministicJudge([lambda item: 1.0]))
    with pytest.raises(ValueError, match="weight"):
        reward(["p"], ["a"], question=["q"], rubric=[RUBRIC.replace("1.0", "-1")])


def test_rubric_refuses_a_judge_that_loses_items():
    class Short:
        def score(self, items):
            return []

    with pytest.raises(ValueError, match="0 results for 1 items"):
        rubric(Short())(["p"], ["a"], question=["q"], rubric=[RUBRIC])


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
    gated = gate(returns([value], "value"), returns([key], "key"))
    assert gated.__name__ == "value_if_key" and gated(["p"], ["c"]) == [expected]


def test_gate_opens_at_the_value_it_is_given():
    gated = gate(returns([1.0, 1.0], "value"), returns([0.4, 0.6], "key"), at_least=0.5)
    assert gated(["p"] * 2, ["c"] * 2) == [0.0, 1.0]


def test_gate_hands_on_columns_failures_and_what_was_read(tmp_path):
    log = RunLog(tmp_path / "run.jsonl")
    judge = LocalJudge(lambda prompts: np.array([[math.nan] * 5, [0.0] * 5]), "fake")
    reward = compose([(gate(rubric(judge), tag_format), 1.0), (gate(exact_answer, tag_format), 2.0)], log)
    columns = {"question": ["q"] * 2, "rubric": [RUBRIC] * 2, "answer": ["4"] * 2, "kind": ["number"] * 2}
    assert reward(["p"] * 2, [GOOD, GOOD], num_generations=2, **columns) == [2.5, 2.5]
    row = log.last("reward")
    assert row["parts"]["rubric_if_tag_format"]["causes"] == {"non_finite": 1}
    assert row["sample"]["extra"]["answer_read"] == "4" and "nan" in row["sample"]["extra"]["rubric"]


# compose

@pytest.mark.parametrize(("values", "expected"), [
    ([1.0, 0.0, 0.5, 0.5], [1.0, 0.0, 0.5, 0.5]),
    ([1.0, None, 0.25, 0.75], [1.0, 1.0, 0.25, 0.75]),          # the mean of its own group, not of the batch
    ([None, None, 0.25, 0.75], [0.0, 0.0, 0.25, 0.75]),         # a group without any: the same for all
    ([math.nan, 0.5, math.inf, -1.0], [0.5, 0.5, -1.0, -1.0]),  # not finite is no signal
])
def test_no_signal_is_the_mean_of_its_group(values, expected):
    assert total(values, num_generations=2) == expected
    assert total(np.array(values, float), num_generations=2, weight=-2.0) == [-2.0 * x for x in expected]


@given(st.integers(1, 5).flatmap(lambda size: st.lists(
    st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6), st.just(math.nan)), min_size=size, max_size=size),
    min_size=1, max_size=4)))
@settings(max_examples=200)
def test_no_signal_leaves_its_completion_without_advantage(groups):
    size = len(groups[0])
    rewards = total([value for group in groups for value in group], size, max_no_signal=1.0)
    for start, group in zip(range(0, len(rewards), size), groups, strict=True):
        mean = sum(rewards[start:start + size]) / size
        for reward, value in zip(rewards[start:start + size], group, strict=True):
            if value is None or math.isnan(value):
                assert reward == pytest.approx(mean, abs=1e-6)
            else:
                assert reward == value


def test_the_sum_is_weighted_and_weight_0_is_only_logged(tmp_path):
    log = RunLog(tmp_path / "run.jsonl")
    reward = compose([(returns([1.0, 0.0], "a"), 1.0), (returns([0.0, 4.0], "b"), 0.5),
                      (returns([7.0, 9.0], "c"), 0.0)], log)
    assert reward(["p"] * 2, ["c"] * 2, num_generations=2) == [1.0, 2.0]
    assert log.last("reward")["parts"]["c"]["mean"] == 8.0


def test_the_log_row_is_what_was_trained_on(tmp_path):
    log = RunLog(tmp_path / "run.jsonl")
    judge = LocalJudge(lambda prompts: np.array([[math.nan] * 5, [0.0] * 5, [0.0] * 5, [0.0] * 5]), "fake")
    reward = compose([(rubric(judge), 1.0), (returns([None, 1.0, math.inf, 1.0], "odd"), 0.5)], log)
    prompts = ["x" * 1000 + "first?"] * 2 + ["second?"] * 2
    columns = {"question": np.array(["q"] * 4), "rubric": np.array([RUBRIC] * 4), "trajectory_ids": ["0"] * 4}
    assert reward(prompts=prompts, completions=["a", "bcd", "e", "f"], num_generations=2, mode="eval",
                  **columns) == [1.0] * 4
    row = log.last("reward")
    assert row["parts"] == {
        "rubric": {"weight": 1.0, "mean": 0.5, "no_signal": 0.25, "causes": {"non_finite": 1}},
        "odd": {"weight": 0.5, "mean": 1.0, "no_signal": 0.5, "causes": {"none": 1, "non_finite": 1}},
    }
    assert (row["mode"], row["completions"], row["mean"]) == ("eval", 4, 1.0)
    assert (row["flat_groups"], row["mean_length"]) == (1.0, 1.5)
    sample = row["sample"]
    assert sample["prompt"].endswith("first?") and len(sample["prompt"]) < 500
    assert (sample["completion"], sample["total"]) == ("a", 1.0)
    assert sample["parts"] == {"rubric": None, "odd": None}


def test_what_the_parts_read_in_the_sample_is_logged(tmp_path):
    log = RunLog(tmp_path / "run.jsonl")
    columns = {"answer": ["4"] * 2, "kind": ["number"] * 2}
    compose([(tag_format, 1.0), (exact_answer, 0.0), (tag_format_twin(), 0.0)], log)(
        ["p"] * 2, ["<answer>5</answer>", GOOD], num_generations=2, **columns)
    assert log.last("reward")["sample"]["extra"] == {"answer_read": "5", "answer_why": "different"}


def tag_format_twin():
    def twin(prompts, completions, log_extra, **columns):
        assert callable(log_extra)
        return tag_format(prompts, completions)
    return twin


def test_the_correlation_with_length_is_within_groups(tmp_path):
    """Across groups the longer completions have the higher values, within them the lower ones."""
    log = RunLog(tmp_path / "run.jsonl")
    lengths = [1, 2, 3, 11, 12, 13]
    parts = {"falls": [3.0, 2.0, 1.0, 13.0, 12.0, 11.0], "rises": [1.0, 2.0, 3.0, 1.0, None, 3.0], "flat": [1.0] * 6,
             "groups": [1.0] * 3 + [2.0] * 3, "none": [None] * 6, "mixed": [1.0, 0.0, 0.5, 1.0, 0.0, 0.0],
             "one": [None, 5.0, None, None, 7.0, math.inf]}
    compose([(returns(values, name), float(name == "falls")) for name, values in parts.items()], log)(
        list("aaabbb"), ["c" * length for length in lengths], num_generations=3)
    found = log.last("reward")["length_correlation"]
    deviations = np.array([1.0, 0.0, 0.5]) - 0.5, np.array([1.0, 0.0, 0.0]) - 1 / 3
    expected = np.corrcoef(np.concatenate(deviations), [-1, 0, 1] * 2)[0, 1]
    assert found == {"falls": pytest.approx(-1.0), "rises": pytest.approx(1.0), "flat": None, "groups": None,
                     "none": None, "mixed": pytest.approx(expected), "one": None}


class Lengths:
    """A judge by the reply's length, silent where that is even."""

    failures: Counter = Counter()

    def score(self, items):
        return [JudgeVerdict(len(item.reply) / 10, (0.5,)) if len(item.reply) % 2 else JudgeFailure("away", item.reply)
                for item in items]


def test_the_rewards_of_a_call_in_parts_are_those_of_the_call(tmp_path):
    """Two parts, judged before the rest is known; the other parts of the reward see the call whole."""
    logs, seen = [RunLog(tmp_path / "whole.jsonl"), RunLog(tmp_path / "parts.jsonl")], []

    def whole(prompts, completions, **columns):
        seen.append(len(completions))
        return [float(len(completions[0]) > 3)] * len(completions)

    once, ahead = (compose([(whole, 0.1), (rubric(Lengths()), 0.7), (curious(), 0.0)], log, 0.5) for log in logs)
    prompts, completions = list("aaabbb"), ["c" * length for length in (5, 3, 2, 4, 1, 9)]
    columns = {"question": np.array(prompts), "rubric": np.array([RUBRIC] * 6), "num_generations": 3, "mode": "train"}
    answers = []
    for rows in (slice(0, 3), slice(3, 6)):
        part = {name: values if isinstance(values, int | str) else values[rows] for name, values in columns.items()}
        answers.append(partial(ahead.ahead, prompts[rows], completions[rows], **part))
    found = ahead.in_parts(answers, prompts, completions, **columns)
    first = next(found)
    assert ahead.calls == 0 and not logs[1].read(), "half a call is no call"
    assert [*first, *next(found)] == once(prompts, completions, **columns)
    assert once.calls == ahead.calls == 1 and seen == [6, 6]
    rows = [{name: value for name, value in log.last("reward").items() if name != "t"} for log in logs]
    assert rows[0] == rows[1] and len(logs[1].read()) == 1
    assert rows[0]["sample"]["extra"] == {"rubric": [0.5], "curious": "ccccc"}
    assert rows[0]["parts"]["rubric"]["causes"] == {"away": 2}


def curious():
    def curious(prompts, completions, log_extra, **columns):
        log_extra("curious", completions)
        return [0.0] * len(completions)
    return curious


def test_too_little_signal_is_told_in_place_of_the_last_part(tmp_path):
    log = RunLog(tmp_path / "run.jsonl")
    reward = compose([(rubric(Lengths()), 1.0)], log, max_no_signal=0.5)
    columns = {"question": ["q"] * 2, "rubric": [RUBRIC] * 2}
    answers = [partial(reward.ahead, ["p"] * 2, replies, **columns) for replies in (["aa", "bb"], ["a", "bb"])]
    found = reward.in_parts(answers, ["p"] * 4, ["aa", "bb", "a", "bb"], 2, question=["q"] * 4, rubric=[RUBRIC] * 4)
    assert next(found) == [0.0, 0.0], "a part is not judged alone"
    with pytest.raises(NoSignalError, match="rubric: 75% of 4 completions"):
        next(found)
    assert log.last("reward")["parts"]["rubric"]["no_signal"] == 0.75 and reward.calls == 0


def test_a_weight_follows_progress_and_goes_on_where_it_is_told(tmp_path):
    log = RunLog(tmp_path / "run.jsonl")

    def made():
        return compose([(returns([1.0, 0.0], "a"), lambda progress: progress), (returns([0.0, 1.0], "b"), 0.5)], log,
                       total_calls=4)

    reward, arguments = made(), (["p"] * 2, ["c"] * 2, 2)
    assert [reward(*arguments)[0] for _ in range(3)] == [0.0, 0.25, 0.5]
    assert reward(*arguments, mode="eval") == [0.75, 0.5]  # counts for nothing
    assert reward.calls == 3
    resumed = made()
    resumed.calls = reward.calls
    assert [resumed(*arguments)[0] for _ in range(3)] == [0.75, 1.0, 1.0]
    assert [row["parts"]["a"]["weight"] for row in log.read("reward")] == [0.0, 0.25, 0.5, 0.75, 0.75, 1.0, 1.0]
    assert {row["parts"]["b"]["weight"] for row in log.read("reward")} == {0.5}


def test_a_part_whose_weight_is_0_for_now_may_be_silent():
    parts = [(returns([None, None]), lambda progress: float(progress >= 0.5)), (returns([1.0, 2.0], "other"), 1.0)]
    reward = compose(parts, NullLog(), total_calls=2)
    assert reward(["p"] * 2, ["c"] * 2, num_generations=2) == [1.0, 2.0]
    with pytest.raises(NoSignalError, match="part: 100%"):
        reward(["p"] * 2, ["c"] * 2, num_generations=2)


def test_a_schedule_that_is_not_finite_is_named():
    reward = compose([(returns([1.0]), lambda progress: math.inf if progress else 1.0)], NullLog(), total_calls=3)
    reward(["p"], ["c"], num_generations=1)
    with pytest.raises(ValueError, match="the weight of part is inf at progress 0.333; make it finite"):
        reward(["p"], ["c"], num_generations=1)


def test_flat_groups_are_counted(tmp_path):
    log = RunLog(tmp_path / "run.jsonl")
    compose([(returns([0.0, 0.0, 0.0, 1.0]), 1.0)], log)(list("aabb"), list("cccc"), num_generations=2)
    assert log.last("reward")["flat_groups"] == 0.5


def test_a_deaf_judge_stops_the_run_after_logging(tmp_path):
    log = RunLog(tmp_path / "run.jsonl")

    def down(prompts):
        raise ConnectionError("no route")

    columns = {"question": ["q"] * 2, "rubric": [RUBRIC] * 2, "num_generations": 2}
    reward = compose([(tag_format, 1.0), (rubric(LocalJudge(down, "fake")), 1.0)], log)
    for calls in (1, 2):  # the causes are this call's, not the run's
        with pytest.raises(NoSignalError, match=r"rubric: 100% of 2 completions \(\{'backend': 2\}\).*50%"):
            reward(["p"] * 2, ["a", "b"], **columns)
        assert len(log.read("reward")) == calls
    watched = compose([(tag_format, 1.0), (rubric(LocalJudge(down, "fake")), 0.0)], log)
    assert watched(["p"] * 2, ["a", GOOD], **columns) == [-1.0, 0.0]


def test_max_no_signal_is_a_limit_not_a_trigger():
    assert total([None, 1.0], 2) == [1.0, 1.0]
    with pytest.raises(NoSignalError, match="part: 50%"):
        total([None, 1.0], 2, max_no_signal=0.49)


@pytest.mark.parametrize(("prompts", "completions", "num_generations", "message"), [
    (["a", "a", "b"], ["c"] * 3, 2, "3 prompts .* num_generations=2"),
    (["a", "a"], ["c"], 2, "2 prompts and 1 completions"),
    ([], [], 2, "0 prompts"),
    (["a"], ["c"], 0, "num_generations=0"),
    (["a", "b"] * 2, ["c"] * 4, 2, "rows 0 to 1 are one group but 2 different prompts"),
    (["a", "a", "b", "a"], ["c"] * 4, 2, "rows 2 to 3"),
])
def test_a_batch_that_is_not_made_of_groups_is_refused(prompts, completions, num_generations, message):
    with pytest.raises(ValueError, match=message):
        compose([(tag_format, 1.0)], NullLog())(prompts, completions, num_generations=num_generations)


@pytest.mark.parametrize(("parts", "limit", "message"), [
    ([], 0.5, "weights are \\[\\]"),
    ([(tag_format, 0.0)], 0.5, "not all 0"),
    ([(tag_format, math.nan)], 0.5, "nan"),
    ([(tag_format, 1.0), (tag_format, 1.0)], 0.5, "__name__"),
    ([(json.JSONDecoder(), 1.0)], 0.5, "__name__"),
    ([(tag_format, 1.0)], 1.5, "max_no_signal is 1.5"),
])
def test_unusable_parts_are_refused(parts, limit, message):
    with pytest.raises(ValueError, match=message):
        compose(parts, NullLog(), max_no_signal=limit)


def test_a_weight_that_follows_progress_needs_the_number_of_calls():
    with pytest.raises(ValueError, match="total_calls is 0; a weight that follows progress needs"):
        compose([(tag_format, lambda progress: 1.0)], NullLog())


def test_a_part_must_give_one_value_a_completion():
    with pytest.raises(ValueError, match="part gave 1 values for 2 completions"):
        compose([(returns([1.0]), 1.0)], NullLog())(["p"] * 2, ["c"] * 2, num_generations=2)


def test_tunix_calls_it_and_passes_the_group_size(tmp_path):
    from tunix.rl.grpo.grpo_learner import GRPOConfig
    from tunix.rl.reward_manager import SequenceRewardManager

    log = RunLog(tmp_path / "run.jsonl")
    reward = compose([(tag_format, 0.5), (exact_answer, 1.0)], log)
    config = GRPOConfig(num_generations=2)
    assert set(inspect.signature(reward).parameters) & set(vars(config)) == {"num_generations"}
    info = SequenceRewardManager([reward], config)(
        prompts=list(np.array(["p", "p"])), completions=[GOOD, "4"], mode="train",
        trajectory_ids=["0", "0"], answer=np.array(["4", "4"]), kind=np.array(["number"] * 2))
    assert info["rewards"].tolist() == [1.0, -0.5]
    assert "rewards/reward" in info["log_metrics"]
    assert log.last("reward")["mode"] == "train"

"""`RewardMix`: what is trained on and logged, whatever its parts do."""

import inspect
import json
import math
from collections import Counter
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonkit.judge.judge import JudgeFailure, JudgeVerdict, LocalJudge
from reasonkit.judge.rubric import Criterion, rubric_to_json
from reasonkit.rewards.mix import NoSignalError, RewardMix
from reasonkit.rewards.rules import LARGEST, exact_answer, gate, tag_format
from reasonkit.session.run_log import NullLog, RunLog
from reasonkit.text.tags import TAGS
from recipes.rewards.rubric import rubric

GOOD = TAGS.render(reasoning="2 + 2 = 4", answer="4")
RUBRIC = rubric_to_json([Criterion("Steps", "Every step follows.", 1.0)])
WORK = "<reasoning>2 + 2 = 4</reasoning><answer>5</answer>"  # without work and an answer no judge is asked


def returns(values, name="part"):
    """A reward that gives these values, whatever it is asked."""
    def reward(prompts, completions, **columns):
        return values
    reward.__name__ = name
    return reward


def total(values, num_generations, weight=1.0, **settings):
    n = len(values)
    prompts = [f"p{i // num_generations}" for i in range(n)]
    return RewardMix([(returns(values), weight)], NullLog(), **settings)(
        prompts=prompts, completions=["c"] * n, num_generations=num_generations)


def test_gate_hands_on_columns_failures_and_what_was_read(tmp_path):
    log = RunLog(tmp_path / "run.jsonl")
    judge = LocalJudge(lambda prompts: np.array([[math.nan] * 5, [0.0] * 5]), "fake")
    reward = RewardMix([(gate(rubric(judge), tag_format), 1.0), (gate(exact_answer, tag_format), 2.0)], log)
    columns = {"question": ["q"] * 2, "rubric": [RUBRIC] * 2, "answer": ["4"] * 2, "kind": ["number"] * 2}
    assert reward(["p"] * 2, [GOOD, GOOD], num_generations=2, **columns) == [2.5, 2.5]
    row = log.last("reward")
    assert row["parts"]["rubric_if_tag_format"]["causes"] == {"non_finite": 1}
    assert row["sample"]["extra"]["answer_read"] == "4" and "nan" in row["sample"]["extra"]["rubric"]


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
    reward = RewardMix([(returns([1.0, 0.0], "a"), 1.0), (returns([0.0, 4.0], "b"), 0.5),
                      (returns([7.0, 9.0], "c"), 0.0)], log)
    assert reward(["p"] * 2, ["c"] * 2, num_generations=2) == [1.0, 2.0]
    assert log.last("reward")["parts"]["c"]["mean"] == 8.0


def test_the_log_row_is_what_was_trained_on(tmp_path):
    log = RunLog(tmp_path / "run.jsonl")
    judge = LocalJudge(lambda prompts: np.array([[math.nan] * 5, [0.0] * 5, [0.0] * 5, [0.0] * 5]), "fake")
    reward = RewardMix([(rubric(judge), 1.0), (returns([None, 1.0, math.inf, 1.0], "odd"), 0.5)], log)
    prompts = ["x" * 1000 + "first?"] * 2 + ["second?"] * 2
    columns = {"question": np.array(["q"] * 4), "rubric": np.array([RUBRIC] * 4), "trajectory_ids": ["0"] * 4}
    replies = [WORK + text for text in ("a", "bcd", "e", "f")]
    assert reward(prompts, replies, num_generations=2, mode="eval", **columns) == [1.0] * 4
    row = log.last("reward")
    assert row["parts"] == {
        "rubric": {"weight": 1.0, "mean": 0.5, "no_signal": 0.25, "causes": {"non_finite": 1}},
        "odd": {"weight": 0.5, "mean": 1.0, "no_signal": 0.5, "causes": {"none": 1, "non_finite": 1}},
    }
    assert (row["mode"], row["completions"], row["mean"]) == ("eval", 4, 1.0)
    assert (row["flat_groups"], row["mean_length"]) == (1.0, len(WORK) + 1.5)
    sample = row["sample"]
    assert sample["prompt"].endswith("first?") and len(sample["prompt"]) < 500
    assert (sample["completion"], sample["total"]) == (WORK + "a", 1.0)
    assert sample["parts"] == {"rubric": None, "odd": None}


def test_what_the_parts_read_in_the_sample_is_logged(tmp_path):
    log = RunLog(tmp_path / "run.jsonl")
    columns = {"answer": ["4"] * 2, "kind": ["number"] * 2}
    RewardMix([(tag_format, 1.0), (exact_answer, 0.0), (tag_format_twin(), 0.0)], log)(
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
    RewardMix([(returns(values, name), float(name == "falls")) for name, values in parts.items()], log)(
        list("aaabbb"), ["c" * length for length in lengths], num_generations=3)
    found = log.last("reward")["length_correlation"]
    deviations = np.array([1.0, 0.0, 0.5]) - 0.5, np.array([1.0, 0.0, 0.0]) - 1 / 3
    expected = np.corrcoef(np.concatenate(deviations), [-1, 0, 1] * 2)[0, 1]
    assert found == {"falls": pytest.approx(-1.0), "rises": pytest.approx(1.0), "flat": None, "groups": None,
                     "none": None, "mixed": pytest.approx(expected), "one": None}


class Lengths:
    """A judge by the reply's length beside `WORK`, silent where that is even."""

    failures: Counter = Counter()

    def score(self, items):
        lengths = [len(item.reply) - len(WORK) for item in items]
        return [JudgeVerdict(n / 10, (0.5,)) if n % 2 else JudgeFailure("away", "") for n in lengths]


def test_the_rewards_of_a_call_in_parts_are_those_of_the_call(tmp_path):
    """Two parts, judged before the rest is known; the other parts of the reward see the call whole."""
    logs, seen = [RunLog(tmp_path / "whole.jsonl"), RunLog(tmp_path / "parts.jsonl")], []

    def whole(prompts, completions, **columns):
        seen.append(len(completions))
        return [float(len(completions[0]) > len(WORK) + 3)] * len(completions)

    once, ahead = (RewardMix([(whole, 0.1), (rubric(Lengths()), 0.7), (curious(), 0.0)], log, 0.5) for log in logs)
    prompts, completions = list("aaabbb"), [WORK + "c" * length for length in (5, 3, 2, 4, 1, 9)]
    columns = {"question": np.array(prompts), "rubric": np.array([RUBRIC] * 6), "num_generations": 3, "mode": "train"}
    answers = []
    for rows in (slice(0, 3), slice(3, 6)):
        part = {name: values if isinstance(values, int | str) else values[rows] for name, values in columns.items()}
        answers.append(partial(ahead.ask_ahead, prompts[rows], completions[rows], **part))
    found = ahead.in_parts(answers, prompts, completions, **columns)
    first = next(found)
    assert not logs[1].read(), "half a call is logged"
    assert [*first, *next(found)] == once(prompts, completions, **columns)
    assert seen == [6, 6]
    rows = [{name: value for name, value in log.last("reward").items() if name != "t"} for log in logs]
    assert rows[0] == rows[1] and len(logs[1].read()) == 1
    assert rows[0]["sample"]["extra"] == {"rubric": [0.5], "curious": WORK + "ccccc"}
    assert rows[0]["parts"]["rubric"]["causes"] == {"away": 2}


def curious():
    def curious(prompts, completions, log_extra, **columns):
        log_extra("curious", completions)
        return [0.0] * len(completions)
    return curious


def test_too_little_signal_is_told_in_place_of_the_last_part(tmp_path):
    log = RunLog(tmp_path / "run.jsonl")
    reward = RewardMix([(rubric(Lengths()), 1.0)], log, max_no_signal=0.5)
    columns, four = {"question": ["q"] * 2, "rubric": [RUBRIC] * 2}, [WORK + text for text in ("aa", "bb", "a", "bb")]
    answers = [partial(reward.ask_ahead, ["p"] * 2, replies, **columns) for replies in (four[:2], four[2:])]
    found = reward.in_parts(answers, ["p"] * 4, four, 2, question=["q"] * 4, rubric=[RUBRIC] * 4)
    assert next(found) == [0.0, 0.0], "a part is not judged alone"
    with pytest.raises(NoSignalError, match="rubric: 75% of 4 completions"):
        next(found)
    assert log.last("reward")["parts"]["rubric"]["no_signal"] == 0.75


def test_flat_groups_are_counted(tmp_path):
    log = RunLog(tmp_path / "run.jsonl")
    RewardMix([(returns([0.0, 0.0, 0.0, 1.0]), 1.0)], log)(list("aabb"), list("cccc"), num_generations=2)
    assert log.last("reward")["flat_groups"] == 0.5


def test_a_deaf_judge_stops_the_run_after_logging(tmp_path):
    log = RunLog(tmp_path / "run.jsonl")

    def down(prompts):
        raise ConnectionError("no route")

    columns = {"question": ["q"] * 2, "rubric": [RUBRIC] * 2, "num_generations": 2}
    reward = RewardMix([(tag_format, 1.0), (rubric(LocalJudge(down, "fake")), 1.0)], log)
    for calls in (1, 2):  # the causes are this call's, not the run's
        with pytest.raises(NoSignalError, match=r"rubric: 100% of 2 completions \(\{'backend': 2\}\).*50%"):
            reward(["p"] * 2, [WORK, WORK + "b"], **columns)
        assert len(log.read("reward")) == calls
    watched = RewardMix([(tag_format, 1.0), (rubric(LocalJudge(down, "fake")), 0.0)], log)
    assert watched(["p"] * 2, ["a", GOOD], **columns) == [-1.0, 0.0]


def test_open_rows_owe_the_exact_answer_no_signal():
    """Three groups of four are open: the limit counts the fourth alone, and the rubric trains all of them."""
    kinds = ["open"] * 6 + ["number"] * 2
    prompts = [f"p{n // 2}" for n in range(8)]
    reward = RewardMix([(gate(exact_answer, tag_format), 1.0), (returns([0.5, 1.0] * 4, "rubric"), 1.0)], NullLog(),
                       max_no_signal=0.1)
    assert reward(prompts, [GOOD, GOOD] * 4, num_generations=2, answer=["", "a long reference"] * 3 + ["4", "4"],
                  kind=kinds) == [0.5, 1.0] * 3 + [1.5, 2.0]
    with pytest.raises(NoSignalError, match="exact_answer_if_tag_format: 100% of 8 completions"):
        reward(prompts, [GOOD, GOOD] * 4, num_generations=2, answer=["x"] * 8, kind=kinds)


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
        RewardMix([(tag_format, 1.0)], NullLog())(prompts, completions, num_generations=num_generations)


@pytest.mark.parametrize(("parts", "limit", "message"), [
    ([], 0.5, "weights are \\[\\]"),
    ([(tag_format, 0.0)], 0.5, "not all 0"),
    ([(tag_format, math.nan)], 0.5, "nan"),
    ([(tag_format, 1e308)], 0.5, "1e.308.*; give finite ones of at most 1e.09"),
    ([(tag_format, -math.inf)], 0.5, "-inf"), ([(tag_format, 1.0), (returns([1.0]), 2 * LARGEST)], 0.5,
    "at most 1e.09"),
    ([(tag_format, 1.0), (tag_format, 1.0)], 0.5, "__name__"),
    ([(json.JSONDecoder(), 1.0)], 0.5, "__name__"),
    ([(tag_format, 1.0)], 1.5, "max_no_signal is 1.5"),
])
def test_unusable_parts_are_refused(parts, limit, message):
    with pytest.raises(ValueError, match=message):
        RewardMix(parts, NullLog(), max_no_signal=limit)


def test_a_part_must_give_one_value_a_completion():
    with pytest.raises(ValueError, match="part gave 1 values for 2 completions"):
        RewardMix([(returns([1.0]), 1.0)], NullLog())(["p"] * 2, ["c"] * 2, num_generations=2)


def test_tunix_calls_it_and_passes_the_group_size(tmp_path):
    from tunix.rl.grpo.grpo_learner import GRPOConfig
    from tunix.rl.reward_manager import SequenceRewardManager

    log = RunLog(tmp_path / "run.jsonl")
    reward = RewardMix([(tag_format, 0.5), (exact_answer, 1.0)], log)
    config = GRPOConfig(num_generations=2)
    assert set(inspect.signature(reward).parameters) & set(vars(config)) == {"num_generations"}
    info = SequenceRewardManager([reward], config)(
        prompts=list(np.array(["p", "p"])), completions=[GOOD, "4"], mode="train",
        trajectory_ids=["0", "0"], answer=np.array(["4", "4"]), kind=np.array(["number"] * 2))
    assert info["rewards"].tolist() == [1.0, -0.5]
    assert "rewards/reward" in info["log_metrics"]
    assert log.last("reward")["mode"] == "train"


@pytest.mark.parametrize("huge", [1e308, -1e308, 1.7e308, 1e200, 1e10, 10**400, math.inf, math.nan])
@pytest.mark.parametrize("weight", [1.0, 1e9, -1e9, 1e-9])
def test_no_value_overflows_what_is_trained_on(tmp_path, huge, weight):
    """All that is handed on is finite, in the learner's float32 too, and the row is JSON that others read."""
    log = RunLog(tmp_path / "run.jsonl")
    rewards = RewardMix([(returns([huge, 1.0, 0.5, LARGEST]), weight), (returns([huge] * 4, "watched"), 0.0)], log)(
        ["p"] * 4, ["c"] * 4, num_generations=4)
    assert np.isfinite(np.square(np.array(rewards, np.float32))).all()
    assert rewards[0] == pytest.approx(sum(rewards[1:]) / 3), "no advantage for what can't be used"
    (line,) = (tmp_path / "run.jsonl").read_text().splitlines()
    row = json.loads(line, parse_constant=lambda name: pytest.fail(name))
    assert sum(row["parts"]["part"]["causes"].values()) == 1 and row["parts"]["watched"]["no_signal"] == 1.0


def spoils(prompts, completions, **columns):
    """A reward that works in place on all that it is given."""
    for values in (prompts, completions, *columns.values()):
        if isinstance(values, list):
            values[:] = ["spoilt"] * len(values)
        elif isinstance(values, np.ndarray):
            values[:] = "x"
    return [0.0] * len(completions)


@pytest.mark.parametrize("wrap", [list, np.array])
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("made", [lambda: spoils, lambda: gate(spoils, tag_format), lambda: gate(tag_format, spoils)])
def test_what_a_part_does_to_its_arguments_no_other_part_sees(tmp_path, wrap, place, made):
    log, seen = RunLog(tmp_path / "run.jsonl"), []

    def reads(prompts, completions, answer, **columns):
        seen.append((list(prompts), list(completions), [str(text) for text in answer]))
        return [float(text == "c1") for text in completions]

    parts = [(reads, 1.0), (exact_answer, 1.0)]
    parts.insert(place, (made(), 0.0))
    prompts, completions, answer = ["p"] * 2, ["c1", GOOD], wrap(["4", "4"])
    columns = {"answer": answer, "kind": wrap(["number"] * 2)}
    assert RewardMix(parts, log)(prompts, completions, num_generations=2, **columns) == [1.0, 1.0]
    assert seen == [(["p"] * 2, ["c1", GOOD], ["4", "4"])]
    assert (prompts, completions, list(answer)) == (["p"] * 2, ["c1", GOOD], ["4", "4"])
    assert log.last("reward")["sample"]["completion"] == "c1"


def test_a_row_that_slipped_through_ends_no_stage(tmp_path):
    """A gold answer and a rubric that can't be read: no signal for their group, counted, at every rerun."""
    log = RunLog(tmp_path / "run.jsonl")
    judge = LocalJudge(lambda prompts: np.zeros((len(prompts), 5)), "fake")
    reward = RewardMix([(exact_answer, 1.0), (rubric(judge), 1.0)], log)
    columns = {"question": ["q"] * 6, "answer": ["4"] * 2 + [None] * 2 + ["4"] * 2, "kind": ["number"] * 6,
               "rubric": [RUBRIC] * 4 + ["{"] * 2}
    for _ in range(2):
        assert reward(list("aabbcc"), [GOOD, WORK] * 3, num_generations=2, **columns) == [1.5, 0.5, 0.5, 0.5, 1.0, 0.0]
        assert log.last("reward")["parts"]["exact_answer"]["causes"] == {"unusable_gold": 2}
        assert log.last("reward")["parts"]["rubric"]["causes"] == {"unusable_rubric": 2}
    with pytest.raises(NoSignalError, match="exact_answer: 33% of 6 completions .*'unusable_gold': 2"):
        RewardMix([(exact_answer, 1.0)], NullLog(), 0.3)(list("aabbcc"), [GOOD, WORK] * 3, num_generations=2, **columns)

"""The rubric's reward: judges heard or not, and none of what a judge should not be asked."""

import math

import numpy as np
import pytest
from plain_judge import PlainJudge

from reasonkit.judge.judge import JudgeVerdict, LocalJudge
from reasonkit.judge.rubric import Criterion, rubric_to_json
from reasonkit.rewards.rules import ask, exact_answer, gate, tag_format
from reasonkit.text.tags import TAGS
from recipes.judges.exam import is_judged
from recipes.rewards.rubric import rubric

GOOD = TAGS.render(reasoning="2 + 2 = 4", answer="4")
RUBRIC = rubric_to_json([Criterion("Steps", "Every step follows.", 1.0)])


def test_rubric_judges_the_whole_reply():
    seen = []
    reward = rubric(PlainJudge([lambda item: seen.append(item) or 0.3]))
    columns = {"question": np.array(["2+2?"]), "rubric": np.array([RUBRIC]), "mode": "train"}
    assert reward(["p"], [f"x {GOOD}"], **columns) == [0.3]
    assert (seen[0].question, seen[0].reply, seen[0].rubric[0].title) == ("2+2?", f"x {GOOD}", "Steps")
    assert reward.__name__ == "rubric"


def test_what_a_judge_cannot_tell_apart_makes_no_advantage():
    """At 0.98 against 1.00 a group whose answers are all right was pushed about as hard as by a wrong answer."""
    scores = iter([0.98, 1.0, 0.64, 0.58])
    reward = rubric(PlainJudge([lambda item: next(scores)]))
    assert reward(["p"] * 4, [GOOD] * 4, question=["2+2?"] * 4, rubric=[RUBRIC] * 4) == [1.0, 1.0, 0.6, 0.6]


def test_rubric_gives_none_where_the_judge_fails():
    judge = LocalJudge(lambda prompts: np.array([[0.0] * 5, [math.nan] * 5]), "fake")
    reward = rubric(judge)
    assert reward(["p"] * 2, [GOOD] * 2, question=["q"] * 2, rubric=[RUBRIC] * 2) == [0.5, None]
    assert reward.failures == judge.failures == {"non_finite": 1}


def test_rubric_tells_how_far_each_criterion_is_met():
    told = {}
    reward = rubric(PlainJudge([lambda item: 0.25, lambda item: {"q": 0.75}[item.question]]))
    reward(["p"] * 2, [GOOD] * 2, question=["q", "r"], rubric=[RUBRIC] * 2, log_extra=told.__setitem__)
    assert told["rubric"][0] == (0.25, 0.75) and "KeyError" in told["rubric"][1]


@pytest.mark.parametrize("broken", ["", "[]", "null", "{}", RUBRIC[:-2], RUBRIC.replace("1.0", "-1"), None, "[[]]", "7",
                                    RUBRIC.replace("1.0", "NaN"), RUBRIC.replace("Every step follows.", " ")])
def test_a_rubric_that_cannot_be_read_is_no_signal_for_its_row_alone(broken):
    reward, told = rubric(PlainJudge([lambda item: 1.0])), {}
    columns = {"question": ["q"] * 2, "rubric": [broken, RUBRIC], "log_extra": told.__setitem__}
    assert reward(["p"] * 2, [GOOD] * 2, **columns) == [None, 1.0]
    assert reward.failures == {"unusable_rubric": 1} and "rubric" in told["rubric"][0]


class Says:
    """A judge of somebody's own."""

    def __init__(self, *results):
        self.results = results

    def score(self, items):
        return list(self.results)


@pytest.mark.parametrize("score", [7, -1, 1.0000001, -1e-9, math.nan, math.inf, -math.inf, 10**400, 1e308, "1",
                                   None, [1.0], 1j])
def test_a_score_out_of_range_is_no_signal(score):
    reward = rubric(Says(JudgeVerdict(score, (1.0,)), JudgeVerdict(1, (1.0,)), JudgeVerdict(np.float32(0.5), (0.5,))))
    assert reward(["p"] * 3, [GOOD] * 3, question=["q"] * 3, rubric=[RUBRIC] * 3) == [None, 1.0, 0.5]
    assert reward.failures == {"out_of_range": 1} and not reward.faults


@pytest.mark.parametrize("result", [7, -1, 0.5, None, "good", (0.5, (0.5,)), {"score": 0.5}, ValueError("no"),
                                    JudgeVerdict])
def test_what_is_no_verdict_is_no_signal(result):
    reward, told = rubric(Says(result, JudgeVerdict(1.0, (1.0,)))), {}
    columns = {"question": ["q"] * 2, "rubric": [RUBRIC] * 2, "log_extra": told.__setitem__}
    assert reward(["p"] * 2, [GOOD] * 2, **columns) == [None, 1.0] and reward.failures == {"no_verdict": 1}
    assert told["rubric"][0] == repr(result)[:80]


@pytest.mark.parametrize("reasoning", [".", "=", "-", "...", "So 4", "The answer is 4.", "0+0=0", "0+0=0; 0+0=0",
                                       "", "2+2?"])
def test_a_judge_is_not_asked_about_no_work(reasoning):
    seen = []
    reward = rubric(PlainJudge([lambda item: seen.append(item) or 1.0]))
    reply = f"<reasoning>{reasoning}</reasoning><answer>4</answer>"
    columns = {"question": ["2+2?"] * 3, "rubric": [RUBRIC] * 3}
    values, causes = ask(reward, ["p"] * 3, [reply, GOOD, reply], columns)
    assert values.tolist() == [0.0, 1.0, 0.0] and causes == {"no_work": 2} and len(seen) == 1
    assert reward(["p"], [reply], question=["2+2?"], rubric=[RUBRIC]) == [0.0] and len(seen) == 1


@pytest.mark.parametrize("cut", [
    "<reasoning>2 + 2 = 4", "<reasoning>2 + 2 = 4</reasoning>", "<reasoning>2 + 2 = 4</reasoning><answer>",
    "<reasoning>2 + 2 = 4</reasoning><answer> </answer>", "<reasoning>2 + 2 = 4</reasoning><answer>4", "2 + 2 = 4"])
def test_a_judge_is_not_asked_about_what_was_cut_off(cut):
    """It is the longest of its group, and a judge likes long ones. It scored above finished ones that were worse."""
    seen = []
    reward = rubric(PlainJudge([lambda item: seen.append(item) or 0.7]))
    columns = {"question": ["2+2?"] * 2, "rubric": [RUBRIC] * 2}
    values, causes = ask(reward, ["p"] * 2, [cut, GOOD], columns)
    assert values.tolist() == [0.0, 0.7] and causes == {"unfinished": 1} and len(seen) == 1


def test_a_gated_rubric_is_still_a_judges_part():
    """Else open questions would be left out without a word, and an unfit judge would still teach."""
    gated = gate(rubric(PlainJudge([lambda item: 0.7])), tag_format)
    assert is_judged([(gated, 1.0)]) and not is_judged([(gate(exact_answer, tag_format), 1.0)])
    columns = {"question": ["2+2?"] * 2, "rubric": [RUBRIC] * 2}
    assert gated(["p"] * 2, [GOOD, GOOD + "<answer>5</answer>"], **columns) == [0.7, 0.0]


def test_a_reply_that_blinds_the_judge_is_not_saved_by_its_group():
    def rate(prompts):
        return np.array([[math.nan if len(p) > 500 else 0.0] * 5 for p in prompts])

    reward = rubric(LocalJudge(rate, "fake"))
    columns = {"question": ["2+2?"] * 2, "rubric": [RUBRIC] * 2}
    values, causes = ask(reward, ["p"] * 2, [GOOD, GOOD + "x" * 500], columns)
    assert values.tolist() == [0.5, 0.0] and causes == {"reply_unreadable": 1} and not reward.failures


def test_rubric_refuses_a_judge_that_loses_items():
    class Short:
        def score(self, items):
            return []

    with pytest.raises(ValueError, match="0 results for 1 items"):
        rubric(Short())(["p"], [GOOD], question=["q"], rubric=[RUBRIC])

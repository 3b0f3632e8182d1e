"""The exam: the shipped judge passes; one that is inverted, indifferent or silent fails, with the pair shown."""

from __future__ import annotations

from collections import Counter

import jax
import numpy as np
import pytest
from plain_judge import PlainJudge

from reasonkit.data import problems
from reasonkit.judge.cache import CachedJudge
from reasonkit.judge.exam import EACH, UnfitJudge, anchors, examine
from reasonkit.judge.judge import RATINGS, JudgeFailure, JudgeVerdict, LocalJudge, quote_block
from reasonkit.judge.rubric import Criterion, rubric_to_json
from reasonkit.models import logprobs
from reasonkit.models.load import load
from reasonkit.models.mesh import make_mesh
from reasonkit.text.tags import TAGS

RECIPE = problems.load_recipe("tiny_mix")
ROWS = problems.make_splits(RECIPE, {"validation": 90}, 3)["validation"]
PAIRS = anchors(ROWS)
WHOLE = {pair.good for pair in PAIRS}
RUBRIC = rubric_to_json((Criterion("Steps", "Every step is shown.", 1.0),))


def judge(good=1.0, bad=0.0, **families):
    """A judge that knows the whole replies; `families` turns the two round in those."""
    turned = {pair.question for pair in PAIRS if pair.family in families}
    return PlainJudge([lambda item: good if (item.reply in WHOLE) != (item.question in turned) else bad])


class Behind:
    """A judge behind an API, say: no verdict on replies that hold one of these texts."""

    def __init__(self, *silent):
        self.silent, self.failures, self.asked = silent, Counter(), []

    def score(self, items):
        self.asked += items
        return [JudgeFailure("timeout", "no answer in 30 s") if any(text in item.reply for text in self.silent)
                else JudgeVerdict(float(item.reply in WHOLE), (0.5,)) for item in items]


def test_the_anchors_are_the_runs_own_problems():
    assert Counter(pair.family for pair in PAIRS) == {family: 3 * EACH for family in RECIPE.families}
    questions = set(ROWS["question"])
    for pair in PAIRS:
        good, bad = TAGS.parse(pair.good), TAGS.parse(pair.bad)
        assert pair.question in questions and good.ok and bad.ok and good.answer == bad.answer
        assert pair.rubric and (len(bad.reasoning) > len(good.reasoning)) == (pair.flaw == "padded")


@pytest.mark.parametrize("whole", ["It has 3.5 wheels. Two come on. So 5.5 it is.", "3.5 at first\n\nSo 5.5 it is.",
                                   "3.5 + 2 = 5.5; So 5.5 it is."])
def test_the_last_step_is_found_in_prose_too(whole):
    rows = [dict(family="mine", question="How many?", reasoning=whole, answer="5.5", rubric=RUBRIC)]
    assert {pair.flaw: TAGS.parse(pair.bad).reasoning for pair in anchors(rows)}["cut short"] == "So 5.5 it is."


def test_a_solution_of_one_step_or_of_none_has_fewer_flaws():
    rows = [dict(family="mine", question="1 + 1?", reasoning="1 + 1 = 2", answer="2", rubric=RUBRIC),
            dict(family="mine", question="2 + 1?", reasoning="So 3", answer="3", rubric=RUBRIC)]
    assert [pair.flaw for pair in anchors(rows)] == ["terse", "padded", "padded"]


@pytest.mark.slow
def test_the_shipped_judge_passes_and_inverted_it_stops_the_stage():
    mesh = make_mesh(jax.devices()[:2], 2, 1)
    rate = logprobs.rating_logprobs(load("tiny-judge", mesh, "float32"), mesh, RATINGS, max_length=256, batch_size=16)
    assert examine(LocalJudge(rate, "tiny"), PAIRS, 1.5).startswith("The judge passes: whole replies score +0.")
    with pytest.raises(UnfitJudge, match="replies of family .* score 0.* more than whole ones. Asked"):
        examine(LocalJudge(lambda prompts: np.asarray(rate(prompts))[:, ::-1], "inverted"), PAIRS, 1.5)


def test_how_likely_a_rating_is_at_all_is_said(tmp_path):
    """A model that would rather write "**Rating" has little probability left for the digits."""
    def rate(prompts):
        return np.log([[0.01, 0.01, 0.01, 0.01, 0.16] if any(f"{whole}\n" in text for whole in quoted) else
                       [0.16, 0.01, 0.01, 0.01, 0.01] for text in prompts])

    quoted = [quote_block(good) for good in WHOLE]
    local = LocalJudge(rate, "fake")
    assert np.isnan(local.rating_share)
    said = examine(CachedJudge(local, tmp_path / "verdicts.jsonl"), PAIRS[:6], 1.5)
    assert said.startswith("The judge passes") and said.endswith("a rating with a probability of 20%")
    assert "probability" not in examine(judge(), PAIRS, 1.5)


def test_the_pair_it_got_wrong_is_shown():
    with pytest.raises(UnfitJudge) as caught:
        examine(judge(0.2, 0.9), PAIRS, 1.5)
    text = str(caught.value)
    shown = [pair for pair in PAIRS if f"{pair.question!r}" in text and f"{pair.bad!r}" in text]
    assert len(shown) == 1 and f"  0.20 for {shown[0].good!r}\n  0.90 for {shown[0].bad!r}\n" in text
    assert "score 0.70 more than whole ones" in text and text.endswith("such as g_exact")


def test_one_family_that_is_judged_the_wrong_way_round_is_enough():
    with pytest.raises(UnfitJudge, match="replies of family lamp score 1.00 more"):
        examine(judge(lamp=True), PAIRS, 0.1)


@pytest.mark.parametrize(("good", "bad"), [(0.5, 0.5), (1.0, 1.0), (0.52, 0.5), (0.5, 0.52)])
def test_a_judge_that_tells_nothing_apart_can_not_teach(good, bad):
    with pytest.raises(UnfitJudge, match=r"whole replies score [+-]0.0\d over flawed ones, and 0.05 is the least"):
        examine(judge(good, bad), PAIRS, 1.5)


@pytest.mark.parametrize(("examined", "told"), [(judge(0.2, 0.9), "more than whole ones"),
                                                (judge(1, 1), "is the least"), (Behind(""), "have no verdict")])
def test_a_judge_without_a_weight_stops_nothing_and_it_is_said(examined, told):
    said = examine(examined, PAIRS, 0.0)
    assert said.startswith("The judge fails, and has weight 0 in this recipe: ") and told in said and "Asked" in said
    assert examine(judge(), PAIRS, 0.0).startswith("The judge passes")


def test_a_few_verdicts_may_be_missing_and_not_most():
    behind = Behind(PAIRS[0].bad)
    said = examine(behind, PAIRS, 1.5)
    assert said.startswith("The judge passes: whole replies score +1.00 over ") and said.count("+1.00 over") == 3
    assert len(behind.asked) == len(set(behind.asked)) == 4 * EACH * len(RECIPE.families), "each reply is asked once"
    silence = rf"{len(PAIRS)} of {len(PAIRS)} pairs have no verdict. Asked .*\n  no verdict \(timeout: no a"
    with pytest.raises(UnfitJudge, match=silence):
        examine(Behind(""), PAIRS, 1.5)


def test_chance_alone_stops_no_judge():
    """One that is 0.1 better on the mean, with a noise of 0.2: some families fall below zero in so few pairs."""
    stopped = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        noisy = PlainJudge([lambda item, rng=rng: float(np.clip(
            0.5 + 0.1 * (item.reply in WHOLE) + rng.normal(0, 0.14), 0, 1))])
        try:
            examine(noisy, PAIRS, 1.5)
        except UnfitJudge as error:
            stopped += "more than whole ones" in str(error)
    assert stopped <= 2


def test_without_problems_there_is_no_exam():
    with pytest.raises(ValueError, match="no pairs of replies .* give rows with worked solutions"):
        examine(judge(), anchors([]), 1.5)

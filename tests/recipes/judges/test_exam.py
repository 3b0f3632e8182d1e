"""The exam: the shipped judge passes. One that is inverted, indifferent or silent fails, and is left out."""

from __future__ import annotations

import re
from collections import Counter

import jax
import numpy as np
import pytest
from plain_judge import PlainJudge

from reasonkit.data import problems
from reasonkit.judge.judge import RATINGS, JudgeFailure, JudgeVerdict, LocalJudge, quote_block
from reasonkit.judge.rubric import Criterion, rubric_to_json
from reasonkit.models import logprobs
from reasonkit.models.load import load
from reasonkit.models.mesh import make_mesh
from reasonkit.session.files import RecordError
from reasonkit.text.tags import TAGS
from recipes.judges.cache import CachedJudge
from recipes.judges.exam import EACH, Exam, UnfitJudge, anchors, as_begun, examine, is_judged, without_unfit_judge

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
    assert Counter(pair.family for pair in PAIRS) == {family: (3 if family == "lamp" else 4) * EACH  # without numbers
                                                      for family in RECIPE.families}
    questions = set(ROWS["question"])
    for pair in PAIRS:
        good, bad = TAGS.parse(pair.good), TAGS.parse(pair.bad)
        assert pair.question in questions and good.ok and bad.ok and good.answer == bad.answer
        assert pair.rubric and (len(bad.reasoning) > len(good.reasoning) + 1) == (pair.flaw == "padded")


@pytest.mark.parametrize("whole", ["It has 3.5 wheels. Two come on. So 5.5 it is.", "3.5 at first\n\nSo 5.5 it is.",
                                   "3.5 + 2 = 5.5; So 5.5 it is."])
def test_the_last_step_is_found_in_prose_too(whole):
    rows = [dict(family="mine", question="How many?", reasoning=whole, answer="5.5", rubric=RUBRIC)]
    made = {pair.flaw: TAGS.parse(pair.bad).reasoning for pair in anchors(rows)}
    assert made["cut short"] == "So 5.5 it is."
    assert made["false number"] == (whole.replace("= 5.5", "= 6.5") if "=" in whole else whole.replace("5.5", "5.6"))


def test_a_solution_of_one_step_or_of_none_has_fewer_flaws():
    rows = [dict(family="mine", question="1 + 1?", reasoning="1 + 1 = 2", answer="2", rubric=RUBRIC),
            dict(family="mine", question="2 + 1?", reasoning="So 3", answer="3", rubric=RUBRIC)]
    assert [pair.flaw for pair in anchors(rows)] == ["terse", "padded", "false number", "padded", "false number"]


def test_a_judge_that_misses_a_false_number_may_teach_and_it_is_said():
    false = {pair.bad for pair in PAIRS if pair.flaw == "false number"}
    passed = examine(PlainJudge([lambda item: float(item.reply in WHOLE | false)]), PAIRS)
    assert not passed.fault and passed.report.endswith("+1.00 over terse, +1.00 over cut short, +1.00 over padded, "
                                                       "+0.00 over false number")
    assert "+1.00 over false number" in examine(judge(), PAIRS).report


@pytest.mark.slow
def test_the_shipped_judge_passes_and_inverted_it_fails():
    mesh = make_mesh(jax.devices()[:2], 2, 1)
    rate = logprobs.rating_logprobs(load("tiny-judge", mesh, "float32"), mesh, RATINGS, max_length=256, batch_size=16)
    passed = examine(LocalJudge(rate, "tiny"), PAIRS)
    assert not passed.fault and str(passed).startswith("The judge passes: whole replies score +0.")
    inverted = examine(LocalJudge(lambda prompts: np.asarray(rate(prompts))[:, ::-1], "inverted"), PAIRS)
    assert re.search("replies of family .* score 0.* more than whole ones$", inverted.fault)


def test_how_likely_a_rating_is_at_all_is_said(tmp_path):
    """A model that would rather write "**Rating" has little probability left for the digits."""
    def rate(prompts):
        return np.log([[0.01, 0.01, 0.01, 0.01, 0.16] if any(f"{whole}\n" in text for whole in quoted) else
                       [0.16, 0.01, 0.01, 0.01, 0.01] for text in prompts])

    quoted = [quote_block(good) for good in WHOLE]
    local = LocalJudge(rate, "fake")
    assert np.isnan(local.rating_share)
    said = examine(CachedJudge(local, tmp_path / "verdicts.jsonl"), PAIRS[:6]).report
    assert said.startswith("The judge passes") and said.endswith("a rating with a probability of 20%")
    assert "probability" not in examine(judge(), PAIRS).report


def test_a_stage_keeps_the_exam_that_it_began_with(tmp_path):
    path, failed, passed = tmp_path / "grpo/exam.json", Exam("it is silent", "The judge fails"), Exam("", "It passes")
    assert as_begun(failed, path, begun=False) == failed
    assert as_begun(passed, path, begun=True) == failed, "an API that was down when the stage began"
    assert as_begun(passed, path, begun=False) == passed and as_begun(failed, path, begun=True) == passed
    path.write_text("{}")
    with pytest.raises(RecordError, match="exam.json is no exam .*fault is missing.*: delete it"):
        as_begun(passed, path, begun=True)
    path.unlink()
    assert as_begun(failed, path, begun=True) == failed, "of a run of an earlier release"


def test_the_pair_it_got_wrong_is_shown():
    text = str(examine(judge(0.2, 0.9), PAIRS))
    shown = [pair for pair in PAIRS if f"{pair.question!r}" in text and f"{pair.bad!r}" in text]
    assert len(shown) == 1 and f"  0.20 for {shown[0].good!r}\n  0.90 for {shown[0].bad!r}\n" in text
    assert text.startswith("The judge fails: ") and "score 0.70 more than whole ones. Asked" in text


def test_one_family_that_is_judged_the_wrong_way_round_is_enough():
    assert "replies of family lamp score 1.00 more" in examine(judge(lamp=True), PAIRS).fault


@pytest.mark.parametrize(("good", "bad"), [(0.5, 0.5), (1.0, 1.0), (0.52, 0.5), (0.5, 0.52)])
def test_a_judge_that_tells_nothing_apart_can_not_teach(good, bad):
    told = examine(judge(good, bad), PAIRS).fault
    assert re.fullmatch(r"whole replies score [+-]0.0\d over flawed ones, and 0.05 is the least", told)


def test_an_unfit_judge_is_left_out_and_the_other_parts_keep_their_weights():
    def judged():
        """A part that a judge scores."""

    judged.rowwise = True
    parts, unfit = [(len, 1.0), (judged, 1.5), (str, 0.0)], Exam("it is silent", "The judge fails: it is silent")
    assert without_unfit_judge(parts, unfit) == [(len, 1.0), (str, 0.0)]
    assert is_judged(parts) and not is_judged(without_unfit_judge(parts, unfit))
    assert without_unfit_judge(parts, Exam("", "passes")) == without_unfit_judge(parts, None) == parts
    with pytest.raises(UnfitJudge, match="nothing else in this recipe can teach. The judge fails: it is silent"):
        without_unfit_judge(parts[1:], unfit)


def test_a_few_verdicts_may_be_missing_and_not_most():
    behind = Behind(PAIRS[0].bad)
    said = examine(behind, PAIRS).report
    assert said.startswith("The judge passes: whole replies score +1.00 over ") and said.count("+1.00 over") == 4
    assert len(behind.asked) == len(set(behind.asked)) == EACH * (5 * len(RECIPE.families) - 1), "each only once"
    silent = examine(Behind(""), PAIRS)
    assert re.fullmatch(r"(\d+) of \1 pairs have no verdict", silent.fault)
    assert "\n  no verdict (timeout: no answer in 30 s) for " in silent.report


def test_chance_alone_stops_no_judge():
    """One that is 0.1 better on the mean, with a noise of 0.2: some families fall below zero in so few pairs."""
    stopped = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        noisy = PlainJudge([lambda item, rng=rng: float(np.clip(
            0.5 + 0.1 * (item.reply in WHOLE) + rng.normal(0, 0.14), 0, 1))])
        stopped += "more than whole ones" in examine(noisy, PAIRS).fault
    assert stopped <= 2


def test_without_problems_there_is_no_exam():
    with pytest.raises(ValueError, match="no pairs of replies .* give rows with worked solutions"):
        examine(judge(), anchors([]))

"""Open questions before and after a stage: who is asked what, what is compared, and what has no verdict."""

from __future__ import annotations

import pytest
from datasets import Dataset

from reasonkit.judge.judge import JudgeFailure, JudgeVerdict
from reasonkit.judge.rubric import Criterion, rubric_to_json
from reasonkit.text.tags import TAGS
from recipes.judges.open_questions import Judged, compare_judged, hold_out_open, judge_completions, without_open

RUBRIC = (Criterion("Rhyme", "The lines rhyme.", 1.0),)
ROWS = [{"question": f"Write {n} lines.", "rubric": rubric_to_json(RUBRIC)} for n in range(5)]


def test_a_tenth_of_the_open_questions_that_sft_does_not_imitate_is_held_out():
    def row(number, kind, reasoning="", answer=""):
        return {"id": f"{kind}-{number}", "kind": kind, "reasoning": reasoning, "answer": answer}

    some = Dataset.from_list([row(n, "number", "1+1=2", "2") for n in range(30)] + [row(n, "open") for n in range(40)]
                             + [row(n + 40, "open", "First, …", "A poem") for n in range(30)])
    left, held = hold_out_open(some, 64)
    assert len(held) == 4 and len(left) == 96 and set(held["kind"]) == {"open"} and not any(held["reasoning"])
    assert sorted([*left["id"], *held["id"]]) == sorted(some["id"])
    assert set(hold_out_open(some.select(range(99, -1, -1)), 64)[1]["id"]) == set(held["id"]), "whatever their order"
    assert len(hold_out_open(some, 2)[1]) == 2
    left, held = hold_out_open(some.select(range(30)), 64)
    assert len(held) == 0 and [*left["id"]] == some["id"][:30]
    assert [*without_open(some)["id"]] == some["id"][:30], "without a judge nothing tells the others' completions apart"
    assert [*without_open(some, references=True)["id"]] == [
        row["id"] for row in some if row["kind"] != "open" or row["answer"]]
    assert len(without_open(some.select(range(30, 50)))) == 20, "or there would be nothing to train on"


class Lengths:
    """Scores by length, and has no verdict on an empty completion."""

    failures = None

    def score(self, items):
        assert all(item.rubric == RUBRIC for item in items)
        return [JudgeVerdict(len(item.reply) / 100, (0.5,)) if item.reply else JudgeFailure("timeout", "none")
                for item in items]


def test_each_question_is_asked_once_in_its_prompt_and_judged_by_its_rubric():
    asked = []

    def generate(prompts):
        asked.append(prompts)
        return ["" if "2 lines" in prompt else "a" * len(prompts) for prompt in prompts]

    found = judge_completions(generate, ROWS, Lengths(), batch_size=2)
    assert asked == [[TAGS.prompt(row["question"]) for row in part] for part in (ROWS[:2], ROWS[2:4], ROWS[4:])]
    assert [(one.question, one.score) for one in found] == list(zip(
        [row["question"] for row in ROWS], [0.02, 0.02, None, 0.02, 0.01], strict=True))


def test_only_questions_with_both_verdicts_are_compared():
    before, after = ([Judged("?", "", score) for score in scores] for scores in (
        [0.2] * 20 + [None, 0.9], [0.6] * 20 + [0.0, None]))
    change = compare_judged(before, after, "score")
    assert change.mean == pytest.approx(0.4) and change.n == 20 and change.low > 0.2 and change.p_value < 0.01
    assert compare_judged(after, before, "score").mean == pytest.approx(-0.4)
    nothing = compare_judged([Judged("?", "", None)], [Judged("?", "", 0.5)], "score")
    assert (nothing.low, nothing.high, nothing.n) == (-1.0, 1.0, 0)


def test_completions_that_are_cut_off_are_counted():
    whole = TAGS.render(reasoning="Night and light rhyme.", answer="It is night.")
    before, after = ([Judged("?", text, 0.5) for text in texts] for texts in (
        [whole] * 20, [whole] * 10 + [whole.removesuffix("</answer>")] * 9 + ["a poem"]))
    change = compare_judged(before, after, "is_finished")
    assert change.mean == pytest.approx(-0.5) and change.n == 20 and change.high < 0

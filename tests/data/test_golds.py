"""The gold completions under the recipe's own rewards: what is left out, what is only shown, and what is named."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace

import pytest
from datasets import Dataset

from reasonkit.config import PROFILES, adapt_to_recipe
from reasonkit.data import golds as module
from reasonkit.data.curation import curate
from reasonkit.data.filters import Ledger, gold_row_fault
from reasonkit.data.golds import check_golds, check_worked
from reasonkit.data.own_file import load_data
from reasonkit.judge.rubric import Criterion, rubric_to_json
from reasonkit.rewards.rules import exact_answer, tag_format
from reasonkit.rewards.work import missing_work
from reasonkit.session.setup import find_recipe, recipe_names
from reasonkit.show.data_view import mark_table
from reasonkit.text.tags import TAGS
from recipes.rewards.controls import shuffle_rewards
from recipes.rewards.rubric import rubric
from recipes.rewards.tunix_demo import demo_number

RUBRIC = rubric_to_json((Criterion("Steps", "Every step is shown", 1.0),))
PLAN = '{"start": ["a"], "goal": ["b"], "actions": {"go": {"needs": ["a"], "adds": ["b"]}}}'
JUDGED = "rubric"


def row(number, **changes):
    return {"id": str(number), "family": "sum", "kind": "number", "question": f"{number} plus 2?",
            "reasoning": f"{number} + 2 = {number + 2}", "answer": str(number + 2), "rubric": RUBRIC} | changes


def rows(*changes):
    """Eight plain rows, and those with changes."""
    return Dataset.from_list([row(n, **change) for n, change in enumerate([{}] * 8 + list(changes))])


def returns(value_of, name="mine"):
    def reward(prompts, completions, **columns):
        return [value_of(*pair) for pair in zip(completions, columns["id"], strict=True)]

    reward.__name__ = name
    return reward


def recipe_of(*parts, judged=False):
    return replace(find_recipe("g_rar"), name="planted", rewards=lambda judge, questions: list(parts),
                   uses_judge=judged)


def checked(recipe, train):
    ledger = Ledger()
    kept, marks = check_golds(recipe, train, ledger)
    return kept, {mark.part: mark for mark in marks}, ledger


def test_the_rows_of_the_demo_stay_as_they_are():
    splits, _ = curate(load_data("tiny_mix"), {"train": 300}, 0)
    kept, marks, ledger = checked(find_recipe("g_rar"), splits["train"])
    assert kept is splits["train"] and ledger.steps == [("gold completions", 300, 300)] and not ledger.notes
    assert [(mark.scored, mark.full, mark.lowest) for name, mark in marks.items() if name != JUDGED] == [
        (300, 300, 0.0), (300, 300, 1.0)]
    assert (marks[JUDGED].scored, math.isnan(marks[JUDGED].lowest)) == (0, True), "no judge is loaded yet"


def test_a_gold_that_only_the_recipes_reward_refuses_is_left_out():
    """The grader reads 1,200 as a number, and this reward of Tunix's demo does not."""
    comma = {"question": "How many are 600 and 600?", "reasoning": "600 + 600 = 1,200", "answer": "1,200"}
    assert gold_row_fault(row(8, **comma)) is None
    kept, marks, ledger = checked(recipe_of((tag_format, 1.0), (demo_number, 1.0)), rows(comma))
    assert kept["id"] == [str(n) for n in range(8)] and ledger.steps == [("gold completions", 9, 8)]
    (gone,) = ledger.dropped
    assert (gone.id, gone.cause) == ("8", "nothing from demo_number")
    assert gone.example.endswith("<answer>1,200</answer>")
    assert marks["demo_number"].full == 8 and "1,200" in marks["demo_number"].example


def test_a_gold_that_a_planted_reward_refuses_is_left_out():
    odd = returns(lambda completion, name: float(name != "3"))
    kept, marks, ledger = checked(recipe_of((tag_format, 1.0), (odd, 0.5)), rows())
    assert "3" not in kept["id"] and len(kept) == 7 and ledger.dropped[0].cause == "nothing from mine"
    assert (marks["mine"].full, marks["mine"].lowest) == (7, 0.0)
    assert kept.column_names == rows().column_names
    kept, *_ = checked(recipe_of((exact_answer, 1.0), (odd, 0.5)), rows())
    assert len(kept) == 8, "another part pays for it"
    kept, *_ = checked(recipe_of((tag_format, 1.0), (odd, 0.0)), rows())
    assert len(kept) == 8, "it is only logged"


def test_penalties_and_partial_marks_are_shown_and_cost_no_row():
    partly = returns(lambda completion, name: 1.0 + float(name == "3"))
    loss = returns(lambda completion, name: -float(name == "5"), "loss")
    cost = returns(lambda completion, name: float(name == "6"), "cost")
    kept, marks, ledger = checked(recipe_of((partly, 1.0), (loss, 1.0), (cost, -2.0)), rows())
    assert len(kept) == 8 and not ledger.dropped and not ledger.notes
    assert [(mark.full, mark.lowest) for mark in marks.values()] == [(1, 1.0), (7, -1.0), (7, 1.0)]
    assert marks["loss"].example == TAGS.render(reasoning="5 + 2 = 7", answer="7")
    page = mark_table([*marks.values()])
    assert "7 (87.5%)" in page and "5 + 2 = 7" in page


def test_a_trace_that_is_a_stub_is_shown_and_stays():
    """As MMLU's worked rows have them: one sentence with the option in it."""
    stub = {"question": "As of 2019, about what percentage of Russians say it is very important to have free media in "
                        "our country without government/state censorship?\n(A) 38%\n(B) 58%", "kind": "choice",
            "reasoning": "As of 2019, about 38% of Russians say it is very important to have free media in our "
                         "country.", "answer": "(A) 38%"}
    kept, marks, ledger = checked(find_recipe("gemmatron"), rows(stub))
    assert len(kept) == 9 and not ledger.dropped
    assert (marks["work_shown"].full, marks["work_shown"].lowest) == (8, -1.0)
    assert "about 38% of Russians" in marks["work_shown"].example


def test_a_reward_that_refuses_most_golds_is_said_and_costs_no_row():
    """In the table of steps, which shows the notes."""
    few = returns(lambda completion, name: float(name == "1"))
    kept, _, ledger = checked(recipe_of((tag_format, 1.0), (few, 1.0)), rows())
    assert len(kept) == 8 and not ledger.dropped
    assert "mine in recipe 'planted' gives nothing for 7 of 8 gold completions" in ledger.notes[0]
    none = returns(lambda completion, name: 0.0)
    _, _, ledger = checked(recipe_of((tag_format, 1.0), (none, 1.0)), rows())
    assert "no part of the reward of recipe 'planted' pays for any of 8 gold completions" in ledger.notes[0]
    _, _, ledger = checked(recipe_of((tag_format, 1.0), judged=True), rows())
    assert not ledger.notes, "a judge may pay"


def test_rows_without_a_gold_completion_stay_and_are_not_asked():
    train = rows({"reasoning": " "}, {"kind": "plan", "answer": PLAN}, {"kind": "open", "answer": ""},
                 {"kind": "open", "answer": "a reference"})
    kept, marks, _ = checked(find_recipe("g_exact"), train)
    assert len(kept) == 12
    assert marks["tag_format"].scored == 9 and marks["exact_answer_if_tag_format"].scored == 8, "open owes no answer"
    kept, marks, ledger = checked(find_recipe("g_exact"), Dataset.from_list([row(0, reasoning="")]))
    assert len(kept) == 1 and not ledger.notes and {mark.scored for mark in marks.values()} == {0}
    mark_table([*marks.values()])


def test_without_rewards_there_is_no_step():
    kept, marks, ledger = checked(find_recipe("worked_sft"), rows())
    assert len(kept) == 8 and not marks and not ledger.steps
    assert "no GRPO" in mark_table([])


def test_a_part_gets_the_columns_of_training_in_batches(monkeypatch):
    monkeypatch.setattr(module, "BATCH", 3)
    seen = []

    def mine(prompts, completions, question, answer, kind, rubric, num_generations, mode, log_extra, **columns):
        seen.extend(question.tolist())
        assert prompts == [TAGS.prompt(text) for text in question] and num_generations == 1
        return [1.0] * len(completions)

    checked(recipe_of((mine, 1.0)), rows())
    assert seen == rows()["question"]


def test_no_row_goes_where_a_judge_may_pay_or_by_a_control_that_deals_values_at_random():
    odd = returns(lambda completion, name: float(name != "3"))
    kept, *_ = checked(recipe_of((odd, 0.5)), rows())
    assert len(kept) == 7, "it refuses none: the test shows nothing"
    judged = replace(recipe_of(judged=True), rewards=lambda judge, questions: [(rubric(judge), 1.0), (odd, 0.1)])
    for recipe in (judged, recipe_of((shuffle_rewards(odd), 1.0))):
        kept, _, ledger = checked(recipe, rows())
        assert len(kept) == 8 and not ledger.dropped


def test_what_cannot_be_asked_is_named():
    def broken(prompts, completions, **columns):
        return [1 / 0]

    with pytest.raises(ValueError, match="part 'broken' of the reward of recipe 'planted' fails on gold completions, "
                                         "with ZeroDivisionError: division by zero"):
        checked(recipe_of((broken, 1.0)), rows())
    with pytest.raises(ValueError, match="part 'mine' .* with TypeError"):
        checked(recipe_of((returns(lambda completion, name: name + 1), 0.0), (tag_format, 1.0)), rows())
    with pytest.raises(ValueError, match="give each its own __name__"):
        checked(recipe_of((tag_format, 1.0), (tag_format, 0.5)), rows())
    with pytest.raises(ValueError, match="uses_judge=True"):
        checked(replace(find_recipe("g_rar"), uses_judge=False), rows())


def test_a_part_that_asks_the_judge_unmarked_has_no_values():
    def asks(judge, questions):
        hidden = rubric(judge)
        hidden.rowwise = False
        return [(tag_format, 1.0), (hidden, 1.0)]

    _, marks, _ = checked(replace(find_recipe("g_rar"), rewards=asks), rows({"reasoning": "because it rained all day"}))
    assert marks[JUDGED].scored < 9


@pytest.mark.parametrize("text", ["=" * 3000, "<" * 2000, "1e999 = inf", "\u202e\u200b\u00ad x", "NaN NaN NaN",
                                  "Identify: " * 400, "9" * 500 + " + 1 = 2", "\n" * 50 + "a", "{{}} %s {0}"])
@pytest.mark.parametrize("name", ["idea_e", "pinocchio", "tunix_demo"])
def test_no_text_of_a_row_raises(name, text):
    checked(find_recipe(name), rows({"reasoning": text, "question": text, "kind": "text", "answer": text[:200]}))


# What each part gives to worked solutions of the toy families: the share with the full mark, and the lowest value.
PAID, CLEAN = (1.0, 1.0), (1.0, 0.0)
EXPECTED = {
    "tag_format": CLEAN, "exact_answer_if_tag_format": PAID, "work_shown": CLEAN,
    "constant": PAID, "shuffled": PAID, "demo_format": (1.0, 3.0), "demo_tags": (1.0, 2.0), "demo_answer": (1.0, 3.0),
    "scaffold": (0.0, -1.0),  # only a teacher writes the five headings
}
# Not every good solution has full marks.
AT_LEAST = {"repetition": -0.5, "tfidf_relevance": -1.0, "tfidf_leak": -1.0, "demo_number": 0.0}


@pytest.mark.parametrize("name", [name for name in recipe_names() if "grpo" in find_recipe(name).shares])
def test_the_recipes_pay_for_worked_solutions(name):
    splits, _ = curate(load_data("tiny_mix"), {"train": 200}, 0)
    worked = splits["train"].filter(lambda row: not missing_work(
        row["question"], TAGS.parse(TAGS.render(reasoning=row["reasoning"], answer=row["answer"]))))
    kept, marks, ledger = checked(find_recipe(name), worked)
    assert len(worked) > 50 and kept is worked
    assert bool(ledger.notes) is (name in ("constant", "shuffled")), "a control can't teach, and nothing else is one"
    for part, mark in marks.items():
        if part in AT_LEAST:
            assert mark.lowest >= AT_LEAST[part] and mark.full > 0.2 * mark.scored
        elif part not in (JUDGED, "rlpr_if_tag_format"):  # these ask a model
            assert (mark.full / mark.scored, mark.lowest) == EXPECTED[part], part


@pytest.mark.parametrize(("recipe", "worked", "message"), [
    ("g_rar", (7, 1), "7 of 9 rows of 'train' have a worked solution, and SFT needs 8: take data with reasoning"),
    ("g_rar", (8, 0), "0 of 9 rows of 'validation' have a worked solution, and the judge's exam needs 1"),
    ("worked_sft", (8, 1, "So 4"), "0 of 9 rows of 'train' have a worked solution, and SFT needs 8"),
    ("g_rar", (8, 1, "So 4"), None), ("g_rar", (8, 1), None), ("idea_e", (8, 0), None),
    ("tunix_demo", (0, 0), None), ("worked_sft", (8, 0), None)])
def test_too_few_worked_rows_stop_notebook_1(recipe, worked, message):
    """SFT, or the judge's exam, would stop after the models are loaded."""
    train, validation, *terse = worked
    splits = {name: rows(*[{"reasoning": ""}] * 9).select(range(8 - count, 17 - count))
              for name, count in (("train", train), ("validation", validation))}
    if terse:
        splits["train"] = splits["train"].map(lambda row: {"reasoning": row["reasoning"] and terse[0]})
    found = find_recipe(recipe)
    profile = adapt_to_recipe(PROFILES["smoke"], found)
    if message is None:
        check_worked(found, profile, splits)
    else:
        with pytest.raises(ValueError, match=message):
            check_worked(found, profile, splits)


@pytest.mark.parametrize(("recipe", "stage", "size", "message"), [
    ("g_rar", "grpo", {"prompts_per_step": 10},
     "'train' has 9 rows, and a step of GRPO takes 10: add questions, or set grpo_prompts_per_step to at most 9 in S"),
    ("on_policy_distillation", "distill", {"batch_size": 16}, "a step of distillation takes 16: .*distill_batch_size"),
    ("worked_sft", "grpo", {"prompts_per_step": 10}, None)])
def test_too_few_rows_for_a_step_stop_notebook_1(recipe, stage, size, message):
    """SFT passed, and hours later the stage had no batch."""
    splits = {"train": rows({}), "validation": rows({})}
    profile = replace(PROFILES["smoke"], **{stage: replace(getattr(PROFILES["smoke"], stage), **size)})
    with pytest.raises(ValueError, match=message) if message else contextlib.nullcontext():
        check_worked(find_recipe(recipe), profile, splits)

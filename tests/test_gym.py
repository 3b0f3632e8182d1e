"""The families made by reasoning-gym: their steps lead to its answers, and none of its scorers is asked."""

from __future__ import annotations

import random
import sys

import pytest

from data_recipes.families._gym import item
from reasonkit.data.problems import load_recipe, make_problem, make_splits
from reasonkit.text.answers import check
from reasonkit.text.tags import TAGS

RECIPE = load_recipe("gym_mix")
NAMES = {"gym_gcd": "gcd", "gym_gsm": "gsm_symbolic", "gym_letters": "letter_counting", "gym_sum": "chain_sum"}


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ImportError, match=r"need reasoning_gym: pip install 'reasoning-gym<0\.2'"):
        make_problem("gym_sum", 0, 0)


@pytest.mark.parametrize("family", RECIPE.families)
def test_the_worked_steps_lead_to_the_gyms_answer(family):
    for index in range(100):
        made = make_problem(family, index, 3)
        found = item(NAMES[family], random.Random(f"3:{family}:{index}"))
        assert made.question == found["question"].strip() and made.answer == found["answer"]
        assert made.steps and check(made.answer, made.answer, made.kind).correct
        reply = TAGS.parse(TAGS.render(reasoning=made.reasoning, answer=made.answer))
        assert reply.ok and made.reasoning.count(";") == len(made.steps) - 1
        slipped = make_problem(family, index, 3, lambda value: value + 3)
        assert slipped.question == made.question
        assert (slipped.steps == made.steps) == (family == "gym_gsm")


def test_the_mix_makes_at_least_500_problems_to_hold_out():
    splits = make_splits(RECIPE, {"train": 40, "test": 500}, 0)
    assert len(set(splits["test"]["question"])) == 500 and set(splits["test"]["family"]) == set(RECIPE.families)
    assert splits["test"][:4] == make_splits(RECIPE, {"test": 4}, 0)["test"][:4]

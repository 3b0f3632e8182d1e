"""Robotics: GRPO on planning and orientation in words, with a judge that reads the robotics rubric.

Source: the robotics entries among the honourable mentions. We have not measured what it reaches. A gold answer of kind
"plan" is a problem on which the grader executes plans step by step (`recipes/graders/plan.py`), so any plan that
reaches the goal is right. The mix has none of these yet: public sets are small, and a program makes half of its rows.
"""

from __future__ import annotations

from reasonkit.config import Recipe
from reasonkit.rewards.rules import exact_answer, gate, tag_format
from recipes.rewards.rubric import rubric
from recipes.rewards.text import work_shown
from recipes.stages.curriculum import by_pass_rate


def rewards(judge, questions):
    return [
        (tag_format, 1.0),
        (gate(exact_answer, tag_format), 1.5),
        (rubric(judge), 1.0),
        (work_shown, 1.0),  # many questions are yes or no: a right answer without work earns little
    ]


RECIPE = Recipe(
    data="robotics",
    toy_data="tiny_mix",
    shares={"sft": 0.25, "grpo": 0.75},
    rewards=rewards,
    uses_judge=True,
    # Difficulty varies widely. Over three seeds of the demo a curriculum was behind on two
    curriculum=by_pass_rate("exact_answer_if_tag_format"),
)

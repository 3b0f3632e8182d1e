"""Legal: GRPO on holdings and bar exams, with a judge that reads the law rubric.

Source: the law entries among the honourable mentions. We have not measured what it reaches. Almost all rows have
options, so the right letter pays only after reasoning in which a program finds some work.
"""

from __future__ import annotations

from reasonkit.config import Recipe
from reasonkit.rewards.rules import exact_answer, gate, tag_format
from recipes.rewards.rubric import rubric
from recipes.rewards.text import work_shown


def rewards(judge, questions):
    return [
        (tag_format, 1.0),
        (gate(exact_answer, tag_format), 1.0),
        (rubric(judge), 1.5),  # issue, rule, application, conclusion
        (work_shown, 1.0),  # a right letter without work earns nothing
    ]


RECIPE = Recipe(
    data="legal",
    toy_data="tiny_mix",
    shares={"sft": 0.25, "grpo": 0.75},
    rewards=rewards,
    uses_judge=True,
)

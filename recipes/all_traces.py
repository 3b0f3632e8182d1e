"""Control: `reasonkit` with SFT on all worked solutions, those too that skip their steps.

Source: an ablation of recipes/reasonkit.py that measures what the choice of traces adds. All else is the same.
"""

from __future__ import annotations

from reasonkit.config import Recipe
from reasonkit.rewards.rules import exact_answer, gate, tag_format
from recipes.rewards.rubric import rubric


def rewards(judge, questions):
    return [
        (tag_format, 1.0),
        (gate(exact_answer, tag_format), 1.0),
        (rubric(judge), 1.5),
    ]


RECIPE = Recipe(
    data="g_rar",
    toy_data="tiny_mix",
    shares={"sft": 0.85, "grpo": 0.15},
    rewards=rewards,
    uses_judge=True,
    sft={"max_epochs": 25},  # as in `reasonkit`, but without its `skip_terse`
)

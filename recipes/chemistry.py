"""Chemistry: GRPO on explanations and calculations, with a judge that reads the chemistry rubric.

Source: the chemistry entries among the honourable mentions. We have not measured what it reaches. Gold answers of kind
"quantity" are compared with their units, so 1 mol/L and 1000 mmol/L are the same answer, and those of kind "smiles" as
molecules (`recipes/graders`). The mix has only numbers and formulas: these two kinds are there for your own data.
"""

from __future__ import annotations

from reasonkit.config import Recipe
from reasonkit.rewards.rules import exact_answer, gate, tag_format
from recipes.rewards.rubric import rubric


def rewards(judge, questions):
    return [
        (tag_format, 1.0),
        (gate(exact_answer, tag_format), 1.5),  # numbers and formulas are hard to guess: worth more than an option
        (rubric(judge), 1.0),  # open rows are scored by the judge only
    ]


RECIPE = Recipe(
    data="chemistry",
    toy_data="tiny_mix",
    shares={"sft": 0.25, "grpo": 0.75},
    rewards=rewards,
    uses_judge=True,
)

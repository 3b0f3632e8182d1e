"""Chemistry: GRPO on explanations and calculations, with a judge that reads the rubric of chemistry.

Source: the entries on chemistry among the honourable mentions. A gold answer of kind "quantity" is compared with its
unit, and one of kind "smiles" as a molecule (`recipes/graders`), so 1 mol/L and 1000 mmol/L are one answer. The mix has
numbers and formulas only, and these are for data of your own.
What it reaches was not measured.
"""

from __future__ import annotations

from reasonkit.config import Recipe
from reasonkit.rewards.rules import exact_answer, gate, rubric, tag_format


def rewards(judge, questions):
    return [
        (tag_format, 1.0),
        (gate(exact_answer, tag_format), 1.5),  # numbers and formulas are not guessed: worth more than an option
        (rubric(judge), 1.0),  # open rows are scored by the judge alone
    ]


RECIPE = Recipe(
    data="chemistry",
    toy_data="tiny_mix",
    shares={"sft": 0.25, "grpo": 0.75},
    rewards=rewards,
    uses_judge=True,
)

"""Medical: GRPO on exam questions and open cases, with a judge that reads the rubric of medicine.

Source: the entries on medicine among the honourable mentions; Rubrics as Rewards (arXiv 2507.17746), whose RaR-Medicine
is in the mix. More than half of the rows are open, and only the judge scores them.
What it reaches was not measured. Expect nothing that may be used on patients.
"""

from __future__ import annotations

from reasonkit.config import Recipe
from reasonkit.rewards.rules import exact_answer, gate, rubric, tag_format


def rewards(judge, questions):
    return [
        (tag_format, 1.0),
        (gate(exact_answer, tag_format), 1.0),  # options: A or B is right by a guess one time in four
        (rubric(judge), 2.0),  # so the reasoning weighs twice as much as the letter
    ]


RECIPE = Recipe(
    data="medical",
    toy_data="tiny_mix",
    shares={"sft": 0.25, "grpo": 0.75},
    rewards=rewards,
    uses_judge=True,
)

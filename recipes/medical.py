"""Medical: GRPO on exam questions and open cases, with a judge that reads the medicine rubric.

Source: the medical entries among the honourable mentions, and Rubrics as Rewards (arXiv 2507.17746), whose RaR-Medicine
is in the mix. More than half of the rows are open, and only the judge can score those.
We have not measured what it reaches. Don't expect anything that is fit to be used on patients.
"""

from __future__ import annotations

from reasonkit.config import Recipe
from reasonkit.rewards.rules import exact_answer, gate, tag_format
from recipes.rewards.rubric import rubric


def rewards(judge, questions):
    return [
        (tag_format, 1.0),
        (gate(exact_answer, tag_format), 1.0),  # options: a guessed letter is right one time in four
        (rubric(judge), 2.0),  # so the reasoning weighs twice as much as the letter
    ]


RECIPE = Recipe(
    data="medical",
    toy_data="tiny_mix",
    shares={"sft": 0.25, "grpo": 0.75},
    rewards=rewards,
    uses_judge=True,
)

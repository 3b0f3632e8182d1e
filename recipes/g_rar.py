"""G-RaR: GRPO on format, exact answer and a rubric judge, after an SFT warm start.

Source: the winning G-RaR entry; Rubrics as Rewards (arXiv 2507.17746).
Expect in the demo: accuracy from 54 to about 75 %, step accuracy from 12 to about 90 %, and completions that grow.
"""
# To make your own recipe, copy this file and set RECIPE in the notebooks to the new file's name.

from __future__ import annotations

from reasonkit.config import Recipe
from reasonkit.rewards.rules import exact_answer, gate, rubric, tag_format


def rewards(judge, questions):
    return [
        (tag_format, 1.0),
        (gate(exact_answer, tag_format), 1.0),  # a right answer counts only in the right format
        (rubric(judge), 1.5),  # good steps with a wrong answer can earn more than a bare right answer
    ]


RECIPE = Recipe(
    data="g_rar",
    toy_data="tiny_mix",
    shares={"sft": 0.25, "grpo": 0.75},  # the stages in order, each with its share of the time
    rewards=rewards,
    uses_judge=True,
)

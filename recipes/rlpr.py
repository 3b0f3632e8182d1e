"""RLPR: SFT, then GRPO on how much the reasoning raises the policy's own probability of the reference answer.

Source: RLPR (arXiv 2506.18254). The reward is p - p0, from 0 to 1, rounded to 0.1: p is the mean probability of the
reference answer with its closing tag and stop token, after the reasoning, and p0 the same without it. It needs no
judge, so the policy gets all the chips. It also pays on open questions with a reference, which no program can grade.
Where a program can, the exact answer pays as well.
"""

from __future__ import annotations

from reasonkit.config import Recipe
from reasonkit.rewards.rules import exact_answer, gate, tag_format
from recipes.rewards.rlpr import PolicyItself, rlpr


def rewards(judge, questions):
    return [
        (tag_format, 1.0),
        (gate(exact_answer, tag_format), 1.0),
        (gate(rlpr(judge), tag_format), 1.0),  # the judge is the policy itself
    ]


RECIPE = Recipe(
    data="g_rar",
    toy_data="tiny_mix",
    shares={"sft": 0.25, "grpo": 0.75},
    rewards=rewards,
    judge=PolicyItself,
)

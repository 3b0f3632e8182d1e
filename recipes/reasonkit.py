"""Our own: SFT on those solutions only that show their steps, then GRPO with a rubric judge, as in `g_rar`.

A policy that imitates terse solutions has to unlearn them in GRPO. Source: our own runs (benchmarks/RESULTS.md).
"""

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
    shares={"sft": 0.25, "grpo": 0.75},
    rewards=rewards,
    uses_judge=True,
    sft={"skip_terse": True},  # "So 12" teaches the tags and to guess
)

"""Our own recipe: SFT on only the traces that show their steps, at most 25 times, then GRPO as in `g_rar`.

A policy that imitates terse solutions has to unlearn them. GRPO needs only answers, so it can add something where good
traces are few. There SFT stops early and GRPO gets its time. Where they are plenty, as in the demo, GRPO takes up to 3
points off. If that is clear on validation problems, its adapter is not handed over (`Run.keep_better`).
"""

from __future__ import annotations

from reasonkit.config import Recipe
from reasonkit.rewards.rules import exact_answer, gate, tag_format
from recipes.rewards.rubric import rubric


def rewards(judge, questions):
    return [
        (tag_format, 1.0),
        (gate(exact_answer, tag_format), 1.0),  # a right answer counts only in the right format
        (rubric(judge), 1.5),  # good steps with a wrong answer can earn more than a bare right answer
    ]


RECIPE = Recipe(
    data="g_rar",
    toy_data="tiny_mix",
    shares={"sft": 0.85, "grpo": 0.15},
    rewards=rewards,
    uses_judge=True,
    # With few traces, SFT beyond 25 epochs gained no more accuracy than GRPO in the same time
    sft={"skip_terse": True, "max_epochs": 25},
)

"""Gym: GRPO without a judge, on format and exact answer, on four families of reasoning-gym (the extra `data`).

Source: reasoning-gym, github.com/open-thought/reasoning-gym.
Expect: a run on a real model with no judge to load. We have not measured its accuracy. The demo's tiny model only
learns to guess the most frequent answer.
Without a judge the policy gets all the chips and time for half as many steps again (`config.adapt_to_recipe`).
"""

from __future__ import annotations

from reasonkit.config import Recipe
from reasonkit.rewards.rules import exact_answer, gate, tag_format


def rewards(judge, questions):
    return [
        (tag_format, 1.0),
        (gate(exact_answer, tag_format), 1.0),
    ]


RECIPE = Recipe(
    data="gym_mix",
    toy_data="gym_toy",
    shares={"sft": 0.25, "grpo": 0.75},
    rewards=rewards,
)

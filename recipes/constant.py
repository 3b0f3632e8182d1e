"""Control: every completion earns the same. What the usual rewards would have paid is only logged.

Source: our own. Expect: the adapter stays exactly as SFT left it, bit for bit, so any change is a bug.
"""

from __future__ import annotations

from reasonkit.config import Recipe
from reasonkit.rewards.rules import exact_answer, gate, tag_format
from recipes.rewards.controls import constant


def rewards(judge, questions):
    return [
        (constant, 1.0),
        (tag_format, 0.0),
        (gate(exact_answer, tag_format), 0.0),
    ]


RECIPE = Recipe(
    data="g_rar",
    toy_data="tiny_mix",
    shares={"sft": 0.25, "grpo": 0.75},
    rewards=rewards,
)

"""Control: the rewards for the exact answer, dealt out at random to the step's completions.

Source: "Spurious rewards" (arXiv 2506.10947), where even random rewards improved the model.
Expect in the demo: accuracy moves by up to 7 points either way, and step accuracy by up to 27. Believe only what
another recipe gains beyond that.
"""

from __future__ import annotations

from reasonkit.config import Recipe
from reasonkit.rewards.rules import exact_answer, gate, tag_format
from recipes.rewards.controls import shuffle_rewards


def rewards(judge, questions):
    answered = gate(exact_answer, tag_format)
    return [
        (shuffle_rewards(answered), 1.0),
        (tag_format, 0.0),
        (answered, 0.0),
    ]


RECIPE = Recipe(
    data="g_rar",
    toy_data="tiny_mix",
    shares={"sft": 0.25, "grpo": 0.75},
    rewards=rewards,
)

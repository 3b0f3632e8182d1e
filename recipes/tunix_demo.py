"""Tunix demo: GRPO only, with the rewards and dials of Tunix's own demo, the baseline that entrants started from.

Source: examples/grpo_gemma.ipynb in google/tunix. In our demo it learns nothing, because the tiny base model writes no
tags. For Tunix's steps and learning rate on a TPU, set grpo_steps = 1869 and grpo_learning_rate = 3e-6 in SETTINGS.
Our adapter has rank 32 in place of 64, nothing is cut off at the 50 most likely tokens, and nothing may follow the
answer's tag. The KL term is k3, because the gradient of Tunix's k1 lacks the reference. It skips flat groups.
"""

from __future__ import annotations

from reasonkit.config import Recipe
from recipes.rewards.tunix_demo import demo_answer, demo_format, demo_number, demo_tags


def rewards(judge, questions):
    return [
        (demo_format, 1.0),
        (demo_tags, 1.0),
        (demo_answer, 1.0),
        (demo_number, 1.0),
    ]


RECIPE = Recipe(
    data="gsm8k",
    toy_data="tiny_mix",
    shares={"grpo": 1.0},  # no SFT: the adapter begins at zero, and the reference is the base model
    rewards=rewards,
    grpo={"prompts_per_step": 4, "num_generations": 4, "beta": 0.08, "temperature": 0.9, "clip": 0.1,
          "weight_decay": 0.1},  # the demo's
)

"""Our own: SFT on solutions that show their steps, then GRPO on a curriculum with a rubric judge.
"""

from __future__ import annotations

from reasonkit.config import Recipe
from recipes.g_rar import rewards

RECIPE = Recipe(
    data="g_rar",
    toy_data="tiny_mix",
    shares={"sft": 0.25, "grpo": 0.75},
    rewards=rewards,
    uses_judge=True,
    sft={"skip_terse": True},
)

"""Control: only SFT, on only the solutions that show their steps. Compare any later stage with it.

A policy that imitates terse solutions ("So 12") has to unlearn them later. In the demo that is most of what GRPO gains.
Run it before you believe in a gain of GRPO on your own data.
"""

from __future__ import annotations

from reasonkit.config import Recipe

RECIPE = Recipe(
    data="g_rar",
    toy_data="tiny_mix",
    shares={"sft": 1.0},
    sft={"skip_terse": True},  # leaves out what has to be unlearned
)

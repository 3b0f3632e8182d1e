"""G-exact: G-RaR without the judge's weight. The rubric is scored and logged, but not trained on.

Source: an ablation of recipes/g_rar.py that measures what the judge adds. GRPO leaves out open questions, on which
nothing else here can tell completions apart.
Expect in the demo: accuracy of 70 to 73 % by seed, where `g_rar` has 71 to 75 %. On two of three seeds fewer steps are
right than with it.
"""

from __future__ import annotations

from reasonkit.config import Recipe
from reasonkit.rewards.rules import exact_answer, gate, tag_format
from recipes.rewards.rubric import rubric


def rewards(judge, questions):
    return [
        (tag_format, 1.0),
        (gate(exact_answer, tag_format), 1.0),
        (rubric(judge), 0.0),  # logged only
    ]


RECIPE = Recipe(
    data="g_rar",
    toy_data="tiny_mix",
    shares={"sft": 0.25, "grpo": 0.75},
    rewards=rewards,
    uses_judge=True,
)

"""Gemmatron: a larger model writes worked solutions, the right ones are kept for SFT, then GRPO on format and answer.

Source: the entry Gemmatron, an honourable mention (synthetic data from a larger model, SFT, GRPO), and rejection
sampling (RFT, arXiv 2308.01825). Notebook 1b asks the profile's judge model, or an API if TEACHER says so. It keeps
what is in the format, shows its work and has the right answer. It asks COUNT questions at most.
Without a judge in GRPO the policy gets all the chips. Measured on the demo's problems only.
"""

from __future__ import annotations

from reasonkit.config import Recipe
from reasonkit.rewards.rules import exact_answer, gate, tag_format
from recipes.rewards.text import work_shown


def rewards(judge, questions):
    return [
        (tag_format, 1.0),
        (gate(exact_answer, tag_format), 1.0),
        (work_shown, 1.0),  # a right answer without work earns nothing
    ]


RECIPE = Recipe(
    data="gemmatron",
    toy_data="gemmatron_toy",
    shares={"teacher": 0.2, "sft": 0.2, "grpo": 0.6},
    rewards=rewards,
)

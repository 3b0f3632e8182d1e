"""Pinocchio: SFT, SimPO on pairs of the policy's own completions, then GRPO with a judge and penalties for flaws.

Source: the second winning entry, Pinocchio-1B. Its GRPO put half the reward on the answer and half on the reasoning,
and took off up to 3 for loops, runaway and incomplete completions. Gemini judged a whole group in one call, as it does
here with its key and `api_dollars`. It trained twice on each rollout, and we once. Its SFT was a full fine-tune on a
120B teacher's traces, which are not public. It reports 98 % for the format. In our demo SimPO brings most of the gain.
"""

from __future__ import annotations

from reasonkit.config import Recipe
from reasonkit.rewards.rules import exact_answer, gate, tag_format
from recipes.rewards.extra import repetition
from recipes.rewards.rubric import rubric


def rewards(judge, questions):
    return [
        (gate(exact_answer, tag_format), 0.5),
        (rubric(judge), 0.5),  # its pitfall criteria are flaws that only a judge sees, such as an invented fact
        (tag_format, 2.0),  # incomplete or runaway: a missing answer costs more than both of the above can pay
        (repetition, 2.0),  # loops were 13 of the entry's 17 failures
    ]


RECIPE = Recipe(
    data="pinocchio",
    toy_data="tiny_mix",
    shares={"sft": 0.3, "simpo": 0.1, "grpo": 0.6},  # like the entry: 2 hours, half an hour, 4 hours
    rewards=rewards,
    uses_judge=True,
    simpo={"beta": 1.0, "gamma": 0.4, "label_smoothing": 0.1},  # softer than the paper's 2, 1 and 0
)

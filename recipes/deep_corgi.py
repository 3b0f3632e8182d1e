"""Deep-CoRGI: SFT, a reward model trained within the session, then GRPO with its score of the reasoning as one reward.

Source: the entry Gemma2-Deep, an honourable mention. Its ThoughtTeacher scored how the steps flow, not only the answer.
Its data and reward model are not public. Here a linear head reads what the judge model makes of the reasoning, and
learns from the policy's own right and wrong completions after SFT, and from worked solutions with one flaw.
On the demo it is level with `g_rar`. With an earlier, weaker head it was behind in steps. A real Gemma was not trained.
"""

from __future__ import annotations

from reasonkit.config import Recipe
from reasonkit.rewards.rules import exact_answer, gate, tag_format
from recipes.rewards.rubric import rubric
from recipes.stages.reward_model import thought_judge


def rewards(judge, questions):
    return [
        (tag_format, 1.0),
        (gate(exact_answer, tag_format), 1.0),
        (rubric(judge), 1.0),  # the judge is the ThoughtTeacher, which looks at the reasoning, not at the rubric
    ]


RECIPE = Recipe(
    data="g_rar",
    toy_data="tiny_mix",
    shares={"sft": 0.25, "reward_model": 0.1, "grpo": 0.65},
    rewards=rewards,
    uses_judge=True,
    judge=thought_judge,
)

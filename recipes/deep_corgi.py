"""Deep-CoRGI: SFT, a reward model trained in the session, then GRPO with its score of the reasoning as one reward.

Source: the entry Gemma2-Deep, an honourable mention, whose ThoughtTeacher scored the flow of the steps and not only the
answer. Its data and its reward model are not public. Here it is a linear head on the judge model's hidden states. Its
examples are the policy's own right and wrong completions after SFT, and worked solutions with one flaw.
What this recipe reaches was not measured.
"""

from __future__ import annotations

from reasonkit.config import Recipe
from reasonkit.rewards.rules import exact_answer, gate, rubric, tag_format
from recipes.stages.reward_model import thought_judge


def rewards(judge, questions):
    return [
        (tag_format, 1.0),
        (gate(exact_answer, tag_format), 1.0),
        (rubric(judge), 1.0),  # the judge is the ThoughtTeacher, which looks at the reasoning and not at the rubric
    ]


RECIPE = Recipe(
    data="g_rar",
    toy_data="tiny_mix",
    shares={"sft": 0.25, "reward_model": 0.1, "grpo": 0.65},
    rewards=rewards,
    uses_judge=True,
    judge=thought_judge,
)

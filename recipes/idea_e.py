"""IDEA-E: GRPO without a judge, on format, exact answer and the text of the reasoning.

Source: the third winning entry. Its five headings are Identify, Determine, Explore, Act and Evaluate.
Missing headings cost half a right answer. In our demo none appeared, because the tiny model never tries one, but the
check for shown work taught steps as well as the judge of `g_rar`.
Without a judge the policy gets all the chips and time for half as many steps again (`config.adapt_to_recipe`).
"""

from __future__ import annotations

from reasonkit.config import Recipe
from reasonkit.rewards.rules import exact_answer, gate, tag_format
from recipes.rewards.text import TfIdf, scaffold, tfidf_leak, tfidf_relevance, work_shown
from recipes.stages.curriculum import by_pass_rate


def rewards(judge, questions):
    words = TfIdf(questions)
    return [
        (tag_format, 1.0),
        (gate(exact_answer, tag_format), 1.0),
        # Each of these three costs at most half a right answer. Together they outweigh one.
        (tfidf_relevance(words), 0.5),
        (tfidf_leak(words), 0.5),
        (scaffold, 0.5),
        (work_shown, 1.0),  # a right answer without work earns nothing
    ]


RECIPE = Recipe(
    data="idea_e",
    toy_data="tiny_mix",
    shares={"sft": 0.25, "grpo": 0.75},
    rewards=rewards,
    # Its pass rates choose the problems. Over three seeds of the demo that saved no rollouts: it was behind on two
    curriculum=by_pass_rate("exact_answer_if_tag_format"),
)

"""On-policy distillation: SFT, then the policy samples and a larger model scores every token.

Source: an honourable mention of the competition; GKD (arXiv 2306.13649). There are no rewards and no judge. The teacher
is the profile's `distill.teacher`, or else its judge model, on the other half of the chips. It must split text into the
same tokens, so a Gemma 2 needs a Gemma 2. In the demo the teacher is the same base model, trained in notebook 03b only
on worked solutions that show their steps. Nobody has measured what a real teacher adds.
"""

from __future__ import annotations

from reasonkit.config import Recipe

RECIPE = Recipe(
    data="g_rar",
    toy_data="tiny_mix",
    shares={"sft": 0.3, "distill": 0.7},
    distill={"beta": 1.0, "on_policy": 1.0},  # the reverse KL on the student's own completions
)

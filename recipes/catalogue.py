"""The recipes: the data, the weight of each part of the reward, and each stage's share of the time."""

from __future__ import annotations

from reasonkit.config import Recipe

# A right answer counts in good form only, and to show the work and err earns more than a right answer behind none.
_JUDGED = {"tag_format": 1.0, "exact_answer_if_tag_format": 1.0, "rubric": 1.5}

RECIPES = {
    "g_rar": Recipe(
        "g_rar", "SFT warm start, then GRPO on form, exact answer and a rubric judge (after the winning G-RaR entry)",
        data="tiny_mix", rewards=_JUDGED,
        shares={"sft": 0.25, "grpo": 0.75}),
    "g_exact": Recipe(
        "g_exact", "the same without the judge's vote: the rubric is scored and logged, with weight 0",
        data="tiny_mix", rewards={**_JUDGED, "rubric": 0.0},
        shares={"sft": 0.25, "grpo": 0.75}),
    # Irrelevant, unstructured reasoning, by the halves, and none that is work cost what a right answer earns.
    "idea_e": Recipe(
        "idea_e", "no judge: form, an answer that counts in good form only, reasoning in the IDEA-E steps, held by "
        "TF-IDF to the question and off the answer, and problems by pass rate (after the third winning entry)",
        data="tiny_mix", rewards={"tag_format": 1.0, "exact_answer_if_tag_format": 1.0, "tfidf_relevance": 0.5,
                                  "tfidf_leak": 0.5, "scaffold": 0.5, "work_shown": 1.0},
        shares={"sft": 0.25, "grpo": 0.75}, curriculum="exact_answer_if_tag_format"),
    # Two controls. What a run would have earned is logged.
    "constant": Recipe(
        "constant", "control: every reply earns the same", data="tiny_mix", shares={"sft": 0.25, "grpo": 0.75},
        rewards={"constant": 1.0, "tag_format": 0.0, "exact_answer_if_tag_format": 0.0}),
    "shuffled": Recipe(
        "shuffled", "control: the exact answer's rewards, dealt to the step's replies at random", data="tiny_mix",
        rewards={"shuffled": 1.0, "tag_format": 0.0, "exact_answer_if_tag_format": 0.0},
        shares={"sft": 0.25, "grpo": 0.75}),
    "gym": Recipe(
        "gym", "no judge: form and an exact answer, on four families of reasoning-gym (the extra `data`)",
        data="gym_mix", rewards={"tag_format": 1.0, "exact_answer_if_tag_format": 1.0},
        shares={"sft": 0.25, "grpo": 0.75}),
}

"""The settings of a stage with the reason for each, as its notebook shows them."""

from __future__ import annotations

from typing import Any

from reasonkit.show.report import Html, table

_CLIP = "largest gradient norm, so one odd batch can't move the weights far"
_MOST = "if the clock has time, the stage goes on to this step. In a recipe, 0 means no more"
_FITTING = "a number that fits Kaggle's session by the forecast. The stage goes on if there is time"
WHY = {
    "sft": {
        "steps": "on Kaggle one to two passes through the worked rows, by estimate. In the demo more steps helped",
        "batch_size": "sequences per step. More of them would leave fewer steps for the same rows",
        "max_length": "tokens of prompt plus completion. Longer rows are left out, never cut",
        "pack": "several rows share one line of the batch, each seeing only itself, to save padding",
        "skip_terse": "leaves out solutions without any work, such as \"So 12\". A recipe may switch it on",
        "max_epochs": "ends SFT after so many passes, and later stages get its time. In a recipe, 0 means no limit",
        "learning_rate": "on Kaggle half of TRL's 2e-4 for LoRA, because qwix initialises A 2.4 times as wide as PEFT",
        "warmup": "share of the steps spent ramping up to the full rate, while Adam's moments are still rough",
        "clip": _CLIP},
    "simpo": {
        "steps": "few. Preferences are learned fast, and overdone fast",
        "batch_size": "pairs per step, with no more rows per chip than in a pass of GRPO",
        "num_generations": "completions per question. More of them find more pairs but take longer",
        "learning_rate": "far below SFT's: the paper warns that higher rates give incoherent text",
        "beta": "scale of the reward. The paper uses 2 to 2.5. A recipe may take less",
        "gamma": "the margin. The paper uses about half of beta",
        "label_smoothing": "share of pairs assumed to be the wrong way round. A program labelled them, so 0 would do",
        "sft_weight": "lambda: keeps up the likelihood of the chosen completion, and so the format (Llama 3: 0.2)",
        "clip": _CLIP},
    "grpo": {
        "steps": _FITTING,
        "most_steps": _MOST,
        "prompts_per_step": "a compromise: more questions give a calmer gradient and a slower step",
        "num_generations": "G, as in the second winner's run. More completions per question find more differences",
        "temperature": "1 samples from the policy as it is. Any other value would train a different policy",
        "learning_rate": "on Kaggle the lowest of TRL's range for LoRA. Entrants used 3e-6 and 5e-6",
        "beta": "the second winner's 0.07 on Kaggle. With 0 the reference isn't needed, which saves a forward pass",
        "kl_loss_mode": "low_var_kl is k3, the term above, because its gradient depends on the reference",
        "advantage_estimator": "grpo is the formula above. drgrpo leaves out s, rloo takes the mean of the others",
        "loss_agg_mode": "sequence-mean-token-mean is the sum above. The others weigh long completions differently",
        "mask_truncated": "False: the policy learns from the missing tag of a cut-off completion"},
    "distill": {
        "teacher": "a larger model with the same tokens. If empty, see above",
        "steps": _FITTING + ", until the loss is flat",
        "most_steps": _MOST,
        "batch_size": "completions per step. More take hardly longer to sample. On Kaggle 32 were compiled, no more",
        "on_policy": "GKD's lambda: share of steps on the student's own completions. The others use worked solutions",
        "beta": "1 is the reverse KL, 0 the forward KL. GKD also uses 0.1, 0.5 and 0.9",
        "top_k": "tokens compared one by one. The log has the probability mass of the others, as `rest`",
        "learning_rate": "as in SFT, because every token has a target",
        "clip": _CLIP}}


def settings_table(stage: str, settings: Any) -> Html:
    """The settings of a training stage, such as `profile.grpo`, that a user may want to change. KeyError for a stage
    that does not train."""
    rows = [[name, getattr(settings, name), why] for name, why in WHY[stage].items()]
    return table(["setting", "value", "why"], rows,
                 f"Change numbers in SETTINGS in the first cell, such as {stage}_steps, and switches in the recipe.")

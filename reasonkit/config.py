"""What is trained (`Recipe`), where it runs (`Profile`), and the settings of each stage: the choices of a run.

Recipes are in `recipes/`. `run.open_run` turns the choices of a notebook into a run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

CHOICES = {
    "kl_loss_mode": ("low_var_kl", "mse_kl"),
    "advantage_estimator": ("grpo", "rloo", "drgrpo"),
    "loss_agg_mode": ("sequence-mean-token-mean", "sequence-mean-token-scale", "seq-mean-token-sum", "token-mean"),
    "loss_algo": ("grpo", "gspo-token"),
}


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """The settings of GRPO's loss. For each: what Tunix 0.1.7 does, what the papers do, and what is chosen here.

    `beta`: weight of the KL penalty. With 0 there is no forward pass of the reference. GRPO's paper has 0.04, DAPO and
        Dr. GRPO have 0.
    `kl_loss_mode`: how a token's KL is estimated, with d = log p_ref - log p of the sampled token.
        "low_var_kl" is k3, exp(d) - d - 1: GRPO's own (its equation 4), and Tunix's until 0.1.6. Its gradient is that
        of KL(reference || policy). "mse_kl" is k2, d^2 / 2: its gradient is that of KL(policy || reference). "kl",
        Tunix's default since 0.1.7, is k1, -d. It is unbiased as a value. As a loss its gradient does not contain the
        reference, which is a constant there, and it changes the length of completions under any reward. It is refused.
        Source: J. Schulman, "Approximating KL divergence", 2020. k3 is logged in every case. The penalty counts only in
        groups whose rewards differ. Where all are equal it would be the only gradient. At first that is rounding noise,
        but Adam turns any gradient into a full step: under a constant reward the adapter moved two thirds as far as in
        training. The mean is over all completions, so the pull is beta times the share of groups that vary.
    `advantage_estimator`: "grpo" is (r - mean) / (std + 1e-6) over the group, std with ddof=1, which the paper leaves
        open. It enlarges a judge's small differences, and `rules.rubric` rounds because of that. "drgrpo" leaves the
        std out, "rloo" takes the mean of the others. In Tunix a group of equal rewards may get an advantage by
        rounding. Here it has exactly 0.
    `loss_agg_mode`: how the loss of tokens becomes one number. "sequence-mean-token-mean" is GRPO's: a mean per
        completion, then over completions. A token of a long completion weighs less, so long wrong completions are
        punished less per token (Dr. GRPO). "sequence-mean-token-scale" divides by the length limit instead of the
        length: Dr. GRPO's remedy. "seq-mean-token-sum" adds up a completion's tokens, then takes the mean over
        completions. "token-mean" is DAPO's, over all tokens, but only within a micro-batch: with `micro_prompts` it is
        a mean of means. The first three do not depend on micro-batches, as long as no completion is masked.
    `loss_algo`, `epsilon`, `epsilon_high`: the ratio of new to old policy per token or per sequence (GSPO), and where
        it is clipped, below and above (DAPO's "clip higher"; None: as below). There is one update per rollout here, so
        the ratio is 1 and these three do nothing, as a test shows.
    `mask_truncated`: leaves completions that reached the limit without a stop token out of the loss, but not out of
        their group's mean (DAPO's overlong filtering). It is off, because such a completion lacks its last tag, and the
        penalty for that teaches the policy to end in time.

    There is no bonus for entropy, because Tunix's GRPO has none. It is logged as a mean over tokens. Raises ValueError
    for a value that is not offered.
    """

    beta: float = 0.04
    kl_loss_mode: str = "low_var_kl"
    advantage_estimator: str = "grpo"
    loss_agg_mode: str = "sequence-mean-token-mean"
    loss_algo: str = "grpo"
    epsilon: float = 0.2
    epsilon_high: float | None = None
    mask_truncated: bool = False

    def __post_init__(self):
        for name, choices in CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                why = (": its gradient does not contain the reference, and it changes the length of replies instead"
                       if (name, value) == ("kl_loss_mode", "kl") else "")
                raise ValueError(f"{name}={value!r} is not offered{why}; choose one of {', '.join(choices)}")


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """What every training stage has: `steps` optimiser steps, `warmup` as a share of them, the gradient norm at which
    it is clipped, and the steps between checkpoints, of which the last `keep` stay."""

    steps: int
    learning_rate: float
    warmup: float = 0.1
    weight_decay: float = 0.0
    clip: float = 1.0
    save_every: int = 100
    keep: int = 2


@dataclass(frozen=True, kw_only=True)
class SftSettings(StageSettings):
    """Each step takes `batch_size` sequences of `max_length` tokens.

    A sequence is one row and padding. With `pack` it has as many rows as fit, each of which sees only itself, so a step
    has more rows: `max_length` divided by their mean length, times `batch_size`. That pays where most rows are much
    shorter than the longest.
    """

    batch_size: int
    max_length: int
    pack: bool = False


@dataclass(frozen=True, kw_only=True)
class GrpoSettings(LossSettings, StageSettings):
    """Each step updates on `prompts_per_step` prompts, each with `num_generations` completions of `max_new_tokens`.

    `micro_prompts` prompts go through one forward and backward pass (0: all). With `rollout_micro_prompts`, a multiple
    of them, that many are sampled in one call. They are judged while the next are sampled, and each pass waits only for
    its own scores (0: a step is sampled, then judged, then trained on). That is for a judge on chips of its own. More
    calls decode fewer rows at once, take longer in all, and draw other samples.
    """

    prompts_per_step: int
    num_generations: int
    max_prompt_length: int
    max_new_tokens: int
    micro_prompts: int = 0
    rollout_micro_prompts: int = 0
    temperature: float = 1.0
    save_every: int = 50


@dataclass(frozen=True)
class Profile:
    """Sizes for one kind of machine.

    `devices` are virtual CPU devices (0: the machine's own `accelerator`s, "tpu" or "gpu"). `rows` are the problems per
    split. `minutes` is the session's limit, and `reserve_minutes` is for the last save. On a machine of one's own the
    session `grows` with the pace of its steps, and `minutes` is a forecast. During GRPO the validation problems are
    answered every `probe_every` steps. `remat` saves memory in training (`models.load`), and `judge_int8` halves a
    large judge (`models.quantize_int8`). `api_dollars` is what a judge behind an API may cost, if a secret switches one
    on. With 0 none is used. `toy`: the model is too small for real data.
    """

    name: str
    devices: int
    policy: str
    judge: str
    dtype: str
    minutes: float
    reserve_minutes: float
    rows: Mapping[str, int]
    lora_rank: int
    lora_alpha: float
    sft: SftSettings
    grpo: GrpoSettings
    eval_batch: int
    probe_every: int
    judge_batch: int
    judge_max_length: int
    remat: bool = False
    judge_int8: bool = False
    grows: bool = False
    api_dollars: float = 0.0
    toy: bool = False
    accelerator: str = ""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is trained: a file in `recipes/`, in which it is called RECIPE.

    `data` names a file in data_recipes/, and `toy_data` one for the profiles with a tiny model.
    `shares` has each stage's share of the time, in order.
    `rewards(judge, questions)` returns (reward function, weight) pairs. A weight of 0 is logged only. The judge is None
    unless `uses_judge`, and the questions are those of the training split.
    `curriculum` is the `__name__` of the reward function whose pass rates choose GRPO's problems. Without one they come
    in turn.
    `sft` and `grpo` are settings that replace the profile's.
    `name` and `summary` are the file's name and the first line of its docstring: `run.find_recipe` fills them in.
    """

    data: str
    toy_data: str
    shares: Mapping[str, float]
    rewards: Callable[[Any, Sequence[str]], list[tuple[Callable, float]]]
    uses_judge: bool = False
    curriculum: str = ""
    sft: Mapping[str, Any] = field(default_factory=dict)
    grpo: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    summary: str = ""

    def data_for(self, profile: Profile) -> str:
        """The name of the data for the profile's model."""
        return self.toy_data if profile.toy else self.data


_TINY = dict(policy="tiny-policy", judge="tiny-judge", dtype="float32", lora_rank=16, lora_alpha=32.0,
             judge_max_length=256, grows=True, toy=True)

# Lengths are those of the winning runs. SFT packs: Kaggle's 16 sequences hold 30 to 50 worked solutions, if those
# have 300 to 500 tokens, which is an estimate. On a CPU it does not: the tiny model's sequences hold only 1.2 toy
# problems, and the small real model was only run on padded rows. Rows per call and per pass fit v5e chips with
# replicated weights. With a judge on chips of its own a step is sampled in two calls, and the first call's
# completions are judged during the second. Rank 32 is enough for RL, and a LoRA needs ten times the learning rate of
# a full fine-tune ("LoRA without regret", TRL: 2e-4 in SFT, from 1e-5 in RL). SFT has half of it, because qwix starts
# A 2.4 times as far out as PEFT. beta is the second winner's, for k3.
_GEMMA = dict(policy="gemma2-2b-it", dtype="bfloat16", lora_rank=32, lora_alpha=32.0, judge_max_length=2048,
              remat=True, api_dollars=5.0)

# A small real model in both roles, from `gemma_from_gguf`, with its whole vocabulary: the logits of a token take a
# megabyte and limit the rows of a pass. As a judge it scores a worked solution below a bare answer: take a recipe in
# which it has weight 0.
_REAL = dict(policy="gemma3-270m", judge="gemma3-270m", lora_rank=16, lora_alpha=32.0, toy=True)

PROFILES = {
    "cpu": Profile(
        "cpu", devices=8, minutes=20, reserve_minutes=2, rows={"train": 3000, "validation": 240, "test": 600},
        sft=SftSettings(steps=120, batch_size=32, max_length=136, learning_rate=2e-3),
        grpo=GrpoSettings(steps=64, prompts_per_step=12, num_generations=8, max_prompt_length=80, max_new_tokens=64,
                          learning_rate=4e-4, beta=0.02),
        eval_batch=120, probe_every=20, judge_batch=16, **_TINY),
    "smoke": Profile(
        "smoke", devices=8, minutes=30, reserve_minutes=1, rows={"train": 64, "validation": 8, "test": 16},
        sft=SftSettings(steps=2, batch_size=8, max_length=136, learning_rate=2e-3),
        grpo=GrpoSettings(steps=2, prompts_per_step=4, num_generations=4, max_prompt_length=80, max_new_tokens=64,
                          learning_rate=4e-4, beta=0.02),
        eval_batch=16, probe_every=1, judge_batch=16, **_TINY),
    "kaggle": Profile(
        "kaggle", devices=0, accelerator="tpu", judge="gemma3-12b-it", minutes=540, reserve_minutes=20,
        rows={"train": 33000, "validation": 400, "test": 1000},
        sft=SftSettings(steps=1000, batch_size=16, max_length=1024, learning_rate=1e-4, pack=True),
        grpo=GrpoSettings(steps=400, prompts_per_step=32, num_generations=8, max_prompt_length=256, max_new_tokens=768,
                          learning_rate=2e-5, micro_prompts=4, rollout_micro_prompts=16, beta=0.07),
        eval_batch=64, probe_every=40, judge_batch=8, **_GEMMA),
    "colab": Profile(
        "colab", devices=0, accelerator="tpu", judge="gemma3-1b-it", minutes=180, reserve_minutes=15,
        rows={"train": 8000, "validation": 200, "test": 400},
        sft=SftSettings(steps=400, batch_size=4, max_length=1024, learning_rate=1e-4, pack=True),
        grpo=GrpoSettings(steps=300, prompts_per_step=8, num_generations=8, max_prompt_length=256, max_new_tokens=768,
                          learning_rate=1e-5, micro_prompts=1, beta=0.07),
        eval_batch=64, probe_every=50, judge_batch=4, **{**_GEMMA, "policy": "gemma3-1b-it"}),
    "gpu": Profile(
        "gpu", devices=0, accelerator="gpu", judge="gemma3-4b-it", minutes=540, reserve_minutes=20,
        rows={"train": 33000, "validation": 400, "test": 1000},
        sft=SftSettings(steps=1000, batch_size=8, max_length=1024, learning_rate=1e-4, pack=True),
        grpo=GrpoSettings(steps=800, prompts_per_step=8, num_generations=8, max_prompt_length=256, max_new_tokens=768,
                          learning_rate=1e-5, micro_prompts=2, beta=0.07),
        eval_batch=32, probe_every=100, judge_batch=8, **_GEMMA),
    "cpu-gemma3-270m": Profile(
        "cpu-gemma3-270m", devices=2, dtype="float32", minutes=360, reserve_minutes=15, grows=True,
        rows={"train": 8000, "validation": 32, "test": 300},
        sft=SftSettings(steps=120, batch_size=4, max_length=192, learning_rate=2e-4, save_every=40),
        grpo=GrpoSettings(steps=24, prompts_per_step=4, num_generations=4, max_prompt_length=128, max_new_tokens=96,
                          learning_rate=5e-5, micro_prompts=1, save_every=8),
        eval_batch=20, probe_every=12, judge_batch=4, judge_max_length=256, **_REAL),
    "gpu-gemma3-270m": Profile(
        "gpu-gemma3-270m", devices=0, accelerator="gpu", dtype="bfloat16", minutes=120, reserve_minutes=10,
        rows={"train": 8000, "validation": 256, "test": 1000},
        sft=SftSettings(steps=500, batch_size=2, max_length=512, learning_rate=1e-4, pack=True),
        grpo=GrpoSettings(steps=300, prompts_per_step=8, num_generations=8, max_prompt_length=256, max_new_tokens=256,
                          learning_rate=2e-5, micro_prompts=1),
        eval_batch=32, probe_every=50, judge_batch=8, judge_max_length=1024, **_REAL),
}


def adapt_to_recipe(profile: Profile, recipe: Recipe) -> Profile:
    """The profile with the recipe's settings. If the profile overlaps sampling with a judge and the recipe has none,
    each step is sampled in one call, and there is time for half as many steps again."""
    sft, grpo = replace(profile.sft, **recipe.sft), profile.grpo
    if grpo.rollout_micro_prompts and not recipe.uses_judge:
        grpo = replace(grpo, steps=3 * grpo.steps // 2, rollout_micro_prompts=0)
    return replace(profile, sft=sft, grpo=replace(grpo, **recipe.grpo))


def adapt_to_lengths(profile: Profile, lengths: Mapping[str, int]) -> Profile:
    """The profile with the tokens of `prompt` and `completion` that a data recipe asks for, in place of its own. Rows
    of SFT and of the judge hold both, so their limits change by as many tokens."""
    grpo = replace(profile.grpo, max_prompt_length=lengths.get("prompt", profile.grpo.max_prompt_length),
                   max_new_tokens=lengths.get("completion", profile.grpo.max_new_tokens))
    more = grpo.max_prompt_length + grpo.max_new_tokens - profile.grpo.max_prompt_length - profile.grpo.max_new_tokens
    return replace(profile, grpo=grpo, sft=replace(profile.sft, max_length=profile.sft.max_length + more),
                   judge_max_length=profile.judge_max_length + more)

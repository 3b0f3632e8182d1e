"""The settings of each training stage, as dataclasses. A profile has values for all of them (`config.PROFILES`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CHOICES = {
    "kl_loss_mode": ("low_var_kl", "mse_kl"),
    "advantage_estimator": ("grpo", "rloo", "drgrpo"),
    "loss_agg_mode": ("sequence-mean-token-mean", "sequence-mean-token-scale", "seq-mean-token-sum", "token-mean"),
    "loss_algo": ("grpo", "gspo-token"),
}


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """The settings of GRPO's loss, each with what Tunix 0.1.7 does, what the papers do, and what we chose.

    `beta`: weight of the KL penalty. 0 saves the reference's forward pass. GRPO's paper has 0.04, DAPO and Dr. GRPO 0.
        It counts only in groups whose rewards differ. In the others it would be the only gradient, and Adam turns even
        rounding noise into a full step: under a constant reward the adapter moved two thirds as far as in training. The
        mean is over all completions, so the pull is beta times the share of groups that vary.
    `kl_loss_mode`: how a token's KL is estimated, with d = log p_ref - log p of the sampled token.
        "low_var_kl" is k3, exp(d) - d - 1. It is GRPO's own (equation 4), and Tunix used it until 0.1.6. Its gradient
        is that of KL(reference || policy). "mse_kl" is k2, d^2 / 2, with the gradient of KL(policy || reference).
        Tunix's "kl" is k1, -d, and refused: its gradient does not contain the reference, and it changes the length of
        completions under any reward. Source: J. Schulman, "Approximating KL divergence", 2020. k3 is always logged.
    `advantage_estimator`: "grpo" is (r - mean) / (std + 1e-6) over the group, with ddof=1, as the paper does not say
        which std. It magnifies a judge's small differences, which is why `rubric` rounds. "drgrpo" leaves out the
        std, and "rloo" takes the mean of the others. In a group of equal rewards it is exactly 0.
    `loss_agg_mode`: how the losses of tokens become one number. "sequence-mean-token-mean" is GRPO's: a mean per
        completion, then over completions. So tokens of a long wrong completion are punished less (Dr. GRPO).
        "sequence-mean-token-scale" is Dr. GRPO's remedy: it divides by the length limit instead of the length.
        "seq-mean-token-sum" is the mean over completions of their sums. "token-mean" is DAPO's mean over all tokens,
        but only of a pass of `micro_prompts`. The others do not depend on passes, if no completion is masked.
    `loss_algo`, `epsilon`, `epsilon_high`: whether the ratio of new to old policy is per token or per sequence (GSPO),
        and where it is clipped below and above (DAPO's "clip higher"; None: as below). We make one update per rollout,
        so the ratio is 1 and these three have no effect, as a test shows.
    `mask_truncated`: leaves completions that reached the limit without a stop token out of the loss, but not out of
        their group's mean (DAPO's overlong filtering). Off, because such a completion lacks its last tag, and the
        penalty for that teaches the policy to finish in time.

    There is no entropy bonus, because Tunix's GRPO has none. Raises ValueError for a value that is not offered.
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
                why = (": its gradient does not contain the reference, and it changes the length of completions instead"
                       if (name, value) == ("kl_loss_mode", "kl") else "")
                raise ValueError(f"{name}={value!r} is not offered{why}; choose one of {', '.join(choices)}")


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """For every training stage: the number of optimiser `steps`, `warmup` as a share of them, the gradient norm to
    `clip` at, and the steps between checkpoints, of which the last `keep` stay."""

    steps: int
    learning_rate: float
    warmup: float = 0.1
    weight_decay: float = 0.0
    clip: float = 1.0
    save_every: int = 100
    keep: int = 2

    def identity(self) -> dict[str, Any]:
        """The settings on which the result depends by more than rounding."""
        return {name: value for name, value in vars(self).items() if name not in ("save_every", "keep")}


@dataclass(frozen=True, kw_only=True)
class CompletionSettings(StageSettings):
    """For a stage on prompts and completions: their limits in tokens, including <bos> and the stop token."""

    max_prompt_length: int
    max_new_tokens: int


@dataclass(frozen=True, kw_only=True)
class SampledSettings(CompletionSettings):
    """For a stage whose completions are sampled as it goes on, so that nobody knows how long they will be. `steps` is
    a forecast. Where the clock has time for more, the stage goes on to `most_steps` (0: no more), and its schedule is
    stretched. A session that grows makes only `steps`.
    """

    most_steps: int = 0

    @property
    def last_step(self) -> int:
        """The steps if the clock has time for all of them."""
        return max(self.steps, self.most_steps)


@dataclass(frozen=True, kw_only=True)
class SftSettings(StageSettings):
    """Each step takes `batch_size` sequences of `max_length` tokens: one row and padding, or with `pack` as many rows
    as fit, each of which sees only itself. That pays off if most rows are much shorter than the longest.

    `skip_terse` leaves out rows whose reasoning shows no work (`rewards.work.missing_work`), such as "So 12".
    `max_epochs` (0: no limit) ends the stage after that many passes over its rows, if `steps` would be more, and leaves
    the time to later stages. Packed rows are counted as if they filled their sequences.
    `stock_loss` uses Tunix's own loss, which holds the logits of all tokens at once. It is the same up to rounding.
    """

    batch_size: int
    max_length: int
    pack: bool = False
    skip_terse: bool = False
    max_epochs: float = 0
    stock_loss: bool = False


@dataclass(frozen=True, kw_only=True)
class SimpoSettings(CompletionSettings):
    """Each step takes `batch_size` pairs of a chosen and a rejected completion, which makes twice as many rows. If
    notebook 1b left no pairs, `num_generations` completions of each of `questions` training questions are sampled.

    `beta` scales the mean log-probabilities, and `gamma` is the margin to aim for. The paper uses a beta of 2 to 2.5
    and a gamma of about half of it. `label_smoothing` is the share of pairs assumed to be labelled the wrong way round.
    `sft_weight` weighs the chosen completion's negative log-likelihood per token. The paper has 0. Llama 3 (arXiv
    2407.21783) uses 0.2 in DPO, to keep the format and the likelihood of the chosen completion.
    """

    batch_size: int
    questions: int
    num_generations: int = 4
    beta: float = 2.0
    gamma: float = 1.0
    label_smoothing: float = 0.0
    sft_weight: float = 0.2


@dataclass(frozen=True, kw_only=True)
class DistillSettings(SampledSettings):
    """Each step updates on `batch_size` completions.

    In a share `on_policy` of the steps (GKD's lambda) the student samples them. In the others they are worked solutions
    from the data. `beta` chooses the divergence: 0 is the forward KL(teacher || student), 1 the reverse
    KL(student || teacher), and in between it is the generalised Jensen-Shannon divergence (the paper: 0.1, 0.5, 0.9).
    The student gets the teacher's `top_k` most likely tokens one by one, and the total mass of all others. `teacher`
    names the model ("": `Profile.teacher`). Raises ValueError for values out of range.
    """

    batch_size: int
    on_policy: float = 1.0
    beta: float = 1.0
    top_k: int = 64
    teacher: str = ""
    save_every: int = 50

    def __post_init__(self):
        if not (0 <= self.beta <= 1 and 0 <= self.on_policy <= 1 and self.top_k >= 1):
            raise ValueError(f"beta={self.beta!r}, on_policy={self.on_policy!r}, top_k={self.top_k!r}: give two "
                             "numbers from 0 to 1, and at least one token")


@dataclass(frozen=True, kw_only=True)
class GrpoSettings(LossSettings, SampledSettings):
    """Each step updates on `prompts_per_step` prompts, each with `num_generations` completions of `max_new_tokens`.

    `micro_prompts` prompts go through one forward and backward pass (0: all). `rollout_micro_prompts`, a multiple of
    that, are sampled in one call and judged while the next are sampled, and each pass waits only for its own scores (0:
    a whole step is sampled, then judged, then trained on). Use it if the judge has its own chips. More calls decode
    fewer rows at once, take longer in total, and draw different samples.

    `segments` stops decoding completions that are done (`train.decode.SegmentSampler`). The samples are the same up to
    rounding. It compiles up to 24 programs. `stock_loss` holds the logits of all tokens at once, as Tunix does.
    `int8_weights` samples from a copy of the policy whose matrices and head are 8-bit integers, and `int8_cache` keeps
    keys and values as such. Either halves the bytes that a token reads of them. The samples are then not the policy's
    own, so each token's loss is weighed by how much more likely the policy makes it, at most twice
    (`policy_loss.TRUNCATION`). Segments and 8 bits are off, because no TPU has run them.
    """

    prompts_per_step: int
    num_generations: int
    micro_prompts: int = 0
    rollout_micro_prompts: int = 0
    temperature: float = 1.0
    segments: bool = False
    stock_loss: bool = False
    int8_weights: bool = False
    int8_cache: bool = False
    save_every: int = 50

    def identity(self) -> dict[str, Any]:
        """The size of a pass is among them only where passes are not averaged as one."""
        found = super().identity()
        if self.loss_agg_mode != "token-mean" and not self.mask_truncated:
            found.pop("micro_prompts")
        return found

    def check(self) -> None:
        """Raises ValueError for prompts that make no whole passes and calls."""
        whole, each, one = self.prompts_per_step, self.prompts_per_call, self.prompts_per_pass
        if whole % each or each % one:
            sizes = f"grpo_prompts_per_step={whole}, grpo_rollout_micro_prompts={each}, grpo_micro_prompts={one}"
            raise ValueError(f"{sizes}: each of these must be a multiple of the next, so change one of them (0 in the "
                             "last two stands for the whole step)")

    @property
    def prompts_per_pass(self) -> int:
        return self.micro_prompts or self.prompts_per_step

    @property
    def prompts_per_call(self) -> int:
        return self.rollout_micro_prompts or self.prompts_per_step

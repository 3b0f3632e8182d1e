"""GRPO's loss as Tunix 0.1.7 computes it: `LossSettings` explains each dial, `loss_config` gives them to Tunix.

It refuses k1, gives equal rewards no advantage, and penalises only where rewards differ.

Sources: GRPO (arXiv 2402.03300), Dr. GRPO (2503.20783), DAPO (2503.14476), GSPO (2507.18071), RLOO (2402.14740).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from tunix.rl import algo_core, common, function_registry
from tunix.rl.grpo.grpo_learner import GRPOConfig

from reasonkit.groups import FLAT

CHOICES = {
    "kl_loss_mode": ("low_var_kl", "mse_kl"),
    "advantage_estimator": ("grpo", "rloo", "drgrpo"),
    "loss_agg_mode": ("sequence-mean-token-mean", "sequence-mean-token-scale", "seq-mean-token-sum", "token-mean"),
    "loss_algo": ("grpo", "gspo-token"),
}


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """The dials of GRPO's loss. For each: what Tunix 0.1.7 does, what the papers do, and what is chosen here.

    `beta`: weight of the KL penalty; 0 leaves the reference's forward pass out. GRPO's paper has 0.04, DAPO and
        Dr. GRPO have 0.
    `kl_loss_mode`: how a token's KL is estimated, with d = log p_ref - log p of the sampled token.
        "low_var_kl" is k3, exp(d) - d - 1: GRPO's own (its equation 4), and what Tunix had until 0.1.6. Its gradient is
        that of KL(reference || policy). "mse_kl" is k2, d^2 / 2: its gradient is that of KL(policy || reference).
        "kl", Tunix's default since 0.1.7, is k1, -d. As a value it is unbiased. As a loss its gradient does not
        contain the reference, which is a constant there: what is left changes the length of replies under any reward.
        It is refused. Source: J. Schulman, "Approximating KL divergence", 2020. What is logged is k3 in every case.
        The penalty counts only in groups whose rewards differ. Where all are equal it would be the only gradient. At
        first that is rounding noise, but Adam turns any gradient into a full step: under a constant reward the adapter
        moved two thirds as far as in training. The mean runs over all completions, so the pull is beta times the share
        of groups that vary.
    `advantage_estimator`: "grpo" is (r - mean) / (std + 1e-6) over the group, std with ddof=1; the paper leaves ddof
        open. It scales a judge's small differences up; `rewards.rubric` rounds for that. "drgrpo" leaves the std out,
        "rloo" takes the mean of the others. Tunix lets rounding pass for an advantage in a group of equal rewards; here
        such a group has exactly 0.
    `loss_agg_mode`: how the loss of tokens becomes one number. "sequence-mean-token-mean" is GRPO's: a mean per
        completion, then over completions. A token of a long completion weighs less, so that long wrong replies are
        punished less per token (Dr. GRPO). "sequence-mean-token-scale" divides by the length limit in place of the
        length: Dr. GRPO's remedy. "seq-mean-token-sum" adds up a completion's tokens, then takes the mean over
        completions. "token-mean" is DAPO's, over all tokens, but only within a micro-batch: with `micro_prompts` it is
        a mean of means. The first three are the same with
        and without micro-batches, as long as no completion is masked.
    `loss_algo`, `epsilon`, `epsilon_high`: the ratio of new to old policy per token or per sequence (GSPO), and where
        it is clipped, below and above (DAPO's "clip higher"; None: as below). There is one update per rollout here, so
        the ratio is 1: these three act only where that changes, and a test shows that they do nothing.
    `mask_truncated`: leaves completions that reached the limit without a stop token out of the loss, but not out of
        their group's mean (DAPO's overlong filtering). Off, because such a reply lacks its last tag, and the penalty
        for that is what teaches to end in time.

    Entropy has no bonus: Tunix's GRPO has none. It is logged, as a mean over tokens. Raises ValueError for a value that
    is not offered.
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


@dataclass(kw_only=True)
class LossConfig(GRPOConfig):
    """Tunix's config with two dials that are no fields of it; its loss looks for `epsilon_high` all the same."""

    epsilon_high: float
    mask_truncated: bool


def loss_config(settings: LossSettings, num_generations: int) -> LossConfig:
    """Tunix's config for one update per rollout, so that the samples are the policy's own."""
    return LossConfig(
        num_generations=num_generations, num_iterations=1, policy_loss_fn="reasonkit", beta=settings.beta,
        kl_loss_mode=settings.kl_loss_mode, advantage_estimator=f"reasonkit_{settings.advantage_estimator}",
        loss_agg_mode=settings.loss_agg_mode, loss_algo=settings.loss_algo, epsilon=settings.epsilon,
        epsilon_high=settings.epsilon if settings.epsilon_high is None else settings.epsilon_high,
        mask_truncated=settings.mask_truncated)


def _with_flat_groups(estimate: Callable) -> Callable:
    """The estimator with 0 for a group of equal rewards: Adam would scale the rounding of their mean up to a step."""

    def advantages(rewards: np.ndarray, num_generations: int) -> np.ndarray:
        flat_G = np.ptp(np.reshape(rewards, (-1, num_generations)), axis=1) < FLAT
        return np.where(flat_G.repeat(num_generations), 0.0, estimate(rewards=rewards, num_generations=num_generations))

    return advantages


for _name in CHOICES["advantage_estimator"]:
    function_registry.register_advantage_estimator(f"reasonkit_{_name}")(
        _with_flat_groups(function_registry.get_advantage_estimator(_name)))


@contextlib.contextmanager
def _replaced(module, name: str, wrap: Callable) -> Iterator[None]:
    """One function of Tunix's wrapped, only while the loss is traced: one trace at a time."""
    original = getattr(module, name)
    setattr(module, name, wrap(original))
    try:
        yield
    finally:
        setattr(module, name, original)


@function_registry.register_policy_loss_fn("reasonkit")
def _policy_loss(model, train_example, algo_config, **options):
    """Tunix's GRPO loss, with its KL penalty only in groups whose rewards differ.

    What it reports are means over the tokens of all completions: "kl" as k3, and "entropy".
    """
    mask_BL, seen_BL = train_example.completion_mask, {}
    varied_G = (train_example.advantages.reshape(-1, algo_config.num_generations) != 0).any(1)
    pushed_B1 = varied_G.repeat(algo_config.num_generations)[:, None]

    def with_k3(divergence):
        def noted(logps_BL, reference_BL, method, clamp_value=None):
            seen_BL["kl"] = divergence(logps_BL, reference_BL, "low_var_kl")
            anchor_BL = jnp.where(pushed_B1, reference_BL, jax.lax.stop_gradient(logps_BL))
            return divergence(logps_BL, anchor_BL, method, clamp_value)
        return noted

    def kept(entropy):
        return lambda logits_BLV: seen_BL.setdefault("entropy", entropy(logits_BLV))

    with (_replaced(common, "compute_kl_divergence", with_k3),
          _replaced(algo_core, "compute_entropy_from_logits", kept)):
        loss, aux = function_registry.get_policy_loss_fn("grpo")(model, train_example, algo_config, **options)
    tokens = jnp.maximum(mask_BL.sum(), 1)
    return loss, aux | {name: (value_BL * mask_BL).sum() / tokens for name, value_BL in seen_BL.items()}

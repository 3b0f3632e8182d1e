"""GRPO's loss as Tunix 0.1.7 computes it. `loss_config` passes the dials of `settings.LossSettings` on to Tunix.

Here equal rewards get no advantage, KL is penalised only where rewards differ, and logits are computed in chunks.
Sources: GRPO (arXiv 2402.03300), Dr. GRPO (2503.20783), DAPO (2503.14476), GSPO (2507.18071), RLOO (2402.14740).
Truncated importance sampling: Ionides 2008, and Yao et al. 2025 for a rollout that is not the policy's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tunix.rl import algo_core, common, function_registry
from tunix.rl.grpo.grpo_learner import GRPOConfig

from reasonkit.models.logprobs import token_logprobs
from reasonkit.rewards.mix import FLAT
from reasonkit.settings import CHOICES, LossSettings

TRUNCATION = 2.0  # the largest weight of a token that the rollout draws too seldom


@flax.struct.dataclass(frozen=True)
class SampledExample(common.TrainExample):
    """Completions of a rollout that is not quite the policy, with the log-probabilities by which it drew them."""

    rollout_logps: jax.Array | None = None


@dataclass(kw_only=True)
class LossConfig(GRPOConfig):
    """Tunix's config with three more dials. Its loss looks for `epsilon_high`, although Tunix has no such field."""

    epsilon_high: float
    mask_truncated: bool
    chunked: bool


def loss_config(settings: LossSettings, num_generations: int, chunked: bool = True) -> LossConfig:
    """Tunix's config for one update per rollout, so the samples are the policy's own, unless drawn in 8 bits."""
    return LossConfig(
        num_generations=num_generations, num_iterations=1, policy_loss_fn="reasonkit", beta=settings.beta,
        kl_loss_mode=settings.kl_loss_mode, advantage_estimator=f"reasonkit_{settings.advantage_estimator}",
        loss_agg_mode=settings.loss_agg_mode, loss_algo=settings.loss_algo, epsilon=settings.epsilon,
        epsilon_high=settings.epsilon if settings.epsilon_high is None else settings.epsilon_high,
        mask_truncated=settings.mask_truncated, chunked=chunked)


def _with_flat_groups(estimate: Callable) -> Callable:
    """The estimator with 0 for a group of equal rewards. Adam would scale the rounding of their mean up to a step."""

    def advantages(rewards: np.ndarray, num_generations: int) -> np.ndarray:
        flat_G = np.ptp(np.reshape(rewards, (-1, num_generations)), axis=1) < FLAT
        return np.where(flat_G.repeat(num_generations), 0.0, estimate(rewards=rewards, num_generations=num_generations))

    return advantages


for _name in CHOICES["advantage_estimator"]:
    function_registry.register_advantage_estimator(f"reasonkit_{_name}")(
        _with_flat_groups(function_registry.get_advantage_estimator(_name)))


@functools.partial(jax.jit, static_argnames=("pad_id", "eos_id", "temperature", "stop_gradient", "return_logits"))
def completion_logprobs(graph: Any, state: Any, prompt_tokens: jax.Array, completion_tokens: jax.Array, pad_id: int,
                        eos_id: int, *, temperature: float = 1.0, stop_gradient: bool = True,
                        return_logits: bool = False, **packed: None) -> Any:
    """Tunix's `compute_per_token_logps`, (B, C), in chunks of logits. `return_logits` adds the entropies, (B, C)."""
    tokens_BT, positions_BT, mask_BTT, _ = common.process_ids(prompt_tokens, completion_tokens, pad_id, eos_id)
    found = token_logprobs(nnx.merge(graph, state), tokens_BT, positions_BT, mask_BTT, completion_tokens.shape[1],
                           temperature)
    found = jax.lax.stop_gradient(found) if stop_gradient else found
    return found if return_logits else found[0]


@function_registry.register_policy_loss_fn("reasonkit")
def _policy_loss(model, train_example, algo_config, pad_id, eos_id):
    """Tunix's GRPO loss, but with its KL penalty only in groups whose rewards differ.

    In a `SampledExample` a token's loss is multiplied by the policy's probability over the rollout's, at most
    TRUNCATION. It reports means over the tokens of all completions: "entropy", and as k3 "kl" to the reference and for
    a `SampledExample` "rollout_kl", of the rollout to the policy.
    """
    mask_BL, seen_BL = train_example.completion_mask, {}
    varied_G = (train_example.advantages.reshape(-1, algo_config.num_generations) != 0).any(1)
    pushed_B1 = varied_G.repeat(algo_config.num_generations)[:, None]
    compute = completion_logprobs if algo_config.chunked else common.compute_per_token_logps
    logps_BL, entropies = found = compute(
        *nnx.split(model), prompt_tokens=train_example.prompt_ids, completion_tokens=train_example.completion_ids,
        pad_id=pad_id, eos_id=eos_id, stop_gradient=False, return_logits=True, temperature=algo_config.temperature)
    if isinstance(train_example, SampledExample):
        log_ratio_BL = jax.lax.stop_gradient(logps_BL.astype(jnp.float32)) - train_example.rollout_logps
        seen_BL["rollout_kl"] = jnp.expm1(log_ratio_BL) - log_ratio_BL
        train_example = train_example.replace(sampler_is_weights=jnp.minimum(jnp.exp(log_ratio_BL), TRUNCATION))

    divergence, entropy = common.compute_kl_divergence, algo_core.compute_entropy_from_logits

    def penalty(logps_BL, reference_BL, method, clamp_value=None):
        seen_BL["kl"] = divergence(logps_BL, reference_BL, "low_var_kl")
        anchor_BL = jnp.where(pushed_B1, reference_BL, jax.lax.stop_gradient(logps_BL))
        return divergence(logps_BL, anchor_BL, method, clamp_value)

    def record_entropy(logits):
        return seen_BL.setdefault("entropy", entropies if algo_config.chunked else entropy(logits))

    with (mock.patch.object(common, "compute_kl_divergence", penalty),  # while the loss is traced
          mock.patch.object(common, "compute_per_token_logps", lambda *inputs, **options: found),
          mock.patch.object(algo_core, "compute_entropy_from_logits", record_entropy)):
        loss, aux = function_registry.get_policy_loss_fn("grpo")(
            model, train_example, algo_config, pad_id=pad_id, eos_id=eos_id)
    tokens = jnp.maximum(mask_BL.sum(), 1)
    return loss, aux | {name: (value_BL * mask_BL).sum() / tokens for name, value_BL in seen_BL.items()}

"""From prompts to completions: the policy's `Rollout` in training, and `generator` for evaluation, greedy by default.

This is Tunix's rollout with three fixes. The KV cache is created sharded (Tunix: on the first device). Every call draws
new samples (Tunix: by the same key). A completion keeps its stop token, or a policy would never be trained to stop.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.rl.rollout.base_rollout import RolloutConfig, RolloutOutput
from tunix.rl.rollout.vanilla_rollout import VanillaRollout

from reasonkit.models.cache import install_sharded_cache
from reasonkit.models.lora import lora_state, on_int8_base
from reasonkit.train import tunix_compat


def sampling(tokenizer, *, max_prompt_length: int, max_new_tokens: int, temperature: float,
             seed: int = 0, logprobs: bool = False) -> RolloutConfig:
    """Tunix's rollout settings. Temperature 0 decodes greedily: with a top_p Tunix would divide by it, and above 0
    without one silently decode greedily. `logprobs` keeps the log-probability of each sampled token.

    The cache is exactly as long as prompt and completion, because attention spans all of it. Raises ValueError for a
    temperature below 0.
    """
    if temperature < 0:
        raise ValueError(f"temperature {temperature}: sampling needs one above 0, and greedy decoding is temperature 0")
    return RolloutConfig(
        max_tokens_to_generate=max_new_tokens, max_prompt_length=max_prompt_length,
        kv_cache_size=max_prompt_length + max_new_tokens, temperature=temperature,
        top_p=1.0 if temperature > 0 else None, top_k=None, seed=jax.random.PRNGKey(seed),
        eos_tokens=list(tokenizer.stop_ids), return_logprobs=logprobs)


def in_int8(policy: nnx.Module, weights: bool, cache: bool) -> nnx.Module:
    """The policy for sampling, with its matrices, its KV cache or both as 8-bit integers."""
    sampled = on_int8_base(policy) if weights else copy.copy(policy)
    sampled.int8_cache = cache
    return sampled


class Rollout(VanillaRollout):
    """The rollout worker. Its samples depend only on the seed and the call's number, so a resumed run draws the same.

    It samples from `sampled` in place of the policy if that is given (`in_int8`), with the policy's current adapter.

    Attributes:
        calls: generate calls so far. A resumed stage sets it.
        mean_lengths: mean completion length in tokens, by call.
        truncated: share of the completions that reached the limit without a stop token, by call.
        logprobs: of the sampled tokens, (B, L), by call, if the rollout's settings want them.
        on_output: called with what each call has sampled.
    """

    def __init__(self, rollout_actor, tokenizer, mesh: Mesh, rollout_config: RolloutConfig,
                 sampler: type[Sampler] = Sampler, sampled: nnx.Module | None = None):
        install_sharded_cache()
        self._policy, self._sampled, config = rollout_actor, sampled or rollout_actor, rollout_actor.config
        self._sampler = sampler(self._sampled, tokenizer, CacheConfig(
            rollout_config.kv_cache_size, config.num_layers, config.num_kv_heads, config.head_dim))
        self.calls, self.mean_lengths, self.truncated, self.logprobs = 0, [], [], []
        self.on_output: Callable[[RolloutOutput], None] = lambda output: None
        tunix_compat.fetch_drawn(self._sampler, lambda *drawn: setattr(self, "_drawn", drawn))

    def model(self) -> nnx.Module:
        """The policy, so that Tunix copies no weights to another model."""
        return self._policy

    def generate(self, prompts: list[str], rollout_config: RolloutConfig, **kwargs) -> RolloutOutput:
        """Sample one completion per prompt. `tokens` end with the stop token if one was drawn."""
        key = jax.random.fold_in(rollout_config.seed, self.calls)
        self.calls += 1
        if self._sampled is not self._policy:
            nnx.update(self._sampled, lora_state(self._policy))
        output = super().generate(prompts, dataclasses.replace(rollout_config, seed=key), **kwargs)
        length = rollout_config.max_tokens_to_generate
        tokens_BT, logprobs_BT = self._drawn
        drawn_BL = tokens_BT[:, -length:]
        if rollout_config.return_logprobs:
            self.logprobs.append(logprobs_BT[:, -length:])
        output.tokens = [row[:len(tokens) + 1] for row, tokens in zip(drawn_BL, output.tokens, strict=True)]
        self.mean_lengths.append(float(np.mean([len(tokens) for tokens in output.tokens])))
        self.truncated.append(float(np.mean(~np.isin(drawn_BL, rollout_config.eos_tokens).any(-1))))
        self.on_output(output)
        return output


def generator(model, tokenizer, mesh: Mesh, *, max_prompt_length: int, max_new_tokens: int, batch_size: int,
              temperature: float = 0.0) -> Callable[..., list[str]]:
    """A function from prompts to completions: greedy ones, as the judges decode, or sampled ones above temperature 0.

    Samples depend on the prompts and on the function's second argument, `seed`. Each call uses the model's current
    weights. The last batch is filled up: another size would compile anew. Raises ValueError for too long a prompt.
    """
    install_sharded_cache()
    config = model.config
    decode = Sampler(model, tokenizer, CacheConfig(
        max_prompt_length + max_new_tokens, config.num_layers, config.num_kv_heads, config.head_dim))
    tunix_compat.fetch_drawn(decode)

    def generate(prompts: list[str], seed: int = 0) -> list[str]:
        longest = max(prompts, key=lambda prompt: len(tokenizer.encode(prompt)), default="")
        if len(tokenizer.encode(longest)) >= max_prompt_length:
            raise ValueError(f"a prompt has {len(tokenizer.encode(longest))} tokens, and with <bos> max_prompt_length "
                             f"{max_prompt_length} is too short: shorten it, filter it or raise the limit. It begins "
                             f"{longest[:60]!r}")
        completions: list[str] = []
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start:start + batch_size]
            filled = batch + [batch[-1]] * (batch_size - len(batch))
            with mesh:
                output = decode(filled, max_generation_steps=max_new_tokens, max_prompt_length=max_prompt_length,
                                temperature=temperature, top_p=1.0 if temperature > 0 else None, top_k=None,
                                seed=jax.random.fold_in(jax.random.PRNGKey(seed), start),
                                eos_tokens=list(tokenizer.stop_ids))
            completions += output.text[:len(batch)]
        return completions

    return generate

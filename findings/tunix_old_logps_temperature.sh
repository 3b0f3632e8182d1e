#!/usr/bin/env bash
# With two updates per rollout and a temperature other than 1, Tunix's GRPO starts from a wrong importance ratio.
#
# Guess:     with num_iterations=2 the learner keeps the log-probabilities under which the completions were sampled. The
#            first update is made with the same weights, so the ratio of new to old policy is 1 for every token, whatever
#            the rollout's temperature is, and nothing is clipped.
# Versions:  google-tunix 0.1.7, jax 0.10.2, flax 0.12.8, Python 3.11, CPU.
# Behaviour: the loss divides the logits by the rollout's temperature. The old log-probabilities come from
#            VanillaRollout.get_per_token_logps, which takes no temperature and does not divide. At temperature 0.5 a
#            third of the tokens is clipped before the weights have moved. With num_iterations=1 there are no old
#            log-probabilities, and the ratio is 1.
# Output:    temperature 1.0, 2 updates per rollout: loss -1.000, clipped 0%
#            temperature 0.5, 1 updates per rollout: loss -1.000, clipped 0%
#            temperature 0.5, 2 updates per rollout: loss -1.026, clipped 31%
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install google-tunix==0.1.7 jax==0.10.2 jaxlib==0.10.2 flax==0.12.8
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax.numpy as jnp
from flax import nnx
from tunix.generate.sampler import CacheConfig
from tunix.models.gemma3.model import Gemma3, ModelConfig
from tunix.rl import common, function_registry
from tunix.rl.grpo.grpo_learner import GRPOConfig
from tunix.rl.rollout.base_rollout import RolloutConfig
from tunix.rl.rollout.vanilla_rollout import VanillaRollout

config = ModelConfig(num_layers=2, num_embed=64, embed_dim=32, hidden_dim=64, num_heads=2, head_dim=16, num_kv_heads=1,
                     sliding_window_size=16, param_dtype=jnp.float32)
model = Gemma3(config, rngs=nnx.Rngs(0))
table = model.embedder.input_embedding
table[...] = 4 * table[...]  # a fresh model finds all tokens about equally likely at any temperature


class Letters:
    """A token per letter."""

    def encode(self, text, **others):
        return [4 + ord(letter) % 60 for letter in text]

    def decode(self, ids, **others):
        return " ".join(map(str, ids))

    def pad_id(self):
        return 0

    def eos_id(self):
        return 1

    def bos_id(self):
        return 2

    def dedup_bos_ids(self, ids):
        return ids


def first_update(temperature, num_iterations):
    """The loss with the weights that sampled, and the share of its tokens that is clipped."""
    rollout = VanillaRollout(model, Letters(), CacheConfig(cache_size=32, num_layers=2, num_kv_heads=1, head_dim=16))
    sampled = rollout.generate(["question"] * 4, RolloutConfig(
        max_tokens_to_generate=16, max_prompt_length=8, kv_cache_size=32, temperature=temperature, top_p=1.0))
    completions = jnp.stack([jnp.pad(jnp.asarray(row), (0, 16 - len(row))) for row in sampled.tokens])
    prompts = jnp.asarray(sampled.left_padded_prompt_tokens)
    # as GRPOLearner does it, through RLCluster.get_old_per_token_logps
    old = rollout.get_per_token_logps(prompts, completions) if num_iterations > 1 else None
    algo = GRPOConfig(num_generations=4, beta=0.0, num_iterations=num_iterations)
    algo.temperature = temperature  # as GRPOLearner sets it, from the rollout's config
    example = common.TrainExample(
        prompt_ids=prompts, prompt_mask=prompts != 0, completion_ids=completions, completion_mask=completions != 0,
        advantages=jnp.ones(4), ref_per_token_logps=None, old_per_token_logps=old)
    loss, aux = function_registry.get_policy_loss_fn("grpo")(model, example, algo_config=algo, pad_id=0, eos_id=1)
    return float(loss), float(aux["pg_clipfrac"])


for temperature, num_iterations in ((1.0, 2), (0.5, 1), (0.5, 2)):
    loss, clipped = first_update(temperature, num_iterations)
    print(f"temperature {temperature}, {num_iterations} updates per rollout: loss {loss:.3f}, clipped {clipped:.0%}")
    wrong = temperature != 1 and num_iterations > 1
    assert (clipped > 0.2) == wrong
PYTHON

#!/usr/bin/env bash
# The temperature of Tunix's sampler does nothing without top_p, and temperature 0 with a top_p is not greedy.
#
# Guess:     `temperature=0.9` samples, and `temperature=0.0` is greedy whatever top_p is, as in vLLM and transformers.
# Versions:  google-tunix 0.1.7, jax 0.10.2, flax 0.12.8, Python 3.11, CPU.
# Behaviour: the mode hangs on top_p alone. With top_p None, which is the sampler's default, any temperature gives the
#            greedy tokens. With any top_p the logits are divided by the temperature. At 0 every positive logit becomes
#            infinite, and the first token of the vocabulary with a positive logit is taken. RolloutConfig sets top_p
#            to 1.0, so a rollout with temperature 0 is not a greedy evaluation. No error or warning is given.
# Output:    temperature 0.9, no top_p, seed 1: [21, 46, 46, 46, 46, 46, 46, 46]
#            temperature 0.9, no top_p, seed 2: [21, 46, 46, 46, 46, 46, 46, 46]
#            temperature 0, top_p 1: [7, 2, 3, 7, 2, 3, 7, 2]
#            first tokens with a positive logit: [7, 2, 3, 7, 2, 3, 7, 2]
#            greedy: [21, 46, 46, 46, 46, 46, 46, 46]
# Fails when the behaviour changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install google-tunix==0.1.7 jax==0.10.2 jaxlib==0.10.2 flax==0.12.8
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax.numpy as jnp
from flax import nnx
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.gemma3.model import Gemma3, ModelConfig

config = ModelConfig(num_layers=2, num_embed=64, embed_dim=32, hidden_dim=64, num_heads=2, head_dim=16, num_kv_heads=1,
                     sliding_window_size=16, param_dtype=jnp.float32)
model = Gemma3(config, rngs=nnx.Rngs(0))


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


def new_sampler():
    return Sampler(model, Letters(), CacheConfig(cache_size=24, num_layers=2, num_kv_heads=1, head_dim=16))


def ask(sampler, **options):
    """The eight tokens after a prompt."""
    return sampler(["question"], 8, 16, **options).tokens[0].tolist()


sampler = new_sampler()
greedy = ask(sampler)
for seed in (1, 2):
    print(f"temperature 0.9, no top_p, seed {seed}: {ask(sampler, temperature=0.9, seed=seed)}")
    assert ask(sampler, temperature=0.9, seed=seed) == greedy
found = sampler(["question"], 8, 16, temperature=0.0, top_p=1.0, return_logits=True)
cold, first_positive = found.tokens[0].tolist(), [int((row > 0).argmax()) for row in found.logits[0]]
print(f"temperature 0, top_p 1: {cold}\nfirst tokens with a positive logit: {first_positive}\ngreedy: {greedy}")
assert cold == first_positive and cold != greedy, cold
warm = [ask(sampler, temperature=0.9, top_p=1.0, seed=seed) for seed in (1, 2)]
assert warm[0] != warm[1] and greedy not in warm, warm
PYTHON

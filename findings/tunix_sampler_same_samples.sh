#!/usr/bin/env bash
# Tunix's sampler gives the same samples at every call, and so do GRPO's rollouts of one prompt.
#
# Guess:     without a seed each call draws new random numbers, as numpy, torch and vLLM do. So a prompt that comes
#            again, in the next epoch or in pass@k by repeated calls, gets new completions.
# Versions:  google-tunix 0.1.7, jax 0.10.2, flax 0.12.8, Python 3.11, CPU.
# Behaviour: `seed=None` means PRNGKey(0), in each call anew. The same batch gives the same samples until the weights
#            move. Rows of one batch differ. RolloutConfig.seed is None by default too, so a caller has to set another
#            one per call.
# Output:    four completions, 4 different; the same in the next call: True; in a new sampler: True; with
#            seed 1: False
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
    """The eight tokens of each of four completions of one prompt."""
    found = sampler(["question"] * 4, 8, 16, temperature=1.0, top_p=1.0, **options).tokens
    return [row.tolist() for row in found]


first, second, other_sampler = ask(sampler := new_sampler()), ask(sampler), ask(new_sampler())
seeded = ask(sampler, seed=1)
print(f"four completions, {len(set(map(tuple, first)))} different; the same in the next call: {first == second}; in a "
      f"new sampler: {first == other_sampler}; with seed 1: {first == seeded}")
assert first == second == other_sampler and first != seeded
assert len(set(map(tuple, first))) == 4
PYTHON

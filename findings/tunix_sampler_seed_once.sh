#!/usr/bin/env bash
# A seed given to Tunix's sampler as an array serves one call. The second call with it fails.
#
# Guess:     a jax.random key is a value, so a config that holds one, as RolloutConfig.seed asks for ("jax.Array"), can
#            be used for every rollout of a run.
# Versions:  google-tunix 0.1.7, jax 0.10.2, flax 0.12.8, Python 3.11, CPU.
# Behaviour: the key becomes part of the sampling state, and the compiled decode loop is given that state to reuse its
#            memory (donate_argnums). So the caller's own key is deleted by the first call. The second raises
#            ValueError, "Buffer has been deleted or donated". An int, from which a new key is made per call, works always, but
#            RolloutConfig asks for an array. A caller has to pass a fresh key per call, which also gives new samples.
# Output:    after the first call the key is deleted: True; second call: ValueError; with an int twice: fine
# Fails when the behaviour changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install google-tunix==0.1.7 jax==0.10.2 jaxlib==0.10.2 flax==0.12.8
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
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


def ask(sampler, seed):
    return sampler(["question"] * 4, 8, 16, temperature=1.0, top_p=1.0, seed=seed).tokens


sampler, key = new_sampler(), jax.random.PRNGKey(0)
ask(sampler, key)
try:
    ask(sampler, key)
    second = "fine"
except (RuntimeError, ValueError) as error:
    assert "deleted" in str(error), error
    second = type(error).__name__
for _ in range(2):
    ask(sampler, 0)
print(f"after the first call the key is deleted: {key.is_deleted()}; second call: {second}; with an int twice: fine")
assert key.is_deleted() and second != "fine"
PYTHON

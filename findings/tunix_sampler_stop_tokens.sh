#!/usr/bin/env bash
# Tunix's sampler stops at the stop tokens of its first call, whatever later calls name.
#
# Guess:     `eos_tokens` is an argument of a call, so each call stops at its own tokens.
# Versions:  google-tunix 0.1.7, jax 0.10.2, flax 0.12.8, Python 3.11, CPU.
# Behaviour: the tokens are read as an attribute while the decode loop is traced, so the compiled program of a shape
#            keeps the first call's. A later call with other stop tokens still ends at the first ones, keeps that stop
#            token in its text, and pads the rest: its completion holds padding. The other way round, a later call
#            stops too late and pays for the tokens, and only its text is cut. No error or warning is given.
# Output:    greedy: [21, 46, 46, 46, 46, 46, 46, 46]
#            first call, stop token 46: [21]
#            later call, stop token 1: [21, 46, 0, 0, 0, 0, 0, 0]
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


whole = ask(new_sampler())
stop = next(token for token in whole[2:] if token not in (0, 1))
place = whole.index(stop)
sampler = new_sampler()
first, later = ask(sampler, eos_tokens=[stop]), ask(sampler, eos_tokens=[1])
print(f"greedy: {whole}\nfirst call, stop token {stop}: {first}\nlater call, stop token 1: {later}")
assert first == whole[:place], first
assert later == whole[:place + 1] + [0] * (len(whole) - place - 1) != whole, later
PYTHON

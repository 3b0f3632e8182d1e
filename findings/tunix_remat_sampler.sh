#!/usr/bin/env bash
# Tunix's sampler cannot decode with a model that recomputes activations for its gradients.
#
# Guess:     remat changes what a backward pass keeps, so a model that is trained with it also samples. GRPO samples from
#            the policy that it trains.
# Versions:  google-tunix 0.1.7, flax 0.12.8, jax 0.10.2, qwix 0.1.8, Python 3.11, CPU.
# Behaviour: with RematConfig.BLOCK or DECODER every call of the sampler raises TraceContextError. It merges the model
#            inside the body of its loop, from parameters of the trace outside, and nnx.remat writes to them when it
#            splits its inputs. A single forward pass works, and so does training.
# Output:    NONE: 4 tokens; BLOCK: TraceContextError; DECODER: TraceContextError; DECODER, one forward pass: (1, 3, 64)
# Fails when the behaviour changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install google-tunix==0.1.7 jax==0.10.2 jaxlib==0.10.2 \
  flax==0.12.8 qwix==0.1.8
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
from flax import nnx
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.gemma3.model import Gemma3, ModelConfig, RematConfig


class Letters:
    """A tokenizer of single characters."""

    def encode(self, text, **options):
        return [3 + ord(letter) % 60 for letter in text]

    def decode(self, tokens, **options):
        return "".join(chr(97 + token % 26) for token in tokens)

    def bos_id(self):
        return 2

    def eos_id(self):
        return 1

    def pad_id(self):
        return 0


def model(remat):
    return Gemma3(ModelConfig(
        num_layers=2, num_embed=64, embed_dim=16, hidden_dim=32, num_heads=2, head_dim=8, num_kv_heads=1,
        sliding_window_size=16, remat_config=remat, param_dtype=jnp.float32), rngs=nnx.Rngs(0))


def sample(remat):
    sampler = Sampler(model(remat), Letters(), CacheConfig(16, 2, 1, 8))
    try:
        return f"{len(sampler(['abc'], max_generation_steps=4).tokens[0])} tokens"
    except Exception as error:
        return type(error).__name__


found = {kind.name: sample(kind) for kind in (RematConfig.NONE, RematConfig.BLOCK, RematConfig.DECODER)}
tokens = jnp.array([[3, 4, 5]])
logits, _ = nnx.jit(lambda model: model(tokens, jnp.arange(3)[None], None, jnp.tril(jnp.ones((1, 3, 3), bool))))(
    model(RematConfig.DECODER))
print("; ".join(f"{name}: {result}" for name, result in found.items())
      + f"; DECODER, one forward pass: {logits.shape}")
assert found["BLOCK"] == found["DECODER"] == "TraceContextError" and found["NONE"].endswith("tokens") and logits.shape == (1, 3, 64)
PYTHON

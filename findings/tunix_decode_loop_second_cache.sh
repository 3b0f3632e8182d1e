#!/usr/bin/env bash
# On a TPU the decode loop of Tunix's sampler holds most of the KV cache a second time.
#
# Guess:     the sampler donates its state, and a step writes one token into the cache in place. So the loop needs no
#            more memory than one step: parameters and one cache.
# Versions:  google-tunix 0.1.7, libtpu 0.0.42.1, jax 0.10.2, flax 0.12.8, Python 3.11, compiled for one v5e chip on a
#            CPU-only machine. Nothing runs. Four layers of Gemma-2-2B, 32 rows, a cache of 1,024 tokens.
# Behaviour: one step needs 6 MiB beside parameters and cache. The loop needs 520 MiB, for a cache of 512 MiB. Inside it
#            the compiler lays the cache out with heads before tokens, so it copies the cache before the loop and after
#            it, and the donated memory cannot hold both. With all 26 layers that is a second cache of 3.3 GiB, of the
#            15.75 that a chip grants. A loop that carries heads before tokens needs no copy.
# Output:    cache 512 MiB; temporaries of one step 6 MiB, of the loop 520 MiB
# Fails when the behaviour changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install google-tunix==0.1.7 jax==0.10.2 jaxlib==0.10.2 \
  flax==0.12.8 qwix==0.1.8
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install --no-deps --target "$folder/libtpu" libtpu==0.0.42.1
cd "$folder"
PYTHONPATH="$folder/libtpu" JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 TPU_ACCELERATOR_TYPE=v5litepod-8 \
  TPU_WORKER_HOSTNAMES=localhost TPU_WORKER_ID=0 "$folder/venv/bin/python" - <<'PYTHON'
import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from tunix.generate import sampler
from tunix.models.gemma import model as gemma

ROWS, SIZE, LAYERS = 32, 1024, 4
device = topologies.get_topology_desc(platform="tpu", topology_name="v5e:1x1", chips_per_host_bounds=(1, 1, 1)).devices[0]
config = dataclasses.replace(gemma.ModelConfig.gemma2_2b(), num_layers=LAYERS)


def on_chip(tree):
    """The arrays of a tree as shapes on the chip, floats in bfloat16."""
    def place(leaf):
        kind = jnp.bfloat16 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype
        return jax.ShapeDtypeStruct(leaf.shape, kind, sharding=SingleDeviceSharding(device))

    return jax.tree.map(place, tree)


graph, weights = nnx.split(nnx.eval_shape(lambda: gemma.Gemma(config, rngs=nnx.Rngs(0))))
cache = {f"layer_{n}": {**dict.fromkeys(("k", "v"), jnp.zeros((ROWS, SIZE, config.num_kv_heads, config.head_dim), jnp.bfloat16)),
                        "end_index": jnp.zeros(ROWS, jnp.int32)} for n in range(LAYERS)}
tokens = jnp.zeros((ROWS, SIZE), jnp.int32)
state = sampler._SamplingState(
    decoding_step=jnp.int32(0), token_buffer=tokens, positions=tokens, cache=cache, done=jnp.zeros(ROWS, bool),
    total_sampling_steps=jnp.int32(SIZE), logits_buffer=None, logprobs_buffer=None, forbidden_token_ids=None,
    seed=jnp.zeros(2, jnp.uint32), sampling_mode="top_p", num_input_tokens=256, temperature=1.0,
    sampling_parameters={"top_p": 1.0, "top_k": None})
# What Sampler.__init__ would keep of a model and a tokenizer; there are no weights here.
made = sampler.Sampler.__new__(sampler.Sampler)
made._transformer_graphdef, made.tokenizer = graph, SimpleNamespace(pad_id=lambda: 0)
made.cache_config = sampler.CacheConfig(SIZE, LAYERS, config.num_kv_heads, config.head_dim)
made.eos_ids = jnp.array([1, 107])


def temporaries(function):
    """MiB beside arguments and outputs, with the state donated as the sampler does."""
    compiled = jax.jit(function, donate_argnums=1).lower(on_chip(weights), on_chip(state)).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 2**20


size = sum(leaf.nbytes for leaf in jax.tree.leaves(cache)) / 2**20
step, loop = temporaries(made._sample_step), temporaries(made._decode_fn)
print(f"cache {size:.0f} MiB; temporaries of one step {step:.0f} MiB, of the loop {loop:.0f} MiB")
assert step < 0.1 * size and 0.8 * size < loop < 1.2 * size
PYTHON

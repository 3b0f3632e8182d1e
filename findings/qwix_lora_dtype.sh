#!/usr/bin/env bash
# A LoRA adapter on a bfloat16 model hardly moves at the learning rates of large models.
#
# Guess:     the frozen base's dtype only affects memory, and the trained weights stay in float32, as in PEFT.
# Versions:  qwix 0.1.8, flax 0.12.8, jax 0.10.2, optax 0.2.8.
# Behaviour: `qwix.LoraProvider` gives A and B the dtype of the weight that they adapt, and Adam's moments follow. An
#            update below half the spacing of a bfloat16 number rounds to nothing, as most of A's do. There is no dtype
#            argument. Initialisers that draw float32 make the adapter float32, but also the forward pass after it.
# Output:    own initialisers: A bfloat16, moments bfloat16, 5.7% of A changed in 100 steps at 2e-5; outputs bfloat16
#            float32 initialisers: A float32, moments float32, 100.0% of A changed in 100 steps at 2e-5; outputs float32
# Fails when the behaviour changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check qwix==0.1.8 flax==0.12.8 jax==0.10.2 optax==0.2.8
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np
import optax
import qwix
from flax import nnx

x = jax.random.normal(jax.random.key(0), (32, 256), jnp.bfloat16)
wanted = jax.random.normal(jax.random.key(1), (32, 256), jnp.bfloat16)
base = nnx.Linear(256, 256, use_bias=False, param_dtype=jnp.bfloat16, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))


def run(**initialisers):
    """The adapter's dtype, its moments', the share of A that changes, and the outputs' dtype."""
    provider = qwix.LoraProvider(module_path=".*", rank=8, alpha=8.0, **initialisers)
    model = qwix.apply_lora_to_model(base, provider, x, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adamw(2e-5), wrt=nnx.LoRAParam)
    before = np.asarray(model.kernel_lora_a[...])

    @nnx.jit
    def step(model, optimizer):
        loss = lambda model: jnp.mean((model(x) - wanted).astype(jnp.float32) ** 2)
        optimizer.update(model, nnx.grad(loss, argnums=nnx.DiffState(0, nnx.LoRAParam))(model))

    for _ in range(100):
        step(model, optimizer)
    moments = {leaf.dtype.name for leaf in jax.tree.leaves(nnx.state(optimizer, nnx.optimizer.OptState)) if leaf.ndim}
    after = np.asarray(model.kernel_lora_a[...])
    return after.dtype.name, *moments, float(np.mean(before != after)), model(x).dtype.name


he = jax.nn.initializers.he_uniform()
own = run()
wide = run(lora_a_initializer=lambda key, shape, dtype: he(key, shape, jnp.float32),
           lora_b_initializer=lambda key, shape, dtype: jnp.zeros(shape, jnp.float32))
for name, (dtype, moments, changed, outputs) in (("own", own), ("float32", wide)):
    print(f"{name} initialisers: A {dtype}, moments {moments}, {changed:.1%} of A changed in 100 steps at 2e-5; "
          f"outputs {outputs}")
assert own[:2] == ("bfloat16", "bfloat16") and own[2] < 0.1 and own[3] == "bfloat16", own
assert wide[:2] == ("float32", "float32") and wide[2] > 0.99 and wide[3] == "float32", wide
PYTHON

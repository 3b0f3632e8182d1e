#!/usr/bin/env bash
# An adapted model answers without its adapter through every method but `__call__`.
#
# Guess:     LoRA replaces the weights' layers, so whatever reads an adapted layer (a method that returns hidden states,
#            a sub-layer called by itself) has the adapter in it, as in PEFT.
# Versions:  qwix 0.1.8, flax 0.12.8, jax 0.10.2.
# Behaviour: qwix intercepts operations only inside the outermost `__call__` of the model that it wrapped. Another
#            method, or a sub-layer, gives the base model's values without a warning. `methods=` takes one method only.
#            A loss that needs hidden states, such as a cross-entropy in chunks, is wrong by the whole adapter where it
#            takes them from a method. They can be sown by the layers and popped after a call.
# Output:    model(x): adapter acts True; model.hidden(x): False; model.first(x): False
#            methods=("__call__", "hidden"): Only one method is supported for nnx models.
# Fails when the behaviour changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check qwix==0.1.8 flax==0.12.8 jax==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import qwix
from flax import nnx


class Model(nnx.Module):
    """Two layers, and a method that gives what the head reads."""

    def __init__(self):
        self.first, self.head = nnx.Linear(8, 8, rngs=nnx.Rngs(0)), nnx.Linear(8, 4, rngs=nnx.Rngs(1))

    def hidden(self, x):
        return self.first(x)

    def __call__(self, x):
        return self.head(self.hidden(x))


x = jax.random.normal(jax.random.key(0), (4, 8))
base = Model()


def adapt(**methods):
    """The model with an adapter on its first layer, as if trained."""
    provider = qwix.LoraProvider(module_path="first", rank=2, alpha=2.0)
    model = qwix.apply_lora_to_model(base, provider, x, rngs=nnx.Rngs(2), **methods)
    model.first.kernel_lora_b[...] = jnp.ones(model.first.kernel_lora_b.shape)
    return model


def acts(ours, bare):
    return not bool(jnp.allclose(ours, bare))


model = adapt()
found = acts(model(x), base(x)), acts(model.hidden(x), base.hidden(x)), acts(model.first(x), base.first(x))
print(f"model(x): adapter acts {found[0]}; model.hidden(x): {found[1]}; model.first(x): {found[2]}")
assert found == (True, False, False), found
try:
    adapt(methods=("__call__", "hidden"))
except ValueError as error:
    print(f'methods=("__call__", "hidden"): {error}')
else:
    raise AssertionError("two methods are adapted now")
PYTHON

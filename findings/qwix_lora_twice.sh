#!/usr/bin/env bash
# Adapting a model twice with LoRA keeps the first adapter and gives it the second scale.
#
# Guess:     a second `apply_lora_to_model` on an adapted model either raises, or starts a fresh adapter beside or in
#            place of the first, as PEFT does with a warning. A fresh adapter has B = 0 and changes no output.
# Versions:  qwix 0.1.8, flax 0.12.8, jax 0.10.2.
# Behaviour: with the same rank there is neither error nor warning. The trained weights stay, and the new alpha scales
#            them. So a cell that is run twice with an edited alpha changes the outputs of an adapter that nobody
#            trained for it. Another rank raises.
# Output:    second wrap, alpha 8 then 8: A and B as trained, effect on the outputs x 1.00
#            second wrap, alpha 8 then 16: A and B as trained, effect on the outputs x 2.00
#            second wrap with rank 8 after 4: raises
# Fails when the behaviour changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check qwix==0.1.8 flax==0.12.8 jax==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import qwix
from flax import nnx

warnings.simplefilter("error", UserWarning)
x = jax.random.normal(jax.random.key(0), (4, 32))
base = nnx.Linear(32, 16, rngs=nnx.Rngs(0))


def wrap(model, rank, alpha):
    return qwix.apply_lora_to_model(model, qwix.LoraProvider(module_path=".*", rank=rank, alpha=alpha), x,
                                    rngs=nnx.Rngs(1))


def weights(model):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model, nnx.LoRAParam))]


for alpha in (8.0, 16.0):
    first = wrap(base, 4, 8.0)
    first.kernel_lora_b[...] = jax.random.normal(jax.random.key(2), first.kernel_lora_b.shape)  # as if trained
    trained, effect = weights(first), first(x) - base(x)
    second = wrap(first, 4, alpha)
    kept = all(map(np.array_equal, trained, weights(second)))
    ratio = float(jnp.linalg.norm(second(x) - base(x)) / jnp.linalg.norm(effect))
    print(f"second wrap, alpha 8 then {alpha:g}: A and B {'as trained' if kept else 'anew'}, effect on the outputs x {ratio:.2f}")
    assert kept and abs(ratio - alpha / 8) < 1e-3, (kept, ratio)
try:
    wrap(wrap(base, 4, 8.0), 8, 8.0)(x)
except Exception as error:
    print(f"second wrap with rank 8 after 4: raises\n  {type(error).__name__}: {str(error)[:120]}")
else:
    raise AssertionError("another rank is taken now")
PYTHON

#!/usr/bin/env bash
# orbax restores a checkpoint in the dtype of the target and silently casts what was saved.
#
# Guess:     float32 arrays restored onto a bfloat16 target raise, as arrays of another shape do, or stay float32.
# Versions:  orbax-checkpoint 0.12.8, jax 0.10.2.
# Behaviour: `StandardCheckpointer.restore` rounds them to bfloat16, to nearest even. It widens bfloat16 to float32.
#            So an adapter trained in float32 changes when a program with a bfloat16 adapter reads it. Evaluate the
#            rounded one.
# Output:    float32 onto bfloat16: bfloat16, rounded to nearest even
#            bfloat16 onto float32: float32, exact
# Fails when the behaviour changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check orbax-checkpoint==0.12.8 jax==0.10.2
JAX_PLATFORMS=cpu FOLDER="$folder" "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import os

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp

drawn = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
halfway = (np.arange(10_000, dtype=np.uint32) << 16 | 0x3F808000).view(np.float32)  # between two bfloat16 numbers
saved = np.concatenate([drawn, halfway[np.isfinite(halfway)]])
nearest = saved.astype(ml_dtypes.bfloat16)


def restored(value, dtype):
    path = f"{os.environ['FOLDER']}/{value.dtype}"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, {"a": jnp.asarray(value)})
        checkpointer.wait_until_finished()
        return checkpointer.restore(path, {"a": jax.ShapeDtypeStruct(value.shape, dtype)})["a"]


down, up = restored(saved, jnp.bfloat16), restored(nearest, jnp.float32)
assert down.dtype == jnp.bfloat16 and np.array_equal(down, nearest), down
assert up.dtype == jnp.float32 and np.array_equal(up, nearest.astype(np.float32)), up
print("float32 onto bfloat16: bfloat16, rounded to nearest even\nbfloat16 onto float32: float32, exact")
PYTHON

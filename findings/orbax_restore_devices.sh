#!/usr/bin/env bash
# orbax puts arrays on the devices that the checkpoint names, if the target has no sharding.
#
# Guess:     a target of shapes and types alone restores onto the default device, or uncommitted, so that a program
#            whose other arguments are on all devices takes the arrays as they come.
# Versions:  orbax-checkpoint 0.12.8, jax 0.10.2, eight virtual CPU devices.
# Behaviour: `StandardCheckpointer.restore` reads the sharding from a file beside the arrays, and commits them to those
#            devices. What was saved from half of the devices is on that half again, and a jitted program whose
#            other argument is on all of them raises ValueError. So a part of a model that was trained on some of the
#            chips can't be joined to a model on all of them by `jax.ShapeDtypeStruct(shape, dtype)` alone.
# Output:    saved from 4 devices, restored without a sharding: on 4 devices
#            with arrays on all 8: ValueError, incompatible devices
#            restored with the sharding of those arrays: 15.0
# Fails when the behaviour changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check orbax-checkpoint==0.12.8 jax==0.10.2
JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=8 FOLDER="$folder" "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import os

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

half, whole = (NamedSharding(Mesh(np.array(jax.devices()[:count]), ("d",)), PartitionSpec()) for count in (4, 8))
path, part = f"{os.environ['FOLDER']}/part", jax.device_put(jnp.arange(6.0), half)
with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(path, {"a": part})
    checkpointer.wait_until_finished()
    plain = checkpointer.restore(path, {"a": jax.ShapeDtypeStruct(part.shape, part.dtype)})["a"]
    placed = checkpointer.restore(path, {"a": jax.ShapeDtypeStruct(part.shape, part.dtype, sharding=whole)})["a"]
print(f"saved from 4 devices, restored without a sharding: on {len(plain.sharding.device_set)} devices")
assert plain.sharding.device_set == half.device_set
others, add = jax.device_put(jnp.ones(6), whole), jax.jit(lambda a, b: (a * b).sum())
try:
    add(plain, others)
except ValueError as error:
    assert "incompatible devices" in str(error), error
    print("with arrays on all 8: ValueError, incompatible devices")
else:
    raise SystemExit("the program took arrays on other devices: the behaviour has changed")
print(f"restored with the sharding of those arrays: {add(placed, others)}")
PYTHON

#!/usr/bin/env bash
# jnp.zeros with a sharding makes one shard on the first device and copies it to all the others.
#
# Guess:     each device fills its own shard, so a large array, such as a KV cache over a mesh, moves between no devices.
# Versions:  jax 0.10.2, eight virtual CPU devices. The source of `jax.lax.full` does the same for all backends.
# Behaviour: with a concrete `device=NamedSharding(...)`, one shard is broadcast on the default device, and
#            `make_array_from_callback` puts it on every device. Under a guard that forbids transfers between devices
#            this raises. The same zeros from a jitted function with `out_shardings` need no transfer. So a sampler that
#            allocates its cache by `jnp.zeros(..., device=sharding)` before each rollout sends a shard for each other
#            chip from the first one, each time.
# Output:    jnp.zeros(device=sharding): Disallowed device-to-device transfer
#            jit(out_shardings=sharding): no transfer, the same array
# Fails when the behaviour changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2
cd "$folder"
JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=8 "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

sharding = NamedSharding(Mesh(np.array(jax.devices()), ("d",)), PartitionSpec("d"))
whole = jnp.zeros((64, 4), device=sharding)
assert whole.sharding == sharding and len(whole.addressable_shards) == 8
with jax.transfer_guard_device_to_device("disallow_explicit"):
    try:
        jnp.zeros((64, 4), device=sharding).block_until_ready()
    except Exception as error:
        said = str(error)
    else:
        raise SystemExit("jnp.zeros with a sharding transfers nothing now")
    assert "Disallowed device-to-device transfer" in said, said
    print("jnp.zeros(device=sharding): Disallowed device-to-device transfer")
    made = jax.jit(lambda: jnp.zeros((64, 4)), out_shardings=sharding)().block_until_ready()
assert made.sharding == sharding and (np.asarray(made) == np.asarray(whole)).all()
print("jit(out_shardings=sharding): no transfer, the same array")
PYTHON

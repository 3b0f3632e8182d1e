#!/usr/bin/env bash
# XLA for TPU writes a dequantised int8 KV cache out in bfloat16, depending on its size and the order of its axes.
#
# Guess:     cache.astype(bfloat16) * scale fuses into the dot that reads it, as it does for an int8 weight. So an int8
#            cache halves the traffic of attention whatever its size.
# Versions:  libtpu 0.0.42.1, jax 0.10.2, Python 3.11, compiled for one v5e chip on a CPU-only machine.
# Behaviour: with axes (rows, tokens, heads, dim), as Tunix has them, the copy stays on the chip with 32 rows. With 128
#            rows it is a temporary of 256 MiB in HBM, the size of the keys in bfloat16. With heads before tokens there
#            is no copy at either size. Scales applied to the scores instead of the keys need none either.
# Output:    rows 32: tokens first 0 MiB, heads first 0 MiB; rows 128: tokens first 256 MiB, heads first 0 MiB
# Fails when the behaviour changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install jax==0.10.2 jaxlib==0.10.2 libtpu==0.0.42.1
cd "$folder"
JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 TPU_ACCELERATOR_TYPE=v5litepod-8 TPU_WORKER_HOSTNAMES=localhost TPU_WORKER_ID=0 \
  "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

device = topologies.get_topology_desc(platform="tpu", topology_name="v5e:1x1", chips_per_host_bounds=(1, 1, 1)).devices[0]
place = SingleDeviceSharding(device)


def temporaries(rows, axes):
    """MiB in HBM of one token's attention over an int8 cache of 1,024 tokens, 4 heads of 256 for 8 of the query."""
    def whole(cache, scale):
        return cache.astype(jnp.bfloat16) * scale[..., None]

    def attend(query, keys, values, key_scale, value_scale):
        scores = jnp.einsum(f"BKGH,{axes}->BKGS", query, whole(keys, key_scale)).astype(jnp.float32)
        return jnp.einsum(f"BKGS,{axes}->BKGH", jax.nn.softmax(scores).astype(jnp.bfloat16), whole(values, value_scale))

    cache = (rows, 1024, 4, 256) if axes == "BSKH" else (rows, 4, 1024, 256)
    shapes = ((rows, 4, 2, 256), jnp.bfloat16), *[(cache, jnp.int8)] * 2, *[(cache[:3], jnp.bfloat16)] * 2
    arguments = [jax.ShapeDtypeStruct(*shape, sharding=place) for shape in shapes]
    return jax.jit(attend).lower(*arguments).compile().memory_analysis().temp_size_in_bytes / 2**20


found = {(rows, axes): temporaries(rows, axes) for rows in (32, 128) for axes in ("BSKH", "BKSH")}
print("; ".join(f"rows {rows}: tokens first {found[rows, 'BSKH']:.0f} MiB, heads first {found[rows, 'BKSH']:.0f} MiB"
                for rows in (32, 128)))
assert found[128, "BSKH"] > 200 and max(found[32, "BSKH"], found[32, "BKSH"], found[128, "BKSH"]) < 10
PYTHON

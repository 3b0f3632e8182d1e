"""Host memory for loading a model, and each device's share: `python benchmarks/loading.py`.

It loads a Gemma-3-shaped Flax checkpoint of 1 GB in a fresh process, sharded over 8 virtual devices. The peak is the
process's maximum (VmHWM) less what it held before, per byte of weights. On a CPU the devices' memory is the host's, so
the peak is at least 1.0. "Host alone" leaves out what lies on the devices in the end. Exits with 1 if a peak passes
LIMIT, or if a device holds more than SPREAD of its even share.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from checkout import ROOT

LIMIT, SPREAD, DEVICES, LAYERS = 1.3, 1.02, 8, 7


def held(field: str) -> int:
    """Bytes of this process, by the name in /proc (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def config():
    from tunix.models.gemma3.model import ModelConfig

    return ModelConfig(num_layers=LAYERS, num_embed=262_144, embed_dim=1152, hidden_dim=6912, num_heads=8, head_dim=256,
                       num_kv_heads=2, sliding_window_size=512, global_base_frequency=1_000_000)


def write(folder: Path) -> None:
    """The checkpoint, of random arrays."""
    import jax

    from reasonkit.models import mesh
    from tools.flax import init_random, save_flax

    jax.config.update("jax_num_cpu_devices", DEVICES)
    model = init_random(config(), mesh.make_mesh(jax.devices(), DEVICES, 1))
    save_flax(model, ROOT / "reasonkit/assets/policy/tokenizer.model", folder, "synthetic")


def load(folder: Path) -> dict:
    """Peak and shares in bytes, and seconds."""
    import jax
    from flax import nnx

    from reasonkit.models import gemma, mesh

    jax.config.update("jax_num_cpu_devices", DEVICES)
    place = mesh.make_mesh(jax.devices(), DEVICES, 1)
    before, start = held("VmRSS"), time.perf_counter()
    model = gemma.from_flax(folder / "synthetic", "gemma3", config(), place, None, replicated=False)
    seconds, peak = time.perf_counter() - start, held("VmHWM") - before
    share = dict.fromkeys(jax.devices(), 0)
    for leaf in jax.tree.leaves(nnx.state(model)):
        for shard in leaf.addressable_shards:
            share[shard.device] += shard.data.nbytes
    return {"peak": peak, "share": list(share.values()), "seconds": seconds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "WHAT"), help=argparse.SUPPRESS)
    if child := parser.parse_args().child:
        folder, what = Path(child[0]), child[1]
        print(json.dumps(write(folder) if what == "write" else load(folder)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        def run(what: str) -> dict:
            command = [sys.executable, __file__, "--child", folder, what]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            return json.loads(done.stdout.splitlines()[-1])

        run("write")
        size = sum(file.stat().st_size for file in (Path(folder) / "synthetic").rglob("*") if file.is_file())
        found = run("load")
        placed, even = sum(found["share"]), sum(found["share"]) / DEVICES
        good = found["peak"] <= LIMIT * placed and max(found["share"]) <= SPREAD * even
        print(f"file {size / 1e9:.2f} GB, weights {placed / 1e9:.2f} GB, in {found['seconds']:.1f} s; peak "
              f"{found['peak'] / 1e9:.2f} GB, {found['peak'] / placed:.2f} of the weights (limit {LIMIT}), host "
              f"alone {found['peak'] / placed - 1:.2f}; a device {min(found['share']) / 1e6:.1f} to "
              f"{max(found['share']) / 1e6:.1f} MB, even {even / 1e6:.1f}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

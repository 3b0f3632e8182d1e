"""Devices to meshes: `make_mesh` makes each mesh, and `plan_mesh` says who sits on which chips, and why.

Weights are replicated where they fit, so no token waits for another chip, else split over tp, which exchanges
activations at each layer. The last resort is fsdp, which gathers all weights at each token. Axes are Auto, because with
the Explicit ones of `jax.make_mesh` Tunix's forward pass raises ShardingTypeError. Enter a mesh with `with mesh:`,
because Tunix does not see one set by `jax.set_mesh`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

ROOM = 0.9  # of a chip's memory is planned with, because an estimate errs
# The settings that say how many rows a role has at once.
ROWS = {"policy": "eval_batch, sft_batch_size, grpo_micro_prompts, grpo_rollout_micro_prompts, distill_batch_size",
        "judge": "judge_batch"}


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes of a role: one copy of its `weights`, and the `working` memory of all its rows; its KV heads."""

    weights: float
    working: float
    kv_heads: int


@dataclass(frozen=True)
class Plan:
    """Meshes by role. `reasons` has a sentence for each of "policy", "judge" and "idle" that there is.

    The weights of the roles in `gathered` are split over fsdp too: `load(..., replicated=False)`.
    """

    policy: Mesh
    judge: Mesh | None
    reasons: dict[str, str]
    gathered: tuple[str, ...] = ()


def use_virtual_devices(count: int) -> None:
    """Let the CPU play `count` devices. Only possible before JAX has looked for any."""
    jax.config.update("jax_platforms", "cpu")
    with contextlib.suppress(RuntimeError):  # JAX has started: the check below decides
        jax.config.update("jax_num_cpu_devices", count)
    if len(jax.devices()) != count:
        raise RuntimeError(f"this profile needs {count} virtual CPU devices and JAX runs with {len(jax.devices())}: "
                           "restart the kernel and run the notebook from its first cell")


def make_mesh(devices: Sequence[jax.Device], fsdp: int, tp: int) -> Mesh:
    """A (fsdp, tp) mesh with Auto axes over exactly these devices, in their order. Raises ValueError if an axis is
    below 1, or fsdp x tp is not the number of devices."""
    if fsdp < 1 or tp < 1 or fsdp * tp != len(devices):
        raise ValueError(f"fsdp={fsdp} x tp={tp} does not make {len(devices)} devices: choose fsdp x tp = "
                         f"{len(devices)}, or pass {fsdp * tp} devices")
    return Mesh(np.asarray(devices).reshape(fsdp, tp), ("fsdp", "tp"), axis_types=(AxisType.Auto,) * 2)


def plan_mesh(devices: Sequence[jax.Device], *, judge: bool, needs: Mapping[str, MemoryNeed] | None = None,
              memory: float = math.inf) -> Plan:
    """Splits devices between the policy and a local `judge`, if there is one, and each role's weights over its devices.

    Without a judge the policy has them all. With one, the policy has the first half and the judge the second, and both
    work at once. A single device is shared. The last of an odd number stays idle. `needs` are by role, "policy" and
    "judge", and without them nothing is split. `memory` is the bytes of one device. Raises ValueError for no devices,
    and when a role does not fit however it is split.
    """
    if not devices:
        raise ValueError("no devices: pass jax.devices()")
    needs = dict(needs or {})
    half = len(devices) // 2
    if not judge:
        shares, why = {"policy": devices}, {"policy": "there is no local judge"}
    elif half == 0:
        shares, why = {"policy": devices, "judge": devices}, dict.fromkeys(
            ("policy", "judge"), "one device, so policy and judge share it and take turns")
        if needs:  # each finds the other's weights there
            needs = {role: replace(need, working=need.working + needs[other].weights)
                     for (role, need), other in zip(needs.items(), reversed(needs), strict=True)}
    else:
        shares = {"policy": devices[:half], "judge": devices[half : 2 * half]}
        why = {"policy": "the first half, so that it generates while the judge scores",
               "judge": "the second half, so that it scores while the policy generates"}
    meshes, gathered = {}, []
    for role, share in shares.items():
        meshes[role], text, split = _role(role, share, needs.get(role), memory)
        why[role] = f"{text}: {why[role]}"
        gathered += [role] * split
    if judge and half and len(devices) % 2:
        why["idle"] = f"device {devices[-1].id} is idle: {len(devices)} devices do not split into equal halves"
    return Plan(meshes["policy"], meshes.get("judge"), why, tuple(gathered))


def check_divides(rows: int, mesh: Mesh, what: str) -> None:
    """Raises ValueError when `rows` cannot be split over fsdp: Tunix would silently replicate the batch."""
    fsdp = mesh.shape["fsdp"]
    if rows < 1 or rows % fsdp:
        below = max(rows, 0) // fsdp * fsdp
        choices = f"{below} or {below + fsdp}" if below else str(fsdp)
        raise ValueError(f"{what} = {rows} rows cannot be split over fsdp={fsdp} chips: make it {choices}")


def split_rows(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """The rows of an array, which every process has, over fsdp. Tunix would train on it once per process."""
    return jax.make_array_from_callback(array.shape, NamedSharding(mesh, PartitionSpec("fsdp")), array.__getitem__)


def _role(role: str, devices: Sequence[jax.Device], need: MemoryNeed | None, memory: float) -> tuple[Mesh, str, bool]:
    """A role's mesh, its description, and whether its weights are split over fsdp too."""
    count, tp, split = len(devices), 1, False
    if need:
        choices = [n for n in range(1, count + 1) if count % n == 0 and need.kv_heads % n == 0]
        fitting = [n for n in choices if need.weights / n + need.working / count <= ROOM * memory]
        least = (need.weights + need.working) / count
        if not fitting and least > ROOM * memory:
            raise ValueError(
                f"the {role} needs {least / 1e9:.1f} GB of each of its {count} devices, its weights split over "
                f"all of them, and {ROOM * memory / 1e9:.1f} are planned with: take a smaller model or fewer rows "
                f"(in SETTINGS: {ROWS[role]})")
        tp, split = (fitting or [1])[0], not fitting
    text = f"devices {', '.join(str(device.id) for device in devices)} as fsdp={count // tp}, tp={tp}"
    if need and memory < math.inf:
        parts = count if split else tp
        each = (need.weights / parts + need.working / count) / 1e9
        how = "gathered over fsdp, as nothing else fits" if split else "replicated" if tp == 1 else f"split by {tp}"
        text += f", weights {how}, about {each:.1f} of {memory / 1e9:.1f} GB each"
    return make_mesh(devices, count // tp, tp), text, split

"""Devices to meshes: who sits on which chips, and why.

What it is: `make_mesh`, the only place a mesh is made, and `plan_mesh`, policy and judge on one set of chips.
What it is not: it does not place weights (`models`) nor count bytes (`preflight`).

Departs from `jax.make_mesh`, whose axes are Explicit and make Tunix's forward pass raise a
ShardingTypeError: the axes here are Auto. They are named ("fsdp", "tp"), as in Tunix's configurations.
Enter a mesh with `with mesh:`; Tunix does not see one set by `jax.set_mesh`, and then shards nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("fsdp", "tp")


@dataclass(frozen=True)
class Plan:
    """Meshes by role, and why: `reasons` has a sentence for each of "policy", "judge" and "idle" there is."""

    policy: Mesh
    judge: Mesh | None
    reasons: dict[str, str]


def make_mesh(devices: Sequence[jax.Device], fsdp: int, tp: int) -> Mesh:
    """A (fsdp, tp) mesh with Auto axes over exactly these devices, in their order.

    Raises:
        ValueError: an axis is below 1, or fsdp x tp is not the number of devices.
    """
    if fsdp < 1 or tp < 1 or fsdp * tp != len(devices):
        raise ValueError(
            f"fsdp={fsdp} x tp={tp} does not make {len(devices)} devices: "
            f"choose fsdp x tp = {len(devices)}, or pass {fsdp * tp} devices"
        )
    return Mesh(np.asarray(devices).reshape(fsdp, tp), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def plan_mesh(devices: Sequence[jax.Device], *, judge: bool, tp: int = 1, judge_tp: int = 1) -> Plan:
    """Splits devices between policy and judge.

    Without a judge the policy has them all. With one, the policy has the first half and the judge the second,
    so that both work at once; a single device is shared; the last of an odd number stays idle.

    Args:
        devices: in the order of `jax.devices()`.
        judge: whether a local judge model needs a mesh.
        tp: chips over which each copy of the policy's weights is split.
        judge_tp: the same for the judge.

    Raises:
        ValueError: no devices, or tp does not divide a role's share of them.
    """
    if not devices:
        raise ValueError("no devices: pass jax.devices()")
    if not judge:
        policy, why = _role("policy", devices, tp)
        return Plan(policy, None, {"policy": f"{why}: there is no local judge"})
    if len(devices) == 1:
        policy, why = _role("policy", devices, tp)
        judge_mesh, judge_why = _role("judge", devices, judge_tp)
        shared = "one device, so policy and judge share it and take turns"
        return Plan(policy, judge_mesh, {"policy": f"{why}: {shared}", "judge": f"{judge_why}: {shared}"})
    half = len(devices) // 2
    policy, why = _role("policy", devices[:half], tp)
    judge_mesh, judge_why = _role("judge", devices[half : 2 * half], judge_tp)
    reasons = {
        "policy": f"{why}: the first half, so that it generates while the judge scores",
        "judge": f"{judge_why}: the second half, so that it scores while the policy generates",
    }
    if len(devices) % 2:
        reasons["idle"] = (
            f"device {devices[-1].id} is idle: {len(devices)} devices do not split into equal halves"
        )
    return Plan(policy, judge_mesh, reasons)


def check_divides(rows: int, mesh: Mesh, what: str) -> None:
    """Raises ValueError when `rows` cannot be split over fsdp: Tunix would silently replicate the batch."""
    fsdp = mesh.shape["fsdp"]
    if rows < 1 or rows % fsdp:
        below, above = rows // fsdp * fsdp, (max(rows, 0) // fsdp + 1) * fsdp
        choices = f"{below} or {above}" if below > 0 else str(above)
        raise ValueError(f"{what} = {rows} rows cannot be split over fsdp={fsdp} chips: make it {choices}")


def split_rows(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """The rows of an array over fsdp. Of several processes, each has the whole array and places the rows of its chips;
    Tunix would take it for its own rows only, and train on it once more for each process."""
    return jax.make_array_from_callback(array.shape, NamedSharding(mesh, PartitionSpec("fsdp")), array.__getitem__)


def _role(role: str, devices: Sequence[jax.Device], tp: int) -> tuple[Mesh, str]:
    if tp < 1 or len(devices) % tp:
        divisors = ", ".join(str(n) for n in range(1, len(devices) + 1) if len(devices) % n == 0)
        raise ValueError(
            f"tp={tp} does not divide the {role}'s {len(devices)} devices: choose tp from {divisors}"
        )
    fsdp = len(devices) // tp
    ids = ", ".join(str(device.id) for device in devices)
    return make_mesh(devices, fsdp, tp), f"devices {ids} as fsdp={fsdp}, tp={tp}"

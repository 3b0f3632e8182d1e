from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from tiny_gemma import TOKENS, forward, small_config

from reasonkit.models.mesh import MemoryNeed, check_divides, make_mesh, plan_mesh
from tools.flax import init_random

# The policy fits whole on each of its chips, the judge only on four.
NEEDS = {"policy": MemoryNeed(5.0, 8.0, 4), "judge": MemoryNeed(40.0, 4.0, 8)}


def ids(mesh):
    return [device.id for device in mesh.devices.flat]


def test_a_mesh_has_the_axes_and_devices_asked_for():
    mesh = make_mesh(jax.devices(), 4, 2)
    assert mesh.axis_names == ("fsdp", "tp")
    assert dict(mesh.shape) == {"fsdp": 4, "tp": 2}
    assert ids(mesh) == [device.id for device in jax.devices()]


def test_axes_are_auto_so_that_a_forward_pass_runs():
    mesh = make_mesh(jax.devices(), 4, 2)
    assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)
    with mesh:
        assert np.isfinite(forward(init_random(small_config(), mesh), TOKENS)).all()


def test_jax_make_mesh_would_not_do():
    mesh = jax.make_mesh((4, 2), ("fsdp", "tp"))
    with pytest.raises(Exception, match="(?i)sharding"):
        forward(init_random(small_config(), mesh), TOKENS)


@pytest.mark.parametrize(("fsdp", "tp"), [(3, 3), (4, 1), (0, 8), (-2, -4)])
def test_a_mesh_that_does_not_divide_names_the_numbers(fsdp, tp):
    with pytest.raises(ValueError, match=rf"fsdp={fsdp} x tp={tp} does not make 8 devices: choose"):
        make_mesh(jax.devices(), fsdp, tp)


def test_without_a_judge_the_policy_has_every_device():
    plan = plan_mesh(jax.devices(), judge=False)
    assert dict(plan.policy.shape) == {"fsdp": 8, "tp": 1} and plan.judge is None
    assert set(plan.reasons) == {"policy"} and "no local judge" in plan.reasons["policy"]


def test_with_a_judge_the_halves_are_disjoint():
    plan = plan_mesh(jax.devices(), judge=True, needs=NEEDS, memory=16.0)
    assert ids(plan.policy) == [0, 1, 2, 3] and dict(plan.policy.shape) == {"fsdp": 4, "tp": 1}
    assert ids(plan.judge) == [4, 5, 6, 7] and dict(plan.judge.shape) == {"fsdp": 1, "tp": 4}
    assert "fsdp=1, tp=4" in plan.reasons["judge"] and "idle" not in plan.reasons


def test_one_device_is_shared_and_the_reason_says_so():
    plan = plan_mesh(jax.devices()[:1], judge=True)
    assert ids(plan.policy) == ids(plan.judge) == [0]
    for role in ("policy", "judge"):
        assert "one device, so policy and judge share it" in plan.reasons[role]


def test_the_odd_device_is_named_as_idle():
    plan = plan_mesh(jax.devices()[:7], judge=True)
    assert ids(plan.policy) == [0, 1, 2] and ids(plan.judge) == [3, 4, 5]
    assert plan.reasons["idle"].startswith("device 6 is idle")


def test_a_plan_without_devices_is_refused():
    with pytest.raises(ValueError, match="no devices"):
        plan_mesh([], judge=False)


def test_batches_must_divide_over_fsdp():
    mesh = make_mesh(jax.devices(), 8, 1)
    check_divides(16, mesh, "batch")
    with pytest.raises(
        ValueError, match="batch = 12 rows cannot be split over fsdp=8 chips: make it 8 or 16"
    ):
        check_divides(12, mesh, "batch")
    with pytest.raises(ValueError, match=r"batch = 4 .*make it 8$"):
        check_divides(4, mesh, "batch")
    with pytest.raises(ValueError, match=r"batch = 0 .*make it 8$"):
        check_divides(0, mesh, "batch")


@pytest.mark.parametrize(
    ("count", "weights", "working", "heads", "fsdp", "tp", "gathered"),
    [
        (8, 5.0, 32.0, 4, 8, 1, ()),  # 5 + 4 of 14.4: replicated
        (8, 20.0, 32.0, 4, 4, 2, ()),  # 10 + 4: a copy on two chips
        (8, 20.0, 32.0, 1, 8, 1, ("policy",)),  # a single KV head is not split: gathered
        (1, 12.0, 2.0, 4, 1, 1, ()),
        (4, 24.0, 4.0, 8, 2, 2, ()),
        (6, 30.0, 6.0, 4, 6, 1, ("policy",)),  # 15 + 1 on two chips is too much; 3 and 6 do not divide four heads
    ],
)
def test_weights_are_replicated_where_they_fit_then_split_then_gathered(count, weights, working, heads, fsdp, tp,
                                                                        gathered):
    need = {"policy": MemoryNeed(weights, working, heads)}
    plan = plan_mesh(jax.devices()[:count], judge=False, needs=need, memory=16.0)
    assert dict(plan.policy.shape) == {"fsdp": fsdp, "tp": tp} and plan.gathered == gathered
    assert ("gathered" in plan.reasons["policy"]) == bool(gathered)
    assert ("replicated" in plan.reasons["policy"]) == (tp == 1 and not gathered)


def test_what_fits_nowhere_is_an_error():
    with pytest.raises(ValueError, match="the judge needs .* of each of its 4 devices, .* take a smaller model"):
        plan_mesh(jax.devices(), judge=True, needs={**NEEDS, "judge": MemoryNeed(60.0, 4.0, 8)}, memory=16.0)
    with pytest.raises(ValueError, match="the policy needs"):  # both in one memory
        plan_mesh(jax.devices()[:1], judge=True, needs=NEEDS, memory=16.0)

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from tiny_gemma import TOKENS, forward, small_config

from reasonkit.gemma import init
from reasonkit.mesh import check_divides, make_mesh, plan_mesh


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
        assert np.isfinite(forward(init(small_config(), mesh), TOKENS)).all()


def test_jax_make_mesh_would_not_do():
    mesh = jax.make_mesh((4, 2), ("fsdp", "tp"))
    with pytest.raises(Exception, match="(?i)sharding"):
        forward(init(small_config(), mesh), TOKENS)


@pytest.mark.parametrize(("fsdp", "tp"), [(3, 3), (4, 1), (0, 8), (-2, -4)])
def test_a_mesh_that_does_not_divide_names_the_numbers(fsdp, tp):
    with pytest.raises(ValueError, match=rf"fsdp={fsdp} x tp={tp} does not make 8 devices: choose"):
        make_mesh(jax.devices(), fsdp, tp)


def test_without_a_judge_the_policy_has_every_device():
    plan = plan_mesh(jax.devices(), judge=False, tp=2)
    assert dict(plan.policy.shape) == {"fsdp": 4, "tp": 2} and plan.judge is None
    assert set(plan.reasons) == {"policy"} and "no local judge" in plan.reasons["policy"]


def test_with_a_judge_the_halves_are_disjoint():
    plan = plan_mesh(jax.devices(), judge=True, judge_tp=4)
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


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (
            8,
            {"judge": False, "tp": 3},
            "tp=3 does not divide the policy's 8 devices: choose .* 1, 2, 4, 8",
        ),
        (8, {"judge": True, "tp": 8}, "tp=8 does not divide the policy's 4 devices: choose tp from 1, 2, 4"),
        (8, {"judge": True, "judge_tp": 3}, "tp=3 does not divide the judge's 4 devices"),
        (1, {"judge": True, "judge_tp": 2}, "tp=2 does not divide the judge's 1 devices: choose tp from 1"),
        (2, {"judge": False, "tp": 0}, "tp=0 does not divide the policy's 2 devices"),
        (0, {"judge": False}, "no devices"),
    ],
)
def test_a_plan_that_cannot_be_made_names_the_values(count, options, message):
    with pytest.raises(ValueError, match=message):
        plan_mesh(jax.devices()[:count], **options)


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

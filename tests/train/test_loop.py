"""What stands around the training loops: the learning rate that fits the time, room on the disk, steps set aside.

That nothing is lost is shown in test_faults.
"""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fault_run import SFT
from flax import nnx
from tiny_run import CONFIG, ROWS, new_policy, short_tokenizer

from reasonkit.models import checkpoints
from reasonkit.models.mesh import make_mesh
from reasonkit.session.run_log import NullLog
from reasonkit.session.time_budget import TimeBudget
from reasonkit.settings import StageSettings
from reasonkit.train import loop, tunix_compat
from reasonkit.train.sft import sft
from tools.flax import init_random


class Weights(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(jnp.linspace(-1.0, 1.0, 12).reshape(3, 4))


def trainer(steps, micro_batches=1):
    """What `scale_schedule` needs of Tunix's trainer."""
    optimizer = tunix_compat.adamw(StageSettings(steps=steps, learning_rate=0.1, warmup=0.25, weight_decay=0.01))
    if micro_batches > 1:
        optimizer = optax.MultiSteps(optimizer, micro_batches)
    model = Weights()
    return SimpleNamespace(model=model, optimizer=nnx.Optimizer(model, optimizer, wrt=nnx.Param), train_steps=0)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (1, 0.9), (2, 0.9), (20, 0.99)])
def test_any_warm_up_leaves_a_step(steps, warmup):
    """SFT may take fewer steps than were planned."""
    optimizer = tunix_compat.adamw(StageSettings(steps=steps, learning_rate=0.1, warmup=warmup))
    weights = jnp.ones(3)
    update, _ = optimizer.update(weights, optimizer.init(weights), weights)
    assert np.isfinite(update).all() and (np.asarray(update) < 0).all()


def test_without_a_stretch_the_updates_are_those_of_plain_adamw():
    rates = optax.warmup_cosine_decay_schedule(0.1 / 6, 0.1, 5, 20, 0.01)
    plain = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rates, b2=0.99, weight_decay=0.01))
    ours = tunix_compat.adamw(StageSettings(steps=20, learning_rate=0.1, warmup=0.25, weight_decay=0.01))
    weights = jnp.linspace(-1.0, 1.0, 12)
    states = [plain.init(weights), ours.init(weights)]
    for step in range(22):
        gradient = jax.random.normal(jax.random.PRNGKey(step), (12,))
        updates = []
        for number, optimizer in enumerate((plain, ours)):
            update, states[number] = jax.jit(optimizer.update)(gradient, states[number], weights)
            updates.append(np.asarray(update))
        np.testing.assert_array_equal(*updates)
        weights = weights + updates[0]


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_stretched_schedule_runs_through_faster_in_a_compiled_step(micro_batches):
    """At a stretch of 2, step 10 of 20 has the rate of step 20; Tunix calls the step as `cached_partial`."""
    made = trainer(20, micro_batches)
    step = nnx.cached_partial(nnx.jit(lambda model, optimizer: optimizer.update(
        model, nnx.grad(lambda model: model.w.sum() * 1e3)(model))), made.model, made.optimizer)

    def size():
        before = np.asarray(made.model.w[...])
        for _ in range(micro_batches):
            step()
        return float((before - made.model.w[...]).mean())

    tunix_compat.scale_schedule(made, 1.0)
    sizes = [size() for _ in range(10)]
    assert sizes[5] == pytest.approx(0.1, rel=2e-2)
    tunix_compat.scale_schedule(made, 2.0)
    assert size() == pytest.approx(0.01, rel=5e-2)


class Budget:
    """`steps_left` as it is told."""

    grows = False

    def __init__(self, *left):
        self._left = iter(left)

    @property
    def steps_left(self):
        return next(self._left)


@pytest.mark.parametrize(("done", "left", "most", "stretch"), [
    (0, float("inf"), 20, 1.0), (0, 20.0, 20, 1.0), (0, 19.9, 20, 20 / 19), (5, 15.0, 20, 1.0), (5, 5.9, 20, 2.0),
    (5, 0.2, 20, 20 / 6), (20, 0.0, 20, 1.0), (5, 90.0, 20, 1.0),
    (0, float("inf"), 60, 1.0), (5, 90.0, 60, 1 / 3), (5, 25.9, 60, 2 / 3), (5, 10.0, 60, 20 / 15),
    (59, 0.1, 60, 1 / 3),
])
def test_the_schedule_ends_with_the_steps_that_there_is_time_for(done, left, most, stretch, monkeypatch):
    set_to = []
    monkeypatch.setattr(tunix_compat, "scale_schedule", lambda trainer, factor: set_to.append(factor))
    hooks = loop._Steps(NullLog(), "sft_step", 100, 20, Budget(left, left), lambda ctx, step: {}, lambda: None,
                        summed=1, most=most)
    for _ in range(2):
        hooks.on_train_step_start(SimpleNamespace(train_steps=100 + done))
    assert set_to == [pytest.approx(stretch)], "set once, also where a resumed optimiser had another"


@pytest.mark.parametrize(("grows", "set_to"), [(False, []), (True, [1.0])])
def test_a_resumed_optimiser_keeps_its_factor_until_the_pace_is_known(grows, set_to, monkeypatch):
    found, budget = [], Budget(float("inf"))
    budget.grows = grows
    monkeypatch.setattr(tunix_compat, "scale_schedule", lambda trainer, factor: found.append(factor))
    hooks = loop._Steps(NullLog(), "sft_step", 100, 20, budget, lambda ctx, step: {}, lambda: None, summed=1, most=20)
    hooks.on_train_step_start(SimpleNamespace(train_steps=105))
    assert found == set_to


@pytest.mark.parametrize(("left", "stretches"), [((9.0, 9.0, 9.0), [1.0]), ((np.inf, 1.2, 0.4), [1.0, 1.5, 1.0])])
def test_a_stage_tells_its_optimiser_how_many_steps_fit(left, stretches, monkeypatch, tmp_path):
    """Three steps: there is time for all, or it looks at the second as if that were the last."""
    told, set_to, stretch = iter(left), [], tunix_compat.scale_schedule

    def noted(trainer, factor):
        set_to.append(factor)
        stretch(trainer, factor)

    monkeypatch.setattr(tunix_compat, "scale_schedule", noted)
    monkeypatch.setattr(TimeBudget, "steps_left", property(lambda budget: next(told)))
    mesh = make_mesh(jax.devices()[:1], 1, 1)
    policy = new_policy(init_random(CONFIG, mesh), mesh, short_tokenizer(tmp_path))
    sft(policy, mesh, ROWS, SFT, TimeBudget(1, 0), NullLog(), tmp_path / "checkpoints", seed=0)
    assert set_to == stretches


def room(monkeypatch, tmp_path, free):
    """A disk with `free` bytes and ten more for each step that goes."""
    actor = tmp_path / "actor"
    for step in (1, 2, 10):
        (actor / str(step)).mkdir(parents=True)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: SimpleNamespace(
        free=free + 10 * (3 - len(list(actor.iterdir())))))
    checkpoints.make_room(tmp_path, 25, lambda step: (actor / str(step)).rmdir())
    return sorted(int(path.name) for path in actor.iterdir())


@pytest.mark.parametrize(("free", "left"), [(25, [1, 2, 10]), (15, [2, 10]), (5, [10])])
def test_old_steps_make_room(free, left, monkeypatch, tmp_path):
    assert room(monkeypatch, tmp_path, free) == left


def test_no_room_is_named_and_the_last_step_stays(monkeypatch, tmp_path):
    with pytest.raises(checkpoints.DiskFullError, match="a checkpoint needs 0 MB in .*: step 10 is kept"):
        room(monkeypatch, tmp_path, 4)
    assert (tmp_path / "actor/10").is_dir()


def test_what_was_set_aside_makes_room_first(monkeypatch, tmp_path):
    (tmp_path / "set_aside" / "3-damaged").mkdir(parents=True)
    assert room(monkeypatch, tmp_path, 15) == [2, 10] and not (tmp_path / "set_aside").exists()


def test_diverged_steps_are_set_aside_while_an_older_one_is_left(tmp_path):
    for step in (4, 5, 6):
        (tmp_path / "actor" / str(step)).mkdir(parents=True)
    assert checkpoints.quarantine_diverged(tmp_path, 5) == "Step 4 is the last good one"
    assert [path.name for path in (tmp_path / "actor").iterdir()] == ["4"]
    assert sorted(path.name for path in (tmp_path / "set_aside").iterdir()) == ["5-diverged", "6-diverged"]
    assert checkpoints.quarantine_diverged(tmp_path, 4) == "No step before it was saved"
    assert (tmp_path / "actor/4").is_dir()

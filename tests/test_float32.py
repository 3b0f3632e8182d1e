"""Float32 adapters on bfloat16 bases, through the stages: small learning rates move every weight, and stay moved."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_gemma import equal
from tiny_run import CONFIG, ROWS, StopAfter, new_policy, short_tokenizer
from tunix.sft.peft_trainer import PeftTrainer

from reasonkit.models.checkpoints import restore_lora, save_lora
from reasonkit.models.lora import reference, round_to_compute_dtype
from reasonkit.models.mesh import make_mesh
from reasonkit.session.run_log import NullLog
from reasonkit.session.time_budget import TimeBudget
from reasonkit.settings import GrpoSettings, SftSettings
from reasonkit.train.grpo import grpo
from reasonkit.train.sft import sft
from tools.flax import init_random

pytestmark = pytest.mark.usefixtures("compiled")

SFT = SftSettings(steps=8, batch_size=8, max_length=48, learning_rate=2e-5, save_every=3)
GRPO = GrpoSettings(steps=4, prompts_per_step=8, num_generations=2, max_prompt_length=32, max_new_tokens=16,
                    learning_rate=7e-6, micro_prompts=4)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(jax.devices()[:4], 4, 1)


@pytest.fixture(scope="module")
def base(mesh):
    return init_random(replace(CONFIG, param_dtype=jnp.bfloat16), mesh)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return short_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def adapter(model):
    return nnx.state(model, nnx.LoRAParam)


def ends(state, end):
    """All of the A's or B's, in one row."""
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for path, leaf in jax.tree.leaves_with_path(state)
                           if f"_lora_{end}" in jax.tree_util.keystr(path)])


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


class Watch:
    """The dtypes of all that the trainers of a stage work with."""

    def __init__(self, patch):
        self.dtypes, watch, step, make = set(), self, PeftTrainer._train_step, PeftTrainer.__init__

        def watched_step(trainer, model, optimizer, inputs):
            update = optimizer.update

            def watched_update(model, grads):
                watch.note("gradient", grads)
                update(model, grads)

            object.__setattr__(optimizer, "update", watched_update)
            try:
                return step(trainer, model, optimizer, inputs)
            finally:
                object.__delattr__(optimizer, "update")

        def watched_make(trainer, *args, **options):
            make(trainer, *args, **options)
            watch.trainer, watch.done = trainer, trainer.train_steps
            watch.begun = jax.tree.map(jnp.copy, adapter(trainer.model))
            watch.note("optimiser", nnx.state(trainer.optimizer, nnx.optimizer.OptState))

        patch.setattr(PeftTrainer, "_train_step", watched_step)
        patch.setattr(PeftTrainer, "__init__", watched_make)

    def note(self, what, tree):
        self.dtypes |= {(what, leaf.dtype.name) for leaf in jax.tree.leaves(tree) if leaf.ndim > 1}


def trained(base, mesh, tokenizer, folder, settings=SFT):
    """A policy after SFT, with its adapter as it began and the trainer's last state."""
    policy = new_policy(base, mesh, tokenizer)
    begun = jax.tree.map(jnp.copy, adapter(policy.model))
    with pytest.MonkeyPatch.context() as patch:
        watch = Watch(patch)
        result = sft(policy, mesh, ROWS, settings, TimeBudget(1, 0), NullLog(), folder, seed=3)
    return SimpleNamespace(policy=policy, begun=begun, watch=watch, folder=folder, step=result.checkpoint_step)


@pytest.fixture(scope="module")
def after_sft(base, mesh, tokenizer, tmp_path_factory):
    return trained(base, mesh, tokenizer, tmp_path_factory.mktemp("sft"))


def changed(before, after, end):
    return np.mean(ends(before, end) != ends(after, end))


def test_sft_at_a_small_learning_rate_moves_every_weight(after_sft):
    for end in "ab":
        assert changed(after_sft.begun, adapter(after_sft.policy.model), end) > 0.99, end
    assert after_sft.watch.dtypes == {("gradient", "float32"), ("optimiser", "float32")}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(adapter(after_sft.policy.model))} == {"float32"}


def test_b_goes_where_it_goes_on_a_float32_base(after_sft, base, mesh, tokenizer, tmp_path):
    """The same weights, widened, and the same A: the adapter is drawn in float32 on either base."""
    wide = init_random(CONFIG, mesh)
    nnx.update(wide, jax.tree.map(lambda x: x.astype(jnp.float32), nnx.state(base)))
    there = trained(wide, mesh, tokenizer, tmp_path)
    assert equal(there.begun, after_sft.begun)
    ours, theirs = (ends(adapter(run.policy.model), "b") for run in (after_sft, there))
    assert cosine(ours, theirs) > 0.99
    assert np.linalg.norm(ours) == pytest.approx(np.linalg.norm(theirs), rel=0.01)


def test_grpo_at_a_small_learning_rate_moves_every_weight(after_sft, base, mesh, tokenizer, tmp_path):
    """From the hand-over, with gradients summed over two passes; the reference stays where it was."""
    policy, folder = new_policy(base, mesh, tokenizer, seed=9), tmp_path / "checkpoints"
    restore_lora(policy.model, after_sft.folder, after_sft.step)
    begun, anchor = jax.tree.map(jnp.copy, adapter(policy.model)), reference(policy.model)
    assert equal(begun, adapter(after_sft.policy.model))
    save_lora(policy.model, folder, after_sft.step)

    def length(prompts, completions, **columns):
        return [len(text) / 10 for text in completions]

    with pytest.MonkeyPatch.context() as patch:
        watch = Watch(patch)
        result = grpo(policy, mesh, ROWS, length, GRPO, TimeBudget(1, 0), NullLog(), folder, seed=0,
                      start_step=after_sft.step)
    assert result.steps == GRPO.steps
    for end in "ab":
        assert changed(begun, adapter(policy.model), end) > 0.99, end
    assert watch.dtypes == {("gradient", "float32"), ("optimiser", "float32")}
    kept = jax.tree.leaves_with_path(nnx.state(watch.trainer.optimizer, nnx.optimizer.OptState))
    assert any("acc_grads" in jax.tree_util.keystr(path) for path, _ in kept), "no sum over the passes was looked at"
    assert equal(adapter(anchor), begun)
    assert {leaf.dtype.name for leaf in jax.tree.leaves((adapter(anchor), adapter(policy.model)))} == {"float32"}


def test_a_stopped_run_goes_on_bit_for_bit(after_sft, base, mesh, tokenizer, tmp_path):
    policy, clock = new_policy(base, mesh, tokenizer), StopAfter(3)
    sft(policy, mesh, ROWS, SFT, clock.budget, NullLog(), tmp_path, seed=3, on_step=clock.on_step)
    again = trained(base, mesh, tokenizer, tmp_path)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8), adapter(again.policy.model),
                 adapter(after_sft.policy.model))
    assert again.watch.dtypes == after_sft.watch.dtypes


@pytest.mark.filterwarnings("ignore:scatter inputs have incompatible types")  # a bfloat16 run's own schedule
def test_an_older_run_in_bfloat16_is_taken_up_in_float32(base, mesh, tokenizer, tmp_path):
    """Its adapter and optimiser are widened, which is exact, and what follows is float32."""
    older, settings, clock = new_policy(base, mesh, tokenizer), replace(SFT, learning_rate=2e-3), StopAfter(3)
    nnx.update(older.model, round_to_compute_dtype(adapter(older.model), jnp.bfloat16))
    sft(older, mesh, ROWS, settings, clock.budget, NullLog(), tmp_path, seed=3, on_step=clock.on_step)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(adapter(older.model))} == {"bfloat16"}
    again = trained(base, mesh, tokenizer, tmp_path, replace(settings, steps=9))
    assert again.watch.dtypes == {("gradient", "float32"), ("optimiser", "float32")}
    assert again.watch.done > 0, "it began anew"
    assert equal(again.watch.begun, adapter(older.model))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(again.watch.begun)} == {"float32"}

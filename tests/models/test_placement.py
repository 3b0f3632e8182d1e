"""What a profile's models need by estimate, and the meshes that follow."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx
from tiny_gemma import bump

from reasonkit.config import PROFILES, adapt_to_recipe
from reasonkit.models import placement
from reasonkit.models.checkpoints import save_lora
from reasonkit.models.placement import (
    CHIPS,
    config_of,
    memory_of,
    needs,
    parameters,
    plan,
    plan_distillation,
    plan_teacher,
)
from reasonkit.session.setup import find_recipe
from tools.preflight.abstract import abstract_model


@pytest.mark.parametrize("name", ["gemma2-2b-it", "gemma3-1b-it", "gemma3-12b-it"])
def test_the_estimate_counts_a_models_parameters(name):
    """Within 1 % of the model as Tunix makes it."""
    config = config_of(name)
    model = abstract_model(config, plan(PROFILES["cpu"], jax.devices(), False).policy)
    leaves = jax.tree.leaves(nnx.state(model))
    assert sum(parameters(config)) == pytest.approx(sum(leaf.size for leaf in leaves), rel=0.01)


def test_logits_in_chunks_make_room_for_more_rows(monkeypatch):
    """Twice the prompts in a pass leave the weights of the 2B on each chip. With Tunix's own loss they do not fit."""
    monkeypatch.setattr(placement, "memory_of", lambda device: CHIPS["v5e"].memory)
    profile = replace(PROFILES["kaggle"], grpo=replace(PROFILES["kaggle"].grpo, micro_prompts=8))
    assert dict(plan(profile, jax.devices(), True).policy.shape) == {"fsdp": 4, "tp": 1}
    with pytest.raises(ValueError, match="the policy needs .* fewer rows"):
        plan(replace(profile, grpo=replace(profile.grpo, stock_loss=True)), jax.devices(), True)


def test_the_teachers_feed_forward_is_half_of_tunixs():
    """9.24 B parameters, as Google says. Tunix's Gemma 2 9B has twice its feed-forward."""
    assert sum(parameters(config_of("gemma2-9b-it"))) == pytest.approx(9.24e9, rel=0.01)


def test_the_cache_of_a_teacher_that_answers_is_counted():
    """By formula: 42 layers of 8 heads of 256 numbers in bfloat16, keys and values, for each of 8 x 1,024 tokens."""
    profile, policy, teacher = PROFILES["kaggle"], config_of("gemma2-2b-it"), config_of("gemma2-9b-it")
    cache = 8 * 1024 * 42 * 8 * 256 * 2 * 2
    short = needs(replace(profile, judge_max_length=256), policy, teacher, sft=False)["judge"].working
    assert cache < short < 1.2 * cache
    assert needs(profile, policy, teacher, sft=False)["judge"].working >= short


def test_the_sizes_of_the_kaggle_profile():
    profile = PROFILES["kaggle"]
    policy, judge = config_of(profile.policy, profile.remat), config_of(profile.judge)
    found = needs(profile, policy, judge, sft=False)
    assert found["judge"].weights == pytest.approx(23.5e9, rel=0.01)
    halved = needs(replace(profile, judge_int8=True), policy, judge, sft=False)["judge"].weights
    assert halved == pytest.approx(12.8e9, rel=0.01)  # as `models.quantize_int8` has it
    assert set(needs(profile, policy, None, sft=True)) == {"policy"}
    few = replace(profile, eval_batch=8)
    without = needs(few, config_of(profile.policy, False), None, sft=True)["policy"].working
    assert without > 3 * needs(few, policy, None, sft=True)["policy"].working  # what remat is for


@pytest.mark.parametrize("sft", [True, False])
def test_an_evaluation_is_counted(sft):
    """By formula: 26 layers of 4 heads of 256 numbers in bfloat16, keys and values, for each of 512 x 1,024 tokens."""
    profile, policy = replace(PROFILES["kaggle"], eval_batch=512), config_of("gemma2-2b-it", True)
    cache = 512 * 1024 * 26 * 4 * 256 * 2 * 2
    assert cache < needs(profile, policy, None, sft)["policy"].working < 1.3 * cache


def test_grpo_without_a_judge_is_not_planned_as_sft(monkeypatch):
    """Colab's chip has no room for the 2B's GRPO, and was said to have."""
    monkeypatch.setattr(placement, "memory_of", lambda device: CHIPS["v5e"].memory)
    profile = replace(PROFILES["colab"], policy="gemma2-2b-it")
    assert "about 15.1 of 16.9 GB" in plan(profile, jax.devices()[:1], judge=False).reasons["policy"]
    with pytest.raises(ValueError, match="the policy needs 15.4 GB .* fewer rows .in SETTINGS: eval_batch, sft_batch"):
        plan(profile, jax.devices()[:1], judge=False, grpo=True)


@pytest.mark.parametrize(
    ("chip", "count", "policy", "judge", "expected"),
    [
        ("v5e", 8, "gemma2-2b-it", "gemma3-12b-it", ((4, 1), (2, 2))),
        ("v5e", 8, "gemma3-1b-it", None, ((8, 1), None)),
        ("v5e", 1, "gemma3-1b-it", None, ((1, 1), None)),
        ("v6e", 1, "gemma2-2b-it", "gemma3-1b-it", ((1, 1), (1, 1))),
        ("v6e", 4, "gemma2-2b-it", "gemma3-12b-it", ((2, 1), (2, 1))),
        ("v4", 4, "gemma3-4b-it", None, ((4, 1), None)),
        ("v5p", 4, "gemma2-2b-it", "gemma3-12b-it", ((2, 1), (2, 1))),
    ],
)
def test_the_meshes_of_a_machine(monkeypatch, chip, count, policy, judge, expected):
    """By (fsdp, tp), of policy and judge, with the sizes of Kaggle's profile on eight chips and of Colab's on fewer."""
    monkeypatch.setattr(placement, "memory_of", lambda device: CHIPS[chip].memory)
    profile = replace(PROFILES["kaggle" if count == 8 else "colab"], policy=policy, judge=judge or "")
    made = plan(profile, jax.devices()[:count], judge is not None, grpo=True)
    found = tuple(mesh and tuple(mesh.shape.values()) for mesh in (made.policy, made.judge))
    assert found == expected and made.gathered == ()
    used = {device for mesh in (made.policy, made.judge) if mesh for device in mesh.devices.flat}
    assert used == set(jax.devices()[:count]), "chips are idle"


@pytest.mark.parametrize(("sft", "arrays"), [(True, 5), (False, 7)])
def test_what_an_adapter_takes(sft, arrays):
    """Adapter, gradients and two moments of 4 bytes per weight, the copy in bfloat16 and its gradients of 2 each; in
    GRPO the reference's adapter and the gradients' sum besides."""
    profile, found = PROFILES["kaggle"], {}
    config = config_of(profile.policy)
    config = replace(config, num_layers=2, attention_types=config.attention_types[:2])  # all are alike
    for rank in (32, 64):
        found[rank] = needs(replace(profile, lora_rank=rank), config, None, sft)["policy"].weights
    mesh = plan(PROFILES["cpu"], jax.devices(), False).policy
    adapter = jax.tree.leaves(nnx.state(abstract_model(config, mesh, lora_rank=32), nnx.LoRAParam))
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in adapter)
    assert found[64] - found[32] == pytest.approx(arrays * held, rel=0.06)


@pytest.mark.parametrize(("profile", "chips", "teacher", "judge", "expected"), [
    ("kaggle", 8, "gemma3-12b-it", True, (64, (1, 4))),  # as a policy with GRPO's rows it needs 36 GB of each of its 4
    ("kaggle", 8, "gemma3-12b-it", False, (128, (2, 4))), ("kaggle", 1, "gemma3-4b-it", False, (32, (1, 1))),
    ("colab", 1, "gemma3-4b-it", True, (16, (1, 1)))])
def test_a_teacher_trains_nothing_and_answers_as_many_questions_as_fit(monkeypatch, profile, chips, teacher, judge,
                                                                       expected):
    monkeypatch.setattr(placement, "memory_of", lambda device: CHIPS["v5e"].memory)
    made, rows, length = plan_teacher(replace(PROFILES[profile], policy=teacher), jax.devices()[:chips], judge)
    assert length == PROFILES[profile].grpo.max_prompt_length + 128
    assert (rows, tuple(made.policy.shape.values())) == expected and not made.gathered and bool(made.judge) is judge


def test_a_teacher_that_does_not_fit_is_named(monkeypatch):
    monkeypatch.setattr(placement, "memory_of", lambda device: CHIPS["v5e"].memory)
    with pytest.raises(ValueError, match="gemma3-12b-it, which writes in the policy's place: the policy needs 3"):
        plan_teacher(replace(PROFILES["kaggle"], policy="gemma3-12b-it"), jax.devices()[:1], False)


def test_a_judge_that_does_not_fit_beside_the_policy_is_named(monkeypatch):
    monkeypatch.setattr(placement, "memory_of", lambda device: CHIPS["v5e"].memory)
    profile = replace(PROFILES["colab"], judge="gemma3-12b-it")
    with pytest.raises(ValueError, match="needs .* take a smaller model or fewer rows"):
        plan(profile, jax.devices()[:1], judge=True)
    assert plan(replace(profile, judge="gemma3-1b-it"), jax.devices()[:1], judge=True).judge.size == 1


@pytest.mark.parametrize("count", range(1, 9))
def test_any_number_of_devices_is_used_or_named(count):
    made = plan(PROFILES["cpu"], jax.devices()[:count], judge=True)
    used = {device for mesh in (made.policy, made.judge) for device in mesh.devices.flat}
    idle = set(jax.devices()[:count]) - used
    assert ("idle" in made.reasons) == bool(idle)
    assert all(f"device {device.id} is idle" in made.reasons["idle"] for device in idle)


def test_the_memory_of_a_device():
    assert memory_of(jax.devices()[0]) == float("inf")
    assert memory_of(SimpleNamespace(platform="tpu", device_kind="TPU v6 lite")) == CHIPS["v6e"].memory
    gpu = SimpleNamespace(platform="gpu", device_kind="NVIDIA L4", memory_stats=lambda: {"bytes_limit": 17e9})
    assert memory_of(gpu) == 17e9


@pytest.mark.parametrize(("name", "count"), [("kaggle", 1), ("colab", 1), ("gpu", 8), ("gpu-gemma3-270m", 1)])
def test_an_accelerators_profile_does_not_train_on_a_cpu(name, count):
    told = rf"profile '{name}' is for an accelerator, and JAX sees {count} CPU devices?: choose one .*PROFILE = \"cpu\""
    with pytest.raises(RuntimeError, match=told):
        plan(PROFILES[name], jax.devices()[:count], judge=False)


def test_a_policy_begins_afresh_or_with_an_adapter(tmp_path, capsys):
    made = plan(PROFILES["smoke"], jax.devices(), False)
    policy, step = placement.load_policy(PROFILES["smoke"], made, 3)
    assert step == 0 and "tiny-policy with a fresh adapter of rank 16, alpha 32" in capsys.readouterr().out
    bump(policy.model, 0.5)
    save_lora(policy.model, tmp_path, 7)
    again, step = placement.load_policy(PROFILES["smoke"], made, 4, tmp_path)
    assert step == 7 and "the adapter that ended at step 7" in capsys.readouterr().out
    for one, two in zip(*(jax.tree.leaves(nnx.state(found.model, nnx.LoRAParam)) for found in (policy, again)),
                        strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_student_is_planned_by_its_own_rows(monkeypatch):
    """It was split over two chips for GRPO's 256 rows, which it never samples."""
    monkeypatch.setattr(placement, "memory_of", lambda device: CHIPS["v5e"].memory)
    profile = adapt_to_recipe(PROFILES["kaggle"], find_recipe("on_policy_distillation"))
    made = plan_distillation(profile, jax.devices())
    assert made.judge.size == 4 and tuple(made.policy.shape.values()) == (4, 1) and not made.gathered
    more = replace(profile, distill=replace(profile.distill, batch_size=512))
    with pytest.raises(ValueError, match="the policy needs .* distill_batch_size"):
        plan_distillation(more, jax.devices())

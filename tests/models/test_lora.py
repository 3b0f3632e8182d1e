from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import qwix
from flax import nnx
from jax.sharding import NamedSharding
from tiny_gemma import TOKENS, bump, constrain, equal, forward, small_config
from tunix.rl.utils import is_sharing_backbone
from tunix.sft.checkpoint_manager import CheckpointManager
from tunix.sft.utils import build_positions_from_mask, make_causal_attn_mask
from tunix.utils import sharding_utils

from reasonkit.models.checkpoints import restore_lora, save_lora
from reasonkit.models.lora import (
    LORA_MODULES,
    add_lora,
    fingerprint,
    lora_signature,
    reference,
    round_to_compute_dtype,
)
from reasonkit.models.mesh import make_mesh
from tools.flax import init_random


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(jax.devices(), 8, 1)


@pytest.fixture(scope="module")
def base(mesh):
    return init_random(small_config(), mesh)


@pytest.fixture
def adapted(base, mesh):
    return add_lora(base, mesh, 4, 8.0)


def lora(model):
    return nnx.state(model, nnx.LoRAParam)


def test_an_adapter_starts_without_effect_and_reaches_every_matrix(base, adapted):
    np.testing.assert_array_equal(forward(base, TOKENS), forward(adapted, TOKENS))
    matrices = sum(leaf.ndim > 1 for leaf in jax.tree.leaves(nnx.state(base))) - 1  # all but the embedding
    assert len(jax.tree.leaves(lora(adapted))) == 2 * matrices
    bump(adapted)
    assert np.abs(forward(base, TOKENS) - forward(adapted, TOKENS)).max() > 1e-3


def test_the_base_is_shared_and_only_the_adapter_is_placed(base, adapted, mesh):
    assert is_sharing_backbone(base, adapted)
    for leaf in jax.tree.leaves(lora(adapted)):
        assert isinstance(leaf.sharding, NamedSharding) and leaf.sharding.mesh == mesh


def test_replacing_the_whole_state_would_copy_the_base(adapted, mesh):
    """What Tunix's notebooks do after adding an adapter, and what GRPO checks."""
    copied = nnx.clone(adapted)
    state = nnx.state(copied)
    with mesh:
        place = jax.jit(lambda s: jax.lax.with_sharding_constraint(s, nnx.get_partition_spec(s)))
        nnx.update(copied, place(state))
    assert not is_sharing_backbone(adapted, copied)


def test_adapters_are_a_function_of_the_seed(base, mesh):
    one, same, other = (lora(add_lora(base, mesh, 4, 8.0, seed)) for seed in (1, 1, 2))
    assert equal(one, same) and not equal(one, other)


def test_an_adapter_is_added_outside_the_mesh(base, mesh, monkeypatch):
    monkeypatch.setattr(sharding_utils, "shard", constrain)
    provider = qwix.LoraProvider(module_path=LORA_MODULES, rank=4, alpha=8.0)
    with mesh:
        with pytest.raises(ValueError, match="evenly divide"):  # two rows do not split over eight chips
            qwix.apply_lora_to_model(base, provider, rngs=nnx.Rngs(0), **base.get_model_input())
        with pytest.raises(RuntimeError, match="add_lora was called inside `with mesh:`: call it before"):
            add_lora(base, mesh, 4, 8.0)
    add_lora(base, mesh, 4, 8.0)


def test_one_adapter_and_a_positive_rank(base, adapted, mesh):
    with pytest.raises(ValueError, match="already has a LoRA"):
        add_lora(adapted, mesh, 4, 8.0)
    with pytest.raises(ValueError, match="rank=0 makes no adapter"):
        add_lora(base, mesh, 0, 8.0)


def test_signatures_tell_adapters_apart(base, adapted, mesh):
    signature = lora_signature(adapted)
    assert (signature["rank"], signature["alpha"]) == (4, 8.0)
    bump(adapted)
    assert lora_signature(adapted) == signature == lora_signature(reference(adapted))
    assert lora_signature(add_lora(base, mesh, 4, 9.0)) != signature
    assert lora_signature(add_lora(base, mesh, 2, 8.0)) == {"rank": 2, "alpha": 8.0}
    with pytest.raises(ValueError, match="add one with add_lora"):
        lora_signature(base)


def test_a_reference_stays_while_the_model_moves(base, adapted):
    bump(adapted)
    frozen = reference(adapted)
    before = np.asarray(forward(adapted, TOKENS))
    assert is_sharing_backbone(frozen, adapted)
    for ours, theirs in zip(jax.tree.leaves(lora(frozen)), jax.tree.leaves(lora(adapted)), strict=True):
        assert ours.sharding.is_equivalent_to(theirs.sharding, ours.ndim)
    bump(adapted)
    np.testing.assert_array_equal(forward(frozen, TOKENS), before)
    assert not np.array_equal(forward(adapted, TOKENS), before)
    with pytest.raises(ValueError, match="no LoRA"):
        reference(base)


def judges_load(model, ckpt_dir):
    """The loading path of the judges' template, step by step."""
    actor = os.path.join(ckpt_dir, "actor")
    latest = max(int(name) for name in os.listdir(actor) if name.isdigit())
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), lora(model))
    restored = ocp.StandardCheckpointer().restore(os.path.join(actor, str(latest), "model_params"), abstract)
    nnx.update(model, jax.tree.map(lambda _, new: new, lora(model), restored))
    return latest


def test_the_judges_read_what_is_saved(base, adapted, mesh, tmp_path):
    save_lora(adapted, tmp_path, 9)
    bump(adapted)
    assert save_lora(adapted, tmp_path, 10) == tmp_path / "actor" / "10"
    theirs, ours = (add_lora(base, mesh, 4, 8.0, seed=5) for _ in range(2))
    assert judges_load(theirs, tmp_path) == restore_lora(ours, tmp_path) == 10
    assert equal(lora(theirs), lora(adapted)) and equal(lora(ours), lora(adapted))
    assert is_sharing_backbone(ours, base)


def test_an_earlier_step_can_be_asked_for_and_a_step_saved_anew(base, adapted, mesh, tmp_path):
    first = jax.tree.map(np.asarray, lora(adapted))
    save_lora(adapted, tmp_path, 1)
    bump(adapted)
    save_lora(adapted, tmp_path, 2)
    assert restore_lora(adapted, tmp_path, 1) == 1 and equal(lora(adapted), first)
    save_lora(adapted, tmp_path, 2)
    bump(adapted)
    assert restore_lora(adapted, tmp_path) == 2 and equal(lora(adapted), first)


def test_what_tunix_saves_is_read_too(base, adapted, mesh, tmp_path):
    bump(adapted)
    manager = CheckpointManager(str(tmp_path / "actor"), ocp.CheckpointManagerOptions(save_interval_steps=1))
    manager.save(7, adapted, save_only_lora_params=True, force=True)
    manager.close()
    fresh = add_lora(base, mesh, 4, 8.0)
    assert restore_lora(fresh, tmp_path) == 7 and equal(lora(fresh), lora(adapted))


def test_relative_folders_work(adapted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_lora(adapted, "checkpoints", 3)
    assert restore_lora(adapted, "checkpoints") == 3
    assert (tmp_path / "checkpoints/actor/3/model_params").is_dir()


def test_a_save_that_dies_leaves_no_step_behind(adapted, tmp_path, monkeypatch):
    save_lora(adapted, tmp_path, 1)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(ocp.StandardCheckpointer, "wait_until_finished", lambda self: 1 / 0)
        save_lora(adapted, tmp_path, 2)
    assert restore_lora(adapted, tmp_path) == 1


def test_an_earlier_step_never_hides_behind_a_leftover(adapted, tmp_path):
    save_lora(adapted, tmp_path, 20)
    with pytest.raises(ValueError, match=r"step 5 cannot be saved in .*which has \[20\]: go on counting"):
        save_lora(adapted, tmp_path, 5)
    with pytest.raises(ValueError, match="step -1"):
        save_lora(adapted, tmp_path / "other", -1)


def test_what_cannot_be_restored_is_named(base, adapted, mesh, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has the steps \[\]: train first"):
        restore_lora(adapted, tmp_path)
    save_lora(adapted, tmp_path, 4)
    with pytest.raises(FileNotFoundError, match=r"3/model_params is not there; .* has the steps \[4\]"):
        restore_lora(adapted, tmp_path, 3)
    with pytest.raises(ValueError, match="holds an adapter of another shape than {'rank': 2"):
        restore_lora(add_lora(base, mesh, 2, 8.0), tmp_path)
    for call in (save_lora, restore_lora):
        with pytest.raises(ValueError, match="no LoRA"):
            call(base, tmp_path, 4)


@pytest.fixture(scope="module")
def half(mesh):
    """A base in bfloat16."""
    return init_random(small_config(param_dtype=jnp.bfloat16), mesh)


@pytest.fixture
def moved(half, mesh):
    """Its adapter after an update that bfloat16 cannot hold."""
    return move(add_lora(half, mesh, 4, 8.0))


def move(model):
    keys = iter(jax.random.split(jax.random.key(1), 999))
    nnx.update(model, jax.tree.map(lambda x: x + 0.2 * jax.random.normal(next(keys), x.shape), lora(model)))
    return model


def judges_model(base):
    """As the template makes it: qwix's own adapter, of the base's dtype."""
    provider = qwix.LoraProvider(module_path=LORA_MODULES, rank=4, alpha=8.0)
    return qwix.apply_lora_to_model(base, provider, rngs=nnx.Rngs(0), **base.get_model_input())


def dtypes(state):
    return {leaf.dtype.name for leaf in jax.tree.leaves(state)}


def test_an_adapter_is_float32_on_any_base_and_the_same_by_its_seed(base, half, mesh):
    assert dtypes(lora(judges_model(half))) == {"bfloat16"}, "qwix's own is float32: the provider is no longer needed"
    ours, theirs = lora(add_lora(half, mesh, 4, 8.0, 3)), lora(add_lora(base, mesh, 4, 8.0, 3))
    assert dtypes(ours) == {"float32"} and equal(ours, theirs)
    assert dtypes(nnx.state(half)) == {"bfloat16"}


def products(jaxpr):
    """The dtypes that go into and come out of every matrix product, also of those inside."""
    found = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            found |= {var.aval.dtype.name for var in (*equation.invars, *equation.outvars)}
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                found |= products(getattr(inner, "jaxpr", inner))
    return found


def test_the_forward_pass_stays_in_the_bases_dtype(half, moved):
    """No product in float32, forwards or backwards: one adapter's would make all behind it float32, and the logits."""
    assert forward(moved, TOKENS).dtype == forward(half, TOKENS).dtype == jnp.bfloat16

    def loss(trained, rest):
        model, mask_BT = nnx.merge(graph, trained, rest), TOKENS != 0
        logits_BTV, _ = model(TOKENS, build_positions_from_mask(mask_BT), None, make_causal_attn_mask(mask_BT))
        return logits_BTV.astype(jnp.float32).std()

    graph, trained, rest = nnx.split(moved, nnx.LoRAParam, ...)
    assert products(jax.make_jaxpr(jax.grad(loss))(trained, rest).jaxpr) == {"bfloat16"}
    gradients = jax.jit(jax.grad(loss))(trained, rest)
    assert dtypes(gradients) == {"float32"} and all(np.any(leaf) for leaf in jax.tree.leaves(gradients))
    assert dtypes(lora(moved)) == {"float32"}, "the forward pass rounded what is trained"


def test_what_the_judges_restore_onto_bfloat16_answers_alike(half, moved, mesh, tmp_path):
    """Bit for bit: orbax rounds what it restores as our forward pass rounds what it computes with."""
    leaf = next(iter(jax.tree.leaves(lora(moved))))
    ties = (np.arange(leaf.size, dtype=np.uint32) << 16 | 0x3F808000).view(np.float32).reshape(leaf.shape) % 2
    first = jax.tree.map(lambda x: jnp.asarray(ties) if x is leaf else x, lora(moved))
    nnx.update(moved, jax.device_put(first, jax.tree.map(lambda x: x.sharding, lora(moved))))
    save_lora(moved, tmp_path, 1)
    theirs, ours = judges_model(half), add_lora(half, mesh, 4, 8.0, seed=5)
    assert judges_load(theirs, tmp_path) == restore_lora(ours, tmp_path) == 1
    assert dtypes(lora(theirs)) == {"bfloat16"}
    assert equal(lora(theirs), round_to_compute_dtype(lora(moved), jnp.bfloat16))
    assert dtypes(lora(ours)) == {"float32"} and equal(lora(ours), lora(moved))
    assert not equal(lora(ours), lora(theirs))
    np.testing.assert_array_equal(forward(theirs, TOKENS), forward(moved, TOKENS))
    assert fingerprint(theirs) == fingerprint(ours) == fingerprint(moved)
    bump(ours, 0.01)
    assert fingerprint(ours) != fingerprint(moved)


def test_rounding_is_to_nearest_even():
    found = round_to_compute_dtype(jnp.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, -1.01, 1e-40, 3.4e38]), jnp.bfloat16)
    wanted = np.array([1.0, 1.0, 1 + 2**-6, -1.01, 1e-40, 3.4e38], np.float32).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(found, wanted)
    assert round_to_compute_dtype(jnp.float32(0.1), jnp.float32) == np.float32(0.1)


def test_a_checkpoint_in_bfloat16_is_widened(half, mesh, tmp_path):
    """Such as an earlier run's, whose adapter had the base's dtype."""
    older = move(judges_model(half))
    nnx.update(older, round_to_compute_dtype(lora(older), jnp.bfloat16))
    assert dtypes(lora(older)) == {"bfloat16"}
    save_lora(older, tmp_path, 4)
    ours = add_lora(half, mesh, 4, 8.0)
    assert restore_lora(ours, tmp_path) == 4
    assert dtypes(lora(ours)) == {"float32"} and equal(lora(ours), lora(older))
    np.testing.assert_array_equal(forward(ours, TOKENS), forward(older, TOKENS))


def test_a_reference_of_a_bfloat16_base_is_float32_and_shares_it(half, moved):
    frozen = reference(moved)
    assert dtypes(lora(frozen)) == {"float32"} and equal(lora(frozen), lora(moved))
    assert is_sharing_backbone(frozen, half)

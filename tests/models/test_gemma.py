from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_gemma import TOKENS, bump, equal, forward, from_hf, gemma2_config, gemma2_hf, save_kaggle_flax, small_config
from tunix.models.gemma import model as gemma2
from tunix.models.gemma3 import model as gemma3
from tunix.sft.utils import build_positions_from_mask, make_causal_attn_mask

from reasonkit.models.gemma import download_again, flax_checkpoint, from_flax
from reasonkit.models.lora import add_lora
from reasonkit.models.mesh import make_mesh
from tools.flax import init_random, tiny_config


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(jax.devices(), 8, 1)


def specs(model):
    return {axis for leaf in jax.tree.leaves(nnx.state(model)) for axis in leaf.sharding.spec}


def test_a_fresh_models_feed_forward_trains(mesh):
    """Tunix's own initialisation leaves these kernels at zero, where no gradient gets through."""
    assert not np.any(gemma3.Gemma3(small_config(), rngs=nnx.Rngs(0)).layers[0].mlp.down_proj.kernel[...])
    model = init_random(small_config(), mesh)
    gradients = nnx.to_pure_dict(nnx.grad(lambda m: forward(m, TOKENS).std())(model))
    for layer in gradients["layers"].values():
        for part in layer["mlp"].values():
            assert np.abs(part["kernel"]).max() > 0


def test_fresh_models_are_a_function_of_the_seed(mesh):
    one, same, other = (nnx.state(init_random(small_config(), mesh, seed)) for seed in (1, 1, 2))
    assert equal(one, same) and not equal(one, other)


def test_the_tiny_model_is_tiny(mesh):
    sizes = [leaf.size for leaf in jax.tree.leaves(nnx.state(init_random(tiny_config(512), mesh)))]
    assert 0.8e6 < sum(sizes) - 512 * 128 < 1.2e6


def test_the_checkpoint_knows_its_hidden_size(mesh, tmp_path):
    """Tunix's configuration of Gemma 2 9B has twice the size of the model's own."""
    assert gemma2.ModelConfig.gemma2_9b_it().hidden_dim == 28672, "mended in Tunix: drop the correction in from_flax"
    _, model = from_hf(gemma2_hf(tmp_path / "hf"), mesh, None, replicated=True)
    checkpoint = save_kaggle_flax(model, "gemma2", True, tmp_path / "gemma2-9b-it")
    doubled = dataclasses.replace(gemma2_config(), hidden_dim=96)
    again = from_flax(checkpoint, "gemma2", doubled, mesh, None, replicated=True)
    assert again.config == gemma2_config()
    assert equal(nnx.state(again), nnx.state(model))


@pytest.mark.parametrize("transposed", [False, True])
def test_gemma2_from_flax_in_both_orders_of_the_gating_matrix(mesh, tmp_path, transposed):
    _, model = from_hf(gemma2_hf(tmp_path / "hf"), mesh, None, replicated=True)
    checkpoint = save_kaggle_flax(model, "gemma2", transposed, tmp_path / "flax" / "gemma2-2b-it")
    assert flax_checkpoint(tmp_path / "flax") == flax_checkpoint(checkpoint) == checkpoint
    again = from_flax(checkpoint, "gemma2", gemma2_config(), mesh, None, replicated=True)
    assert equal(nnx.state(model), nnx.state(again)) and "fsdp" not in specs(again)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_gemma3_from_flax(mesh, tmp_path, kv_heads):
    model = init_random(small_config(kv_heads), mesh)
    checkpoint = save_kaggle_flax(model, "gemma3", True, tmp_path / "gemma3-1b-it")
    again = from_flax(checkpoint, "gemma3", small_config(kv_heads), mesh, jnp.float32, replicated=True)
    assert equal(nnx.state(model), nnx.state(again)) and "fsdp" not in specs(again)
    sharded = from_flax(checkpoint, "gemma3", small_config(kv_heads), mesh, None, replicated=False)
    assert "fsdp" in specs(sharded)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(sharded))} == {jnp.dtype(jnp.bfloat16)}


def test_tp_must_divide_the_kv_heads(tmp_path):
    two = make_mesh(jax.devices(), 4, 2)
    for call in (
        lambda: init_random(small_config(1), two),
        lambda: from_flax(tmp_path, "gemma3", small_config(1), two, None, replicated=True),
    ):
        with pytest.raises(
            ValueError, match=r"tp=2 does not divide the model's num_kv_heads=1: take a smaller"
        ):
            call()


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_chosen_tokens_logits_are_those_of_all(mesh, family, adapted):
    """With an adapter the call is qwix's, as in a rollout; the model keeps its norm."""
    tokens_BT = jnp.asarray(TOKENS)
    model = gemma2.Gemma(gemma2_config(), rngs=nnx.Rngs(0)) if family == "gemma2" else init_random(small_config(), mesh)
    if adapted:
        model = add_lora(model, mesh, 4, 4.0)
        bump(model)
    mask_BT = jnp.ones(tokens_BT.shape, bool)
    norm = model.final_norm
    inputs = tokens_BT, build_positions_from_mask(mask_BT), None, make_causal_attn_mask(mask_BT)

    @nnx.jit
    def last(model):
        return model(*inputs, decode_only_last_token=True)[0]

    @nnx.jit
    def chosen(model, at_BK):
        return model(*inputs, logits_at=at_BK)[0]

    every_BTV, at_BK = forward(model, tokens_BT), np.arange(24).reshape(8, 3) % tokens_BT.shape[1]
    assert last(model).shape == (8, 1, model.config.num_embed) and model.final_norm is norm
    np.testing.assert_allclose(last(model), every_BTV[:, -1:], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        chosen(model, at_BK), every_BTV[np.arange(8)[:, None], at_BK], rtol=1e-5, atol=1e-5)
    assert model.final_norm is norm


# On its way onto the mesh


def test_a_model_is_placed_array_by_array_on_its_own_devices(mesh, tmp_path, monkeypatch):
    """Half the chips: the other half is never touched, no chip holds another's share, the host holds one array."""
    saved = save_kaggle_flax(init_random(small_config(), mesh), "gemma3", True, tmp_path / "gemma3-1b-it")
    half, put, places = make_mesh(jax.devices()[4:], 4, 1), jax.device_put, []
    monkeypatch.setattr(jax, "device_put", lambda value, place: places.append(value) or put(value, place))
    before = {id(array) for array in jax.live_arrays()}
    model = from_flax(saved, "gemma3", small_config(), half, None, replicated=False)
    new = [array for array in jax.live_arrays() if id(array) not in before]
    leaves = jax.tree.leaves(nnx.state(model))
    assert {device.id for array in new for device in array.devices()} == {4, 5, 6, 7}
    assert len(places) == len(leaves) and all(isinstance(value, np.ndarray) for value in places)
    sizes = [value.size for value in places]
    assert sizes == sorted(sizes, reverse=True)
    share = {device: 0 for device in half.devices.flat}
    for leaf in leaves:
        for shard in leaf.addressable_shards:
            share[shard.device] += shard.data.nbytes
    total = sum(leaf.nbytes for leaf in leaves)
    assert len(set(share.values())) == 1 and max(share.values()) < 1.05 * total / 4


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_weights_are_replicated_unless_asked_otherwise(mesh, tmp_path, kv_heads):
    """The single KV head is the case that Tunix's sampling configuration does not cover."""
    config = small_config(kv_heads)
    model = init_random(config, mesh)
    saved = save_kaggle_flax(model, "gemma3", True, tmp_path / "gemma3-1b-it")
    replicated, sharded = (from_flax(saved, "gemma3", config, mesh, None, replicated=yes) for yes in (True, False))
    assert "fsdp" not in specs(model) | specs(replicated)
    assert "fsdp" in specs(sharded)
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(nnx.state(replicated)))
    assert "fsdp" not in specs(add_lora(replicated, mesh, 4, 4.0))


def test_how_to_download_again_names_kagglehubs_marker(tmp_path):
    folder = tmp_path / "models" / "someone" / "some.model_2" / "flax" / "it" / "1"
    (folder / "checkpoint").mkdir(parents=True)
    assert download_again(folder / "checkpoint") == "download the model again"
    folder.with_name("1.complete").touch()
    for path in (folder, folder / "checkpoint", folder / "config.json"):
        assert download_again(path) == (f"delete {folder} and {folder.with_name('1.complete')}, then run this again to "
                                        "download the model once more")

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_gemma import TOKENS, bump, equal, forward, gemma2_config, gemma2_hf, save_flax, small_config
from tunix.models.gemma import model as gemma2
from tunix.models.gemma3 import model as gemma3
from tunix.sft.utils import build_positions_from_mask, make_causal_attn_mask

from reasonkit.models.gemma import flax_checkpoint, from_flax, init_random, tiny_config
from reasonkit.models.hf import from_hf, save_hf
from reasonkit.models.lora import add_lora
from reasonkit.models.mesh import make_mesh


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(jax.devices(), 8, 1)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """save_hf copies the file without reading it."""
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    file.write_bytes(b"pieces")
    return file


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
    checkpoint = save_flax(model, "gemma2", True, tmp_path / "gemma2-9b-it")
    doubled = dataclasses.replace(gemma2_config(), hidden_dim=96)
    again = from_flax(checkpoint, "gemma2", doubled, mesh, None, replicated=True)
    assert again.config == gemma2_config()
    assert equal(nnx.state(again), nnx.state(model))


@pytest.mark.parametrize("transposed", [False, True])
def test_gemma2_from_flax_in_both_orders_of_the_gating_matrix(mesh, tmp_path, transposed):
    _, model = from_hf(gemma2_hf(tmp_path / "hf"), mesh, None, replicated=True)
    checkpoint = save_flax(model, "gemma2", transposed, tmp_path / "flax" / "gemma2-2b-it")
    assert flax_checkpoint(tmp_path / "flax") == flax_checkpoint(checkpoint) == checkpoint
    again = from_flax(checkpoint, "gemma2", gemma2_config(), mesh, None, replicated=True)
    assert equal(nnx.state(model), nnx.state(again)) and "fsdp" not in specs(again)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_gemma3_from_flax(mesh, tmp_path, kv_heads):
    model = init_random(small_config(kv_heads), mesh)
    checkpoint = save_flax(model, "gemma3", True, tmp_path / "gemma3-1b-it")
    again = from_flax(checkpoint, "gemma3", small_config(kv_heads), mesh, jnp.float32, replicated=True)
    assert equal(nnx.state(model), nnx.state(again)) and "fsdp" not in specs(again)
    sharded = from_flax(checkpoint, "gemma3", small_config(kv_heads), mesh, None, replicated=False)
    assert "fsdp" in specs(sharded)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(sharded))} == {jnp.dtype(jnp.bfloat16)}


def test_tp_must_divide_the_kv_heads(tokenizer, tmp_path):
    one, two = (make_mesh(jax.devices(), 8 // tp, tp) for tp in (1, 2))
    folder = save_hf(init_random(small_config(1), one), tokenizer, tmp_path)
    for call in (
        lambda: init_random(small_config(1), two),
        lambda: from_hf(folder, two, None, replicated=True),
        lambda: from_flax(folder, "gemma3", small_config(1), two, None, replicated=True),
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

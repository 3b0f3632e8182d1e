from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file
from tiny_gemma import TOKENS, equal, forward, gemma2_config, gemma2_hf, small_config
from tunix.models.gemma import model as gemma2

from reasonkit.gemma import flax_checkpoint, init
from reasonkit.hf import from_hf, is_hf, save_hf
from reasonkit.lora import add_lora
from reasonkit.mesh import make_mesh


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


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_written_and_read_again(mesh, tokenizer, tmp_path, kv_heads):
    """One, some and as many KV heads as heads are three layouts of the same projections."""
    config = small_config(kv_heads, param_dtype=jnp.bfloat16, global_scale_factor=8.0)
    model = init(config, mesh)
    family, again = from_hf(save_hf(model, tokenizer, tmp_path / "a"), mesh, None, replicated=True)
    assert family == "gemma3" and again.config == config
    assert equal(nnx.state(model), nnx.state(again))
    save_hf(again, tokenizer, tmp_path / "b")
    for name in ("model.safetensors", "config.json", "tokenizer.model"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_files_follow_the_names_and_shapes_of_hugging_face(mesh, tokenizer, tmp_path):
    weights = load_file(save_hf(init(small_config(), mesh), tokenizer, tmp_path) / "model.safetensors")
    assert len(weights) == 2 + 2 * 13
    assert {str(weight.dtype) for weight in weights.values()} == {"bfloat16"}
    assert weights["model.layers.1.self_attn.q_proj.weight"].shape == (4 * 16, 32)
    assert weights["model.layers.1.self_attn.k_proj.weight"].shape == (2 * 16, 32)
    assert weights["model.layers.1.self_attn.o_proj.weight"].shape == (32, 4 * 16)
    assert weights["model.layers.1.mlp.down_proj.weight"].shape == (32, 48)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.model",
    }


def test_dtype_is_the_files_or_the_one_asked_for(mesh, tokenizer, tmp_path):
    folder = save_hf(init(small_config(), mesh), tokenizer, tmp_path)
    for dtype, expected in {None: jnp.bfloat16, jnp.float32: jnp.float32}.items():
        _, model = from_hf(folder, mesh, dtype, replicated=True)
        assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype(expected)}
        assert model.config.param_dtype == expected


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_weights_are_replicated_unless_asked_otherwise(mesh, tokenizer, tmp_path, kv_heads):
    """The single KV head is the case that Tunix's sampling configuration does not cover."""
    model = init(small_config(kv_heads), mesh)
    folder = save_hf(model, tokenizer, tmp_path)
    _, replicated = from_hf(folder, mesh, None, replicated=True)
    _, sharded = from_hf(folder, mesh, None, replicated=False)
    assert "fsdp" not in specs(model) | specs(replicated)
    assert "fsdp" in specs(sharded)
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(nnx.state(replicated)))
    assert "fsdp" not in specs(add_lora(replicated, mesh, 4, 4.0))


def test_gemma2_from_hugging_face(mesh, tmp_path):
    folder = gemma2_hf(tmp_path / "hf")
    family, model = from_hf(folder, mesh, jnp.float32, replicated=True)
    assert family == "gemma2" and isinstance(model, gemma2.Gemma)
    assert model.config == gemma2_config()
    logits = np.asarray(forward(model, TOKENS))
    assert np.isfinite(logits).all() and logits.std() > 0 and "fsdp" not in specs(model)


def test_a_multimodal_config_nests_the_text_model_and_leaves_defaults_out(mesh, tokenizer, tmp_path):
    config = small_config(4, num_heads=8, head_dim=256)
    folder = save_hf(init(config, mesh), tokenizer, tmp_path)
    text = json.loads((folder / "config.json").read_text())
    for default in ("num_attention_heads", "num_key_value_heads", "head_dim"):
        del text[default]
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    _, model = from_hf(folder, mesh, jnp.float32, replicated=True)
    assert model.config == config


def test_rotary_settings_of_newer_configs_are_read(mesh, tokenizer, tmp_path):
    config = small_config(global_scale_factor=8.0, global_base_frequency=500_000, local_base_frequency=5_000)
    folder = save_hf(init(config, mesh), tokenizer, tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    for old in ("rope_theta", "rope_local_base_freq", "rope_scaling"):
        del settings[old]
    settings["rope_parameters"] = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 5_000.0},
    }
    (folder / "config.json").write_text(json.dumps(settings))
    _, model = from_hf(folder, mesh, jnp.float32, replicated=True)
    assert model.config == config


def test_a_folder_without_weights_is_not_taken_for_a_model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert not is_hf(tmp_path) and flax_checkpoint(tmp_path) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type 'llama' is not one of gemma2, gemma3_text, gemma3"),
        ({"head_dim": None}, "config.json lacks 'head_dim'"),
        ({"query_pre_attn_scalar": 168}, "query_pre_attn_scalar=168 is not head_dim"),
    ],
)
def test_a_config_that_cannot_be_read_is_named(mesh, tokenizer, tmp_path, change, message):
    folder = save_hf(init(small_config(), mesh), tokenizer, tmp_path)
    settings = json.loads((folder / "config.json").read_text()) | change
    settings = {key: value for key, value in settings.items() if value is not None or key == "rope_scaling"}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=message):
        from_hf(folder, mesh, None, replicated=True)


def test_only_a_gemma3_without_adapter_is_written(mesh, tokenizer, tmp_path):
    adapted = add_lora(init(small_config(), mesh), mesh, 4, 4.0)
    _, other = from_hf(gemma2_hf(tmp_path / "hf"), mesh, None, replicated=True)
    for model in (adapted, other):
        with pytest.raises(ValueError, match="save_hf takes a Gemma 3 without adapter"):
            save_hf(model, tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from tiny_gemma import MERGED, TOKENS, bump, equal, forward, from_hf, gemma2_config, gemma2_hf, small_config
from tunix.models.gemma import model as gemma2

from reasonkit.models.lora import add_lora
from reasonkit.models.mesh import make_mesh
from tools.flax import init_random
from tools.hf.weights import INDEX, read_arrays, save_hf


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
    model = init_random(config, mesh)
    family, again = from_hf(save_hf(model, tokenizer, tmp_path / "a"), mesh, None, replicated=True)
    assert family == "gemma3" and again.config == config
    assert equal(nnx.state(model), nnx.state(again))
    save_hf(again, tokenizer, tmp_path / "b")
    for name in ("model.safetensors", "config.json", "tokenizer.model"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_files_follow_the_names_and_shapes_of_hugging_face(mesh, tokenizer, tmp_path):
    weights = load_file(save_hf(init_random(small_config(), mesh), tokenizer, tmp_path) / "model.safetensors")
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


def test_the_files_dtype_is_kept(mesh, tokenizer, tmp_path):
    for dtype in (jnp.bfloat16, jnp.float32):
        _, _, arrays = read_arrays(save_hf(init_random(small_config(), mesh), tokenizer, tmp_path, dtype))
        assert {array.dtype for array in arrays.values()} == {jnp.dtype(dtype)}


def test_gemma2_from_hugging_face(mesh, tmp_path):
    folder = gemma2_hf(tmp_path / "hf")
    family, model = from_hf(folder, mesh, jnp.float32, replicated=True)
    assert family == "gemma2" and isinstance(model, gemma2.Gemma)
    assert model.config == gemma2_config()
    logits = np.asarray(forward(model, TOKENS))
    assert np.isfinite(logits).all() and logits.std() > 0 and "fsdp" not in specs(model)


def test_a_multimodal_config_nests_the_text_model_and_leaves_defaults_out(mesh, tokenizer, tmp_path):
    config = small_config(4, num_heads=8, head_dim=256)
    folder = save_hf(init_random(config, mesh), tokenizer, tmp_path)
    text = json.loads((folder / "config.json").read_text())
    for default in ("num_attention_heads", "num_key_value_heads", "head_dim"):
        del text[default]
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    _, model = from_hf(folder, mesh, jnp.float32, replicated=True)
    assert model.config == config


def test_rotary_settings_of_newer_configs_are_read(mesh, tokenizer, tmp_path):
    config = small_config(global_scale_factor=8.0, global_base_frequency=500_000, local_base_frequency=5_000)
    folder = save_hf(init_random(config, mesh), tokenizer, tmp_path)
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type 'llama' is not one of gemma2, gemma3_text, gemma3"),
        ({"head_dim": None}, "config.json lacks 'head_dim'"),
        ({"query_pre_attn_scalar": 168}, "query_pre_attn_scalar is 168, and Tunix's gemma3 has 16"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False, and Tunix's gemma3 has True"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0, and Tunix's gemma3 has None"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps is 1e-05"),
        ({"sliding_window_pattern": 4}, "sliding_window_pattern is 4, and Tunix's gemma3 has 6"),
        ({"layer_types": ["full_attention"] * 2}, "layer_types is .* and Tunix's gemma3 has .'sliding_attention'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 8.0}}, "rope_type 'yarn': Tunix's gemma3 has only linear"),
    ],
)
def test_a_config_that_cannot_be_read_is_named(mesh, tokenizer, tmp_path, change, message):
    folder = save_hf(init_random(small_config(), mesh), tokenizer, tmp_path)
    settings = json.loads((folder / "config.json").read_text()) | change
    settings = {key: value for key, value in settings.items() if value is not None or key == "rope_scaling"}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=message):
        from_hf(folder, mesh, None, replicated=True)


def test_gemma2_has_one_rope_that_its_code_knows(mesh, tmp_path):
    folder = gemma2_hf(tmp_path / "hf")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"rope_theta": 1e6}))
    with pytest.raises(ValueError, match=r"rope is \(1000000.0, 1.0\), and Tunix's gemma2 has 10000.0, unscaled"):
        from_hf(folder, mesh, None, replicated=True)


# Files of several, and broken ones


@pytest.fixture
def sharded(mesh, tokenizer, tmp_path):
    """A model in files of at most 20 kB, but for the embedding."""
    model = init_random(small_config(param_dtype=jnp.bfloat16), mesh)
    return model, save_hf(model, tokenizer, tmp_path / "sharded", shard_bytes=20_000)


def test_weights_split_over_files_are_one_model(mesh, sharded):
    model, folder = sharded
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    assert names == [f"model-{i + 1:05}-of-{len(names):05}.safetensors" for i in range(len(names))] and len(names) > 2
    index = json.loads((folder / INDEX).read_text())
    held = {name: set(load_file(folder / name)) for name in names}
    assert index["weight_map"] == {tensor: name for name, tensors in held.items() for tensor in tensors}
    assert index["metadata"]["total_size"] == sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))
    assert equal(nnx.state(from_hf(folder, mesh, None, replicated=True)[1]), nnx.state(model))


def test_a_later_save_leaves_no_weights_of_an_earlier_one(mesh, tokenizer, sharded):
    _, folder = sharded
    other = init_random(small_config(param_dtype=jnp.bfloat16), mesh, seed=1)
    save_hf(other, tokenizer, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.model"]
    assert equal(nnx.state(from_hf(folder, mesh, None, replicated=True)[1]), nnx.state(other))


def test_half_a_download_is_named(mesh, sharded):
    _, folder = sharded
    last = sorted(folder.glob("*.safetensors"))[-1]
    whole = last.read_bytes()
    for kept in (len(whole) - 1, 100, 4, 0):
        last.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=f"{last.name} is no safetensors file, or only a part of one"):
            from_hf(folder, mesh, None, replicated=True)
    last.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ValueError, match=f"{last.name} .*is no safetensors file"):
        from_hf(folder, mesh, None, replicated=True)
    last.unlink()
    with pytest.raises(FileNotFoundError, match=rf"lacks {last.name} of \d weight files"):
        from_hf(folder, mesh, None, replicated=True)
    (folder / INDEX).unlink()  # without it nothing says that a file is missing, but the tensors do
    with pytest.raises(ValueError, match=r"lacks \d+ tensors of a gemma3 of 2 layers, such as model.layers"):
        from_hf(folder, mesh, None, replicated=True)


def test_weights_that_do_not_belong_to_the_config_are_refused(mesh, tokenizer, tmp_path):
    folder = save_hf(init_random(small_config(), mesh), tokenizer, tmp_path)
    weights, file = load_file(folder / "model.safetensors"), folder / "model.safetensors"
    save_file(weights | {"model.layers.0.mlp.up_proj.bias": weights["model.norm.weight"]}, file)
    with pytest.raises(ValueError, match="has besides 1 tensors .* such as model.layers.0.mlp.up_proj.bias"):
        from_hf(folder, mesh, None, replicated=True)
    save_file(weights | {"model.norm.weight": np.ones(33, np.float32)}, file)
    with pytest.raises(ValueError, match=r"model.norm.weight is \(33,\), and config.json says \(32,\)"):
        from_hf(folder, mesh, None, replicated=True)
    save_file(weights | {"model.norm.weight": np.ones(32, np.int8)}, file)
    with pytest.raises(ValueError, match="model.norm.weight is I8, not BF16, F16, F32: take the model that is not"):
        from_hf(folder, mesh, None, replicated=True)
    extra = {"vision_tower.patch.weight": np.ones(3, np.int8), "model.rotary_emb.inv_freq": np.ones(3, np.float32)}
    save_file({name.replace("model.", "language_model.model.", 1): weights[name] for name in weights} | extra, file)
    from_hf(folder, mesh, None, replicated=True)  # what is not of the text model is left out


def test_an_index_or_a_header_that_is_none_is_named(mesh, sharded):
    _, folder = sharded
    index, last = folder / INDEX, sorted(folder.glob("*.safetensors"))[-1]
    for text, message in (("", "is empty"), ("{", "is not JSON"), ("[1]", "holds no JSON object"),
                          ("{}", "has no weight_map"), ('{"weight_map": null}', "has no weight_map")):
        index.write_text(text)
        with pytest.raises(ValueError, match=f"{INDEX} {message}"):
            from_hf(folder, mesh, None, replicated=True)
    index.unlink()
    last.write_bytes((8).to_bytes(8, "little") + b"no json!")
    with pytest.raises(ValueError, match=f"{last.name} is no safetensors file, .*: download the model again"):
        from_hf(folder, mesh, None, replicated=True)


@pytest.mark.parametrize("name", ["lm_head.weight", "language_model.lm_head.weight"])
def test_a_head_of_its_own_is_refused_and_a_copy_of_the_embedding_is_not(mesh, tokenizer, tmp_path, name):
    folder = save_hf(init_random(small_config(num_embed=5000), mesh), tokenizer, tmp_path)
    weights, file = load_file(folder / "model.safetensors"), folder / "model.safetensors"
    head = weights["model.embed_tokens.weight"].copy()
    save_file(weights | {name: head}, file)
    from_hf(folder, mesh, None, replicated=True)
    head[-1, -1] += 1
    for other in (head, head[:-1]):
        save_file(weights | {name: np.ascontiguousarray(other)}, file)
        with pytest.raises(ValueError, match="lm_head.weight is not the embedding, and Tunix's gemma3 has one"):
            from_hf(folder, mesh, None, replicated=True)


# Out again


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_an_adapter_is_merged_on_its_way_out(mesh, tokenizer, tmp_path, kv_heads):
    model = add_lora(init_random(small_config(kv_heads), mesh), mesh, 4, 8.0)
    bump(model)
    folder = save_hf(model, tokenizer, tmp_path, dtype=jnp.float32)
    _, again = from_hf(folder, mesh, jnp.float32, replicated=True)
    np.testing.assert_allclose(forward(again, TOKENS), forward(model, TOKENS), atol=MERGED)


def test_gemma2_is_written_too(mesh, tokenizer, tmp_path):
    folder = gemma2_hf(tmp_path / "hf")
    family, model = from_hf(folder, mesh, None, replicated=True)
    _, again = from_hf(save_hf(model, tokenizer, tmp_path / "out"), mesh, None, replicated=True)
    assert family == "gemma2" and again.config == model.config and equal(nnx.state(model), nnx.state(again))


def test_another_model_is_not_written(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="Linear is neither a Gemma 2 nor a Gemma 3 of Tunix's"):
        save_hf(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()

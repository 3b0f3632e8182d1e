"""What an export holds, without PyTorch; what transformers and PEFT make of it is in test_parity."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from safetensors.numpy import load_file
from tiny_gemma import (
    MERGED,
    ROWS,
    TOKENS,
    bump,
    equal,
    forward,
    from_hf,
    gemma2_config,
    gemma2_hf,
    small_config,
    train_tokenizer,
)
from tunix.models.gemma import model as tunix_gemma2
from tunix.models.gemma import params as tunix_gemma2_params
from tunix.models.gemma3 import params as tunix_gemma3_params

from reasonkit.models.checkpoints import restore_lora
from reasonkit.models.gemma import flax_checkpoint, from_flax
from reasonkit.models.load import LoadedModel, Tokenizer, load
from reasonkit.models.lora import add_lora, fingerprint
from reasonkit.models.mesh import make_mesh
from tools.export import base_name, export_flax, export_hf, export_peft, hf_name
from tools.flax import init_random
from tools.hf.__main__ import convert
from tools.hf.tokenizer import chat_template


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(jax.devices(), 8, 1)


@pytest.fixture(scope="module", params=["gemma2-2b-it", "gemma3-1b-it"])
def policy(request, mesh, tmp_path_factory):
    """A trained policy of either family, under the name of a stock model."""
    root, name = tmp_path_factory.mktemp("policy"), request.param
    if family2 := name.startswith("gemma2"):
        _, base = from_hf(gemma2_hf(root / "hf"), mesh, jnp.float32, replicated=True)
    else:
        base = init_random(small_config(1), mesh)
    tokenizer = Tokenizer(train_tokenizer(root, 107 if family2 else 106), "gemma2" if family2 else "gemma3")
    model = add_lora(base, mesh, 4, 8.0)
    bump(model)
    assert np.abs(forward(model, TOKENS) - forward(base, TOKENS)).max() > 0.1
    return LoadedModel(model, tokenizer, base.config, name, root)


def base_of(policy, mesh):
    """A model of the same shapes without adapter."""
    if policy.tokenizer.family == "gemma2":
        return from_hf(policy.folder / "hf", mesh, jnp.float32, replicated=True)[1]
    return init_random(policy.config, mesh)


def test_the_merged_model_loads_here_again(policy, mesh, tmp_path):
    folder = export_hf(policy, tmp_path / "out", shard_bytes=30_000)
    again = load(convert(folder, tmp_path / "flax"), mesh, jnp.float32)
    assert again.tokenizer.stop_ids == policy.tokenizer.stop_ids
    np.testing.assert_allclose(forward(again.model, TOKENS), forward(policy.model, TOKENS), atol=MERGED)
    settings = json.loads((folder / "config.json").read_text())
    generation = json.loads((folder / "generation_config.json").read_text())
    assert settings["torch_dtype"] == "float32"  # the base's
    assert settings["max_position_embeddings"] == {"gemma2": 8192, "gemma3": 32768}[policy.tokenizer.family]
    assert settings["eos_token_id"] == generation["eos_token_id"] == list(policy.tokenizer.stop_ids)
    assert generation["do_sample"] is False and generation["max_new_tokens"] == 1024


def test_how_many_tokens_it_was_made_for_is_read_from_the_base_or_known(policy, tmp_path):
    def positions(**changes):
        folder = export_hf(dataclasses.replace(policy, **changes), tmp_path / "out")
        return json.loads((folder / "config.json").read_text())["max_position_embeddings"]

    if policy.tokenizer.family == "gemma3":  # a scaled rope: the 4B's and the 12B's
        assert positions(config=dataclasses.replace(policy.config, global_scale_factor=8.0)) == 131_072
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model.json").write_text(json.dumps({"max_position_embeddings": 512}))
    assert positions(folder=tmp_path / "base") == 512


def test_ggufs_converter_finds_the_special_tokens_and_the_template(policy, tmp_path, caplog):
    vocabulary = gguf.SpecialVocab(export_hf(policy, tmp_path / "out"), load_merges=True, n_vocab=ROWS)
    assert vocabulary.special_token_ids == {"bos": 2, "eos": 1, "unk": 3, "pad": 0}
    assert vocabulary.add_special_token == {"bos": True, "eos": False}
    assert vocabulary.chat_template == chat_template() and vocabulary.merges
    assert not caplog.records


def test_the_base_is_not_written_over(policy, tmp_path):
    for write in (export_hf, lambda *args: export_flax(*args, 1)):
        for folder in (policy.folder, policy.folder / "hf" / "..", policy.folder.parent):
            with pytest.raises(ValueError, match="is or holds the folder that the policy was loaded from: export into"):
                write(policy, folder)


def test_the_adapter_has_pefts_names_and_shapes_and_makes_up_the_difference(policy, mesh, tmp_path):
    """PEFT's own sum, W + alpha / r x B A, by hand: it is the merged model."""
    weights = load_file(export_peft(policy, tmp_path / "peft") / "adapter_model.safetensors")
    settings = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    names = {"gemma2-2b-it": "google/gemma-2-2b-it", "gemma3-1b-it": "google/gemma-3-1b-it"}
    assert settings["base_model_name_or_path"] == names[policy.name]
    assert settings["target_modules"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert (settings["r"], settings["lora_alpha"], settings["peft_type"]) == (4, 8.0, "LORA")
    merged = load_file(export_hf(policy, tmp_path / "merged") / "model.safetensors")
    base = nnx.clone(policy.model)
    nnx.update(base, jax.tree.map(jnp.zeros_like, nnx.state(base, nnx.LoRAParam)))
    stock = load_file(export_hf(dataclasses.replace(policy, model=base), tmp_path / "base") / "model.safetensors")
    assert len(weights) == 2 * 2 * 7
    for name, value in merged.items():
        change = np.zeros_like(value)
        if f"base_model.model.{name.removesuffix('.weight')}.lora_A.weight" in weights:
            a, b = (weights[f"base_model.model.{name.removesuffix('.weight')}.lora_{part}.weight"] for part in "AB")
            assert a.shape == (4, value.shape[1]) and b.shape == (value.shape[0], 4)
            change = 8.0 / 4 * (b @ a)
        np.testing.assert_allclose(stock[name] + change, value, atol=1e-5)


def test_hugging_face_has_names_of_its_own():
    assert [hf_name(name) for name in ("gemma2-2b", "gemma2-2b-it", "gemma3-270m", "gemma3-1b", "gemma3-1b-it")] == [
        f"google/{name}" for name in ("gemma-2-2b", "gemma-2-2b-it", "gemma-3-270m", "gemma-3-1b-pt", "gemma-3-1b-it")]
    assert hf_name("tiny-policy") == "tiny-policy" and hf_name("/some/folder") == "/some/folder"


@pytest.mark.parametrize(
    ("name", "folder", "base", "stock"),
    [
        ("gemma3-1b", "anywhere", "google/gemma-3-1b-pt", "google/gemma-3-1b-pt"),
        ("tiny-policy", "assets/policy", "tiny-policy", None),
        ("..", "runs/first", "first", None),
        ("/home/me/gemma-3-1b-it", "me/gemma-3-1b-it", "gemma-3-1b-it", None),  # who knows what it is
        ("x", "gemma-3/flax/gemma3-1b-it/1", "google/gemma-3-1b-it", "google/gemma-3-1b-it"),
        ("x", "hub/models--me--gemma-2-2b-it/snapshots/0af1", "0af1", None),
    ],
)
def test_the_base_is_named_as_others_know_it_and_never_by_a_path(policy, tmp_path, name, folder, base, stock):
    named = dataclasses.replace(policy, name=name, folder=tmp_path / folder)
    settings = json.loads((export_peft(named, tmp_path / "peft") / "adapter_config.json").read_text())
    assert base_name(named) == base and settings["base_model_name_or_path"] == stock
    assert str(tmp_path) not in json.dumps(settings)


@pytest.mark.parametrize("how", ["by name", "by the folder's model.json"])
def test_of_a_base_that_sees_pictures_the_adapter_goes_onto_the_text_model_within(policy, tmp_path, how):
    """transformers opens such a base, by AutoModelForCausalLM too, as Gemma3ForConditionalGeneration."""
    named = dataclasses.replace(policy, name="gemma3-4b-it")
    if how != "by name":
        (tmp_path / "model.json").write_text(json.dumps({"model_type": "gemma3"}))
        named = dataclasses.replace(policy, name="y", folder=tmp_path)
    weights = load_file(export_peft(named, tmp_path / "peft") / "adapter_model.safetensors")
    settings = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    modules = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in weights}
    assert len(modules) == 2 * 7 and "model.language_model.layers.1.self_attn.k_proj" in modules
    for module in modules:  # as PEFT looks for them
        assert re.fullmatch(settings["target_modules"], module)
        part = module.replace("language_model", "vision_tower.vision_model.encoder")
        assert not re.fullmatch(settings["target_modules"], part)


def test_flax_is_what_tunix_and_we_load_as_a_stock_model(policy, mesh, tmp_path, monkeypatch):
    folder = export_flax(policy, tmp_path / "flax", 12, jnp.float32)
    checkpoint = flax_checkpoint(folder)
    assert checkpoint == folder / policy.name  # the variation, by which `load` knows the model
    family, logits = policy.tokenizer.family, np.asarray(forward(policy.model, TOKENS))
    config = gemma2_config() if family == "gemma2" else small_config(1)
    ours = from_flax(checkpoint, family, config, mesh, jnp.float32, replicated=True)
    if family == "gemma2":
        monkeypatch.setattr(tunix_gemma2.ModelConfig, "gemma2_2b_it", gemma2_config)
        params = tunix_gemma2_params.load_and_format_params(str(checkpoint))
        with pytest.warns(DeprecationWarning, match="'.value' setter"):
            theirs = tunix_gemma2.Gemma.from_params(params, version="2-2b-it")
    else:
        theirs = tunix_gemma3_params.create_model_from_checkpoint(str(checkpoint), config, mesh, jnp.float32)
    for model in (ours, theirs):
        np.testing.assert_allclose(forward(model, TOKENS), logits, atol=MERGED)


def test_flax_has_the_adapter_where_the_judges_look(policy, mesh, tmp_path):
    folder = export_flax(policy, tmp_path / "flax", 20)
    folder = export_flax(policy, folder, 12)  # an export is replaced, not added to
    fresh = add_lora(base_of(policy, mesh), mesh, 4, 8.0)
    assert restore_lora(fresh, folder) == 12 and fingerprint(fresh) == fingerprint(policy.model)
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.metadata(folder / policy.name).item_metadata.tree
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(tree)} == {"bfloat16"}
    assert {path.name for path in folder.iterdir()} == {"actor", policy.name, "model.json", "tokenizer.model"}


# What an export may remove


@pytest.mark.parametrize(("name", "variation"), [("..", "run"), (".", "here"), ("/", "model"), ("x/actor", "model"),
                                                 ("x/tokenizer.model", "model"), ("x/my model", "my model")])
def test_whatever_the_policys_folder_nothing_outside_the_export_goes(policy, tmp_path, monkeypatch, name, variation):
    run = tmp_path / "run"
    for path in (run / "checkpoints" / "actor" / "5", run / "here", run / "x" / "actor"):
        path.mkdir(parents=True)
        (path / "kept").write_text("")
    monkeypatch.chdir(run / "here")
    kept = sorted(tmp_path.rglob("kept"))
    named = dataclasses.replace(policy, name=name, folder=Path(name).resolve())
    for _ in range(2):
        folder = export_flax(named, run / "checkpoints" / "flax", 12)
    assert {path.name for path in folder.iterdir()} == {"actor", variation, "model.json", "tokenizer.model"}
    assert flax_checkpoint(folder) == folder / variation
    assert sorted(tmp_path.rglob("kept")) == kept and len(kept) == 3
    assert {path.name for path in folder.parent.iterdir()} == {"actor", "flax"}


@pytest.mark.parametrize("there", ["actor/5/model_params", "tokenizer.model", "notes", "file"])
def test_a_folder_that_holds_anything_else_is_left_as_it_is(policy, tmp_path, there):
    """A run's checkpoints, a stock model, an export with something added, no folder at all."""
    folder = tmp_path / "out"
    if there == "notes":
        export_flax(policy, folder, 1)
    (folder / there if there != "file" else folder).parent.mkdir(parents=True, exist_ok=True)
    (folder / there if there != "file" else folder).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=f"{folder} is no earlier export and not empty .*: export into a new folder"):
        export_flax(policy, folder, 2)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_earlier_export_goes_whole_and_only_for_a_whole_one(policy, tmp_path, monkeypatch):
    folder = export_flax(policy, tmp_path / "flax", 1)
    (folder / "README.md").write_text("a card")
    monkeypatch.setattr("tools.export.save_lora", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_flax(policy, folder, 2)
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "actor", policy.name, "model.json", "tokenizer.model"}
    assert (folder / "actor" / "1").is_dir()
    monkeypatch.undo()
    export_flax(dataclasses.replace(policy, name="x", folder=tmp_path / "other"), folder, 2)
    assert {path.name for path in folder.iterdir()} == {"actor", "other", "model.json", "tokenizer.model"}
    assert {path.name for path in tmp_path.iterdir()} == {"flax"}


def test_without_an_adapter_there_is_nothing_to_export_but_the_model(policy, mesh, tmp_path):
    stock = dataclasses.replace(policy, model=base_of(policy, mesh))
    for export in (export_peft, lambda *args: export_flax(*args, 1)):
        with pytest.raises(ValueError, match="no LoRA: add one with add_lora"):
            export(stock, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_float32_adapter_on_a_bfloat16_base_is_exported_as_it_was_evaluated(mesh, tmp_path):
    """PEFT's file and the merged sum have it rounded, as the policy computes; the Flax one's is rounded on restore."""
    base, name = init_random(small_config(1, param_dtype=jnp.bfloat16), mesh), "gemma3-1b-it"
    tokenizer = Tokenizer(train_tokenizer(tmp_path / "pieces", 106), "gemma3")
    policy = LoadedModel(add_lora(base, mesh, 4, 8.0), tokenizer, base.config, name, tmp_path)
    bump(policy.model, 0.1001)  # between two bfloat16 numbers
    attn = policy.model.layers[0].attn.attn_vec_einsum
    a, b = (np.asarray(x[...].astype(jnp.bfloat16), np.float32) for x in (attn.w_lora_a, attn.w_lora_b))
    assert not np.array_equal(a, attn.w_lora_a[...])
    peft = load_file(export_peft(policy, tmp_path / "peft") / "adapter_model.safetensors")
    found = peft["base_model.model.model.layers.0.self_attn.o_proj.lora_A.weight"]
    assert found.dtype == np.float32 and np.array_equal(found, a.reshape(-1, 4).T)
    weights = load_file(export_hf(policy, tmp_path / "hf") / "model.safetensors")
    assert {str(weight.dtype) for weight in weights.values()} == {"bfloat16"}
    w = np.asarray(attn.w[...], np.float32)
    wanted = w.reshape(-1, w.shape[-1]) + 2.0 * a.reshape(-1, 4) @ b
    np.testing.assert_array_equal(weights["model.layers.0.self_attn.o_proj.weight"].T, wanted.astype(jnp.bfloat16))
    fresh = add_lora(base, mesh, 4, 8.0)
    assert restore_lora(fresh, export_flax(policy, tmp_path / "flax", 12)) == 12
    assert equal(*(nnx.state(model, nnx.LoRAParam) for model in (fresh, policy.model)))

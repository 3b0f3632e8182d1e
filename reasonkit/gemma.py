"""Gemma 2 and 3 between Tunix's model classes and files: fresh, from Hugging Face or Kaggle, and out again.

What it is: configurations, name mappings and placement around Tunix's own loaders.
What it is not: a model (those are Tunix's), a download or a tokenizer (`models`).

Departs from Tunix's defaults: weights are replicated over "fsdp" (Tunix shards them there, then gathers
every weight at every decoded token); a fresh model's feed-forward kernels are drawn (Tunix leaves them at
zero); Gemma 2's Flax checkpoints go straight onto the mesh (Tunix writes a second copy and reads that).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import save_file
from tunix.models.gemma import model as gemma2
from tunix.models.gemma import params_safetensors as gemma2_safetensors
from tunix.models.gemma3 import model as gemma3
from tunix.models.gemma3 import params as gemma3_params
from tunix.models.gemma3 import params_safetensors as gemma3_safetensors
from tunix.sft.utils import is_lora_enabled

LIBRARY = {"gemma2": gemma2, "gemma3": gemma3}
_MODEL = {"gemma2": gemma2.Gemma, "gemma3": gemma3.Gemma3}
_FAMILY = {"gemma2": "gemma2", "gemma3_text": "gemma3", "gemma3": "gemma3"}  # by Hugging Face model_type
# What config.json of a multimodal Gemma 3 may leave to the defaults of Hugging Face's Gemma3TextConfig.
_HF_DEFAULTS = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208}


def tiny_config(vocab: int) -> gemma3.ModelConfig:
    """A Gemma 3 of about 1 M parameters in float32, plus 128 for each of `vocab` embedding rows."""
    return gemma3.ModelConfig(
        num_layers=4,
        num_embed=vocab,
        embed_dim=128,
        hidden_dim=480,
        num_heads=4,
        head_dim=32,
        num_kv_heads=1,
        sliding_window_size=64,
        global_base_frequency=1_000_000,
        shd_config=gemma3.ShardingConfig.get_default_sharding(is_sampling=True),
        param_dtype=jnp.float32,
    )


def init(config: gemma3.ModelConfig, mesh: Mesh, seed: int = 0) -> gemma3.Gemma3:
    """A fresh Gemma 3 on the mesh: matrices normal with standard deviation 1/sqrt(fan-in), norms at one.

    Raises:
        ValueError: tp does not divide the model.
    """
    _check_tp(config, mesh)
    model = nnx.eval_shape(lambda: gemma3.Gemma3(config, rngs=nnx.Rngs(0)))
    _replicate_single_kv_head(model, mesh)
    graph, abstract = nnx.split(model)
    fan_in = {"attn_vec_einsum": config.num_heads * config.head_dim, "down_proj": config.hidden_dim}
    rng = np.random.default_rng(seed)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.Array:
        deviation = fan_in.get(path[-2].key, config.embed_dim) ** -0.5
        # The norms multiply by 1 + scale.
        value = (
            np.zeros(leaf.shape) if path[-1].key == "scale" else deviation * rng.standard_normal(leaf.shape)
        )
        return jax.device_put(value.astype(leaf.dtype), sharding)

    shardings = nnx.to_pure_dict(nnx.get_named_sharding(abstract, mesh))
    values = jax.tree_util.tree_map_with_path(draw, nnx.to_pure_dict(abstract), shardings)
    nnx.replace_by_pure_dict(abstract, values)
    return nnx.merge(graph, abstract)


def is_hf(folder: Path) -> bool:
    """Whether the folder holds Hugging Face files."""
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def from_hf(folder: Path, mesh: Mesh, dtype: Any, *, replicated: bool) -> tuple[str, nnx.Module]:
    """Family and model from config.json and *.safetensors; `dtype` None keeps the file's.

    Raises:
        ValueError: another model_type, a missing setting, or tp does not divide the model.
    """
    family, config = _hf_config(folder / "config.json", dtype, replicated)
    _check_tp(config, mesh)
    library = gemma2_safetensors if family == "gemma2" else gemma3_safetensors
    model = library.create_model_from_safe_tensors(str(folder), config, mesh, dtype)
    if replicated:
        _replicate_single_kv_head(model, mesh)
    return family, model


def flax_checkpoint(folder: Path) -> Path | None:
    """The orbax checkpoint of a Kaggle Flax model: the folder itself or a child of it."""
    for candidate in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        if (candidate / "_METADATA").is_file() or (candidate / "manifest.ocdbt").is_file():
            return candidate
    return None


def from_flax(
    checkpoint: Path, family: str, config: Any, mesh: Mesh, dtype: Any, *, replicated: bool
) -> nnx.Module:
    """A model from a checkpoint in google-deepmind/gemma's layout; `dtype` None means bfloat16.

    Raises:
        ValueError: tp does not divide the model.
    """
    sharding = LIBRARY[family].ShardingConfig.get_default_sharding(is_sampling=replicated)
    config = dataclasses.replace(config, shd_config=sharding)
    _check_tp(config, mesh)
    with ocp.StandardCheckpointer() as checkpointer:
        flat = checkpointer.restore(checkpoint.resolve())
    for path, leaves in flat.items():
        if path.endswith("mlp/linear"):  # Tunix 0.1.7 has twice Gemma 2 9B's hidden_dim: take the file's word
            config = dataclasses.replace(config, hidden_dim=leaves["w"].shape[0])
        # Gemma 2 2B keeps this matrix as (2, embed, hidden); larger ones and Gemma 3 as (2, hidden, embed).
        if path.endswith("mlp/gating_einsum") and leaves["w"].shape[1] == config.embed_dim:
            leaves["w"] = np.swapaxes(np.asarray(leaves["w"]), 1, 2)
    values = gemma3_params.map_from_upstream_checkpoint(flat, model_type=family)
    model = nnx.eval_shape(lambda: _MODEL[family](config, rngs=nnx.Rngs(0)))
    if replicated:
        _replicate_single_kv_head(model, mesh)
    dtype = np.dtype(dtype or jnp.bfloat16)
    shardings = nnx.to_pure_dict(nnx.get_named_sharding(nnx.state(model), mesh))
    nnx.update(
        model, jax.tree.map(lambda x, s: jax.device_put(np.asarray(x).astype(dtype), s), values, shardings)
    )
    return model


def save_hf(model: gemma3.Gemma3, tokenizer_path: str | Path, folder: str | Path) -> Path:
    """Writes a Gemma 3 as Hugging Face files: model.safetensors in bfloat16, config.json, tokenizer.model.

    Each file is written beside its place and moved there, config.json last.

    Raises:
        ValueError: not a Gemma 3, or one with an adapter.
    """
    if not isinstance(model, gemma3.Gemma3) or is_lora_enabled(model):
        raise ValueError(f"{type(model).__name__} cannot be written: save_hf takes a Gemma 3 without adapter")
    weights, settings, folder = _hf_weights(model), _hf_settings(model.config), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, write in {
        "model.safetensors": lambda path: save_file(weights, path, metadata={"format": "pt"}),
        "tokenizer.model": lambda path: shutil.copyfile(tokenizer_path, path),
        "config.json": lambda path: path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8"),
    }.items():
        write(folder / f".{name}.tmp")
        os.replace(folder / f".{name}.tmp", folder / name)
    return folder


def _hf_config(file: Path, dtype: Any, replicated: bool) -> tuple[str, Any]:
    raw = json.loads(file.read_text(encoding="utf-8"))
    family = _FAMILY.get(raw.get("model_type"))
    if family is None:
        raise ValueError(f"{file}: model_type {raw.get('model_type')!r} is not one of {', '.join(_FAMILY)}")
    if "text_config" in raw:
        raw = _HF_DEFAULTS | raw["text_config"]
    try:
        common = {
            "num_layers": raw["num_hidden_layers"],
            "num_embed": raw["vocab_size"],
            "embed_dim": raw["hidden_size"],
            "hidden_dim": raw["intermediate_size"],
            "num_heads": raw["num_attention_heads"],
            "head_dim": raw["head_dim"],
            "num_kv_heads": raw["num_key_value_heads"],
            "sliding_window_size": raw["sliding_window"],
            "shd_config": LIBRARY[family].ShardingConfig.get_default_sharding(is_sampling=replicated),
        }
        if raw.get("query_pre_attn_scalar", raw["head_dim"]) != raw["head_dim"]:
            raise ValueError(f"{file}: query_pre_attn_scalar={raw['query_pre_attn_scalar']} is not head_dim")
        if family == "gemma2":
            pattern = itertools.cycle((gemma2.AttentionType.LOCAL_SLIDING, gemma2.AttentionType.GLOBAL))
            return family, gemma2.ModelConfig(
                **common,
                final_logit_softcap=raw["final_logit_softcapping"],
                attn_logits_soft_cap=raw["attn_logit_softcapping"],
                use_post_attn_norm=True,
                use_post_ffw_norm=True,
                attention_types=tuple(itertools.islice(pattern, common["num_layers"])),
            )
        rope = raw.get("rope_parameters") or {  # transformers 5, or what it was before
            "full_attention": {"rope_theta": raw.get("rope_theta", 1e6), **(raw.get("rope_scaling") or {})},
            "sliding_attention": {"rope_theta": raw.get("rope_local_base_freq", 1e4)},
        }
        return family, gemma3.ModelConfig(
            **common,
            local_base_frequency=int(rope["sliding_attention"]["rope_theta"]),
            global_base_frequency=int(rope["full_attention"]["rope_theta"]),
            global_scale_factor=float(rope["full_attention"].get("factor", 1.0)),
            param_dtype=dtype or jnp.bfloat16,
        )
    except KeyError as error:
        raise ValueError(f"{file} lacks {error}: download the model again") from error


def _hf_settings(config: gemma3.ModelConfig) -> dict[str, Any]:
    scale = config.global_scale_factor
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "num_hidden_layers": config.num_layers,
        "vocab_size": config.num_embed,
        "hidden_size": config.embed_dim,
        "intermediate_size": config.hidden_dim,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "query_pre_attn_scalar": config.head_dim,
        "sliding_window": config.sliding_window_size,
        "sliding_window_pattern": len(gemma3.GEMMA3_ATTENTION_PATTERN),
        "rope_theta": config.global_base_frequency,
        "rope_local_base_freq": config.local_base_frequency,
        "rope_scaling": None if scale == 1.0 else {"rope_type": "linear", "factor": scale},
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }


def _hf_weights(model: gemma3.Gemma3) -> dict[str, np.ndarray]:
    """Inverse of Tunix's gemma3.params_safetensors. N heads, D embed, H head dim; torch keeps (out, in)."""
    state = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))
    width = model.config.embed_dim
    out = {
        "model.embed_tokens.weight": state["embedder"]["input_embedding"],
        "model.norm.weight": state["final_norm"]["scale"],
    }
    for index, layer in state["layers"].items():
        attn, mlp = layer["attn"], layer["mlp"]
        qkv_NDH = (
            attn["qkv_einsum"]["w"]
            if "qkv_einsum" in attn
            else [attn["q_einsum"]["w"], *attn["kv_einsum"]["w"]]
        )
        q, k, v = (w_NDH.transpose(0, 2, 1).reshape(-1, width) for w_NDH in qkv_NDH)
        parts = {
            "self_attn.q_proj": q,
            "self_attn.k_proj": k,
            "self_attn.v_proj": v,
            "self_attn.o_proj": attn["attn_vec_einsum"]["w"].reshape(-1, width).T,
            "self_attn.q_norm": attn["_query_norm"]["scale"],
            "self_attn.k_norm": attn["_key_norm"]["scale"],
            "mlp.gate_proj": mlp["gate_proj"]["kernel"].T,
            "mlp.up_proj": mlp["up_proj"]["kernel"].T,
            "mlp.down_proj": mlp["down_proj"]["kernel"].T,
            "input_layernorm": layer["pre_attention_norm"]["scale"],
            "post_attention_layernorm": layer["post_attention_norm"]["scale"],
            "pre_feedforward_layernorm": layer["pre_ffw_norm"]["scale"],
            "post_feedforward_layernorm": layer["post_ffw_norm"]["scale"],
        }
        out |= {f"model.layers.{index}.{name}.weight": value for name, value in parts.items()}
    return {name: np.ascontiguousarray(value.astype(ml_dtypes.bfloat16)) for name, value in out.items()}


def _check_tp(config: Any, mesh: Mesh) -> None:
    tp = mesh.shape["tp"]
    for field in ("num_kv_heads", "num_heads", "embed_dim", "hidden_dim", "num_embed"):
        if getattr(config, field) % tp:
            raise ValueError(
                f"tp={tp} does not divide the model's {field}={getattr(config, field)}: take a smaller tp"
            )


def _replicate_single_kv_head(model: nnx.Module, mesh: Mesh) -> None:
    """Tunix shards a single KV head's matrix over fsdp whatever the configuration says: undo it."""
    for layer in model.layers:
        if hasattr(layer.attn, "kv_einsum") and layer.attn.kv_einsum.shape[1] == 1:
            weight = layer.attn.kv_einsum.w
            weight.set_metadata("out_sharding", (None, None, None, None))
            if isinstance(weight.get_value(), jax.Array):
                weight.set_value(jax.device_put(weight.get_value(), NamedSharding(mesh, PartitionSpec())))

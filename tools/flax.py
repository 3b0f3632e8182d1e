"""Gemmas in the Flax layout that `reasonkit.models.load` reads: `save_flax` writes one, and `init_random` draws one.

The folder has tokenizer.model, model.json with the sizes, and an orbax checkpoint in google-deepmind/gemma's layout.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from tunix.models.gemma3 import model as gemma3
from tunix.sft.utils import build_positions_from_mask, make_causal_attn_mask

from reasonkit.models.gemma import CLASSES, abstract_model, as_flax
from reasonkit.models.load import SIZES
from reasonkit.session.files import write_atomic


def family_of(model: Any) -> str:
    """ "gemma2" or "gemma3", by the class of the model. Raises ValueError for another."""
    if found := [family for family, kind in CLASSES.items() if isinstance(model, kind)]:
        return found[0]
    raise ValueError(f"{type(model).__name__} is neither a Gemma 2 nor a Gemma 3 of Tunix's")


def flax_tree(family: str, arrays: Mapping[tuple, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """A Flax checkpoint's tree of the arrays by their path in Tunix's state. Gemma 2's gating matrices are the 2B's."""
    tree: dict[str, dict[str, np.ndarray]] = {}
    for path, value in arrays.items():
        key, leaf, part = as_flax(path)
        if part is None:
            tree.setdefault(key, {})[leaf] = value
        else:
            value = value if family == "gemma2" else value.T
            tree.setdefault(key, {}).setdefault(leaf, np.empty((2, *value.shape), value.dtype))[part] = value
    return tree


def write_flax(family: str, config: Any, arrays: Mapping[tuple, np.ndarray], tokenizer: Path, folder: Path, name: str,
               **extra: Any) -> Path:
    """Write a model's folder, with its checkpoint in `name`. `extra` goes into model.json too."""
    folder.mkdir(parents=True, exist_ok=True)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.resolve() / name, flax_tree(family, arrays), force=True)
    (folder / name / "commit_success.txt").unlink(missing_ok=True)  # names this machine's folder, and nobody reads it
    if tokenizer != folder / "tokenizer.model":
        shutil.copyfile(tokenizer, folder / "tokenizer.model")
    numbers = {field.name: value for field in dataclasses.fields(config)
               if isinstance(value := getattr(config, field.name), int | float | None)}
    write_atomic(folder / SIZES, json.dumps({"family": family, **numbers, **extra}, indent=2) + "\n")
    return folder


def save_flax(model: nnx.Module, tokenizer: str | Path, folder: str | Path, name: str = "model",
              dtype: Any = jnp.bfloat16) -> Path:
    """Write a Gemma with its adapter merged, in `dtype`. Raises ValueError for any other model."""
    family, leaves = family_of(model), {path: leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(model))}
    arrays = {path: merge_lora(leaves, path, model).astype(dtype) for path in leaves
              if not str(path[-1]).endswith(("_lora_a", "_lora_b"))}
    return write_flax(family, model.config, arrays, Path(tokenizer), Path(folder), name)


def merge_lora(leaves: dict[tuple, jax.Array], path: tuple, model: nnx.Module) -> np.ndarray:
    """The array at `path` of `leaves` with the adapter merged, if it has one: W + alpha / rank x A B in float32.

    The adapter is rounded to the base's dtype first, because the policy was evaluated so. An array without an adapter
    keeps its dtype.
    """
    value, a, b = (leaves.get((*path[:-1], path[-1] + end)) for end in ("", "_lora_a", "_lora_b"))
    if a is None:
        return np.asarray(value)
    a, b = (np.asarray(x.astype(value.dtype), np.float32) for x in (a, b))
    change = np.tensordot(a, b, 1) * (model.lora_alpha / a.shape[-1])
    # qwix has the contracted axes first: of the output's projection they are (heads, head), as here.
    return np.asarray(value, np.float32) + (change if a.ndim == 3 else np.moveaxis(change, 0, -2))


@nnx.jit
def forward(model: nnx.Module, tokens_BT: jax.Array) -> jax.Array:
    """Logits (B, T, V) of rows that are padded on the right, with id 0."""
    mask_BT = tokens_BT != 0
    return model(tokens_BT, build_positions_from_mask(mask_BT), None, make_causal_attn_mask(mask_BT))[0]


def tiny_config(vocab: int) -> gemma3.ModelConfig:
    """A Gemma 3 of about 1 M parameters in float32, plus 128 for each of `vocab` embedding rows."""
    return gemma3.ModelConfig(
        num_layers=4, num_embed=vocab, embed_dim=128, hidden_dim=480, num_heads=4, head_dim=32, num_kv_heads=1,
        sliding_window_size=64, global_base_frequency=1_000_000, param_dtype=jnp.float32,
        shd_config=gemma3.ShardingConfig.get_default_sharding(is_sampling=True))


def init_random(config: gemma3.ModelConfig, mesh: Mesh, seed: int = 0) -> gemma3.Gemma3:
    """A fresh Gemma 3 on the mesh: matrices normal with standard deviation 1/sqrt(fan-in), norms at one.

    Tunix would leave the feed-forward kernels at zero. Raises ValueError if tp does not divide the model.
    """
    model = abstract_model("gemma3", config, mesh, replicated=True)
    graph, abstract = nnx.split(model)
    fan_in = {"attn_vec_einsum": config.num_heads * config.head_dim, "down_proj": config.hidden_dim}
    rng = np.random.default_rng(seed)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.Array:
        if path[-1].key == "scale":  # the norms multiply by 1 + scale
            value = np.zeros(leaf.shape)
        else:
            value = fan_in.get(path[-2].key, config.embed_dim) ** -0.5 * rng.standard_normal(leaf.shape)
        return jax.device_put(value.astype(leaf.dtype), sharding)

    shardings = nnx.to_pure_dict(nnx.get_named_sharding(abstract, mesh))
    values = jax.tree_util.tree_map_with_path(draw, nnx.to_pure_dict(abstract), shardings)
    nnx.replace_by_pure_dict(abstract, values)
    return nnx.merge(graph, abstract)

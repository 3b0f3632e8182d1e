"""Gemma 2 and 3 as Tunix's model classes: fresh, assembled on a mesh, from Kaggle's Flax checkpoints.

What it is: placement and the Flax layout around Tunix's own models, with what they lack.
What it is not: a model (those are Tunix's), Hugging Face's files (`hf`), a download or a tokenizer (`models`).

Departs from Tunix's defaults: weights are replicated over "fsdp" (Tunix shards them there, then gathers
every weight at every decoded token); a fresh model's feed-forward kernels are drawn (Tunix leaves them at
zero); Flax checkpoints go onto the mesh array by array (Tunix restores the whole model on the first device,
and writes Gemma 2 a second time); local layers see a window of the tokens before by their positions, as Hugging
Face's do, under left padding (Tunix's Gemma 2 counts its keys from the padding's start and its queries from its
end) and where texts that begin alike share a row (`logprobs`); and the vocabulary's logits are made where they are
asked for alone, at the last position (Tunix's sampler asks for that by a name, `decode_only_last_token`, that its
Gemmas don't know) or at any others (`logits_at`, (B, K)).
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tunix.models.gemma import model as gemma2
from tunix.models.gemma3 import model as gemma3

from reasonkit.models.hf_config import LIBRARY
from reasonkit.models.hf_files import again, check_files, check_finite

_MODEL = {"gemma2": gemma2.Gemma, "gemma3": gemma3.Gemma3}


def _with_window(block: Callable) -> Callable:
    def windowed(self, x, segment_pos, cache, attn_mask):  # attn_mask (B, T, S): a query's last key is its own
        if self.attn_type.name == "LOCAL_SLIDING":
            length, window = attn_mask.shape[-1], self.sliding_window_size
            if cache is None:  # by position: pieces of a row may go on from the same one
                near_BTS = segment_pos[:, :, None] - segment_pos[:, None] < window
            else:
                last_BT1 = length - 1 - jnp.argmax(attn_mask[..., ::-1], -1, keepdims=True)
                near_BTS = jnp.arange(length) > last_BT1 - window
            self, attn_mask = copy.copy(self), attn_mask * near_BTS
            self.sliding_window_size = length  # Tunix's own window then hides nothing
        return block(self, x, segment_pos, cache, attn_mask)

    return windowed


def _with_chosen_logits(call: Callable) -> Callable:
    signature = inspect.signature(call)
    options = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
               for name, default in (("decode_only_last_token", False), ("logits_at", None))]

    @functools.wraps(call)
    def __call__(self, *args, decode_only_last_token: bool = False, logits_at: jax.Array | None = None, **kwargs):
        if decode_only_last_token or logits_at is not None:
            def chosen(x_BTD: jax.Array) -> jax.Array:
                return x_BTD[:, -1:] if logits_at is None else jnp.take_along_axis(x_BTD, logits_at[..., None], 1)

            self = copy.copy(self)
            self.final_norm = nnx.Sequential(chosen, self.final_norm)
        return call(self, *args, **kwargs)

    # Tunix looks for its option there, and does not look for it in **kwargs
    __call__.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *options])
    return __call__


for _class in _MODEL.values():
    _class.__call__ = _with_chosen_logits(_class.__call__)
for _class in (gemma2.Attention, gemma3.Attention):
    _class.block = _with_window(_class.block)


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


def init_random(config: gemma3.ModelConfig, mesh: Mesh, seed: int = 0) -> gemma3.Gemma3:
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


def flax_checkpoint(folder: Path) -> Path | None:
    """The orbax checkpoint of a Kaggle Flax model: the folder itself or a child of it."""
    for candidate in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        if (candidate / "_METADATA").is_file() or (candidate / "manifest.ocdbt").is_file():
            return candidate
    return None


def from_flax(checkpoint: Path, family: str, config: Any, mesh: Mesh, dtype: Any, *, replicated: bool) -> nnx.Module:
    """A model from a checkpoint in google-deepmind/gemma's layout; `dtype` None means bfloat16.

    Raises:
        ValueError: tp does not divide the model, or the checkpoint lacks an array, or has one of another shape, of
            whole numbers or of what is no number.
    """
    config = dataclasses.replace(config, shd_config=LIBRARY[family].ShardingConfig.get_default_sharding(
        is_sampling=replicated))
    mend, checkpoint, dtype = again(checkpoint), checkpoint.resolve(), np.dtype(dtype or jnp.bfloat16)
    _check_tp(config, mesh)
    there = _arrays(checkpoint, mend)
    found = getattr(there.get(("transformer/layer_0/mlp/linear", "w")), "shape", (0,))[0]
    if 2 * found == config.hidden_dim:  # Tunix 0.1.7 has twice Gemma 2 9B's: take the file's word
        config = dataclasses.replace(config, hidden_dim=found)

    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:

        @functools.lru_cache(maxsize=1)  # two arrays of the model are one in the file
        def raw(key: str, leaf: str) -> np.ndarray:
            restore = ocp.args.PyTreeRestore(
                item={key: {leaf: 0}}, restore_args={key: {leaf: ocp.RestoreArgs(restore_type=np.ndarray)}},
                partial_restore=True)
            try:
                value = checkpointer.restore(checkpoint, args=restore)[key][leaf]
            except (ValueError, OSError) as error:  # of tensorstore, which tells of its own files at length
                raise ValueError(f"{checkpoint}: {key}/{leaf} cannot be read ({str(error)[:120]}...), the download "
                                 f"stopped half-way: {mend}") from error
            check_finite(value, f"{checkpoint}: {key}/{leaf}", mend)
            return value

        def find(path: tuple, shape: tuple[int, ...]) -> Callable[[], np.ndarray]:
            key, leaf, part = as_flax(path)
            if (key, leaf) not in there:
                raise ValueError(f"{checkpoint} lacks {key}/{leaf} of a {family} of {config.num_layers} layers, the "
                                 f"download stopped half-way or it is another model: {mend}")
            array = there[key, leaf]
            # Gemma 2 2B keeps this matrix as (2, embed, hidden); larger ones and Gemma 3 as (2, hidden, embed).
            shapes = [shape] if part is None else [(2, *shape), (2, *shape[::-1])]
            if array.shape not in shapes or not jnp.issubdtype(array.dtype, jnp.floating):
                raise ValueError(f"{checkpoint}: {key}/{leaf} is {array.dtype} of shape {array.shape}, and this "
                                 f"{family}'s configuration says floats of {shapes[-1]}: the weights are another "
                                 f"model's, or quantised: {mend}")

            def read() -> np.ndarray:
                value = raw(key, leaf)
                if part is not None:
                    value = value[part] if array.shape == shapes[0] else value[part].T
                return np.ascontiguousarray(value, dtype)

            return read

        return assemble(family, config, mesh, find, replicated=replicated)


def saved_arrays(checkpointer: Any, folder: Path) -> Any:
    """The tree of what a checkpoint of orbax's holds, in shapes and dtypes. Raises ValueError when it cannot tell."""
    check_files(folder)
    if (metadata := checkpointer.metadata(folder).item_metadata) is None:
        raise ValueError(f"{folder} lacks a part")
    return metadata.tree


def _arrays(checkpoint: Path, mend: str) -> dict[tuple[str, str], Any]:
    """Shape and dtype of each array of a Flax checkpoint, by key and leaf.

    Raises ValueError when it is no such checkpoint, or holds what is no file.
    """
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            tree = saved_arrays(checkpointer, checkpoint)
        return {(key, leaf): array for key, leaves in tree.items() for leaf, array in leaves.items()
                if len(array.shape) and array.dtype is not None}
    except Exception as error:  # of orbax and its storage, which raise what they like on damaged files
        raise ValueError(f"{checkpoint} is no orbax checkpoint, or only a part of one "
                         f"({type(error).__name__}: {str(error)[:120]}): {mend}") from error


def as_flax(path: tuple) -> tuple[str, str, int | None]:
    """Where the upstream checkpoint keeps Tunix's array at `path`: key, leaf, and its place where two are stacked."""
    *module, leaf = path
    if module[0] != "layers":
        return f"transformer/{module[0]}", leaf, None
    _, layer, *module = module
    if module in (["mlp", "gate_proj"], ["mlp", "up_proj"]):
        return f"transformer/layer_{layer}/mlp/gating_einsum", "w", ("gate_proj", "up_proj").index(module[1])
    if module == ["mlp", "down_proj"]:
        return f"transformer/layer_{layer}/mlp/linear", "w", None
    name = "/".join("post_attention_norm" if part == "post_attn_norm" else part for part in module)
    return f"transformer/layer_{layer}/{name}", leaf, None


def assemble(family: str, config: Any, mesh: Mesh,
             find: Callable[[tuple, tuple[int, ...]], Callable[[], np.ndarray]], *, replicated: bool) -> nnx.Module:
    """A model whose arrays are read and placed one at a time, the largest first.

    `find(path, shape)` is asked for every leaf of its state before the first is read: it raises, or gives what reads
    the whole array onto the host. The host then never holds more than one array besides what is placed, and no device
    more than its share.

    Raises:
        ValueError: tp does not divide the model; as `find` and what it gives.
    """
    _check_tp(config, mesh)
    model = nnx.eval_shape(lambda: _MODEL[family](config, rngs=nnx.Rngs(0)))
    if replicated:
        _replicate_single_kv_head(model, mesh)
    state = nnx.to_flat_state(nnx.state(model))
    shardings = dict(nnx.to_flat_state(nnx.get_named_sharding(nnx.state(model), mesh)))
    found = [(path, leaf, find(path, leaf.get_value().shape))
             for path, leaf in sorted(state, key=lambda item: -item[1].get_value().size)]
    placed = []
    for path, leaf, read in found:
        value = jax.block_until_ready(jax.device_put(read(), shardings[path].get_value()))
        placed.append((path, leaf.replace(value)))
    nnx.update(model, nnx.from_flat_state(placed))
    return model


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

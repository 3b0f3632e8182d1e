"""Gemma 2 and 3 as Tunix's model classes, read from Kaggle's Flax checkpoints (google-deepmind/gemma's layout).

`from_flax` places one array at a time. Tunix would restore the whole model on the first device. Importing this module
changes Tunix's Gemmas: local layers window by position, which is right under left padding and in rows of several texts,
and logits are computed only where they are asked for.
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
import qwix
from flax import nnx
from jax.sharding import Mesh
from tunix.models.gemma import model as gemma2
from tunix.models.gemma3 import model as gemma3
from tunix.sft.utils import build_positions_from_mask, make_causal_attn_mask

from reasonkit.models.cache import round_to_int8, with_int8_cache, with_kept_order

LIBRARY = {"gemma2": gemma2, "gemma3": gemma3}
CLASSES = {"gemma2": gemma2.Gemma, "gemma3": gemma3.Gemma3}


def _with_window(block: Callable) -> Callable:
    """Tunix's attention block with a window by position. Its Gemma 2 counts keys with the padding, queries without."""

    def attend_in_window(self, x, segment_pos, cache, attn_mask):  # attn_mask (B, T, S): a query's last key is its own
        if self.attn_type.name == "LOCAL_SLIDING":
            length, window = attn_mask.shape[-1], self.sliding_window_size
            if cache is None:  # by position: two pieces of a row may continue from the same one
                near_BTS = segment_pos[:, :, None] - segment_pos[:, None] < window
            else:
                last_BT1 = length - 1 - jnp.argmax(attn_mask[..., ::-1], -1, keepdims=True)
                near_BTS = jnp.arange(length) > last_BT1 - window
            self, attn_mask = copy.copy(self), attn_mask * near_BTS
            self.sliding_window_size = length  # Tunix's own window then hides nothing
        return block(self, x, segment_pos, cache, attn_mask)

    return attend_in_window


def _with_chosen_logits(call: Callable) -> Callable:
    """A Gemma's `__call__` with three more options: `decode_only_last_token`, Tunix's sampler's name for the last
    position only, `logits_at`, (B, K) positions, and `hidden`, the input of `decode` (B, T, D) in place of logits."""
    signature = inspect.signature(call)
    options = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
               for name, default in (("decode_only_last_token", False), ("logits_at", None), ("hidden", False))]

    @functools.wraps(call)
    def __call__(self, *args, decode_only_last_token: bool = False, logits_at: jax.Array | None = None,
                 hidden: bool = False, **kwargs):
        if decode_only_last_token or logits_at is not None:
            def pick(x_BTD: jax.Array) -> jax.Array:
                return x_BTD[:, -1:] if logits_at is None else jnp.take_along_axis(x_BTD, logits_at[..., None], 1)

            self = copy.copy(self)
            self.final_norm = nnx.Sequential(pick, self.final_norm)
        if hidden:
            self = copy.copy(self)
            self.embedder, self.final_logits_softcap = copy.copy(self.embedder), None
            self.embedder.decode = lambda x_BTD: x_BTD
        return call(self, *args, **kwargs)

    # Tunix looks for its option in the signature, and not in **kwargs
    __call__.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *options])
    return __call__


def _with_int8_head(decode: Callable) -> Callable:
    """An embedder's `decode` that also reads a copy of its words in integers, if `add_int8_head` made one. The scales
    go on the logits: multiplied before, the copy would be written out in floats."""

    def read(self, x_BTD: jax.Array) -> jax.Array:
        if not hasattr(self, "int8_head"):
            return decode(self, x_BTD)
        logits_BTV = jnp.einsum("BTD,VD->BTV", x_BTD, self.int8_head[...].astype(x_BTD.dtype))
        return logits_BTV * self.int8_scale[...].astype(x_BTD.dtype)

    return read


def _with_remat_in_training(call: Callable) -> Callable:
    """A layer's `__call__` without remat where there is a cache, so no gradient. `nnx.remat` raises an error in a
    sampler's loop, which merges the model inside it. Without a cache it still does so in such a loop."""

    def __call__(self, x, segment_pos, cache, attn_mask):
        return (call if cache is None else type(self).block)(self, x, segment_pos, cache, attn_mask)

    return __call__


for _class in CLASSES.values():
    _class.__call__ = _with_chosen_logits(_class.__call__)
for _class in (gemma2.Attention, gemma3.Attention):
    _class.block = _with_window(with_kept_order(with_int8_cache(_class.block)))
for _class in (gemma2.DecoderLayer, gemma3.DecoderLayer):
    _class.__call__ = _with_remat_in_training(_class.__call__)
for _class in (gemma2.Embedder, gemma3.Embedder):
    _class.decode = _with_int8_head(_class.decode)


def download_again(path: Path) -> str:
    """How to download a model's file or folder once more. kagglehub does not while its marker is beside the folder."""
    for folder in (path, *path.parents):
        if (marker := folder.parent / f"{folder.name}.complete").is_file():
            return f"delete {folder} and {marker}, then run this again to download the model once more"
    return "download the model again"


@jax.jit
def finite(state: Any) -> jax.Array:
    """Whether all numbers of all arrays are finite."""
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state)]))


def abstract_model(family: str, config: Any, mesh: Mesh, *, replicated: bool) -> nnx.Module:
    """A model as shapes, with the sharding that its weights will have. Raises ValueError when tp does not divide it."""
    tp = mesh.shape["tp"]
    for field in ("num_kv_heads", "num_heads", "embed_dim", "hidden_dim", "num_embed"):
        if getattr(config, field) % tp:
            raise ValueError(f"tp={tp} does not divide the model's {field}={getattr(config, field)}: take a smaller tp")
    model = nnx.eval_shape(lambda: CLASSES[family](config, rngs=nnx.Rngs(0)))
    for layer in model.layers if replicated else ():
        # Tunix shards a single KV head's matrix over fsdp whatever the configuration says
        if hasattr(layer.attn, "kv_einsum") and layer.attn.kv_einsum.shape[1] == 1:
            layer.attn.kv_einsum.w.set_metadata("out_sharding", (None, None, None, None))
    return model


def flax_checkpoint(folder: Path) -> Path | None:
    """The orbax checkpoint of a Kaggle Flax model: the folder itself or a child of it."""
    candidates = folder, *sorted(path for path in folder.iterdir() if path.is_dir())
    return next((path for path in candidates
                 if (path / "_METADATA").is_file() or (path / "manifest.ocdbt").is_file()), None)


def from_flax(checkpoint: Path, family: str, config: Any, mesh: Mesh, dtype: Any, *, replicated: bool) -> nnx.Module:
    """A model from a checkpoint. `dtype` None means bfloat16.

    All shapes are checked before the first array is read. The host holds one array at a time, the largest first, and a
    device only its share. Raises ValueError when tp does not divide the model, or the checkpoint lacks an array, or has
    one of another shape, of integers, or with NaN or infinities.
    """
    checkpoint, dtype, remedy = checkpoint.resolve(), jnp.dtype(dtype or jnp.bfloat16), download_again(checkpoint)
    sharding = LIBRARY[family].ShardingConfig.get_default_sharding(is_sampling=replicated)
    config = dataclasses.replace(config, shd_config=sharding, **{"param_dtype": dtype} if family == "gemma3" else {})
    abstract_model(family, config, mesh, replicated=replicated)
    stored = _stored_arrays(checkpoint, remedy)
    hidden = getattr(stored.get(("transformer/layer_0/mlp/linear", "w")), "shape", (0,))[0]
    if 2 * hidden == config.hidden_dim:  # Tunix 0.1.7 has twice Gemma 2 9B's
        config = dataclasses.replace(config, hidden_dim=hidden)
    model = abstract_model(family, config, mesh, replicated=replicated)
    shardings = dict(nnx.to_flat_state(nnx.get_named_sharding(nnx.state(model), mesh)))
    leaves = [(path, leaf, leaf.get_value().shape, *as_flax(path)) for path, leaf in sorted(
        nnx.to_flat_state(nnx.state(model)), key=lambda item: -item[1].get_value().size)]
    for _, _, shape, key, name, part in leaves:
        if (key, name) not in stored:
            raise ValueError(f"{checkpoint} lacks {key}/{name} of a {family} of {config.num_layers} layers, the "
                             f"download stopped half-way or it is another model: {remedy}")
        array = stored[key, name]
        # Gemma 2 2B keeps its stacked matrices as (2, embed, hidden); the larger ones and Gemma 3 as (2, hidden, embed)
        shapes = [shape] if part is None else [(2, *shape), (2, *shape[::-1])]
        if array.shape not in shapes or not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{checkpoint}: {key}/{name} is {array.dtype} of shape {array.shape}, and this "
                             f"{family}'s configuration says floats of {shapes[-1]}: the weights are another "
                             f"model's, or quantised: {remedy}")

    placed = []
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        @functools.lru_cache(maxsize=1)  # two parts in a row may be of one array
        def read(key: str, name: str) -> np.ndarray:
            restore = ocp.args.PyTreeRestore(
                item={key: {name: 0}}, restore_args={key: {name: ocp.RestoreArgs(restore_type=np.ndarray)}},
                partial_restore=True)
            try:
                return checkpointer.restore(checkpoint, args=restore)[key][name]
            except (ValueError, OSError) as error:  # tensorstore's messages are long
                raise ValueError(f"{checkpoint}: {key}/{name} cannot be read ({str(error)[:120]}...), the download "
                                 f"stopped half-way: {remedy}") from error

        for path, leaf, shape, key, name, part in leaves:
            value = read(key, name)
            if part is not None:
                value = value[part] if value.shape == (2, *shape) else value[part].T
            value = jax.device_put(np.ascontiguousarray(value, dtype), shardings[path].get_value())
            if not finite(value):
                raise ValueError(f"{checkpoint}: {key}/{name} holds infinities or NaN: {remedy}")
            placed.append((path, leaf.replace(value)))
    nnx.update(model, nnx.from_flat_state(placed))
    return model


def as_flax(path: tuple) -> tuple[str, str, int | None]:
    """Where the checkpoint keeps Tunix's array at `path`: key, leaf, and its index where two are stacked."""
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


def array_metadata(checkpointer: ocp.Checkpointer, folder: Path) -> Any:
    """The tree of an orbax checkpoint's shapes and dtypes. Raises ValueError when orbax has none, and for a pipe or a
    device in the folder, which orbax would read without end."""
    for path in folder.rglob("*"):
        if not path.is_dir() and not path.is_file():
            raise ValueError(f"{path} is no file")
    if (metadata := checkpointer.metadata(folder).item_metadata) is None:
        raise ValueError(f"{folder} lacks a part")
    return metadata.tree


def _stored_arrays(checkpoint: Path, remedy: str) -> dict[tuple[str, str], Any]:
    """Shape and dtype of each array of a Flax checkpoint, by key and leaf. Raises ValueError when it is none."""
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            tree = array_metadata(checkpointer, checkpoint)
        return {(key, leaf): array for key, leaves in tree.items() for leaf, array in leaves.items()
                if len(array.shape) and array.dtype is not None}
    except Exception as error:  # orbax raises many kinds of errors on damaged files
        raise ValueError(f"{checkpoint} is no orbax checkpoint, or only a part of one "
                         f"({type(error).__name__}: {str(error)[:120]}): {remedy}") from error


def quantize_layers(model: nnx.Module, rows: int) -> nnx.Module:
    """The model with the matrices of its layers as 8-bit integers; arrays or shapes. See `load.quantize_int8`.

    qwix finds the matrices by a forward pass of `rows` rows.
    """
    tokens_BT = jnp.ones((rows, 8), jnp.int32)
    mask_BT = tokens_BT > 0
    inputs = tokens_BT, build_positions_from_mask(mask_BT), None, make_causal_attn_mask(mask_BT)
    rule = qwix.QuantizationRule(module_path="layers/.*", weight_qtype="int8")  # not the embedding
    return qwix.quantize_model(model, qwix.PtqProvider([rule]), *inputs)


def add_int8_head(model: nnx.Module) -> None:
    """Give the model a copy of its embedding in 8-bit integers, with a scale per word, for the logits. The words of a
    text are still looked up in the embedding, which is shared. Arrays or shapes."""
    model.embedder, embedding = copy.copy(model.embedder), model.embedder.input_embedding
    # names behind `input_embedding`: Tunix's sampler gives the cache the dtype of a model's first array
    head_VD, scale_V1 = jax.jit(round_to_int8)(embedding[...])
    model.embedder.int8_head, model.embedder.int8_scale = map(embedding.replace, (head_VD, scale_V1[:, 0]))
    if spec := embedding.get_metadata().get("out_sharding"):
        model.embedder.int8_scale.set_metadata("out_sharding", spec[:1])

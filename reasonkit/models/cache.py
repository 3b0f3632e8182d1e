"""The KV cache over the mesh, in the model's floats or in 8-bit integers with a scale per token and head.

`gemma` sends Tunix's attention through `with_kept_order` and `with_int8_cache`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import pxla
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tunix.models.gemma import model as gemma2
from tunix.models.gemma3 import model as gemma3
from tunix.utils import sharding_utils

LARGEST = 127  # of the integers


def heads_first(mesh: Mesh) -> bool:
    """Whether the cache has heads before tokens. In a sampler's loop libtpu lays it out so. In any other order it would
    be copied before and after, and held twice. A CPU is slower with it."""
    return not mesh.empty and mesh.devices.flat[0].platform == "tpu"


def layouts(config, rows: int) -> tuple[NamedSharding | None, NamedSharding | None]:
    """Shardings of the cache's keys and values, rows over fsdp and KV heads over tp where they divide, and of its end
    indices, over the mesh in context."""
    mesh = pxla.thread_resources.env.physical_mesh
    if mesh.empty:
        return None, None
    over = "fsdp" if rows % mesh.shape["fsdp"] == 0 else None
    heads = "tp" if config.num_kv_heads % mesh.shape["tp"] == 0 else None
    tokens_and_heads = (heads, None) if heads_first(mesh) else (None, heads)
    return NamedSharding(mesh, PartitionSpec(over, *tokens_and_heads, None)), NamedSharding(mesh, PartitionSpec(over))


def cache_arrays(config, rows: int, size: int, dtype, int8: bool, mesh: Mesh) -> dict[str, tuple[tuple, Any]]:
    """Shape and dtype of a layer's arrays, by name."""
    order = (config.num_kv_heads, size) if heads_first(mesh) else (size, config.num_kv_heads)
    whole, scale = (rows, *order, config.head_dim), (rows, *order, 1)
    if not int8:
        return dict.fromkeys(("k", "v"), (whole, dtype))
    return dict.fromkeys(("k", "v"), (whole, jnp.int8)) | dict.fromkeys(("k_scale", "v_scale"), (scale, dtype))


def _init_cache(self, batch_size: int, cache_size: int, dtype) -> dict:
    """A KV cache laid out over the mesh, of integers for a model with `int8_cache`."""
    layout, ends = layouts(self.config, batch_size)
    arrays = cache_arrays(self.config, batch_size, cache_size, dtype, getattr(self, "int8_cache", False),
                          pxla.thread_resources.env.physical_mesh)
    arrays["end_index"] = (batch_size,), jnp.int32
    shardings = {name: ends if name == "end_index" else layout for name in arrays} if layout else {}
    return _zeros(self.config.num_layers, (*arrays.items(),), (*shardings.items(),))()


@functools.cache
def _zeros(layers: int, arrays: tuple, shardings: tuple) -> Callable[[], dict]:
    """A program in which each chip fills its own part of the cache. `jnp.zeros` with a sharding would copy the first
    chip's to the others."""
    names = [f"layer_{layer}" for layer in range(layers)]

    def make() -> dict:
        return {name: {part: jnp.zeros(*shape_and_dtype) for part, shape_and_dtype in arrays} for name in names}

    return jax.jit(make, out_shardings=dict.fromkeys(names, dict(shardings)) if shardings else None)


def install_sharded_cache() -> None:
    """Make both of Tunix's Gemma classes create their cache sharded."""
    gemma3.Gemma3.init_cache = _init_cache
    gemma2.Gemma.init_cache = _init_cache


def with_kept_order(block: Callable) -> Callable:
    """An attention block of Tunix's, for a cache in either order. It has more tokens than heads, so its shape tells."""

    def turn(cache: dict) -> dict:
        return {name: leaf.swapaxes(1, 2) if leaf.ndim == 4 else leaf for name, leaf in cache.items()}

    def attend(self, x_BTD, segment_pos, cache, attn_mask):
        if cache is None or cache["k"].shape[1] != self.num_kv_heads:
            return block(self, x_BTD, segment_pos, cache, attn_mask)
        kept, output_BTD = block(self, x_BTD, segment_pos, turn(cache), attn_mask)
        return turn(kept), output_BTD

    return attend


def round_to_int8(x_BTKH: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Integers and scales (B, T, K, 1), which are divided by as they are stored, so their rounding does no harm."""
    scale_BTK1 = jnp.abs(x_BTKH).max(-1, keepdims=True) / LARGEST
    steps_BTKH = x_BTKH.astype(jnp.float32) / jnp.where(scale_BTK1 == 0, 1, scale_BTK1).astype(jnp.float32)
    return jnp.clip(jnp.round(steps_BTKH), -LARGEST, LARGEST).astype(jnp.int8), scale_BTK1


def with_int8_cache(block: Callable) -> Callable:
    """An attention block of Tunix's that also takes a cache of integers. Then it computes what Tunix does, but with the
    scales on scores and probabilities: multiplied before, the cache would be written out in floats."""

    def attend(self, x_BTD, segment_pos, cache, attn_mask):
        if cache is None or "k_scale" not in cache:
            return block(self, x_BTD, segment_pos, cache, attn_mask)
        query_BTNH, *written = self.qkv_einsum(x_BTD) if self.use_qkv_einsum else (
            self.q_einsum(x_BTD), *self.kv_einsum(x_BTD))
        if is_gemma3 := isinstance(self, gemma3.Attention):
            query_BTNH, written[0] = self._query_norm(query_BTNH), self._key_norm(written[0])
            rope = functools.partial(gemma3.apply_rope, base_frequency=self.rope_base_frequency,
                                     scale_factor=self.rope_scale_factor)
        else:
            rope = gemma2.apply_rope
        query_BTNH, written[0] = (rope(y, segment_pos, head_dim=self.head_dim) for y in (query_BTNH, written[0]))
        query_BTNH, *written = (sharding_utils.shard(y, self.shd_config.act_btnh) for y in (query_BTNH, *written))
        kept = {"end_index": cache["end_index"] + x_BTD.shape[1]}
        for name, y_BTKH in zip(("k", "v"), written, strict=True):
            for part, piece in zip((name, f"{name}_scale"), round_to_int8(y_BTKH), strict=True):
                kept[part] = jax.lax.dynamic_update_slice_in_dim(cache[part], piece, cache["end_index"][0], 1)

        def spread(scale_BSK1: jax.Array) -> jax.Array:
            return scale_BSK1.transpose(0, 3, 2, 1)[:, :, :, None]

        query_BTNH *= self.query_pre_attn_scalar if is_gemma3 else self.head_dim**-0.5
        query_BTKGH = query_BTNH.reshape(*query_BTNH.shape[:2], self.num_kv_heads, -1, self.head_dim)
        scores_BTKGS = jnp.einsum("BTKGH,BSKH->BTKGS", query_BTKGH, kept["k"].astype(x_BTD.dtype))
        scores_BTKGS *= spread(kept["k_scale"])
        if (cap := getattr(self, "attn_logits_soft_cap", None)) is not None:
            scores_BTKGS = jnp.tanh(scores_BTKGS / cap) * cap
        probs_BTKGS = jax.nn.softmax(jnp.where(attn_mask[:, :, None, None], scores_BTKGS, gemma3.K_MASK))
        mixed_BTKGH = jnp.einsum("BTKGS,BSKH->BTKGH", (probs_BTKGS * spread(kept["v_scale"])).astype(x_BTD.dtype),
                                 kept["v"].astype(x_BTD.dtype))
        output_BTD = self.attn_vec_einsum(mixed_BTKGH.reshape(query_BTNH.shape))
        return kept, sharding_utils.shard(output_BTD, self.shd_config.act_btd)

    return attend

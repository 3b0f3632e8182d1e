"""Maps the tensors of Hugging Face's Gemma 2 and 3 to Tunix's arrays, in one table: `tensors`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np


class Tensor(NamedTuple):
    """One tensor of the file, and where it is in Tunix's state: `file.reshape(split).transpose(axes)`."""

    name: str
    path: tuple[str | int, ...]
    part: int | None  # its place in an array that stacks several: queries, keys, values
    shape: tuple[int, ...]
    split: tuple[int, ...]
    axes: tuple[int, ...]

    def ours(self, value: np.ndarray) -> np.ndarray:
        return value.reshape(self.split).transpose(self.axes)

    def theirs(self, value: np.ndarray) -> np.ndarray:
        value = value if self.part is None else value[self.part]
        return np.ascontiguousarray(value.transpose(np.argsort(self.axes)).reshape(self.shape))


def tensors(family: str, config: Any) -> Iterator[Tensor]:
    """Every tensor of the model, in the file's order. torch keeps matrices as (out, in)."""
    n, k, h, d, f = (getattr(config, name) for name in ("num_heads", "num_kv_heads", "head_dim", "embed_dim",
                                                        "hidden_dim"))

    def vector(name: str, size: int, *path: str | int) -> Tensor:
        return Tensor(f"model.{name}.weight", (*path, "scale"), None, (size,), (size,), (0,))

    def heads(name: str, count: int, part: int | None, *path: str | int) -> Tensor:
        return Tensor(f"model.{name}.weight", (*path, "w"), part, (count * h, d), (count, h, d), (0, 2, 1))

    def matrix(name: str, out: int, inner: int, *path: str | int) -> Tensor:
        return Tensor(f"model.{name}.weight", (*path, "kernel"), None, (out, inner), (out, inner), (1, 0))

    embedding = (config.num_embed, d)
    yield Tensor("model.embed_tokens.weight", ("embedder", "input_embedding"), None, embedding, embedding, (0, 1))
    for layer in range(config.num_layers):
        at, attn, mlp = f"layers.{layer}", ("layers", layer, "attn"), ("layers", layer, "mlp")
        q, kv = ("qkv_einsum", "qkv_einsum") if n == k else ("q_einsum", "kv_einsum")
        yield heads(f"{at}.self_attn.q_proj", n, 0 if n == k else None, *attn, q)
        for part, letter in enumerate("kv", start=1 if n == k else 0):
            yield heads(f"{at}.self_attn.{letter}_proj", k, part, *attn, kv)
        yield Tensor(f"model.{at}.self_attn.o_proj.weight", (*attn, "attn_vec_einsum", "w"), None, (d, n * h),
                     (d, n, h), (1, 2, 0))
        if family == "gemma3":
            yield vector(f"{at}.self_attn.q_norm", h, *attn, "_query_norm")
            yield vector(f"{at}.self_attn.k_norm", h, *attn, "_key_norm")
        yield matrix(f"{at}.mlp.gate_proj", f, d, *mlp, "gate_proj")
        yield matrix(f"{at}.mlp.up_proj", f, d, *mlp, "up_proj")
        yield matrix(f"{at}.mlp.down_proj", d, f, *mlp, "down_proj")
        for theirs, ours in (("input_layernorm", "pre_attention_norm"),
                             ("post_attention_layernorm", "post_attn_norm" if family == "gemma2"
                              else "post_attention_norm"),
                             ("pre_feedforward_layernorm", "pre_ffw_norm"),
                             ("post_feedforward_layernorm", "post_ffw_norm")):
            yield vector(f"{at}.{theirs}", d, "layers", layer, ours)
    yield vector("norm", d, "final_norm")

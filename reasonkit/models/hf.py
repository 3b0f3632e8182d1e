"""Gemma 2 and 3 as Hugging Face's safetensors, onto a mesh and out again.

One table says which tensor there is which array here; loading, saving and the adapter's export (`export`) go by it.

Departs from Tunix's loader (safetensors_loader), which maps the whole file into memory, stacks every attention matrix
on device 0 and stops with an error about None where a tensor is missing. Here one array at a time is read and placed,
the largest first, so that the host holds one array, and every device its share.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from safetensors.numpy import save_file

from reasonkit.models.gemma import assemble
from reasonkit.models.hf_config import family_of, read_config, write_config
from reasonkit.models.hf_files import HEAD, INDEX, Stored, again, check_finite, stored_in

SHARD_BYTES = 5_000_000_000


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


def is_hf(folder: Path) -> bool:
    """Whether the folder holds Hugging Face files, whole or not."""
    return os.path.lexists(folder / "config.json") and any(folder.glob("*.safetensors"))


def _equal(one: Stored, other: Stored) -> bool:
    """Some rows at a time: of a 12B each is 2 GB."""
    if one.shape != other.shape:
        return False
    rows = [np.memmap(each.file, each.dtype, "r", each.start, each.shape) for each in (one, other)]
    return all(np.array_equal(*(each[at: at + 4096] for each in rows)) for at in range(0, one.shape[0], 4096))


def from_hf(folder: Path, mesh: Mesh, dtype: Any, *, replicated: bool) -> tuple[str, nnx.Module]:
    """Family and model from config.json and *.safetensors; `dtype` None keeps the file's.

    All but the numbers themselves is looked at before the first of them is read.

    Raises:
        ValueError: config.json names another model, or files that are broken, or tensors that do not belong or hold
            what is no number; tp does not divide the model.
        FileNotFoundError: a weight file is missing.
    """
    family, config = read_config(folder / "config.json", replicated)
    stored, wanted = stored_in(folder), {tensor.name: tensor for tensor in tensors(family, config)}
    head = stored.pop(HEAD, None)
    for what, names in (("lacks", wanted.keys() - stored.keys()), ("has besides", stored.keys() - wanted.keys())):
        if names:
            raise ValueError(f"{folder} {what} {len(names)} tensors of a {family} of {config.num_layers} layers, such "
                             f"as {min(names)}: config.json and weights do not belong together, {again(folder)}")
    parts: dict[tuple, list[Tensor]] = defaultdict(list)
    for name, tensor in wanted.items():
        if stored[name].shape != tensor.shape:
            raise ValueError(f"{stored[name].file}: {name} is {stored[name].shape}, and config.json says "
                             f"{tensor.shape}: {again(folder)}")
        parts[tensor.path].append(tensor)
    embedding = stored["model.embed_tokens.weight"]
    if head and not _equal(head, embedding):
        raise ValueError(f"{head.file}: {HEAD} is not the embedding, and Tunix's {family} has one matrix for both: it "
                         "cannot run this model")
    if family == "gemma3":
        config.param_dtype = dtype or embedding.dtype

    def part(tensor: Tensor) -> np.ndarray:
        value = stored[tensor.name].read()
        check_finite(value, f"{stored[tensor.name].file}: {tensor.name}", again(folder))
        return tensor.ours(value)

    def read(path: tuple) -> np.ndarray:
        values = [part(tensor) for tensor in parts[path]]
        value = values[0] if parts[path][0].part is None else np.stack(values)
        return np.ascontiguousarray(value, dtype and np.dtype(dtype))

    return family, assemble(family, config, mesh, lambda path, shape: partial(read, path), replicated=replicated)


def save_hf(model: nnx.Module, tokenizer_path: str | Path, folder: str | Path, dtype: Any = ml_dtypes.bfloat16,
            shard_bytes: int = SHARD_BYTES, stop_ids: tuple[int, ...] = (), besides: Mapping[str, Any] = {}) -> Path:
    """Writes a Gemma 2 or 3 as Hugging Face files: *.safetensors, config.json (with `besides`), tokenizer.model.

    An adapter is merged: W + alpha / rank x A B, summed in float32. Files of more than `shard_bytes` are split, under
    the names that transformers looks for. Each file is written beside its place and moved there, config.json last, and
    weights that an earlier save left are removed: they would be read too.

    Raises ValueError when it is no Gemma 2 or 3.
    """
    family, folder, dtype = family_of(model), Path(folder), np.dtype(dtype)
    settings = write_config(model, dtype, stop_ids) | besides
    leaves = {path: leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(model))}
    shards: list[list[Tensor]] = [[]]
    filled = 0
    for tensor in tensors(family, model.config):
        size = math.prod(tensor.shape) * dtype.itemsize
        if filled and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += size
    names = (["model.safetensors"] if len(shards) == 1 else
             [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))])
    folder.mkdir(parents=True, exist_ok=True)
    for stale in {*folder.glob("model*.safetensors"), folder / INDEX} - {folder / name for name in names}:
        stale.unlink(missing_ok=True)

    def put(name: str, write: Any) -> None:
        write(folder / f".{name}.tmp")
        os.replace(folder / f".{name}.tmp", folder / name)

    def text(value: dict) -> Any:
        return lambda path: path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

    for name, shard in zip(names, shards, strict=True):
        weights = {t.name: t.theirs(merge_lora(leaves, t.path, model).astype(dtype)) for t in shard}
        put(name, lambda path, weights=weights: save_file(weights, path, metadata={"format": "pt"}))
    if len(shards) > 1:
        total = sum(math.prod(t.shape) for shard in shards for t in shard) * dtype.itemsize
        where = {t.name: name for name, shard in zip(names, shards, strict=True) for t in shard}
        put(INDEX, text({"metadata": {"total_size": total}, "weight_map": where}))
    put("tokenizer.model", lambda path: shutil.copyfile(tokenizer_path, path))
    put("config.json", text(settings))
    return folder


def merge_lora(leaves: dict[tuple, jax.Array], path: tuple, model: nnx.Module) -> np.ndarray:
    """The array at `path` with the adapter's part, if it has one: float32, else as it is. The adapter is rounded to the
    base's dtype first, as the policy was evaluated."""
    value, a, b = (leaves.get((*path[:-1], path[-1] + end)) for end in ("", "_lora_a", "_lora_b"))
    if a is None:
        return np.asarray(value)
    a, b = (np.asarray(x.astype(value.dtype), np.float32) for x in (a, b))
    change = np.tensordot(a, b, 1) * (model.lora_alpha / a.shape[-1])
    # qwix has the contracted axes first: of the output's projection they are (heads, head), as here.
    return np.asarray(value, np.float32) + (change if a.ndim == 3 else np.moveaxis(change, 0, -2))

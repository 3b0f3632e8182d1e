"""Gemma 2 and 3 as Hugging Face's safetensors: `read_arrays`, `save_hf`, and `tensors`, the table of their arrays."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from flax import nnx
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from reasonkit.models.gemma import download_again
from reasonkit.session.files import replace_file, write_atomic
from tools.flax import family_of, merge_lora
from tools.hf.config import read_config, read_json, write_config

SHARD_BYTES = 5_000_000_000
INDEX = "model.safetensors.index.json"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
DTYPES = ("BF16", "F16", "F32")
# Gemma3ForCausalLM has one prefix, Gemma3ForConditionalGeneration one before transformers 4.52 and one since.
_PREFIX = re.compile(r"(language_model\.model|model\.language_model|model)\.(?=embed_tokens|layers|norm)")
_UNUSED = re.compile(r"(model\.)?(vision_tower|multi_modal_projector)\.|(.*\.)?rotary_emb\.")


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

    def tensor(name: str, path: tuple, split: tuple[int, ...], axes: tuple[int, ...] = (0,), part: int | None = None,
               shape: tuple[int, ...] = ()) -> Tensor:
        return Tensor(f"model.{name}.weight", path, part, shape or split, split, axes)

    yield tensor("embed_tokens", ("embedder", "input_embedding"), (config.num_embed, d), (0, 1))
    for layer in range(config.num_layers):
        at, own, attn = f"layers.{layer}", ("layers", layer), ("layers", layer, "attn")
        q, kv, first = ("qkv_einsum", "qkv_einsum", 1) if n == k else ("q_einsum", "kv_einsum", 0)
        for letter, count, array, part in (("q", n, q, 0 if n == k else None), ("k", k, kv, first),
                                           ("v", k, kv, first + 1)):
            yield tensor(f"{at}.self_attn.{letter}_proj", (*attn, array, "w"), (count, h, d), (0, 2, 1), part,
                         (count * h, d))
        yield tensor(f"{at}.self_attn.o_proj", (*attn, "attn_vec_einsum", "w"), (d, n, h), (1, 2, 0), None, (d, n * h))
        for theirs, ours in (("q_norm", "_query_norm"), ("k_norm", "_key_norm")) if family == "gemma3" else ():
            yield tensor(f"{at}.self_attn.{theirs}", (*attn, ours, "scale"), (h,))
        for name, split in (("gate_proj", (f, d)), ("up_proj", (f, d)), ("down_proj", (d, f))):
            yield tensor(f"{at}.mlp.{name}", (*own, "mlp", name, "kernel"), split, (1, 0))
        after = "post_attn_norm" if family == "gemma2" else "post_attention_norm"
        for theirs, ours in (("input_layernorm", "pre_attention_norm"), ("post_attention_layernorm", after),
                             ("pre_feedforward_layernorm", "pre_ffw_norm"),
                             ("post_feedforward_layernorm", "post_ffw_norm")):
            yield tensor(f"{at}.{theirs}", (*own, ours, "scale"), (d,))
    yield tensor("norm", ("final_norm", "scale"), (d,))


def to_tunix(family: str, config: Any, read: Callable[[str], np.ndarray]) -> dict[tuple, np.ndarray]:
    """Tunix's arrays by their path, made from the tensors that `read(name)` returns."""
    parts: dict[tuple, list[np.ndarray]] = defaultdict(list)
    for tensor in tensors(family, config):
        parts[tensor.path].append(tensor.ours(read(tensor.name)))
    return {path: values[0] if len(values) == 1 else np.stack(values) for path, values in parts.items()}


def _files(folder: Path) -> list[Path]:
    """The weight files: those in the index, or all without one. Raises as `read_arrays` does."""
    there = {path.name: path for path in folder.glob("*.safetensors")}
    if not (folder / INDEX).exists():
        return [there[name] for name in sorted(there)]
    if not isinstance(where := read_json(folder / INDEX).get("weight_map"), dict):
        raise ValueError(f"{folder / INDEX} has no weight_map: {download_again(folder)}")
    named = sorted({str(name) for name in where.values()})
    if missing := [name for name in named if name not in there]:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing[:9])[:500]} of {len(named)} weight files: the "
                                f"download stopped half-way, {download_again(folder)}")
    return [there[name] for name in named]


def _tensors_in(folder: Path) -> dict[str, tuple[Path, str, tuple[int, ...]]]:
    """File, name in it and shape of each tensor, by its name in a text-only model. Raises as `read_arrays` does."""
    found: dict[str, tuple[Path, str, tuple[int, ...]]] = {}
    for file in _files(folder):
        try:
            with safe_open(file, "numpy") as opened:
                entries = {name: opened.get_slice(name) for name in opened.keys() if not _UNUSED.match(name)}
                entries = {name: (entry.get_dtype(), tuple(entry.get_shape())) for name, entry in entries.items()}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is no safetensors file, or only a part of one ({str(error)[:200]}): "
                             f"{download_again(file)}") from error
        for name, (dtype, shape) in entries.items():
            if dtype not in DTYPES:
                raise ValueError(f"{file}: {name} is {dtype}, not {', '.join(DTYPES)}: take the model that is not "
                                 "quantised")
            ours = HEAD if name.endswith(HEAD) else _PREFIX.sub("model.", name, count=1)
            if ours in found:
                raise ValueError(f"{file}: {name} is in {found[ours][0]} too: delete the file that does not belong, or "
                                 f"{download_again(folder)}")
            found[ours] = file, name, shape
    return found


def read_arrays(folder: Path) -> tuple[str, Any, dict[tuple, np.ndarray]]:
    """Family, Tunix's configuration and the arrays by their path in Tunix's state, in the file's dtype.

    Raises:
        ValueError: config.json names another model, a file is damaged, a tensor is missing, quantised, repeated or of
            another shape, or the output matrix is not the embedding.
        FileNotFoundError: a weight file is missing.
    """
    family, config = read_config(folder / "config.json")
    stored, wanted = _tensors_in(folder), {tensor.name: tensor for tensor in tensors(family, config)}

    def read(name: str) -> np.ndarray:
        file, there, _ = stored[name]
        with safe_open(file, "numpy") as opened:
            return opened.get_tensor(there)

    for what, names in (("lacks", wanted.keys() - stored.keys()),
                        ("has besides", stored.keys() - wanted.keys() - {HEAD})):
        if names:
            raise ValueError(f"{folder} {what} {len(names)} tensors of a {family} of {config.num_layers} layers, such "
                             f"as {min(names)}: config.json and weights do not belong together, "
                             f"{download_again(folder)}")
    for name, tensor in wanted.items():
        if stored[name][2] != tensor.shape:
            raise ValueError(f"{stored[name][0]}: {name} is {stored[name][2]}, and config.json says "
                             f"{tensor.shape}: {download_again(folder)}")
    if HEAD in stored and not np.array_equal(read(HEAD), read(EMBEDDING)):
        raise ValueError(f"{stored[HEAD][0]}: {HEAD} is not the embedding, and Tunix's {family} has one matrix for "
                         "both: it cannot run this model")
    return family, config, to_tunix(family, config, read)


def save_hf(model: nnx.Module, tokenizer_path: str | Path, folder: str | Path, dtype: Any = ml_dtypes.bfloat16,
            shard_bytes: int = SHARD_BYTES, stop_ids: tuple[int, ...] = (), extra: Mapping[str, Any] = {}) -> Path:
    """Write a Gemma 2 or 3 as Hugging Face files: *.safetensors, config.json (with `extra`), tokenizer.model.

    An adapter is merged. Files of more than `shard_bytes` are split, under the names that transformers looks for.
    Weights of an earlier save are removed, because they would be read too. config.json is written last.

    Raises ValueError for any other model.
    """
    family, folder, dtype = family_of(model), Path(folder), np.dtype(dtype)
    settings = write_config(model, dtype, stop_ids) | extra
    leaves = {path: leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(model))}
    there = {tensor.name: tensor for tensor in tensors(family, model.config)}
    split = split_state_dict_into_shards_factory(
        there, get_storage_size=lambda tensor: math.prod(tensor.shape) * dtype.itemsize,
        filename_pattern="model{suffix}.safetensors", max_shard_size=shard_bytes)
    kept = {folder / name for name in split.filename_to_tensors}
    for stale in {*folder.glob("model*.safetensors"), folder / INDEX} - kept:
        stale.unlink(missing_ok=True)
    for name, shard in split.filename_to_tensors.items():
        weights = {t: there[t].theirs(merge_lora(leaves, there[t].path, model).astype(dtype)) for t in shard}
        with replace_file(folder / name) as temporary:
            save_file(weights, temporary, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_atomic(folder / INDEX, json.dumps(index, indent=2) + "\n")
    with replace_file(folder / "tokenizer.model") as temporary:
        shutil.copyfile(tokenizer_path, temporary)
    write_atomic(folder / "config.json", json.dumps(settings, indent=2) + "\n")
    return folder

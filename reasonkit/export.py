"""A trained policy as files that other tools read: Hugging Face's, PEFT's, and Flax for the unrestricted mode.

What it is: names and layouts. What it is not: the model card and the upload (`publish`), or checkpoints to train on
from (`lora`). Loaded again, each gives the policy's own logits; tests/test_parity.py holds them to it.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from safetensors.numpy import save_file

from reasonkit.budget import write_atomic
from reasonkit.gemma import in_flax
from reasonkit.hf import SHARD_BYTES, merged, save_hf, tensors
from reasonkit.hf_config import family_of
from reasonkit.lora import lora_signature, save_lora
from reasonkit.models import MODELS, Loaded, hf_name

_TOKENIZER = {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True, "add_eos_token": False,
              "clean_up_tokenization_spaces": False}


def export_hf(policy: Loaded, folder: str | Path, dtype: Any = None, shard_bytes: int = SHARD_BYTES) -> Path:
    """The model with its adapter merged, as transformers and its kin read it; `dtype` None keeps the base's.

    Besides `hf.save_hf`: tokenizer_config.json, which names the tokenizer's class and control pieces, and
    generation_config.json with the stop tokens and greedy decoding, as it was evaluated. Of Gemma 2, transformers'
    default attention (SDPA) leaves out the soft cap: load it with attn_implementation="eager".
    """
    folder, tokenizer = Path(folder), policy.tokenizer
    dtype = dtype or policy.model.embedder.input_embedding.dtype
    save_hf(policy.model, tokenizer.path, folder, dtype, shard_bytes, tokenizer.stop_ids)
    ids = {"bos_token": tokenizer.bos_id(), "eos_token": tokenizer.eos_id(), "pad_token": tokenizer.pad_id()}
    pieces = {name: tokenizer.piece(number) for name, number in ids.items()}
    write_atomic(folder / "tokenizer_config.json", json.dumps(_TOKENIZER | pieces, indent=2) + "\n")
    generation = {f"{name}_id": number for name, number in ids.items()} | {
        "eos_token_id": list(tokenizer.stop_ids), "do_sample": False}
    write_atomic(folder / "generation_config.json", json.dumps(generation, indent=2) + "\n")
    return folder


def export_peft(policy: Loaded, folder: str | Path) -> Path:
    """The adapter alone, as PEFT keeps it: adapter_model.safetensors (float32) and adapter_config.json.

    It goes onto the text model, Gemma2ForCausalLM or Gemma3ForCausalLM. qwix's one adapter on keys and values becomes
    two that share A. Raises ValueError when the model has no adapter.
    """
    signature, folder = lora_signature(policy.model), Path(folder)
    leaves = {path: leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(policy.model, nnx.LoRAParam))}
    rank, weights = signature["rank"], {}
    for tensor in tensors(family_of(policy.model), policy.model.config):
        a, b = (leaves.get((*tensor.path[:-1], tensor.path[-1] + end)) for end in ("_lora_a", "_lora_b"))
        if a is None:
            continue
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        b = b if tensor.part is None else b[:, tensor.part]
        name = f"base_model.model.{tensor.name.removesuffix('.weight')}"
        weights[f"{name}.lora_A.weight"] = np.ascontiguousarray(a.reshape(-1, rank).T)
        weights[f"{name}.lora_B.weight"] = np.ascontiguousarray(b.reshape(rank, -1).T)
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "inference_mode": True, "bias": "none", "lora_dropout": 0.0,
        "fan_in_fan_out": False, "r": rank, "lora_alpha": signature["alpha"],
        "target_modules": sorted({name.split(".")[-3] for name in weights}),
        "base_model_name_or_path": hf_name(policy.name),
    }
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / ".adapter_model.safetensors.tmp"
    save_file(weights, temporary, metadata={"format": "pt"})
    os.replace(temporary, folder / "adapter_model.safetensors")
    write_atomic(folder / "adapter_config.json", json.dumps(settings, indent=2) + "\n")
    return folder


def export_flax(policy: Loaded, folder: str | Path, step: int, dtype: Any = jnp.bfloat16) -> Path:
    """What the unrestricted mode names, replacing an earlier export: the merged model in google-deepmind/gemma's
    layout, as Kaggle has the stock one (<variation>/, tokenizer.model), and the adapter as the judges restore it
    (actor/<step>/model_params; check it with `verify.verify_submission`).

    Gemma 2's gating matrices are laid out as those of the 2B. Raises ValueError when the model has no adapter.
    """
    lora_signature(policy.model)
    folder, family, dtype = Path(folder).resolve(), family_of(policy.model), np.dtype(dtype)
    source = MODELS.get(policy.name)
    variation = source.handle.split("/")[3] if source and source.handle else Path(policy.name).name
    leaves = {path: leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(policy.model))}
    tree: dict[str, dict[str, Any]] = {}
    for path in dict.fromkeys(tensor.path for tensor in tensors(family, policy.model.config)):
        key, leaf, part = in_flax(path)
        value = merged(leaves, path, policy.model).astype(dtype)
        if part is None:
            tree.setdefault(key, {})[leaf] = value
        else:
            value = value if family == "gemma2" else value.T
            whole = tree.setdefault(key, {}).setdefault(leaf, np.empty((2, *value.shape), dtype))
            whole[part] = value
    for stale in (folder / variation, folder / "actor"):
        shutil.rmtree(stale, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    with ocp.StandardCheckpointer() as checkpointer:  # it writes beside its place, and moves
        checkpointer.save(folder / variation, tree)
    shutil.copyfile(policy.tokenizer.path, folder / "tokenizer.model")
    save_lora(policy.model, folder, step)
    return folder

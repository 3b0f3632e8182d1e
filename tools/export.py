"""Exports a trained policy to files that other tools read: `export_peft` for PEFT, `export_hf` for transformers, and
`export_flax` for the unrestricted mode.

Loaded again, each export gives the policy's logits (tests/test_parity.py). `tools.card` writes the card.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from reasonkit.models.checkpoints import save_lora
from reasonkit.models.gemma import flax_checkpoint
from reasonkit.models.load import MODELS, SIZES, LoadedModel, Tokenizer
from reasonkit.models.lora import compute_dtype, lora_signature
from reasonkit.session.files import parse_json, read_file, replace_file, write_atomic
from tools.flax import family_of, save_flax
from tools.hf.tokenizer import write_tokenizer
from tools.hf.weights import SHARD_BYTES, save_hf, tensors

# The version that config.json names. For a file without one, or for 4.57.3 to 5, transformers warns that the tokenizer
# needs a regular expression of Mistral's.
_LAYOUT = "4.57.1"
NEW_TOKENS = 1024  # the competition's limit. transformers' own is 20
# The tokens that a base was made for, if its model.json does not say. The Gemma 3s for 128k tokens have a scaled rope.
# Source: the technical reports of Gemma 2 and 3, arXiv 2408.00118 and 2503.19786.
_POSITIONS = {("gemma2", False): 8192, ("gemma3", False): 32_768, ("gemma3", True): 131_072}
_BESIDES = ("actor", SIZES, "tokenizer.model", "README.md", "DATA.md", "NOTICE")  # in a Flax export, next to the model


def hf_name(name: str) -> str:
    """Hugging Face's name of a model of MODELS: google/gemma-3-1b-pt for gemma3-1b. Other names stay as they are."""
    source = MODELS.get(name)
    if source is None or source.handle is None:
        return name
    pretrained = "-pt" if source.config.endswith("_pt") else ""
    return f"google/{name.replace('gemma', 'gemma-')}{pretrained}"


def _known_name(policy: LoadedModel) -> str | None:
    """The base model's name in MODELS, found by name or by Kaggle's folder. None for any other base."""
    if policy.name in MODELS:
        return policy.name
    return next((name for name, source in MODELS.items() if source.handle
                 and policy.folder.resolve().match(f"{source.handle.split('/', 1)[1].rpartition('/')[0]}/*")), None)


def base_name(policy: LoadedModel) -> str:
    """The base model's name on Hugging Face, else its short name or the name of its folder, never a path."""
    known = _known_name(policy)
    return hf_name(known) if known else policy.folder.resolve().name or "model"


def _model_settings(policy: LoadedModel) -> dict[str, Any]:
    """The base's model.json, where `tools.hf` keeps settings of Hugging Face's config.json. Empty without the file."""
    file = policy.folder / SIZES
    return parse_json(read_file(file)) if file.is_file() else {}


def _refuse_own_folder(folder: Path, policy: LoadedModel) -> None:
    if policy.folder.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{folder} is or holds the folder that the policy was loaded from: export into another one")


def export_peft(policy: LoadedModel, folder: str | Path) -> Path:
    """Write only the adapter, as PEFT does: adapter_model.safetensors (float32) and adapter_config.json.

    It fits the class that AutoModelForCausalLM makes of the base. That is Gemma2ForCausalLM or Gemma3ForCausalLM, or
    Gemma3ForConditionalGeneration for a base that sees pictures (4B and 12B). Its vision tower gets no adapter. A base
    that is not on Hugging Face is not named. qwix's one adapter on keys and values becomes two that share A. Raises
    ValueError if the model has no adapter.
    """
    signature, folder, known = lora_signature(policy.model), Path(folder), _known_name(policy)
    leaves = {path: leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(policy.model, nnx.LoRAParam))}
    rank, weights = signature["rank"], {}
    pictures = known in ("gemma3-4b-it", "gemma3-12b-it") or _model_settings(policy).get("model_type") == "gemma3"
    for tensor in tensors(family_of(policy.model), policy.model.config):
        a, b = (leaves.get((*tensor.path[:-1], tensor.path[-1] + end)) for end in ("_lora_a", "_lora_b"))
        if a is None:
            continue
        a, b = (np.asarray(x.astype(compute_dtype(policy.model)), np.float32) for x in (a, b))  # as it was evaluated
        b = b if tensor.part is None else b[:, tensor.part]
        name = tensor.name.removesuffix(".weight")
        name = f"base_model.model.{name.replace('model.', 'model.language_model.', 1) if pictures else name}"
        weights[f"{name}.lora_A.weight"] = np.ascontiguousarray(a.reshape(-1, rank).T)
        weights[f"{name}.lora_B.weight"] = np.ascontiguousarray(b.reshape(rank, -1).T)
    targets = sorted({name.split(".")[-3] for name in weights})
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "inference_mode": True, "bias": "none", "lora_dropout": 0.0,
        "fan_in_fan_out": False, "r": rank, "lora_alpha": signature["alpha"],
        # A pattern for the whole path, because the vision tower has modules with the same last names.
        "target_modules": rf".*\.language_model\.layers\.\d+\.\w+\.({'|'.join(targets)})" if pictures else targets,
        "base_model_name_or_path": hf_name(known) if known and MODELS[known].handle else None,
    }
    with replace_file(folder / "adapter_model.safetensors") as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
    write_atomic(folder / "adapter_config.json", json.dumps(settings, indent=2) + "\n")
    return folder


def export_hf(policy: LoadedModel, folder: str | Path, shard_bytes: int = SHARD_BYTES) -> Path:
    """Write the model with its adapter merged, in the base's dtype, by `save_hf` and `write_chat`.

    For Gemma 2, transformers' default attention (SDPA) leaves out the soft cap. Load it with
    attn_implementation="eager". Raises ValueError if `folder` is the one that the policy was loaded from.
    """
    folder, tokenizer = Path(folder), policy.tokenizer
    _refuse_own_folder(folder, policy)
    folder.mkdir(parents=True, exist_ok=True)
    write_chat(tokenizer, folder)
    scaled = getattr(policy.config, "global_scale_factor", 1.0) != 1.0
    positions = _model_settings(policy).get("max_position_embeddings") or _POSITIONS[family_of(policy.model), scaled]
    settings = {"max_position_embeddings": positions, "transformers_version": _LAYOUT}
    dtype = policy.model.embedder.input_embedding.dtype
    return save_hf(policy.model, tokenizer.path, folder, dtype, shard_bytes, tokenizer.stop_ids, settings)


def write_chat(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer's files with our prompt as chat template (`tools.hf.tokenizer`), and generation_config.json
    with stop tokens, a length and greedy decoding, as in the evaluation."""
    write_tokenizer(tokenizer, folder)
    generation = {"bos_token_id": tokenizer.bos_id(), "eos_token_id": list(tokenizer.stop_ids),
                  "pad_token_id": tokenizer.pad_id(), "do_sample": False, "max_new_tokens": NEW_TOKENS}
    write_atomic(folder / "generation_config.json", json.dumps(generation, indent=2) + "\n")


def export_flax(policy: LoadedModel, folder: str | Path, step: int, dtype: Any = jnp.bfloat16) -> Path:
    """Write the model for the unrestricted mode: merged, in the layout of Kaggle's base models (<variation>,
    tokenizer.model), and the adapter as the judges restore it. `export_check.verify_export` checks both.

    It is made next to `folder` and then moved there. An earlier export is removed with its card. Raises ValueError if
    the model has no adapter, or `folder` has anything but an earlier export.
    """
    lora_signature(policy.model)
    folder = Path(folder).resolve()
    _refuse_own_folder(folder, policy)
    _refuse_others(folder)
    made, old = (folder.with_name(f".{folder.name}.{what}") for what in ("saving", "old"))
    shutil.rmtree(made, ignore_errors=True)
    save_flax(policy.model, policy.tokenizer.path, made, _variation(policy), dtype)
    save_lora(policy.model, made, step)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(made, folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def _variation(policy: LoadedModel) -> str:
    """The name of the model's folder in a Flax export. It differs from the other names there."""
    known = _known_name(policy)
    handle = MODELS[known].handle if known else None
    name = handle.split("/")[3] if handle else known or policy.folder.resolve().name
    return "model" if name in ("", *_BESIDES) else name


def _refuse_others(folder: Path) -> None:
    """Raises ValueError unless the folder is absent, empty or an earlier export. Nothing else may be removed."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {"a file"} if folder.exists() else set()
    model = flax_checkpoint(folder) if folder.is_dir() else None
    whole = model not in (None, folder) and {"actor", "tokenizer.model"} <= names <= {model.name, *_BESIDES}
    if names and not whole:
        raise ValueError(f"{folder} is no earlier export and not empty ({', '.join(sorted(names)[:5])}): export into a "
                         "new folder")

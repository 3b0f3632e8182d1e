"""Exports a trained policy to files that other tools read: `export_peft`, and `export_flax` for the unrestricted mode.

Loaded again, each export gives the policy's logits (tests/test_parity.py). `tools.hf.export` writes Hugging Face's
merged model, and `tools.card` the card.
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
from reasonkit.models.load import MODELS, SIZES, LoadedModel
from reasonkit.models.lora import compute_dtype, lora_signature
from reasonkit.session.files import parse_json, read_file, replace_file, write_atomic
from tools.flax import family_of, save_flax
from tools.hf.names import tensors

_WITH_PICTURES = ("gemma3-4b-it", "gemma3-12b-it")  # transformers opens them as Gemma3ForConditionalGeneration
_BESIDES = ("actor", SIZES, "tokenizer.model", "README.md", "DATA.md", "NOTICE")  # in a Flax export, next to the model


def hf_name(name: str) -> str:
    """Hugging Face's name of a model of MODELS: google/gemma-3-1b-pt for gemma3-1b. Other names stay as they are."""
    source = MODELS.get(name)
    if source is None or source.handle is None:
        return name
    pretrained = "-pt" if source.config.endswith("_pt") else ""
    return f"google/{name.replace(source.family, source.family.replace('gemma', 'gemma-'))}{pretrained}"


def known_name(policy: LoadedModel) -> str | None:
    """The base model's name in MODELS, found by name or by Kaggle's folder. None for any other base."""
    if policy.name in MODELS:
        return policy.name
    return next((name for name, source in MODELS.items() if source.handle
                 and policy.folder.resolve().match(f"{source.handle.split('/', 1)[1].rpartition('/')[0]}/*")), None)


def base_name(policy: LoadedModel) -> str:
    """The base model's name on Hugging Face, else its short name or the name of its folder, never a path."""
    known = known_name(policy)
    return hf_name(known) if known else policy.folder.resolve().name or "model"


def model_settings(policy: LoadedModel) -> dict[str, Any]:
    """The base's model.json, where `tools.hf` keeps settings of Hugging Face's config.json. Empty without the file."""
    file = policy.folder / SIZES
    return parse_json(read_file(file)) if file.is_file() else {}


def refuse_own_folder(folder: Path, policy: LoadedModel) -> None:
    if policy.folder.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{folder} is or holds the folder that the policy was loaded from: export into another one")


def export_peft(policy: LoadedModel, folder: str | Path) -> Path:
    """Write only the adapter, as PEFT does: adapter_model.safetensors (float32) and adapter_config.json.

    It fits the class that AutoModelForCausalLM makes of the base. That is Gemma2ForCausalLM or Gemma3ForCausalLM, or
    Gemma3ForConditionalGeneration for a base that sees pictures (4B and 12B). Its vision tower gets no adapter. A base
    that is not on Hugging Face is not named. qwix's one adapter on keys and values becomes two that share A.

    Raises ValueError if the model has no adapter.
    """
    signature, folder, known = lora_signature(policy.model), Path(folder), known_name(policy)
    leaves = {path: leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(policy.model, nnx.LoRAParam))}
    rank, weights = signature["rank"], {}
    pictures = known in _WITH_PICTURES or model_settings(policy).get("model_type") == "gemma3"
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


def export_flax(policy: LoadedModel, folder: str | Path, step: int, dtype: Any = jnp.bfloat16) -> Path:
    """Write the model for the unrestricted mode: merged, in the layout of Kaggle's base models (<variation>,
    tokenizer.model), and the adapter as the judges restore it. `export_check.verify_export` checks both.

    It is made next to `folder` and then moved there. An earlier export is removed with its card.

    Raises ValueError if the model has no adapter, or `folder` has anything but an earlier export.
    """
    lora_signature(policy.model)
    folder = Path(folder).resolve()
    refuse_own_folder(folder, policy)
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
    known = known_name(policy)
    handle = MODELS[known].handle if known else None
    name = handle.split("/")[3] if handle else known or policy.folder.resolve().name
    return "model" if name in ("", *_BESIDES) else name


def _refuse_others(folder: Path) -> None:
    """Raises ValueError unless the folder is absent, empty or an earlier export. Nothing else may be removed."""
    if not folder.exists() or folder.is_dir() and not any(folder.iterdir()):
        return
    model = flax_checkpoint(folder) if folder.is_dir() else None
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if model is None or model == folder or not names >= {"actor", "tokenizer.model"} or names - {model.name, *_BESIDES}:
        raise ValueError(f"{folder} is no earlier export and not empty ({', '.join(sorted(names)[:5]) or 'a file'}): "
                         "export into a new folder")

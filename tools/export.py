"""A trained policy as files that other tools read: Hugging Face's, PEFT's, and Flax for the unrestricted mode.

`export_hf`, `export_peft` and `export_flax`; loaded again, each gives the policy's own logits (tests/test_parity.py).
The model card and the upload are in `publish`, checkpoints to train on from in `lora`.
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

from reasonkit.models import hf_tokenizer
from reasonkit.models.gemma import as_flax, flax_checkpoint
from reasonkit.models.hf import SHARD_BYTES, merge_lora, save_hf, tensors
from reasonkit.models.hf_config import family_of
from reasonkit.models.load import MODELS, LoadedModel, hf_name
from reasonkit.models.lora import compute_dtype, lora_signature, save_lora
from reasonkit.session.files import write_atomic

# The layout of config.json, and of a version before 4.57.3: of a file without one, or of 4.57.3 to 5, transformers
# believes that its tokenizer needs a regular expression of Mistral's, and says so.
_LAYOUT = "4.57.1"
_NEW_TOKENS = 1024  # without a length transformers stops after 20; the longest reply that the competition allows
# Gemma 3 has a scaled rope where it was made for 128k tokens; technical reports of Gemma 2 and 3, arXiv 2408.00118 and
# 2503.19786.
_POSITIONS = {"gemma2": 8192, "gemma3": 32_768, "gemma3 scaled": 131_072}
_WITH_PICTURES = ("gemma3-4b-it", "gemma3-12b-it")  # transformers opens them as Gemma3ForConditionalGeneration
_BESIDES = ("actor", "tokenizer.model", "README.md", "NOTICE")  # in a Flax export, beside the model's folder


def stock_name(policy: LoadedModel) -> str | None:
    """The name in MODELS of the model that was trained, found by its folder too where Kaggle or a hub's cache laid it
    out; None for any other, such as one that was trained before."""
    if policy.name in MODELS:
        return policy.name
    for name, source in MODELS.items():
        if source.handle:
            (_, model, _, variation, _), repository = source.handle.split("/"), hf_name(name)
            layouts = (f"{model}/flax/{variation}/*", f"{model}/transformers/{repository.split('/')[1]}/*",
                       f"models--{repository.replace('/', '--')}/snapshots/*")
            if any(policy.folder.resolve().match(layout) for layout in layouts):
                return name
    return None


def base_name(policy: LoadedModel) -> str:
    """What to call the model that was trained: as on Hugging Face, else by its short name or its folder's, no path."""
    stock = stock_name(policy)
    return hf_name(stock) if stock else policy.folder.resolve().name or "model"


def export_hf(policy: LoadedModel, folder: str | Path, dtype: Any = None, shard_bytes: int = SHARD_BYTES) -> Path:
    """The model with its adapter merged, as transformers and its kin read it; `dtype` None keeps the base's.

    Besides `hf.save_hf`: the tokenizer's files with the chat template of our prompt (`hf_tokenizer`), and
    generation_config.json with the stop tokens, a length and greedy decoding, as it was evaluated. Of Gemma 2,
    transformers' default attention (SDPA) leaves out the soft cap: load it with attn_implementation="eager".

    Raises ValueError when `folder` is the one that the policy was loaded from.
    """
    folder, tokenizer = Path(folder), policy.tokenizer
    _refuse_own(folder, policy)
    dtype = dtype or policy.model.embedder.input_embedding.dtype
    folder.mkdir(parents=True, exist_ok=True)
    hf_tokenizer.write(tokenizer, folder)
    generation = {"bos_token_id": tokenizer.bos_id(), "eos_token_id": list(tokenizer.stop_ids),
                  "pad_token_id": tokenizer.pad_id(), "do_sample": False, "max_new_tokens": _NEW_TOKENS}
    write_atomic(folder / "generation_config.json", json.dumps(generation, indent=2) + "\n")
    settings = {"max_position_embeddings": _positions(policy), "transformers_version": _LAYOUT}
    return save_hf(policy.model, tokenizer.path, folder, dtype, shard_bytes, tokenizer.stop_ids, settings)


def _positions(policy: LoadedModel) -> int:
    """How many tokens the base was made for: as its own config.json says, else as its family has it."""
    said = _settings(policy).get("max_position_embeddings")
    family = family_of(policy.model)
    scaled = " scaled" if getattr(policy.config, "global_scale_factor", 1.0) != 1.0 else ""
    return said or _POSITIONS[family + scaled]


def _settings(policy: LoadedModel) -> dict[str, Any]:
    """The text model's settings in the base's config.json, and `model_type` of the whole; empty without the file."""
    file = policy.folder / "config.json"
    whole = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return whole | whole.get("text_config", {}) | {"model_type": whole.get("model_type")}


def _refuse_own(folder: Path, policy: LoadedModel) -> None:
    if policy.folder.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{folder} is or holds the folder that the policy was loaded from: export into another one")


def export_peft(policy: LoadedModel, folder: str | Path) -> Path:
    """The adapter alone, as PEFT keeps it: adapter_model.safetensors (float32) and adapter_config.json.

    It goes onto what AutoModelForCausalLM makes of the base: Gemma2ForCausalLM, Gemma3ForCausalLM, or of a base that
    sees pictures (4B and 12B) Gemma3ForConditionalGeneration, of which it leaves the vision tower alone. A base that
    is not on Hugging Face is not named. qwix's one adapter on keys and values becomes two that share A.

    Raises ValueError when the model has no adapter.
    """
    signature, folder, stock = lora_signature(policy.model), Path(folder), stock_name(policy)
    leaves = {path: leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(policy.model, nnx.LoRAParam))}
    rank, weights = signature["rank"], {}
    pictures = stock in _WITH_PICTURES or _settings(policy)["model_type"] == "gemma3"
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
        # A pattern for the whole path: by their last names they would be found in the vision tower too.
        "target_modules": rf".*\.language_model\.layers\.\d+\.\w+\.({'|'.join(targets)})" if pictures else targets,
        "base_model_name_or_path": hf_name(stock) if stock and MODELS[stock].handle else None,
    }
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / ".adapter_model.safetensors.tmp"
    save_file(weights, temporary, metadata={"format": "pt"})
    os.replace(temporary, folder / "adapter_model.safetensors")
    write_atomic(folder / "adapter_config.json", json.dumps(settings, indent=2) + "\n")
    return folder


def export_flax(policy: LoadedModel, folder: str | Path, step: int, dtype: Any = jnp.bfloat16) -> Path:
    """What the unrestricted mode names: the merged model in google-deepmind/gemma's layout, as Kaggle has the stock one
    (<variation>/, tokenizer.model), and the adapter as the judges restore it (actor/<step>/model_params). Check both
    with `submission_check.verify_submission`.

    It is made beside its place and moved there whole; an earlier export there, card and all, goes. Gemma 2's gating
    matrices are laid out as those of the 2B.

    Raises ValueError when the model has no adapter, or `folder` holds anything but an earlier export.
    """
    lora_signature(policy.model)
    folder, family, dtype = Path(folder).resolve(), family_of(policy.model), np.dtype(dtype)
    _refuse_own(folder, policy)
    _refuse_others(folder)
    leaves = {path: leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(policy.model))}
    tree: dict[str, dict[str, Any]] = {}
    for path in dict.fromkeys(tensor.path for tensor in tensors(family, policy.model.config)):
        key, leaf, part = as_flax(path)
        value = merge_lora(leaves, path, policy.model).astype(dtype)
        if part is None:
            tree.setdefault(key, {})[leaf] = value
        else:
            value = value if family == "gemma2" else value.T
            whole = tree.setdefault(key, {}).setdefault(leaf, np.empty((2, *value.shape), dtype))
            whole[part] = value
    made, old = (folder.with_name(f".{folder.name}.{what}") for what in ("saving", "old"))
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(made / _variation(policy), tree)
    shutil.copyfile(policy.tokenizer.path, made / "tokenizer.model")
    save_lora(policy.model, made, step)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(made, folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def _variation(policy: LoadedModel) -> str:
    """The name of the model's folder in a Flax export: one component, and none that an export has besides."""
    stock = stock_name(policy)
    handle = MODELS[stock].handle if stock else None
    name = handle.split("/")[3] if handle else stock or policy.folder.resolve().name
    return "model" if name in ("", *_BESIDES) else name


def _refuse_others(folder: Path) -> None:
    """Raises ValueError unless the folder is absent, empty or an earlier export, which alone may be removed."""
    if not folder.exists() or folder.is_dir() and not any(folder.iterdir()):
        return
    model = flax_checkpoint(folder) if folder.is_dir() else None
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if model is None or model == folder or not names >= {"actor", "tokenizer.model"} or names - {model.name, *_BESIDES}:
        raise ValueError(f"{folder} is no earlier export and not empty ({', '.join(sorted(names)[:5]) or 'a file'}): "
                         "export into a new folder")

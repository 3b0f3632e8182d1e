"""Exports a trained policy, merged, for transformers: `export_hf`. `write_chat` writes how to ask the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reasonkit.models.load import LoadedModel, Tokenizer
from reasonkit.session.files import write_atomic
from tools.export import model_settings, refuse_own_folder
from tools.flax import family_of
from tools.hf.tokenizer import write_tokenizer
from tools.hf.weights import SHARD_BYTES, save_hf

# The version that config.json names. For a file without one, or for 4.57.3 to 5, transformers warns that the tokenizer
# needs a regular expression of Mistral's.
_LAYOUT = "4.57.1"
NEW_TOKENS = 1024  # the competition's limit. transformers' own is 20
# The Gemma 3s for 128k tokens have a scaled rope. Source: the technical reports of Gemma 2 and 3, arXiv 2408.00118 and
# 2503.19786.
_POSITIONS = {"gemma2": 8192, "gemma3": 32_768, "gemma3 scaled": 131_072}


def export_hf(policy: LoadedModel, folder: str | Path, dtype: Any = None, shard_bytes: int = SHARD_BYTES) -> Path:
    """Write the model with its adapter merged, by `save_hf` and `write_chat`. `dtype` None keeps the base's.

    For Gemma 2, transformers' default attention (SDPA) leaves out the soft cap. Load it with
    attn_implementation="eager".

    Raises ValueError if `folder` is the one that the policy was loaded from.
    """
    folder, tokenizer = Path(folder), policy.tokenizer
    refuse_own_folder(folder, policy)
    dtype = dtype or policy.model.embedder.input_embedding.dtype
    folder.mkdir(parents=True, exist_ok=True)
    write_chat(tokenizer, folder)
    settings = {"max_position_embeddings": _positions(policy), "transformers_version": _LAYOUT}
    return save_hf(policy.model, tokenizer.path, folder, dtype, shard_bytes, tokenizer.stop_ids, settings)


def write_chat(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer's files with our prompt as chat template (`tools.hf.tokenizer`), and generation_config.json
    with stop tokens, a length and greedy decoding, as in the evaluation."""
    write_tokenizer(tokenizer, folder)
    generation = {"bos_token_id": tokenizer.bos_id(), "eos_token_id": list(tokenizer.stop_ids),
                  "pad_token_id": tokenizer.pad_id(), "do_sample": False, "max_new_tokens": NEW_TOKENS}
    write_atomic(folder / "generation_config.json", json.dumps(generation, indent=2) + "\n")


def _positions(policy: LoadedModel) -> int:
    """How many tokens the base was made for, by its model.json or else by its family."""
    said = model_settings(policy).get("max_position_embeddings")
    family = family_of(policy.model)
    scaled = " scaled" if getattr(policy.config, "global_scale_factor", 1.0) != 1.0 else ""
    return said or _POSITIONS[family + scaled]

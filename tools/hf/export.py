"""A trained policy, merged, as the files that transformers and its kin read: `export_hf`. `write_chat`: how to ask."""

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

# The layout of config.json, and of a version before 4.57.3: of a file without one, or of 4.57.3 to 5, transformers
# believes that its tokenizer needs a regular expression of Mistral's, and says so.
_LAYOUT = "4.57.1"
NEW_TOKENS = 1024  # without a length transformers stops after 20; the longest reply that the competition allows
# Gemma 3 has a scaled rope where it was made for 128k tokens; technical reports of Gemma 2 and 3, arXiv 2408.00118 and
# 2503.19786.
_POSITIONS = {"gemma2": 8192, "gemma3": 32_768, "gemma3 scaled": 131_072}


def export_hf(policy: LoadedModel, folder: str | Path, dtype: Any = None, shard_bytes: int = SHARD_BYTES) -> Path:
    """The model with its adapter merged, as transformers and its kin read it. `dtype` None keeps the base's.

    Besides `save_hf`'s files: those of `write_chat`. Of Gemma 2, transformers' default attention (SDPA) leaves out the
    soft cap: load it with attn_implementation="eager".

    Raises ValueError when `folder` is the one that the policy was loaded from.
    """
    folder, tokenizer = Path(folder), policy.tokenizer
    refuse_own_folder(folder, policy)
    dtype = dtype or policy.model.embedder.input_embedding.dtype
    folder.mkdir(parents=True, exist_ok=True)
    write_chat(tokenizer, folder)
    settings = {"max_position_embeddings": _positions(policy), "transformers_version": _LAYOUT}
    return save_hf(policy.model, tokenizer.path, folder, dtype, shard_bytes, tokenizer.stop_ids, settings)


def write_chat(tokenizer: Tokenizer, folder: Path) -> None:
    """The tokenizer's files with our prompt as chat template (`tools.hf.tokenizer`), and generation_config.json with
    the stop tokens, a length and greedy decoding, as the model was evaluated."""
    write_tokenizer(tokenizer, folder)
    generation = {"bos_token_id": tokenizer.bos_id(), "eos_token_id": list(tokenizer.stop_ids),
                  "pad_token_id": tokenizer.pad_id(), "do_sample": False, "max_new_tokens": NEW_TOKENS}
    write_atomic(folder / "generation_config.json", json.dumps(generation, indent=2) + "\n")


def _positions(policy: LoadedModel) -> int:
    """How many tokens the base was made for: as its model.json says, else by its family."""
    said = model_settings(policy).get("max_position_embeddings")
    family = family_of(policy.model)
    scaled = " scaled" if getattr(policy.config, "global_scale_factor", 1.0) != 1.0 else ""
    return said or _POSITIONS[family + scaled]

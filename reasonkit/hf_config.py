"""config.json of Hugging Face's Gemma 2 and 3 (text) to Tunix's configuration, and back.

What it is: which settings mean the same on both sides, and a refusal of every setting that Tunix's models do not have.
What it is not: weights (`hf`). A setting that is read over would load without a word and answer wrongly.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from tunix.models.gemma import model as gemma2
from tunix.models.gemma3 import model as gemma3

LIBRARY = {"gemma2": gemma2, "gemma3": gemma3}
_FAMILY = {"gemma2": "gemma2", "gemma3_text": "gemma3", "gemma3": "gemma3"}  # by Hugging Face model_type
# What config.json of a multimodal Gemma 3 may leave to the defaults of Hugging Face's Gemma3TextConfig.
_MULTIMODAL = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208}
_FIXED = {"hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "attention_bias": False,
          "tie_word_embeddings": True, "use_bidirectional_attention": False}  # in Tunix's code, not in its settings
_LOCAL, _GLOBAL = "sliding_attention", "full_attention"
_CYCLE = {"gemma2": (_LOCAL, _GLOBAL), "gemma3": (_LOCAL,) * 5 + (_GLOBAL,)}
_GEMMA2_ROPE = 10_000.0


def layer_types(family: str, layers: int) -> list[str]:
    """Which layers attend to all tokens, in Hugging Face's words."""
    return list(itertools.islice(itertools.cycle(_CYCLE[family]), layers))


def family_of(model: Any) -> str:
    """ "gemma2" or "gemma3", by the class of the model. Raises ValueError for another."""
    for family, library in LIBRARY.items():
        if isinstance(model, getattr(library, "Gemma" if family == "gemma2" else "Gemma3")):
            return family
    raise ValueError(f"{type(model).__name__} is neither a Gemma 2 nor a Gemma 3 of Tunix's")


def read_config(file: Path, replicated: bool) -> tuple[str, Any]:
    """Family and Tunix's configuration; `replicated` as in `models.load`.

    Raises ValueError for another model_type, a setting that is missing, or one that Tunix's models do not have.
    """
    raw = json.loads(file.read_text(encoding="utf-8"))
    family = _FAMILY.get(raw.get("model_type"))
    if family is None:
        raise ValueError(f"{file}: model_type {raw.get('model_type')!r} is not one of {', '.join(_FAMILY)}")
    if "text_config" in raw:
        tied = {"tie_word_embeddings": raw.get("tie_word_embeddings", True)}
        raw = _MULTIMODAL | tied | raw["text_config"]
    try:
        common = {
            "num_layers": raw["num_hidden_layers"], "num_embed": raw["vocab_size"], "embed_dim": raw["hidden_size"],
            "hidden_dim": raw["intermediate_size"], "num_heads": raw["num_attention_heads"],
            "head_dim": raw["head_dim"], "num_kv_heads": raw["num_key_value_heads"],
            "sliding_window_size": raw["sliding_window"],
            "shd_config": LIBRARY[family].ShardingConfig.get_default_sharding(is_sampling=replicated),
        }
        ropes = _ropes(raw, family)
        wanted = _FIXED | {"query_pre_attn_scalar": raw["head_dim"],
                           "layer_types": layer_types(family, raw["num_hidden_layers"])}
        if family == "gemma3":
            wanted |= {"final_logit_softcapping": None, "attn_logit_softcapping": None,
                       "sliding_window_pattern": len(_CYCLE[family])}
        for name, value in wanted.items():
            if raw.get(name) not in (None, value):
                raise ValueError(f"{file}: {name} is {raw[name]!r}, and Tunix's {family} has {value!r}: it cannot "
                                 "run this model")
        if family == "gemma2":
            if ropes[_GLOBAL] != (_GEMMA2_ROPE, 1.0):
                raise ValueError(f"{file}: rope is {ropes[_GLOBAL]}, and Tunix's gemma2 has {_GEMMA2_ROPE}, unscaled")
            kinds = {_LOCAL: gemma2.AttentionType.LOCAL_SLIDING, _GLOBAL: gemma2.AttentionType.GLOBAL}
            return family, gemma2.ModelConfig(
                **common, final_logit_softcap=raw["final_logit_softcapping"],
                attn_logits_soft_cap=raw["attn_logit_softcapping"], use_post_attn_norm=True, use_post_ffw_norm=True,
                attention_types=tuple(kinds[kind] for kind in layer_types(family, common["num_layers"])))
        return family, gemma3.ModelConfig(
            **common, local_base_frequency=int(ropes[_LOCAL][0]), local_scale_factor=ropes[_LOCAL][1],
            global_base_frequency=int(ropes[_GLOBAL][0]), global_scale_factor=ropes[_GLOBAL][1])
    except KeyError as error:
        raise ValueError(f"{file} lacks {error}: download the model again") from error


def _ropes(raw: dict[str, Any], family: str) -> dict[str, tuple[float, float]]:
    """(base frequency, factor) of the local and the global layers, as transformers 5 writes them or as 4 did."""
    scaling = {"rope_type": "default"} | (raw.get("rope_scaling") or {})
    rope = raw.get("rope_parameters") or {
        _GLOBAL: {"rope_theta": raw.get("rope_theta", 1e6 if family == "gemma3" else _GEMMA2_ROPE), **scaling},
        _LOCAL: {"rope_theta": raw.get("rope_local_base_freq", 1e4)},
    }
    if "rope_theta" in rope:  # Gemma 2: one for all layers
        rope = {_GLOBAL: rope, _LOCAL: rope}
    for part in rope.values():
        if part.get("rope_type", "default") not in ("default", "linear"):
            raise ValueError(f"rope_type {part['rope_type']!r}: Tunix's {family} has only linear scaling")
    return {kind: (float(part["rope_theta"]), float(part.get("factor") or 1.0)) for kind, part in rope.items()}


def write_config(model: Any, dtype: Any, stop_ids: tuple[int, ...] = ()) -> dict[str, Any]:
    """The settings of config.json for a Gemma 2 or 3; readable by transformers 4 and 5."""
    config, family = model.config, family_of(model)
    scale = getattr(config, "global_scale_factor", 1.0)
    own = {
        "layer_types": layer_types(family, config.num_layers), "rope_theta": _GEMMA2_ROPE,
        "final_logit_softcapping": config.final_logit_softcap, "attn_logit_softcapping": config.attn_logits_soft_cap,
    } if family == "gemma2" else {
        "sliding_window_pattern": len(_CYCLE[family]), "rope_theta": config.global_base_frequency,
        "rope_local_base_freq": config.local_base_frequency,
        "rope_scaling": None if scale == 1.0 else {"rope_type": "linear", "factor": scale},
    }
    return {
        "architectures": ["Gemma2ForCausalLM" if family == "gemma2" else "Gemma3ForCausalLM"],
        "model_type": "gemma2" if family == "gemma2" else "gemma3_text",
        "num_hidden_layers": config.num_layers, "vocab_size": config.num_embed, "hidden_size": config.embed_dim,
        "intermediate_size": config.hidden_dim, "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads, "head_dim": config.head_dim,
        "query_pre_attn_scalar": config.head_dim, "sliding_window": config.sliding_window_size, **own,
        "hidden_activation": _FIXED["hidden_activation"], "rms_norm_eps": _FIXED["rms_norm_eps"],
        "tie_word_embeddings": True, "torch_dtype": jnp.dtype(dtype).name,
        "pad_token_id": 0, "eos_token_id": list(stop_ids) or 1, "bos_token_id": 2,
    }

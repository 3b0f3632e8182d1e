"""Converts config.json of Hugging Face's Gemma 2 and 3 (text) to Tunix's configuration, and back.

Entry points: `read_config`, `write_config`. A setting that Tunix's models do not have is refused, because the model
would load and answer wrongly. An absent key has the default of transformers (4.57 and 5.12 were read). A null is not
accepted as a number.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from tunix.models.gemma import model as gemma2
from tunix.models.gemma3 import model as gemma3

from reasonkit.models.gemma import download_again
from reasonkit.session.files import RecordError, parse_json, read_file
from tools.flax import family_of

_FAMILY = {"gemma2": "gemma2", "gemma3_text": "gemma3", "gemma3": "gemma3"}  # by Hugging Face model_type
_NAMES = {"num_layers": "num_hidden_layers", "num_embed": "vocab_size", "embed_dim": "hidden_size",
          "hidden_dim": "intermediate_size", "num_heads": "num_attention_heads", "head_dim": "head_dim",
          "num_kv_heads": "num_key_value_heads", "sliding_window_size": "sliding_window"}  # by Tunix's names
# From Hugging Face's Gemma2Config and Gemma3TextConfig. A text model's config.json always has the sizes. The text part
# of a multimodal Gemma 3's leaves out the values that are these.
_SIZES = {"num_hidden_layers": 26, "hidden_size": 2304, "intermediate_size": 9216, "num_attention_heads": 8,
          "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208}
_DEFAULTS = {
    "gemma2": {"sliding_window": 4096, "query_pre_attn_scalar": 256, "final_logit_softcapping": 30.0,
               "attn_logit_softcapping": 50.0, "rope_theta": 1e4},
    "gemma3": {"sliding_window": 4096, "query_pre_attn_scalar": 256, "rope_theta": 1e6, "rope_local_base_freq": 1e4},
}
_FIXED = {"hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "attention_bias": False,
          "tie_word_embeddings": True, "use_bidirectional_attention": False}  # fixed in Tunix's code
_NULLABLE = {"use_bidirectional_attention", "layer_types"}  # of those, the ones where null means absent
_LOCAL, _GLOBAL = "sliding_attention", "full_attention"
_CYCLE = {"gemma2": (_LOCAL, _GLOBAL), "gemma3": (_LOCAL,) * 5 + (_GLOBAL,)}
_GEMMA2_ROPE = 10_000.0
_MOST = {"num_hidden_layers": 1024}  # Gemma's largest has 62. Of all else 2^31 - 1, because JAX counts in int32


def layer_types(family: str, layers: int) -> list[str]:
    """Which layers attend to all tokens, by Hugging Face's names."""
    return list(itertools.islice(itertools.cycle(_CYCLE[family]), layers))


def read_json(file: Path) -> dict[str, Any]:
    """The object in one of a model's JSON files. Raises ValueError if there is none."""
    try:
        found = parse_json(read_file(file))
    except RecordError as error:
        raise ValueError(f"{file} is {error}: {download_again(file)}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds no JSON object: {download_again(file)}")
    return found


def read_config(file: Path) -> tuple[str, Any]:
    """Family and Tunix's configuration. Raises ValueError for a setting that is missing or not one of Tunix's."""
    raw = read_json(file)
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in _FAMILY:
        raise ValueError(f"{file}: model_type {kind!r:.200} is not one of {', '.join(_FAMILY)}")
    family = _FAMILY[kind]
    if lacking := sorted(_SIZES.keys() - raw.keys() if "text_config" not in raw else ()):
        raise ValueError(f"{file} lacks {lacking[0]!r}: {download_again(file)}")
    try:
        if "text_config" in raw:
            tied = {"tie_word_embeddings": raw.get("tie_word_embeddings", True)}
            raw = _SIZES | tied | _object(raw, "text_config")
        raw = _DEFAULTS[family] | raw
        common = {ours: _number(raw, theirs) for ours, theirs in _NAMES.items()}
        for name, per in (("num_attention_heads", common["num_kv_heads"]), ("head_dim", 2)):
            if raw[name] % per:
                raise ValueError(f"{name} is {raw[name]}, and must be a multiple of {per}: the heads share those of "
                                 "the keys evenly, and each turns its numbers by pairs")
        _check_fixed(raw, family, common["head_dim"], common["num_layers"])
        ropes = _ropes(raw, family)
        if family == "gemma3":
            return family, gemma3.ModelConfig(
                **common, local_base_frequency=ropes[_LOCAL][0], local_scale_factor=ropes[_LOCAL][1],
                global_base_frequency=ropes[_GLOBAL][0], global_scale_factor=ropes[_GLOBAL][1])
        if set(ropes.values()) != {(_GEMMA2_ROPE, 1.0)}:
            base, factor = ropes[_GLOBAL]
            raise ValueError(f"rope is {(float(base), factor)}, and Tunix's gemma2 has {_GEMMA2_ROPE}, unscaled")
        caps = [None if raw[name] is None else _number(raw, name, float)
                for name in ("final_logit_softcapping", "attn_logit_softcapping")]
        kinds = {_LOCAL: gemma2.AttentionType.LOCAL_SLIDING, _GLOBAL: gemma2.AttentionType.GLOBAL}
        return family, gemma2.ModelConfig(
            **common, final_logit_softcap=caps[0], attn_logits_soft_cap=caps[1],
            use_post_attn_norm=True, use_post_ffw_norm=True,
            attention_types=tuple(kinds[kind] for kind in layer_types(family, common["num_layers"])))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _object(settings: dict[str, Any], name: str) -> dict[str, Any]:
    """A setting that is an object. Null counts as an empty one. Raises ValueError for anything else."""
    value = settings.get(name)
    if not isinstance(value, dict | None):
        raise ValueError(f"{name} is {value!r:.200}, and must be an object")
    return value or {}


def _number(settings: dict[str, Any], name: str, kind: type = int) -> Any:
    """A setting above 0, below a limit, that `kind` holds exactly. Raises ValueError naming it, for null too."""
    value, most = settings.get(name), _MOST.get(name, 2**31 - 1)
    if type(value) not in (int, float) or not 0 < value <= most or kind(value) != value:
        raise ValueError(f"{name} is {json.dumps(value):.200}, and must be a {'whole ' * (kind is int)}number above "
                         f"0, at most {most}")
    return kind(value)


def _check_fixed(raw: dict[str, Any], family: str, head_dim: int, layers: int) -> None:
    """Raises ValueError for a setting that differs from what Tunix has in its code."""
    wanted = _FIXED | {"query_pre_attn_scalar": head_dim, "layer_types": layer_types(family, layers)}
    if family == "gemma3":
        wanted |= {"final_logit_softcapping": None, "attn_logit_softcapping": None}
        if raw.get("layer_types") is None:  # otherwise it is not read
            wanted |= {"sliding_window_pattern": len(_CYCLE[family])}
    for name, value in wanted.items():
        found = raw.get(name, value)
        if found != value and not (found is None and name in _NULLABLE):
            raise ValueError(f"{name} is {found!r:.200}, and Tunix's {family} has {value!r}: it cannot run this model")


def _ropes(raw: dict[str, Any], family: str) -> dict[str, tuple[float, float]]:
    """(base frequency, factor) of the local and the global layers, as transformers 5 writes them or as 4 did.

    In `rope_parameters` a Gemma 3 has a part for each kind of layer, and transformers ignores everything else there.
    For fewer than six layers 5.12 also writes "rope_theta": null. A Gemma 2 has one part for all layers.
    """
    given = _object(raw, "rope_parameters")
    parts = {kind: _object(given, kind) for kind in (_LOCAL, _GLOBAL)}
    if family == "gemma2" and not given.keys() & parts.keys():
        parts = dict.fromkeys(parts, given)
    elif given and not given.keys() & parts.keys():
        raise ValueError(f"rope_parameters has {', '.join(given)}, and neither {_LOCAL} nor {_GLOBAL}")
    scaled = (_GLOBAL,) if family == "gemma3" else (_LOCAL, _GLOBAL)
    out = {}
    for kind, part in parts.items():
        base = "rope_local_base_freq" if family == "gemma3" and kind == _LOCAL else "rope_theta"
        part = {"rope_theta": raw[base]} | part | (_object(raw, "rope_scaling") if kind in scaled else {})
        rope = part.get("rope_type", part.get("type", "default"))
        if rope not in ("default", "linear"):
            raise ValueError(f"rope_type {rope!r:.200}: Tunix's {family} has only linear scaling")
        try:
            out[kind] = _number(part, "rope_theta"), 1.0 if rope == "default" else _number(part, "factor", float)
            if out[kind][1] < 1:
                raise ValueError(f"factor is {out[kind][1]}, and Tunix has none below 1")
        except ValueError as error:
            raise ValueError(f"the rope of {kind}: {error}") from None
    return out


def write_config(model: Any, dtype: Any, stop_ids: tuple[int, ...] = ()) -> dict[str, Any]:
    """The settings of config.json for a Gemma 2 or 3. transformers 4 and 5 can read them."""
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
        **{theirs: getattr(config, ours) for ours, theirs in _NAMES.items()},
        "query_pre_attn_scalar": config.head_dim, **own,
        "hidden_activation": _FIXED["hidden_activation"], "rms_norm_eps": _FIXED["rms_norm_eps"],
        "tie_word_embeddings": True, "torch_dtype": jnp.dtype(dtype).name,
        "pad_token_id": 0, "eos_token_id": list(stop_ids) or 1, "bos_token_id": 2,
    }

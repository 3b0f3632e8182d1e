"""Small Gemmas and tokenizers for tests, with the control tokens where the real ones have them."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import sentencepiece
from flax import nnx
from jax.interpreters import pxla
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import save_file
from tunix.models.gemma import model as gemma2
from tunix.models.gemma3 import model as gemma3
from tunix.sft.utils import build_positions_from_mask, make_causal_attn_mask

from reasonkit.config import PROFILES
from reasonkit.models.gemma import from_flax
from tools.flax import flax_tree
from tools.hf.weights import read_arrays

ROWS = 400  # embedding rows: more than the tokenizer has pieces, as in Gemma 2


def train_tokenizer(folder: Path, end_of_turn: int = 106, symbols: tuple[str, ...] = ()) -> Path:
    """A SentencePiece model with Gemma's ids for pad, eos, bos, unk and, where wanted, <end_of_turn>."""
    folder.mkdir(parents=True, exist_ok=True)
    unused = [f"<unused{i}>" for i in range(end_of_turn - 5)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["user add 1 and 2, model 3 plus 4 is 7: 5 6 8 9 0"] * 9),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=ROWS,
        hard_vocab_limit=False,
        byte_fallback=True,
        split_digits=True,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        user_defined_symbols=[*unused, "<start_of_turn>", "<end_of_turn>", "\n", *symbols],
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    return folder / "tokenizer.model"


def small_config(kv_heads: int = 2, **changes) -> gemma3.ModelConfig:
    """Two layers unless changed; the sixth would be the first with global attention."""
    return gemma3.ModelConfig(
        **{
            "num_layers": 2,
            "num_embed": ROWS,
            "embed_dim": 32,
            "hidden_dim": 48,
            "num_heads": 4,
            "head_dim": 16,
            "num_kv_heads": kv_heads,
            "sliding_window_size": 8,
            "global_base_frequency": 1_000_000,
            "shd_config": gemma3.ShardingConfig.get_default_sharding(is_sampling=True),
            "param_dtype": jnp.float32,
            **changes,
        }
    )


def small_profile():
    """Kaggle's with few rows and tokens, to compile its programs."""
    profile, lengths = PROFILES["kaggle"], {"max_prompt_length": 8, "max_new_tokens": 4}
    return replace(
        profile, lora_rank=4, judge_max_length=10, sft=replace(profile.sft, batch_size=8, max_length=12),
        simpo=replace(profile.simpo, batch_size=4, **lengths),
        distill=replace(profile.distill, batch_size=8, **lengths),
        grpo=replace(profile.grpo, prompts_per_step=8, rollout_micro_prompts=8, num_generations=2, **lengths))


def gemma2_config(sharding=None) -> gemma2.ModelConfig:
    kinds = gemma2.AttentionType
    return gemma2.ModelConfig(
        num_layers=2,
        num_embed=ROWS,
        embed_dim=32,
        hidden_dim=48,
        num_heads=4,
        head_dim=16,
        num_kv_heads=2,
        final_logit_softcap=30.0,
        attn_logits_soft_cap=50.0,
        use_post_attn_norm=True,
        use_post_ffw_norm=True,
        attention_types=(kinds.LOCAL_SLIDING, kinds.GLOBAL),
        sliding_window_size=8,
        shd_config=sharding or gemma2.ShardingConfig.get_default_sharding(is_sampling=True),
    )


def gemma2_hf(folder):
    """A random Gemma 2 in Hugging Face's layout, two layers."""
    rng, c = np.random.default_rng(0), gemma2_config()
    weights = {
        "model.embed_tokens.weight": _draw(rng, c.num_embed, c.embed_dim),
        "model.norm.weight": _draw(rng, c.embed_dim),
    }
    for i in range(c.num_layers):
        for name, shape in {
            "self_attn.q_proj": (c.num_heads * c.head_dim, c.embed_dim),
            "self_attn.k_proj": (c.num_kv_heads * c.head_dim, c.embed_dim),
            "self_attn.v_proj": (c.num_kv_heads * c.head_dim, c.embed_dim),
            "self_attn.o_proj": (c.embed_dim, c.num_heads * c.head_dim),
            "mlp.gate_proj": (c.hidden_dim, c.embed_dim),
            "mlp.up_proj": (c.hidden_dim, c.embed_dim),
            "mlp.down_proj": (c.embed_dim, c.hidden_dim),
            "input_layernorm": (c.embed_dim,),
            "post_attention_layernorm": (c.embed_dim,),
            "pre_feedforward_layernorm": (c.embed_dim,),
            "post_feedforward_layernorm": (c.embed_dim,),
        }.items():
            weights[f"model.layers.{i}.{name}.weight"] = _draw(rng, *shape)
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    settings = {
        "model_type": "gemma2",
        "num_hidden_layers": 2,
        "vocab_size": ROWS,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 8,
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def from_hf(folder, mesh, dtype=None, replicated=True):
    """Family and model of a folder of Hugging Face's, by way of Flax as `python -m tools.hf` and `load` make it."""
    family, config, arrays = read_arrays(folder)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "flax"
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, flax_tree(family, arrays))
        return family, from_flax(path, family, config, mesh, dtype, replicated=replicated)


def _draw(rng, *shape):
    return (0.05 * rng.standard_normal(shape)).astype(ml_dtypes.bfloat16)


# Of a logit, between a model with its adapter and the merged one: rounding makes up to 2e-4 at the worst token, by the
# processor; without the adapter 0.1 and more is missing.
MERGED = 1e-3


@nnx.jit
def forward(model: nnx.Module, tokens_BT: jax.Array) -> jax.Array:
    """Logits (B, T, V) of right-padded rows, pad being 0."""
    mask_BT = tokens_BT != 0
    return model(tokens_BT, build_positions_from_mask(mask_BT), None, make_causal_attn_mask(mask_BT))[0]


TOKENS = np.random.default_rng(0).integers(4, ROWS, (8, 12), dtype=np.int32)


def bump(model: nnx.Module, by: float = 0.1) -> None:
    """Moves every LoRA leaf, as a training step would."""
    nnx.update(model, jax.tree.map(lambda x: x + by, nnx.state(model, nnx.LoRAParam)))


def equal(a: nnx.State, b: nnx.State) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def constrain(x, spec, eager=False):
    """What Tunix's `shard` does on an accelerator; on a CPU it returns early, and hides trouble."""
    mesh = pxla.thread_resources.env.physical_mesh
    if mesh.empty:
        return jnp.asarray(x)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))


def flax_layout(model, family, transposed):
    """The upstream Flax names, from Tunix's parameters; `transposed` as in Gemma 3 and the larger Gemma 2."""
    state = nnx.to_pure_dict(nnx.state(model))
    flat = {
        "transformer/embedder": {"input_embedding": state["embedder"]["input_embedding"]},
        "transformer/final_norm": {"scale": state["final_norm"]["scale"]},
    }
    for i, layer in state["layers"].items():
        prefix, mlp = f"transformer/layer_{i}", layer["mlp"]
        gating = np.stack([mlp[part]["kernel"] for part in ("gate_proj", "up_proj")])
        flat[f"{prefix}/mlp/gating_einsum"] = {"w": gating.swapaxes(1, 2) if transposed else gating}
        flat[f"{prefix}/mlp/linear"] = {"w": mlp["down_proj"]["kernel"]}
        flat |= {f"{prefix}/attn/{name}": leaves for name, leaves in layer["attn"].items()}
        post = "post_attn_norm" if family == "gemma2" else "post_attention_norm"
        flat[f"{prefix}/post_attention_norm"] = layer[post]
        for name in ("pre_attention_norm", "pre_ffw_norm", "post_ffw_norm"):
            flat[f"{prefix}/{name}"] = layer[name]
    return jax.tree.map(np.asarray, flat)


def save_kaggle_flax(model, family, transposed, folder):
    """A checkpoint as Kaggle has it, written without our code."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.resolve(), flax_layout(model, family, transposed))
    return folder

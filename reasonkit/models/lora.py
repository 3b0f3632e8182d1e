"""The one LoRA adapter: added, described, copied as a reference.

qwix gives an adapter the base's dtype. Here it is float32 on any base, because in bfloat16 most updates of a small
learning rate round to nothing. Only LoRA leaves are re-placed: to re-place the whole state would copy the base.
"""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import qwix
from flax import nnx
from jax.interpreters import pxla
from jax.sharding import Mesh
from tunix.sft.utils import is_lora_enabled

from reasonkit.models.gemma import add_int8_head

# Every attention and feed-forward matrix, as in Tunix's GRPO demo; qwix matches the whole module path.
LORA_MODULES = ".*q_einsum|.*kv_einsum|.*attn_vec_einsum|.*gate_proj|.*up_proj|.*down_proj"


class Float32Lora(qwix.LoraProvider):
    """qwix's LoRA on `LORA_MODULES`, held in float32 and used in the base's dtype.

    Used in float32, A and B would promote every activation behind them. Both are rounded to nearest even before use, as
    orbax does on restore, so the judges compute with the same numbers. A batch's gradient is computed in the base's
    dtype, and is float32 from the rounding on. With `weights` "int8" it also rounds the base's matrices to integers.
    """

    def __init__(self, rank: int, alpha: float, weights: str | None = None):
        super().__init__(
            module_path=LORA_MODULES, rank=rank, alpha=alpha, weight_qtype=weights,
            lora_a_initializer=lambda key, shape, dtype: jax.nn.initializers.he_uniform()(key, shape, jnp.float32),
            lora_b_initializer=lambda key, shape, dtype: jnp.zeros(shape, jnp.float32))

    def process_model_inputs(self, model: nnx.Module, model_args: Any, model_kwargs: Any) -> tuple:
        """qwix's hook before each forward pass. The pass runs on a copy, where the hidden states that it sows stay."""
        graph, lora, rest = nnx.split(model, nnx.LoRAParam, ...)
        if any(leaf.dtype != compute_dtype(model) for leaf in jax.tree.leaves(lora)):
            model = nnx.merge(graph, round_to_compute_dtype(lora, compute_dtype(model)), rest)
        return super().process_model_inputs(model, model_args, model_kwargs)


def compute_dtype(model: nnx.Module) -> Any:
    return model.embedder.input_embedding.dtype


def round_to_compute_dtype(lora: nnx.State, dtype: Any) -> nnx.State:
    """The adapter in `dtype`, to nearest even. `reduce_precision` because XLA may leave out a cast that it undoes."""
    kind = jnp.finfo(dtype)
    return jax.tree.map(lambda x: jax.lax.reduce_precision(x, kind.nexp, kind.nmant).astype(dtype), lora)


def add_lora(model: nnx.Module, mesh: Mesh, rank: int, alpha: float, seed: int = 0) -> nnx.Module:
    """A model with a fresh float32 LoRA on all attention and feed-forward matrices, sharing the base's buffers.

    Raises ValueError for a rank below 1, or a model that has an adapter (one goes through all stages), and RuntimeError
    inside `with mesh:`, where qwix's trial run on two rows breaks on an accelerator.
    """
    if rank < 1:
        raise ValueError(f"rank={rank} makes no adapter: take 1 or more")
    if is_lora_enabled(model):
        raise ValueError("the model already has a LoRA: train that one on, or load the base again")
    _check_outside_mesh("add_lora")
    adapted = qwix.apply_lora_to_model(model, Float32Lora(rank, alpha), rngs=nnx.Rngs(seed), **model.get_model_input())
    lora = nnx.state(adapted, nnx.LoRAParam)
    nnx.update(adapted, jax.device_put(lora, nnx.get_named_sharding(lora, mesh)))
    adapted.lora_alpha = float(alpha)  # the arrays tell the rank, but not this
    return adapted


def _check_outside_mesh(name: str) -> None:
    if not pxla.thread_resources.env.physical_mesh.empty:
        raise RuntimeError(f"{name} was called inside `with mesh:`: call it before the block")


def on_int8_base(model: nnx.Module) -> nnx.Module:
    """A copy of the model with the matrices under its adapter as 8-bit integers, and a scale per output (qwix). Its
    logits come from a copy of the embedding in integers, too (`gemma.add_int8_head`).

    The other arrays are shared. The adapter is too until either is updated: `nnx.update(copy, lora_state(model))`.
    Raises ValueError without an adapter, and RuntimeError as `add_lora`.
    """
    _check_outside_mesh("on_int8_base")
    provider = Float32Lora(**lora_signature(model), weights="int8")
    made = qwix.quantize_model(model, provider, rngs=nnx.Rngs(0), **model.get_model_input())
    add_int8_head(made)
    return made


def lora_signature(model: nnx.Module) -> dict[str, Any]:
    """An adapter's rank and alpha. Raises ValueError without one."""
    rank = next(leaf.shape[-1] for path, leaf in _leaves(lora_state(model)).items() if path.endswith("_lora_a']"))
    return {"rank": rank, "alpha": model.lora_alpha}


def fingerprint(model: nnx.Module) -> str:
    """SHA-256 over the adapter as the model computes with it, in the base's dtype. So models on one base with the same
    fingerprint answer alike, bit for bit, even if one's adapter is held in the base's dtype, as the judges' is."""
    digest = hashlib.sha256()
    for path, leaf in sorted(_leaves(round_to_compute_dtype(lora_state(model), compute_dtype(model))).items()):
        digest.update(path.encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()


def reference(model: nnx.Module) -> nnx.Module:
    """A copy to compare a trained model with: LoRA copied, base shared. Raises ValueError without an adapter."""
    lora_state(model)
    graph, lora, base = nnx.split(model, nnx.LoRAParam, ...)
    return nnx.merge(graph, jax.tree.map(jnp.copy, lora), base)


def _leaves(state: nnx.State) -> dict[str, jax.Array]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(nnx.to_pure_dict(state))}


def lora_state(model: nnx.Module) -> nnx.State:
    if not is_lora_enabled(model):
        raise ValueError("the model has no LoRA: add one with add_lora")
    return nnx.state(model, nnx.LoRAParam)

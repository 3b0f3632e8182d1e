"""The model of a finished run, for use outside its notebooks: `load_trained`, `scorer`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from reasonkit.inference import load_policy
from reasonkit.models.checkpoints import restore_lora
from reasonkit.models.load import LoadedModel
from reasonkit.models.logprobs import CHUNK, head_logits, in_chunks, prefill
from reasonkit.run import Run, read_run


def load_trained(folder: str | Path) -> tuple[Run, LoadedModel, Mesh, list[dict[str, Any]]]:
    """The run in a folder of artifacts, its policy after the last stage on one device, that device's mesh, and the
    manifests of its stages. `load` finds its base model.

    Raises RecordError if there is no run, ManifestError if a stage is not finished or its files have changed, and
    as `read_run` and `load` do.
    """
    run = read_run(folder)
    profile, trained = run.profile, run.recipe.training_stages
    manifests = [run.manifest(stage) for stage in ("data", *trained, "evaluation")]
    policy, mesh = load_policy(profile.policy, profile.dtype, profile.lora_rank, profile.lora_alpha)
    restore_lora(policy.model, run.stage(trained[-1]) / "adapter")
    return run, policy, mesh, manifests


def scorer(policy: LoadedModel, mesh: Mesh, max_length: int,
           ) -> Callable[[Sequence[tuple[str, str]]], list[tuple[float, bool]]]:
    """A function from (context, continuation) pairs to the continuation's log-probability and whether greedy decoding
    would choose it. It raises ValueError for a pair of more than `max_length` tokens.

    At most `CHUNK` logits exist at once. Those of 8 rows of 512 tokens of Gemma 2 would be 4 GiB in float32.
    """
    tokenizer = policy.tokenizer

    def read(model: nnx.Module, inputs: tuple, piece_BT: jax.Array) -> jax.Array:
        embedding_VD, cap = model.embedder.input_embedding[...], getattr(model, "final_logits_softcap", None)

        def chunk(hidden_BcD: jax.Array, next_Bc: jax.Array) -> tuple[jax.Array, jax.Array]:
            logp_BcV = jax.nn.log_softmax(head_logits(hidden_BcD, embedding_VD, cap).astype(jnp.float32))
            return jnp.take_along_axis(logp_BcV, next_Bc[..., None], -1)[..., 0], logp_BcV.argmax(-1) == next_Bc

        hidden_BTD, _ = model(*inputs, hidden=True)
        next_BT, own_BT = inputs[0][:, 1:], piece_BT[:, 1:] == 1
        parts = math.ceil(next_BT.size * model.num_embed / CHUNK)
        logp_BT, likeliest_BT = in_chunks(parts, chunk, hidden_BTD[:, :-1], next_BT)
        greedy_B = jnp.where(own_BT, likeliest_BT, True).all(-1)
        return jnp.stack([jnp.where(own_BT, logp_BT, 0).sum(-1), greedy_B], -1)

    ask = prefill(policy, mesh, read, 2, max_length, 8)

    def score(pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        rows = []
        for context, continuation in pairs:
            whole, begin = tokenizer.encode(context + continuation), len(tokenizer.encode(context))
            rows.append([[tokenizer.bos_id(), *whole[:begin]], whole[begin:]])
            if 1 + len(whole) > max_length:
                raise ValueError(f"{1 + len(whole)} tokens in {context[-60:]!r}, and {max_length} fit: leave it out")
        return [(float(total), bool(greedy)) for total, greedy in ask(rows)]

    return score

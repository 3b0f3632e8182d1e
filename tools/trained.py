"""The model of a finished run, for use outside its notebooks: `load_trained`, `scorer`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from reasonkit.inference import load_policy
from reasonkit.models.checkpoints import restore_lora
from reasonkit.models.load import LoadedModel
from reasonkit.models.logprobs import prefill
from reasonkit.run import Run, read_run


@dataclass(frozen=True)
class Trained:
    """A finished run: its policy after the last stage on one device, and the manifests of its stages."""

    run: Run
    policy: LoadedModel
    mesh: Mesh
    manifests: list[dict[str, Any]]


def load_trained(folder: str | Path) -> Trained:
    """The run in a folder of artifacts. `load` finds its base model.

    Raises RecordError if there is no run, ManifestError if a stage is not finished or its files have changed, and
    as `read_run` and `load` do.
    """
    run = read_run(folder)
    profile, trained = run.profile, run.recipe.trained
    manifests = [run.manifest(stage) for stage in ("data", *trained, "evaluation")]
    policy, mesh = load_policy(profile.policy, profile.dtype, profile.lora_rank, profile.lora_alpha)
    restore_lora(policy.model, run.stage(trained[-1]) / "adapter")
    return Trained(run, policy, mesh, manifests)


def scorer(policy: LoadedModel, mesh: Mesh, max_length: int,
           ) -> Callable[[Sequence[tuple[str, str]]], list[tuple[float, bool]]]:
    """A function from (context, continuation) pairs to the continuation's log-probability and whether greedy decoding
    would choose it. It raises ValueError for a pair of more than `max_length` tokens."""
    tokenizer = policy.tokenizer

    def read(model: nnx.Module, inputs: tuple, piece_BT: jax.Array) -> jax.Array:
        logp_BTV = jax.nn.log_softmax(model(*inputs)[0][:, :-1].astype(jnp.float32))
        next_BT, own_BT = inputs[0][:, 1:], piece_BT[:, 1:] == 1
        logp_BT = jnp.take_along_axis(logp_BTV, next_BT[..., None], -1)[..., 0]
        greedy_B = jnp.where(own_BT, logp_BTV.argmax(-1) == next_BT, True).all(-1)
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

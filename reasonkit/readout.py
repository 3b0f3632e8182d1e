"""What a loaded model reads in texts, by forward passes alone: nothing is generated and nothing parsed.

What it is: a pass over texts of any length (`prefill`), and a judge's ratings as next-token probabilities.
What it is not: prompts and verdicts (`judge`), or rewards (`model_rewards`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tunix.sft.utils import build_positions_from_mask, make_causal_attn_mask

from reasonkit.mesh import check_divides
from reasonkit.models import Loaded


def padded_lengths(max_length: int) -> list[int]:
    """The lengths that rows are padded to: powers of two and 1.5 times those, from 64, and `max_length`."""
    steps = (n * 2**k for k in range(5, max_length.bit_length()) for n in (2, 3))
    return [n for n in steps if n < max_length] + [max_length]


def prefill(
    loaded: Loaded, mesh: Mesh, read: Callable[[nnx.Module, tuple, jax.Array], jax.Array], width: int, max_length: int,
    batch_size: int,
) -> Callable[[Sequence[Sequence[int]], Sequence[int]], np.ndarray]:
    """Forward passes over texts of any length: (ids with BOS, tail lengths) -> float32 (texts, width).

    `read(model, inputs, tail_BT)` gives `width` numbers a row, (B, width): `model(*inputs)` are the logits and no
    cache, and `tail_BT` is true on the last tokens of each text, as many as its tail is long. Rows are left-padded, so
    that a text ends in its last column, to a power of two or 1.5 times one, so that it compiles once a length. The
    weights are those of the moment of the call. A text of more than `max_length` tokens is not cut: its row is NaN, no
    signal. May be called from any thread.

    Raises ValueError when batch_size does not divide over fsdp.
    """
    check_divides(batch_size, mesh, "batch_size")
    graph, pad = nnx.graphdef(loaded.model), loaded.tokenizer.pad_id()
    lengths = padded_lengths(max_length)
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))

    @jax.jit
    def forward(state: nnx.State, tokens_BT: jax.Array, tail_B: jax.Array) -> jax.Array:
        mask_BT, length = tokens_BT != pad, tokens_BT.shape[1]
        inputs = tokens_BT, build_positions_from_mask(mask_BT), None, make_causal_attn_mask(mask_BT)
        return read(nnx.merge(graph, state), inputs, jnp.arange(length) >= length - tail_B[:, None])

    def score(texts: Sequence[Sequence[int]], tails: Sequence[int]) -> np.ndarray:
        state, out = nnx.state(loaded.model), np.full((len(texts), width), np.nan, np.float32)
        order = sorted((i for i, ids in enumerate(texts) if len(ids) <= max_length), key=lambda i: len(texts[i]))
        for start in range(0, len(order), batch_size):
            chunk = order[start : start + batch_size]
            length = next(n for n in lengths if n >= len(texts[chunk[-1]]))
            tokens_BT, tail_B = np.full((batch_size, length), pad, np.int32), np.zeros(batch_size, np.int32)
            for row, i in enumerate(chunk):
                tokens_BT[row, length - len(texts[i]) :], tail_B[row] = texts[i], tails[i]
            with mesh:  # here, because a mesh is entered per thread and Tunix calls rewards from its own
                out[chunk] = np.asarray(forward(state, *jax.device_put((tokens_BT, tail_B), rows)))[: len(chunk)]
        return out

    return score


def rating_logprobs(
    loaded: Loaded, mesh: Mesh, ratings: Sequence[str], max_length: int, batch_size: int
) -> Callable[[list[str]], np.ndarray]:
    """A judge's reading: prompts -> float32 (prompts, ratings), log-probability of each as next token.

    One `prefill`, so that a prompt of more than `max_length` tokens (with BOS) is not cut: its row is NaN.

    Raises:
        ValueError: batch_size does not divide over fsdp, or a rating is not one token.
    """
    tokenizer = loaded.tokenizer
    for rating in ratings:
        if len(ids := tokenizer.encode(rating)) != 1:
            raise ValueError(
                f"rating {rating!r} is the tokens {ids} for {loaded.name}: ratings must be one token"
            )
    columns = np.array([tokenizer.encode(rating)[0] for rating in ratings])

    def read(model: nnx.Module, inputs: tuple, tail_BT: jax.Array) -> jax.Array:
        logits_B1V, _ = model(*inputs, decode_only_last_token=True)
        return jax.nn.log_softmax(logits_B1V[:, 0].astype(jnp.float32))[:, columns]

    ask = prefill(loaded, mesh, read, len(columns), max_length, batch_size)
    return lambda prompts: ask([[tokenizer.bos_id(), *tokenizer.encode(prompt)] for prompt in prompts],
                               [1] * len(prompts))

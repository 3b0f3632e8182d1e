"""Log-probabilities by forward passes: `prefill` over texts of any length, and `local_judge` by `rating_logprobs`.

Texts that begin alike, such as the criteria of one completion, can share a row: the common prefix is computed once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from os.path import commonprefix
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.interpreters import pxla
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tunix.sft.utils import make_causal_attn_mask

from reasonkit.config import Profile
from reasonkit.judge.judge import RATINGS, LocalJudge, is_chat
from reasonkit.models.load import LoadedModel, Tokenizer
from reasonkit.models.mesh import check_divides

SHARED = 8  # texts in one row, at most; so many logits are computed however few texts there are
CHUNK = 2**27  # logits held at once on a chip, at most: 512 tokens with Gemma's vocabulary, 0.5 GiB in float32
Pieces = Sequence[Sequence[int]]


def padded_lengths(max_length: int) -> list[int]:
    """The lengths that rows are padded to: powers of two from 64, 1.5 times those, and `max_length`."""
    steps = (n * 2**k for k in range(5, max_length.bit_length()) for n in (2, 3))
    return [n for n in steps if n < max_length] + [max_length]


def token_logprobs(model: nnx.Module, tokens_BT: jax.Array, positions_BT: jax.Array, mask_BTT: jax.Array, count: int,
                   temperature: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of each row's last `count` tokens, and the entropies in nats of the distributions that they
    are drawn from: float32, (B, count). No gradient goes through the entropies.

    As Tunix's `selective_log_softmax`, but the logits of at most `CHUNK` / vocabulary tokens of a chip exist at once.
    """
    hidden_BTD, _ = model(tokens_BT, positions_BT, None, mask_BTT, hidden=True)
    return next_logprobs(model, hidden_BTD[:, -count - 1:-1], tokens_BT[:, -count:], temperature)


def next_logprobs(model: nnx.Module, hidden_BCD: jax.Array, next_BC: jax.Array,
                  temperature: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """As `token_logprobs`, of the token that follows each of the model's `hidden` states."""
    count = next_BC.shape[1]
    logits = len(next_BC) * count * model.num_embed / max(1, pxla.thread_resources.env.physical_mesh.size)
    read = functools.partial(_read, getattr(model, "final_logits_softcap", None), temperature)
    return _read_in_chunks(read, min(count, math.ceil(logits / CHUNK)), model.embedder.input_embedding[...], hidden_BCD,
                    next_BC)


def head_logits(hidden_BTD: jax.Array, embedding_VD: jax.Array, cap: float | None) -> jax.Array:
    """The logits (B, T, V) of a Gemma's `hidden` states, in their dtype. `cap` is its `final_logits_softcap`."""
    logits_BTV = jnp.dot(hidden_BTD, embedding_VD.T)
    return logits_BTV if cap is None else jnp.tanh(logits_BTV / cap) * cap


def _read(cap: float | None, temperature: float, embedding_VD: jax.Array, hidden_BcD: jax.Array,
          targets_Bc: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities and entropies, in the dtypes of Tunix's Gemmas."""
    logits_BcV = head_logits(hidden_BcD, embedding_VD, cap)
    if temperature != 0.0:  # as in Tunix's loss
        logits_BcV /= temperature
    logits_BcV = logits_BcV.astype(jnp.float32)
    norm_Bc = jax.nn.logsumexp(logits_BcV, axis=-1)
    mean_Bc = (jnp.exp(logits_BcV - norm_Bc[..., None]) * logits_BcV).sum(-1)
    chosen_Bc = jnp.take_along_axis(logits_BcV, targets_Bc[..., None], -1)[..., 0]
    return chosen_Bc - norm_Bc, jax.lax.stop_gradient(norm_Bc - mean_Bc)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _read_in_chunks(read: Callable, parts: int, embedding_VD: jax.Array, hidden_BCD: jax.Array, targets_BC: jax.Array):
    """`read` of all tokens. A token's log-probability depends on its own hidden state only, so the forward pass can
    keep the slope, as large as the state, and the backward pass scales it. No logits are made twice."""
    return in_chunks(parts, functools.partial(read, embedding_VD), hidden_BCD, targets_BC)


def _forward(read, parts, embedding_VD, hidden_BCD, targets_BC):
    def with_slopes(hidden_BcD, targets_Bc):
        logps_Bc, pull, entropies_Bc = jax.vjp(lambda x: read(embedding_VD, x, targets_Bc), hidden_BcD, has_aux=True)
        return (logps_Bc, entropies_Bc), pull(jnp.ones_like(logps_Bc))[0]

    found, slopes_BCD = in_chunks(parts, with_slopes, hidden_BCD, targets_BC)
    return found, (embedding_VD, hidden_BCD, targets_BC, slopes_BCD)


def _backward(read, parts, kept, cotangents):
    embedding_VD, hidden_BCD, targets_BC, slopes_BCD = kept
    by_embedding = jax.vjp(  # XLA drops it where only an adapter is trained
        lambda x: in_chunks(parts, functools.partial(read, x), hidden_BCD, targets_BC)[0], embedding_VD)[1]
    return (*by_embedding(cotangents[0]), (cotangents[0][..., None] * slopes_BCD).astype(slopes_BCD.dtype), None)


_read_in_chunks.defvjp(_forward, _backward)


def in_chunks(parts: int, function: Callable, *arrays: jax.Array) -> Any:
    """`function` of arrays (B, C, ...) in so many parts of C, one after the other: on a TPU by barriers, because its
    compiler does not count the FLOP of a loop, elsewhere by a loop, because XLA for a CPU drops barriers."""
    mesh = pxla.thread_resources.env.physical_mesh
    if parts > 1 and (jax.default_backend() if mesh.empty else mesh.devices.flat[0].platform) != "tpu":
        count = arrays[0].shape[1]
        size = math.ceil(count / parts)

        def cut(x_BC: jax.Array) -> jax.Array:
            x_BC = jnp.pad(x_BC, [(0, 0), (0, parts * size - count)] + [(0, 0)] * (x_BC.ndim - 2))
            return jnp.moveaxis(x_BC.reshape(len(x_BC), parts, size, *x_BC.shape[2:]), 1, 0)

        def join(x_PBC: jax.Array) -> jax.Array:
            return jnp.moveaxis(x_PBC, 0, 1).reshape(x_PBC.shape[1], parts * size, *x_PBC.shape[3:])[:, :count]

        return jax.tree.map(join, jax.lax.map(lambda pieces: function(*pieces), tuple(map(cut, arrays))))
    outputs: list[Any] = []
    for pieces in zip(*(jnp.array_split(array, parts, axis=1) for array in arrays), strict=True):
        if outputs:
            pieces, outputs[-1] = jax.lax.optimization_barrier((pieces, outputs[-1]))
        outputs.append(function(*pieces))
    return jax.tree.map(lambda *chunks: jnp.concatenate(chunks, axis=1), *outputs)


def prefill(loaded: LoadedModel, mesh: Mesh, read: Callable[[nnx.Module, tuple, jax.Array], jax.Array], width: int,
            max_length: int, batch_size: int) -> Callable[[Sequence[Pieces]], np.ndarray]:
    """Forward passes over texts of any length: rows of token ids in pieces -> float32 (rows, width).

    A row's first piece, with BOS, is the common prefix of the others. Each of these continues from its end, and attends
    to the prefix and itself. `read(model, inputs, piece_BT)` gives `width` numbers per row, (B, width), from
    `model(*inputs)` and the number of each token's piece, 0 for the first and for padding. Rows are left-padded to one
    of `padded_lengths`, each of which compiles once. The weights are those at the time of the call. A row of more than
    `max_length` tokens is not cut: it is NaN, no signal. May be called from any thread. Raises ValueError when
    batch_size does not divide over fsdp.
    """
    check_divides(batch_size, mesh, "batch_size")
    graph, pad, lengths = nnx.graphdef(loaded.model), loaded.tokenizer.pad_id(), padded_lengths(max_length)
    sharding = NamedSharding(mesh, PartitionSpec("fsdp"))

    @jax.jit
    def forward(state: nnx.State, tokens_BT: jax.Array, positions_BT: jax.Array, piece_BT: jax.Array) -> jax.Array:
        inputs = tokens_BT, positions_BT, None, piece_mask(tokens_BT != pad, piece_BT)
        return read(nnx.merge(graph, state), inputs, piece_BT)

    def score(rows: Sequence[Pieces]) -> np.ndarray:
        state, out = nnx.state(loaded.model), np.full((len(rows), width), np.nan, np.float32)
        sizes = [sum(map(len, pieces)) for pieces in rows]
        order = sorted((i for i, size in enumerate(sizes) if size <= max_length), key=sizes.__getitem__)
        for start in range(0, len(order), batch_size):
            chunk = order[start : start + batch_size]
            length = next(n for n in lengths if n >= sizes[chunk[-1]])
            tokens_BT, positions_BT, piece_BT = np.zeros((3, batch_size, length), np.int32)
            tokens_BT[:] = pad
            for row, i in enumerate(chunk):
                here = length - sizes[i]
                for number, ids in enumerate(rows[i]):
                    columns, begins = slice(here, here + len(ids)), len(rows[i][0]) if number else 0
                    tokens_BT[row, columns], piece_BT[row, columns] = ids, number
                    positions_BT[row, columns] = np.arange(begins, begins + len(ids))
                    here += len(ids)
            with mesh:  # a mesh is entered per thread, and Tunix calls rewards from its own thread
                arrays = jax.device_put((tokens_BT, positions_BT, piece_BT), sharding)
                out[chunk] = np.asarray(forward(state, *arrays))[: len(chunk)]
        return out

    return score


def split_tokens(tokenizer: Tokenizer, context: str, target: str) -> list[list[int]]:
    """The tokens of BOS, context and target as one text, in two pieces. The second begins with the first token that the
    target changed."""
    alone, ids = tokenizer.encode(context), tokenizer.encode(context + target)
    same = len(commonprefix([alone, ids]))
    return [[tokenizer.bos_id(), *ids[:same]], ids[same:]]


def piece_mask(present_BT: jax.Array, piece_BT: jax.Array) -> jax.Array:
    """The attention mask of rows in pieces, (B, T, T): causal, over the first piece and the token's own."""
    key_B1T = piece_BT[:, None]
    return make_causal_attn_mask(present_BT) & ((key_B1T == 0) | (key_B1T == piece_BT[..., None]))


def last_tokens(piece_BT: jax.Array) -> jax.Array:
    """The columns of the last tokens of the pieces 1 to `SHARED`, (B, SHARED). Any column for a missing piece."""
    its_BKT = piece_BT[:, None] == jnp.arange(1, SHARED + 1)[:, None]
    return piece_BT.shape[1] - 1 - jnp.argmax(its_BKT[..., ::-1], axis=-1)


def pack_shared_prefixes(texts: Sequence[Sequence[int]], max_length: int) -> list[Pieces]:
    """Neighbours that begin alike as rows in pieces: the common prefix, then the rest of each text in order. A text
    joins the row before it where that saves half of its tokens, up to `SHARED` texts and `max_length` tokens per row.

    >>> pack_shared_prefixes([[2, 5, 5, 5, 6], [2, 5, 5, 5, 7, 8], [2, 9]], 9)
    [[[2, 5, 5, 5], [6], [7, 8]], [[2], [9]]]
    """
    rows: list[list[Sequence[int]]] = []  # of whole texts
    shared: list[int] = []  # how many tokens those of a row have in common, at least one less than each has
    for ids in texts:
        if rows and len(rows[-1]) < SHARED:
            same = min(shared[-1], len(ids) - 1, len(commonprefix([rows[-1][0], ids])))
            before, after = (n + sum(len(text) - n for text in row)
                             for n, row in ((shared[-1], rows[-1]), (same, [*rows[-1], ids])))
            if after <= min(max_length, before + len(ids) / 2):
                rows[-1].append(ids)
                shared[-1] = same
                continue
        rows.append([ids])
        shared.append(len(ids) - 1)
    return [[row[0][:n], *(text[n:] for text in row)] for row, n in zip(rows, shared, strict=True)]


def rating_logprobs(loaded: LoadedModel, mesh: Mesh, ratings: Sequence[str], max_length: int,
                    batch_size: int) -> Callable[[list[str]], np.ndarray]:
    """A judge's scores: prompts -> float32 (prompts, ratings), the log-probability of each rating as next token.

    Neighbouring prompts that begin alike share a row (`pack_shared_prefixes`). `batch_size` counts rows. A prompt of
    more than `max_length` tokens, with BOS, is not cut: its log-probabilities are -inf. Raises ValueError when
    batch_size does not divide over fsdp, or a rating is not one token.
    """
    tokenizer, tokens = loaded.tokenizer, {rating: loaded.tokenizer.encode(rating) for rating in ratings}
    for rating, ids in tokens.items():
        if len(ids) != 1:
            raise ValueError(f"rating {rating!r} is the tokens {ids} for {loaded.name}: ratings must be one token")
    columns = np.concatenate([*tokens.values()])

    def read(model: nnx.Module, inputs: tuple, piece_BT: jax.Array) -> jax.Array:
        logits_BKV, _ = model(*inputs, logits_at=last_tokens(piece_BT))
        return jax.nn.log_softmax(logits_BKV.astype(jnp.float32))[..., columns].reshape(len(piece_BT), -1)

    ask = prefill(loaded, mesh, read, SHARED * len(columns), max_length, batch_size)

    def rate(prompts: list[str]) -> np.ndarray:
        rows = pack_shared_prefixes([[tokenizer.bos_id(), *tokenizer.encode(prompt)] for prompt in prompts], max_length)
        read_RKN = ask(rows).reshape(len(rows), SHARED, len(columns))
        read_RKN[[sum(map(len, pieces)) > max_length for pieces in rows]] = -np.inf
        return np.concatenate([np.zeros((0, len(columns)), np.float32), *(
            read_KN[: len(pieces) - 1] for read_KN, pieces in zip(read_RKN, rows, strict=True))])

    return rate


def local_judge(judge_model: LoadedModel, mesh: Mesh, profile: Profile, folder: Path) -> LocalJudge:
    """The judge of a recipe that chooses no other (`config.Recipe.judge`). It needs no `folder`."""
    rate = rating_logprobs(judge_model, mesh, RATINGS, profile.judge_max_length, profile.judge_batch)
    return LocalJudge(rate, judge_model.name, is_chat(judge_model.name))

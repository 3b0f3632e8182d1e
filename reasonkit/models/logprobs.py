"""Log-probabilities by forward passes: `prefill` over texts of any length, and a judge's `rating_logprobs`.

Texts that begin alike, such as the criteria of one completion, can share a row: the common prefix is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os.path import commonprefix

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tunix.sft.utils import make_causal_attn_mask

from reasonkit.models.load import LoadedModel
from reasonkit.models.mesh import check_divides

SHARED = 8  # texts in one row, at most; so many logits are computed however few texts there are
Pieces = Sequence[Sequence[int]]


def padded_lengths(max_length: int) -> list[int]:
    """The lengths that rows are padded to: powers of two from 64, 1.5 times those, and `max_length`."""
    steps = (n * 2**k for k in range(5, max_length.bit_length()) for n in (2, 3))
    return [n for n in steps if n < max_length] + [max_length]


def prefill(
    loaded: LoadedModel, mesh: Mesh, read: Callable[[nnx.Module, tuple, jax.Array], jax.Array], width: int,
    max_length: int, batch_size: int,
) -> Callable[[Sequence[Pieces]], np.ndarray]:
    """Forward passes over texts of any length: rows of token ids in pieces -> float32 (rows, width).

    A row's first piece, with BOS, is the common prefix of the others. Each of these continues from its end, and attends
    to the prefix and itself. A row of two pieces is a plain text. `read(model, inputs, piece_BT)` gives `width` numbers
    per row, (B, width): `model(*inputs)` returns the logits and no cache, and `piece_BT` is the number of each token's
    piece, 0 for the first and for padding. Rows are left-padded to one of `padded_lengths`, each of which compiles
    once. The weights are those at the time of the call. A row of more than `max_length` tokens is not cut: it is NaN,
    no signal. May be called from any thread.

    Raises ValueError when batch_size does not divide over fsdp.
    """
    check_divides(batch_size, mesh, "batch_size")
    graph, pad = nnx.graphdef(loaded.model), loaded.tokenizer.pad_id()
    lengths = padded_lengths(max_length)
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


def piece_mask(present_BT: jax.Array, piece_BT: jax.Array) -> jax.Array:
    """The attention mask of rows in pieces, (B, T, T): causal, over the first piece and the token's own."""
    key_B1T = piece_BT[:, None]
    return make_causal_attn_mask(present_BT) & ((key_B1T == 0) | (key_B1T == piece_BT[..., None]))


def last_tokens(piece_BT: jax.Array) -> jax.Array:
    """The columns of the last tokens of the pieces 1 to `SHARED`, (B, SHARED). Any column for a missing piece."""
    its_BKT = piece_BT[:, None] == jnp.arange(1, SHARED + 1)[:, None]
    return piece_BT.shape[1] - 1 - jnp.argmax(its_BKT[..., ::-1], axis=-1)


def pack_shared_prefixes(texts: Sequence[Sequence[int]], max_length: int) -> list[Pieces]:
    """Neighbours that begin alike as rows in pieces: the common prefix, then the rest of each text in order.

    A text joins the row before it where that saves at least half of its tokens, up to `SHARED` texts and `max_length`
    tokens per row.

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


def rating_logprobs(
    loaded: LoadedModel, mesh: Mesh, ratings: Sequence[str], max_length: int, batch_size: int
) -> Callable[[list[str]], np.ndarray]:
    """A judge's scores: prompts -> float32 (prompts, ratings), the log-probability of each rating as next token.

    Neighbouring prompts that begin alike share a row (`pack_shared_prefixes`). `batch_size` counts rows. A prompt of
    more than `max_length` tokens, with BOS, is not cut: its log-probabilities are -inf.

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

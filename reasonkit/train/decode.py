"""`SegmentSampler`: Tunix's sampler without its wasted work.

Tunix decodes every row until the longest is done, and its attention reads the whole cache from the first token on. This
sampler prefills each prompt once for its whole group, lets the cache grow, and drops finished rows. With the same seed
it draws the same tokens as Tunix, because a row's random numbers depend on its place in the whole batch.
"""

from __future__ import annotations

import functools
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.random import define_prng_impl, threefry2x32_p
from jax.interpreters import pxla
from jax.sharding import NamedSharding
from tunix.generate.sampler import Sampler, sample_best, sample_top_p
from tunix.generate.utils import build_positions_from_mask, compute_attention_masks, make_causal_attn_mask

from reasonkit.models.cache import heads_first, layouts

SHARES = (1, 2, 4, 8)  # of the rows that a program decodes: all of them, half, ...
SEGMENT = 128  # tokens by which the cache grows


@functools.partial(jax.jit, static_argnames=("size", "axis", "layout"))
def _resize(leaf: jax.Array, rows_R: jax.Array | None, size: int, axis: int, layout: NamedSharding | None) -> jax.Array:
    """The given rows of one of the cache's arrays, with room for `size` tokens along `axis`."""
    leaf = leaf if rows_R is None else leaf[rows_R]
    if leaf.ndim == 4:
        leaf = jnp.pad(leaf, [(0, size - leaf.shape[axis]) if axis == other else (0, 0) for other in range(4)])
    return leaf if layout is None else jax.lax.with_sharding_constraint(leaf, layout)


def _bits_of_row(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    """The random bits that JAX draws for one row of a batch (its `_threefry_random_bits_partitionable`, which hashes
    each element's place). `key` has the two words of the batch's key, and the row."""
    count = key[2] * np.uint32(math.prod(shape)) + jax.lax.iota(np.uint32, math.prod(shape)).reshape(shape)
    high, low = threefry2x32_p.bind(key[0], key[1], jnp.zeros_like(count), count)
    return high ^ low


ROW_OF_BATCH = define_prng_impl(key_shape=(3,), seed=None, split=None, random_bits=_bits_of_row, fold_in=None,
                                name="row_of_batch", tag="row")


def draw(logits_RV: jax.Array, key: jax.Array, rows_R: jax.Array, temperature: float, top_p: float | None,
         top_k: int | None, return_logprobs: bool) -> tuple[jax.Array, jax.Array | None]:
    """A token per row and, if wanted, its log-probability. Row i draws as row `rows_R[i]` of the whole batch. `key` is
    a raw key."""
    if top_p is None:
        return sample_best(logits_RV[:, None], return_logprobs)
    words_R3 = jnp.concatenate([jnp.broadcast_to(key, (*rows_R.shape, 2)), rows_R[:, None].astype(np.uint32)], -1)

    def draw_row(logits_V: jax.Array, words_3: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        row_key = jax.random.wrap_key_data(words_3, impl=ROW_OF_BATCH)
        return sample_top_p(logits_V[None, None], row_key, temperature, top_p, top_k, return_logprobs)

    return jax.tree.map(lambda drawn_R1: drawn_R1[:, 0], jax.vmap(draw_row)(logits_RV, words_R3))


def decode_segment(graph: nnx.GraphDef, pad_id: int, params: list, cache: dict, tokens_RS: jax.Array,
                   logps_RS: jax.Array | None, done_R: jax.Array, rows_R: jax.Array, pads_R: jax.Array, eos: jax.Array,
                   seed: jax.Array, step: jax.Array, enough: jax.Array, **settings) -> tuple:
    """Decode until at most `enough` rows are left, or the cache is full. `step` is the place of the last token, and
    `settings` are those of `draw`. Returns step, cache, tokens, log-probabilities and what is done."""
    size = tokens_RS.shape[1]

    def step_once(carry: tuple) -> tuple:
        step, cache, tokens_RS, logps_RS, done_R = carry
        logits_R1V, cache = nnx.merge(graph, params)(
            tokens_RS[:, step][:, None], (step - pads_R)[:, None], cache,
            compute_attention_masks(step, size, tokens_RS == pad_id))
        token_R, logp_R = draw(logits_R1V[:, 0], jax.random.fold_in(seed, step), rows_R, **settings)
        if logps_RS is not None:
            logps_RS = logps_RS.at[:, step + 1].set(logp_R)
        tokens_RS = tokens_RS.at[:, step + 1].set(token_R)
        return step + 1, cache, tokens_RS, logps_RS, done_R | jnp.isin(token_R, eos)

    return jax.lax.while_loop(lambda carry: (carry[0] + 1 < size) & (jnp.sum(~carry[-1]) > enough), step_once,
                              (step, cache, tokens_RS, logps_RS, done_R))


class SegmentSampler(Sampler):
    """A `Sampler` that decodes in segments. A segment ends when the cache is full, or when enough rows are done that
    the rest fit into a smaller program. There is one program for each number of rows (`SHARES` of the batch that divide
    over fsdp) and size of the cache (the prompt and multiples of `SEGMENT`). It is compiled when it is first needed.

    Beam search, forbidden tokens, images and logits are not supported.
    """

    def __init__(self, model: nnx.Module, tokenizer, cache_config):
        super().__init__(model, tokenizer, cache_config)
        settings = ("temperature", "top_p", "top_k", "return_logprobs")
        self._prefill = jax.jit(self._prefill_prompts, donate_argnums=1)
        self._first = jax.jit(lambda logits_UV, copies_B, *key, **settings: draw(logits_UV[copies_B], *key, **settings),
                              static_argnames=settings)
        self._segment = jax.jit(functools.partial(decode_segment, self._transformer_graphdef, self.tokenizer.pad_id()),
                                donate_argnums=1, static_argnames=settings)
        self._compiled_prefill_fn = lambda params, state, images, echo: state
        self._compiled_decode_fn = self._decode

    def init_sample_state(self, all_input_ids: jax.Array, total_sampling_steps: int, include_logits: bool,
                          forbidden_token_ids: tuple[int, ...] | None, temperature: float, top_p: float | None,
                          top_k: int | None, seed: jax.Array, beam_size: int | None,
                          include_logprobs: bool = False) -> SimpleNamespace:
        """The state that `_decode` starts from and fills in. Raises ValueError for what this sampler can't do."""
        if include_logits or forbidden_token_ids or beam_size:
            raise ValueError("SegmentSampler has no logits, forbidden tokens or beam search: use Tunix's Sampler")
        tokens_BT = np.full((len(all_input_ids), total_sampling_steps), self.tokenizer.pad_id(), np.int32)
        tokens_BT[:, :all_input_ids.shape[1]] = all_input_ids
        return SimpleNamespace(
            token_buffer=tokens_BT, logprobs_buffer=np.zeros(tokens_BT.shape, np.float32) if include_logprobs else None,
            num_input_tokens=all_input_ids.shape[1], seed=seed, logits_buffer=None, sampling_mode="",
            settings=dict(temperature=temperature, top_p=top_p, top_k=top_k, return_logprobs=include_logprobs))

    def _prefill_prompts(self, params: list, cache: dict, tokens_UP: jax.Array) -> tuple[jax.Array, dict]:
        """Logits of the token after each prompt, and the cache."""
        present_UP = tokens_UP != self.tokenizer.pad_id()
        logits_U1V, cache = nnx.merge(self._transformer_graphdef, params)(
            tokens_UP, build_positions_from_mask(present_UP), cache,
            make_causal_attn_mask(present_UP, tokens_UP.shape[1]), decode_only_last_token=True)
        return logits_U1V[:, 0], cache

    def _decode(self, params: list, state: SimpleNamespace) -> SimpleNamespace:
        """The state with its tokens drawn. Up to each row's stop token they are the same as Tunix's."""
        tokens_BT, logps_BT, start = state.token_buffer, state.logprobs_buffer, state.num_input_tokens
        (batch, total), pad, eos = tokens_BT.shape, self.tokenizer.pad_id(), np.asarray(self.eos_ids)
        prompts_BP, mesh = tokens_BT[:, :start], pxla.thread_resources.env.physical_mesh
        turns = np.flatnonzero((prompts_BP[1:] != prompts_BP[:-1]).any(1)) + 1
        group = math.gcd(batch, *turns)  # copies of each prompt, one after the other
        shards = 1 if mesh.empty else mesh.shape["fsdp"]
        counts = [batch // share for share in SHARES if batch % (share * shards) == 0] or [batch]

        cache = self.transformer.init_cache(batch // group, start, self.dtype)
        logits_UV, cache = self._prefill(params, cache, prompts_BP[::group])
        rows_R = np.arange(batch)
        kept = rows_R // group  # rows of the cache that go on, None: all
        token_B, logp_B = self._first(logits_UV, kept, jax.random.fold_in(state.seed, start - 1), rows_R,
                                      **state.settings)
        tokens_BT[:, start] = token_B
        if logps_BT is not None:
            logps_BT[:, start] = logp_B
        done_B, pads_B, step = np.isin(tokens_BT[:, start], eos), (prompts_BP == pad).sum(1), start
        while step + 1 < total and not done_B.all():
            live = np.sum(~done_B)
            count = min(n for n in counts if n >= live)
            if count < len(rows_R):
                chosen = np.argsort(done_B[rows_R], kind="stable")[:count]
                rows_R, kept = rows_R[chosen], chosen if kept is None else kept[chosen]
            size = min(start + SEGMENT * -(-(step + 2 - start) // SEGMENT), total)
            layout, ends = layouts(self.transformer.config, count)
            for layer in cache.values():  # one array at a time: there may be no room for two whole caches
                for name, leaf in layer.items():
                    layer[name] = _resize(leaf, kept, size, 1 + heads_first(mesh), layout if leaf.ndim == 4 else ends)
            kept = None
            step, cache, drawn_RS, logps_RS, done_B[rows_R] = self._segment(
                params, cache, tokens_BT[rows_R, :size], None if logps_BT is None else logps_BT[rows_R, :size],
                done_B[rows_R], rows_R, pads_B[rows_R], eos, state.seed, step,
                max((n for n in counts if n < count), default=0), **state.settings)
            step, tokens_BT[rows_R, :size] = int(step), drawn_RS
            if logps_BT is not None:
                logps_BT[rows_R, :size] = logps_RS
        return state

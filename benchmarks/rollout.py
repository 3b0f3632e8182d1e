"""What decoding in segments is worth: `python benchmarks/rollout.py`, or with `--model gemma3-270m`.

Tunix decodes every row until the longest is done, and its attention reads the whole cache from the first token on.
`SegmentSampler` prefills each prompt once for its whole group, lets the cache grow, and drops finished rows. With the
same seed it draws the same tokens as Tunix, because a row's random numbers depend on its place in the whole batch. The
two take turns. Lengths are forced: one token stops a row, and its probability follows the hazard of a log-normal with a
median of 30 % of the limit, cut there. Then no row stops before the limit. Prefill counts, compilation does not.
Then the bytes that must cross HBM, by formula, for Gemma-2-2B with 256 rows on a v5e-8 (weights on each chip): a step
reads all weights and the whole cache of its rows, so 2 P + R S 4 L K H bytes per chip, with P parameters, R rows per
chip, S tokens in the cache, L layers, K KV heads and H dimensions per head, all in bfloat16. Tunix's S is prompt and
limit, and its R the batch's. Exits with 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
import time
from pathlib import Path
from statistics import NormalDist, median
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from flax import nnx  # noqa: E402
from jax.extend.random import define_prng_impl, threefry2x32_p  # noqa: E402
from jax.interpreters import pxla  # noqa: E402
from jax.sharding import NamedSharding  # noqa: E402
from tunix.generate.sampler import CacheConfig, Sampler, sample_best, sample_top_p  # noqa: E402
from tunix.generate.utils import build_positions_from_mask, compute_attention_masks, make_causal_attn_mask  # noqa: E402

from reasonkit.models.load import load  # noqa: E402
from reasonkit.models.mesh import make_mesh  # noqa: E402
from reasonkit.models.placement import CHIPS, config_of  # noqa: E402
from reasonkit.train.rollout import cache_layouts, install_sharded_cache  # noqa: E402

MEDIAN, SPREAD = 0.3, 0.65  # of the limit, and of the logarithm: 3 % of the rows reach the limit
TARGETS = {"lengths of real replies": 2.0, "all at the limit": 1.2}
STOP = 1
CHIPS_OF_SLICE, ROWS, PROMPT, NEW = 8, 256, 256, 768  # of the formula
SHARES = (1, 2, 4, 8)  # of the rows that a program decodes: all of them, half, ...
SEGMENT = 128  # tokens by which the cache grows


@functools.partial(jax.jit, static_argnames=("size", "layout"))
def _resize(leaf: jax.Array, rows_R: jax.Array | None, size: int, layout: NamedSharding | None) -> jax.Array:
    """The given rows of one of the cache's arrays, with room for `size` tokens."""
    leaf = leaf if rows_R is None else leaf[rows_R]
    if leaf.ndim == 4:
        leaf = jnp.pad(leaf, ((0, 0), (0, size - leaf.shape[1]), (0, 0), (0, 0)))
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
    """A token per row and, if wanted, its log-probability. Row i gets the random numbers of row `rows_R[i]` in the
    whole batch. `key` is a raw key."""
    if top_p is None:
        return sample_best(logits_RV[:, None], return_logprobs)
    words_R3 = jnp.concatenate([jnp.broadcast_to(key, (*rows_R.shape, 2)), rows_R[:, None].astype(np.uint32)], -1)

    def draw_row(logits_V: jax.Array, words_3: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        row_key = jax.random.wrap_key_data(words_3, impl=ROW_OF_BATCH)
        return sample_top_p(logits_V[None, None], row_key, temperature, top_p, top_k, return_logprobs)

    return jax.tree.map(lambda drawn_R1: drawn_R1[:, 0], jax.vmap(draw_row)(logits_RV, words_R3))


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
        self._segment = jax.jit(self._decode_segment, donate_argnums=1, static_argnames=settings)
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

    def _decode_segment(self, params: list, cache: dict, tokens_RS: jax.Array, logps_RS: jax.Array | None,
                    done_R: jax.Array, rows_R: jax.Array, pads_R: jax.Array, eos: jax.Array, seed: jax.Array,
                    step: jax.Array, enough: jax.Array, **settings) -> tuple:
        """Decode until at most `enough` rows are left, or the cache is full. `step` is the place of the last token."""
        size = tokens_RS.shape[1]

        def step_once(carry: tuple) -> tuple:
            step, cache, tokens_RS, logps_RS, done_R = carry
            logits_R1V, cache = nnx.merge(self._transformer_graphdef, params)(
                tokens_RS[:, step][:, None], (step - pads_R)[:, None], cache,
                compute_attention_masks(step, size, tokens_RS == self.tokenizer.pad_id()))
            token_R, logp_R = draw(logits_R1V[:, 0], jax.random.fold_in(seed, step), rows_R, **settings)
            if logps_RS is not None:
                logps_RS = logps_RS.at[:, step + 1].set(logp_R)
            tokens_RS = tokens_RS.at[:, step + 1].set(token_R)
            return step + 1, cache, tokens_RS, logps_RS, done_R | jnp.isin(token_R, eos)

        return jax.lax.while_loop(lambda carry: (carry[0] + 1 < size) & (jnp.sum(~carry[-1]) > enough), step_once,
                                  (step, cache, tokens_RS, logps_RS, done_R))

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
            layout, ends = cache_layouts(self.transformer.config, count)
            for layer in cache.values():  # one array at a time: there may be no room for two whole caches
                for name, leaf in layer.items():
                    layer[name] = _resize(leaf, kept, size, layout if leaf.ndim == 4 else ends)
            kept = None
            step, cache, drawn_RS, logps_RS, done_B[rows_R] = self._segment(
                params, cache, tokens_BT[rows_R, :size], None if logps_BT is None else logps_BT[rows_R, :size],
                done_B[rows_R], rows_R, pads_B[rows_R], eos, state.seed, step,
                max((n for n in counts if n < count), default=0), **state.settings)
            step, tokens_BT[rows_R, :size] = int(step), drawn_RS
            if logps_BT is not None:
                logps_BT[rows_R, :size] = logps_RS
        return state


def hazards(limit: int, real: bool) -> np.ndarray:
    """The probability that each token of a completion is its last, if none before it was."""
    if not real:
        return np.zeros(limit)
    normal = NormalDist(np.log(MEDIAN * limit), SPREAD)
    gone = np.array([0, *(normal.cdf(np.log(token)) for token in range(1, limit + 1))])
    return np.diff(gone) / (1 - gone[:-1])


class Stopping(nnx.Module):
    """A model whose next token is STOP with the probability `stopping_L` has for its place in the completion. `prompt`
    is the number of tokens of every prompt."""

    def __init__(self, model: nnx.Module, stopping_L: np.ndarray, prompt: int):
        self.model, self.config, self.prompt = model, model.config, prompt
        self.stopping_L = nnx.Variable(jnp.asarray(stopping_L, jnp.float32))  # Tunix's cache has the first array's type

    def init_cache(self, *sizes) -> dict:
        return self.model.init_cache(*sizes)

    def __call__(self, tokens, positions=None, cache=None, attention_mask=None, decode_only_last_token=False):
        logits_RTV, cache = self.model(tokens, positions, cache, attention_mask,
                                       decode_only_last_token=decode_only_last_token)
        chance_R = self.stopping_L[...][positions[:, -1] + 1 - self.prompt]
        others_RV = logits_RTV[:, -1].astype(jnp.float32).at[:, STOP].set(-jnp.inf)
        stop_R = jax.nn.logsumexp(others_RV, -1) + jnp.log(chance_R) - jnp.log1p(-chance_R)
        return others_RV.at[:, STOP].set(stop_R)[:, None], cache


def measure(loaded, mesh, options, real: bool) -> tuple[list[float], list[float]]:
    """Tokens per second of Tunix's sampler and of ours, in the median repeat. Then the share of the rows whose tokens
    are the same, the mean length, and the seconds of each side's first call, which compiles."""
    questions = [f"{number:04d} " * options.words for number in range(options.prompts)]
    prompts = [question for question in questions for _ in range(options.group)]
    length = {1 + len(loaded.tokenizer.encode(prompt)) for prompt in prompts}
    if len(length) > 1 or max(length) > options.prompt_length:
        raise ValueError(f"prompts have {sorted(length)} tokens: they must be equal, and at most --prompt-length "
                         f"{options.prompt_length}")
    config, model = loaded.config, Stopping(loaded.model, hazards(options.new, real), *length)
    install_sharded_cache()
    cache = CacheConfig(options.prompt_length + options.new, config.num_layers, config.num_kv_heads, config.head_dim)
    samplers = [kind(model, loaded.tokenizer, cache) for kind in (Sampler, SegmentSampler)]
    speeds, compiling, drawn = [[], []], [0.0, 0.0], [[], []]
    for repeat in range(options.repeats + 1):
        for side, sampler in enumerate(samplers):
            start = time.perf_counter()
            with mesh:
                output = sampler(prompts, max_generation_steps=options.new, max_prompt_length=options.prompt_length,
                                 temperature=1.0, top_p=1.0, seed=options.seed, eos_tokens=[STOP])
            seconds, drawn[side] = time.perf_counter() - start, output.tokens
            if repeat:
                speeds[side].append(sum(min(len(tokens) + 1, options.new) for tokens in output.tokens) / seconds)
            else:
                compiling[side] = seconds
    same = np.mean([np.array_equal(*pair) for pair in zip(*drawn, strict=True)])
    mean = np.mean([len(tokens) for tokens in drawn[0]])
    return [median(side) for side in speeds], [same, mean, *compiling]


def crossing(config, real: bool) -> list[float]:
    """Bytes of all decode steps of a rollout, per chip: Tunix's and ours. Rows stop as the hazards say."""
    heads = (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    weights = 2 * (config.num_embed * config.embed_dim
                   + config.num_layers * config.embed_dim * (heads + 3 * config.hidden_dim))
    token = 4 * config.num_layers * config.num_kv_heads * config.head_dim
    live_L = np.ceil(ROWS * np.cumprod(1 - hazards(NEW, real)))
    counts = [ROWS // share for share in SHARES]
    bytes_of = [0.0, 0.0]
    for step in range(1, NEW):
        rows = min(count for count in counts if count >= live_L[step - 1])
        size = min(PROMPT + SEGMENT * -(-(step + 1) // SEGMENT), PROMPT + NEW)
        for side, read in enumerate((ROWS * (PROMPT + NEW), rows * size)):
            bytes_of[side] += weights + read / CHIPS_OF_SLICE * token
    return bytes_of


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny-policy")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--prompt-length", type=int, default=PROMPT)
    parser.add_argument("--words", type=int, default=36, help="four digits each, of a prompt")
    parser.add_argument("--new", type=int, default=NEW)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    mesh = make_mesh(jax.devices(), len(jax.devices()), 1)
    loaded, missed = load(options.model, mesh, jnp.dtype(options.dtype)), False
    print(f"{options.model}, {options.dtype}, {options.prompts} x {options.group} rows, limit {options.new}, "
          f"{len(jax.devices())} {jax.devices()[0].device_kind}\n\n| lengths | mean | Tunix, tokens/s | ours | ratio | "
          "rows drawn alike | first call, s: Tunix | ours |\n|---|---|---|---|---|---|---|---|")
    for name, target in TARGETS.items():
        (theirs, ours), (same, mean, *first) = measure(loaded, mesh, options, name == "lengths of real replies")
        missed |= ours / theirs < target
        print(f"| {name} | {mean:.0f} | {theirs:,.0f} | {ours:,.0f} | {ours / theirs:.2f} | {same:.1%} | "
              f"{first[0]:.0f} | {first[1]:.0f} |", flush=True)
    config = config_of("gemma2-2b-it")
    print("\n| Gemma-2-2B on v5e-8, lengths | GB per step and chip: Tunix | ours | ratio | least ms per step |\n"
          "|---|---|---|---|---|")
    for name in TARGETS:
        theirs, ours = (total / (NEW - 1) for total in crossing(config, name == "lengths of real replies"))
        print(f"| {name} | {theirs / 1e9:.2f} | {ours / 1e9:.2f} | {ours / theirs:.2f} | "
              f"{ours / CHIPS['v5e'].bandwidth * 1e3:.1f} |")
    print("\ntargets: " + ", ".join(f"{name} {target:g}" for name, target in TARGETS.items()))
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())

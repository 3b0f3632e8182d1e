"""What decoding in segments is worth: `python benchmarks/rollout.py`, or with `--model gemma3-270m`.

Both samplers draw the same completions under the same seed, in turns, with forced lengths: once log-normal with a
median of 30 % of the limit, once all at the limit. Prefill counts. Compilation and tokens after a stop do not. Then the
bytes that must cross HBM per step, by formula, for Gemma-2-2B on a v5e-8. Exits with 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import sys
import time
from statistics import NormalDist, median

import checkout  # noqa: F401
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tunix.generate.sampler import CacheConfig, Sampler

from reasonkit.models.cache import install_sharded_cache
from reasonkit.models.load import load
from reasonkit.models.mesh import make_mesh
from reasonkit.models.placement import cache_bytes, config_of, parameters
from reasonkit.train import decode

MEDIAN, SPREAD = 0.3, 0.65  # of the limit, and of the logarithm: 3 % of the rows reach the limit
TARGETS = {"lengths of real replies": 2.0, "all at the limit": 1.2}
STOP = 1
CHIPS_OF_SLICE, ROWS, PROMPT, NEW = 8, 256, 256, 768  # of the formula
DEMO_CHIPS, DEMO_ROWS = 4, 16  # of the Tunix demo, with weights and heads over the chips: see benchmarks/plan.py


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
    samplers = [kind(model, loaded.tokenizer, cache) for kind in (Sampler, decode.SegmentSampler)]
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
    """Bytes of all decode steps of a rollout, per chip: Tunix's, ours, ours with weights and cache in 8 bits, with 2
    bytes per token and head for the scales, and the Tunix demo's. Rows stop as the hazards say."""
    (embedding, matrices), scales = parameters(config), 4 * config.num_layers * config.num_kv_heads
    whole = 2 * (embedding + matrices), cache_bytes(config)
    small = embedding + matrices, cache_bytes(config, 1) + scales
    live_L = np.ceil(ROWS * np.cumprod(1 - hazards(NEW, real)))
    counts = [ROWS // share for share in decode.SHARES]
    bytes_of = [0.0, 0.0, 0.0, 0.0]
    for step in range(1, NEW):
        rows = min(count for count in counts if count >= live_L[step - 1])
        size = min(PROMPT + decode.SEGMENT * -(-(step + 1) // decode.SEGMENT), PROMPT + NEW)
        for side, (tokens, (weights, token)) in enumerate(
                [(ROWS * (PROMPT + NEW), whole), (rows * size, whole), (rows * size, small)]):
            bytes_of[side] += weights + tokens / CHIPS_OF_SLICE * token
        bytes_of[3] += (whole[0] + DEMO_ROWS * (PROMPT + NEW) * whole[1]) / DEMO_CHIPS
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
    print("\n| Gemma-2-2B on v5e-8, lengths | GB per step and chip: Tunix | ours | ratio | ours in 8 bits | ratio | "
          "tokens/s over the Tunix demo's: ours | ours in 8 bits |\n|---|---|---|---|---|---|---|---|")
    for name in TARGETS:
        theirs, ours, small, demo = (
            total / (NEW - 1) for total in crossing(config, name == "lengths of real replies"))
        faster, fastest = (demo / DEMO_ROWS / (side / ROWS) for side in (ours, small))  # of equal lengths
        print(f"| {name} | {theirs / 1e9:.2f} | {ours / 1e9:.2f} | {ours / theirs:.2f} | {small / 1e9:.2f} | "
              f"{small / theirs:.2f} | {faster:.1f} | {fastest:.1f} |")
    print("\ntargets: " + ", ".join(f"{name} {target:g}" for name, target in TARGETS.items()))
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())

"""What the TPU compiler says of pieces of this job: `python benchmarks/tpu_compiler.py [NAME ...]`, libtpu on the path.

Each name is a question of docs/tpu.md and prints a table, a row per case. Nothing runs and no TPU is needed. Sizes are
of one chip. HBM traffic is arguments and outputs once and temporaries twice, by `memory_analysis`. FLOP are the
compiler's count. Without a name all questions are asked, which takes about fifteen minutes on one core.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import patch

import checkout  # noqa: F401
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from tunix.generate.sampler import sample_top_p

from reasonkit.config import PROFILES
from reasonkit.models import cache, logprobs
from reasonkit.models.mesh import Plan, make_mesh
from reasonkit.models.placement import CHIPS, config_of
from tools.preflight import programs
from tools.preflight.abstract import Program, array
from tools.preflight.compiled import (
    ProgramStats,
    compile_program,
    depths,
    extrapolate_layers,
    topology_devices,
)
from tools.preflight.programs import Run, rollout_programs, sft_programs

jax.config.update("jax_platforms", "cpu")

MODEL, BF16, PROFILE = "gemma2-2b-it", jnp.bfloat16, PROFILES["kaggle"]
FOUR_ROWS = replace(PROFILE, sft=replace(PROFILE.sft, batch_size=4))
ROWS, TOKENS, HEADS, KV_HEADS, DIM = 32, 1024, 8, 4, 256  # a chip's share of a decode step of the 2B
WIDTH, HIDDEN, WORDS = 2304, 9216, 262_144
Rows = Iterator[tuple[str, ProgramStats]]


def mesh_of(chip: str = "v5e", fsdp: int = 1, tp: int = 1) -> Mesh:
    """Of the first chips of a host."""
    name = f"{chip}:1x1" if fsdp * tp == 1 else f"{chip}:2x4"
    return make_mesh(topology_devices(name)[:fsdp * tp], fsdp, tp)


def piece(function: Callable, *shapes: tuple, donated: tuple[int, ...] = (), rows: int = ROWS) -> ProgramStats:
    """A function of arrays, (shape, dtype) each, compiled for one v5e chip."""
    mesh = mesh_of()
    arguments = tuple(array(mesh, *shape) for shape in shapes)
    return compile_program(Program("piece", mesh, rows, function, arguments, donated))


def attend(query_BKGH: jax.Array, keys: jax.Array, values: jax.Array, axes: str, key_scales: jax.Array | None = None,
           value_scales: jax.Array | None = None) -> jax.Array:
    """One token's attention over a cache with these axes. Scales, (B, K, S), multiply scores and probabilities."""
    scores_BKGS = jnp.einsum(f"BKGH,{axes}->BKGS", query_BKGH, keys.astype(BF16)).astype(jnp.float32)
    if key_scales is not None:
        scores_BKGS *= key_scales[:, :, None]
    probs_BKGS = jax.nn.softmax(scores_BKGS)
    if value_scales is not None:
        probs_BKGS *= value_scales[:, :, None]
    return jnp.einsum(f"BKGS,{axes}->BKGH", probs_BKGS.astype(BF16), values.astype(BF16))


def cache_layout() -> Rows:
    """Does it matter whether a bf16 cache is laid out (rows, tokens, heads, dim) or (rows, heads, tokens, dim)?"""
    for heads, model in ((KV_HEADS, "Gemma-2-2B"), (1, "Gemma-3-1B")):
        for axes, sizes in (("BSKH", (ROWS, TOKENS, heads, DIM)), ("BKSH", (ROWS, heads, TOKENS, DIM))):

            def step(keys, values, query_BKGH, key_BKH, value_BKH, place, axes=axes):
                at = (0, place, 0, 0) if axes == "BSKH" else (0, 0, place, 0)
                new = [x_BKH[:, None] if axes == "BSKH" else x_BKH[:, :, None] for x_BKH in (key_BKH, value_BKH)]
                keys, values = (jax.lax.dynamic_update_slice(old, x, at)
                                for old, x in zip((keys, values), new, strict=True))
                return keys, values, attend(query_BKGH, keys, values, axes)

            token = (ROWS, heads, DIM), BF16
            yield f"{model}, {axes}", piece(
                step, (sizes, BF16), (sizes, BF16), ((ROWS, heads, HEADS // KV_HEADS, DIM), BF16), token, token,
                ((), jnp.int32), donated=(0, 1))


def cache_int8() -> Rows:
    """Does an int8 cache halve the traffic of a decode step's attention?"""
    for axes, count in (("BSKH", 32), ("BSKH", 128), ("BKSH", 128)):
        sizes = (count, TOKENS, KV_HEADS, DIM) if axes == "BSKH" else (count, KV_HEADS, TOKENS, DIM)
        query, scale = ((count, KV_HEADS, HEADS // KV_HEADS, DIM), BF16), ((count, KV_HEADS, TOKENS), BF16)

        def first(query_BKGH, keys, values, key_scales, value_scales, axes=axes):
            def whole(cache, scales_BKS):
                scales = scales_BKS if axes == "BKSH" else scales_BKS.swapaxes(1, 2)
                return cache.astype(BF16) * scales[..., None]

            return attend(query_BKGH, whole(keys, key_scales), whole(values, value_scales), axes)

        def after(query_BKGH, keys, values, key_scales, value_scales, axes=axes):
            return attend(query_BKGH, keys, values, axes, key_scales, value_scales)

        yield f"{count} rows, {axes}, bf16", piece(functools.partial(attend, axes=axes), query, *[(sizes, BF16)] * 2)
        for title, function in (("dequantised first", first), ("scales on scores and probabilities", after)):
            yield f"{count} rows, {axes}, int8, {title}", piece(
                function, query, *[(sizes, jnp.int8)] * 2, scale, scale)


def weight_int8() -> Rows:
    """Is an int8 weight written out in bf16 before its matmul?"""
    for title, sizes, scales, axes in (("matrix", (WIDTH, HIDDEN), (1, HIDDEN), "BD,DF->BF"),
                                       ("embedding as head", (WORDS, WIDTH), (WORDS, 1), "BD,VD->BV")):
        x = (ROWS, WIDTH), BF16
        yield f"{title}, bf16", piece(functools.partial(jnp.einsum, axes), x, (sizes, BF16))
        yield f"{title}, int8, dequantised first", piece(
            lambda x, w, s, axes=axes: jnp.einsum(axes, x, w.astype(BF16) * s), x, (sizes, jnp.int8), (scales, BF16))
        yield f"{title}, int8, scaled after", piece(
            lambda x, w, s, axes=axes: jnp.einsum(axes, x, w.astype(BF16)) * s.reshape(1, -1),
            x, (sizes, jnp.int8), (scales, BF16))


def sampling() -> Rows:
    """What does it cost to draw a token from the logits of 32 rows, and of 128?"""
    def tunix(logits_BV, key, top_p, top_k):
        return sample_top_p(logits_BV[:, None], key, temperature=1.0, top_p=top_p, top_k=top_k)[0]

    for title, function in (
            ("argmax", lambda logits_BV, key: logits_BV.argmax(-1)),
            ("categorical", lambda logits_BV, key: jax.random.categorical(key, logits_BV)),
            ("exact top-k, 64", lambda logits_BV, key: jax.lax.top_k(logits_BV, 64)),
            ("approx_max_k, 64", lambda logits_BV, key: jax.lax.approx_max_k(logits_BV, 64)),
            ("Tunix, top_p 0.95", functools.partial(tunix, top_p=0.95, top_k=None))):
        for count in (32, 128):
            yield f"{title}, {count} rows", piece(function, ((count, WORDS), jnp.float32), ((2,), jnp.uint32))


def remat() -> Rows:
    """What do Tunix's remat policies save and cost in a train step of four layers, 4 rows of 1,024 tokens?"""
    config = replace(config_of(MODEL), num_layers=4)
    for policy in type(config.remat_config):
        run = Run(replace(config, remat_config=policy), None, Plan(mesh_of(), None, {}), FOUR_ROWS, BF16)
        yield policy.name, compile_program(sft_programs(run)[0])


def loss() -> Rows:
    """What do chunks of the loss save, as chunks with barriers and as a loop? 4 rows of 768 tokens."""
    no_mesh = SimpleNamespace(thread_resources=SimpleNamespace(env=SimpleNamespace(
        physical_mesh=SimpleNamespace(empty=True))))
    read = functools.partial(logprobs._read, 30.0, 1.0)
    shapes = ((4, 768, WIDTH), BF16), ((WORDS, WIDTH), BF16), ((4, 768), jnp.int32)
    for parts, loop in ((1, False), (2, False), (6, False), (12, False), (48, False), (6, True)):

        def slope(hidden_BCD, embedding_VD, targets_BC, parts=parts):
            def loss(x): return logprobs._read_in_chunks(read, parts, embedding_VD, x, targets_BC)[0].sum()
            return jax.grad(loss)(hidden_BCD)

        with patch.object(logprobs, "pxla", no_mesh if loop else logprobs.pxla):  # without a mesh: as on a CPU
            yield f"{parts} part{'s' * (parts > 1)}{', loop' * loop}", piece(slope, *shapes, rows=4)


def decode_step(mesh: Mesh, rows: int, reply: int = 768, sharded: bool = False, program: str = "one decode step",
                **options: bool) -> ProgramStats:
    """All layers of the 2B, from two shallow models."""
    config = config_of(MODEL, replicated=not sharded)
    profile = replace(PROFILE, grpo=replace(PROFILE.grpo, rollout_micro_prompts=rows, num_generations=1,
                                            max_new_tokens=reply, **options))
    shallow = [compile_program(next(found for found in rollout_programs(Run(
        replace(config, num_layers=layers), None, Plan(mesh, None, {}), profile, BF16)) if found.title == program))
        for layers in depths(config)]
    return extrapolate_layers(*shallow, depths(config), config.num_layers)


def step_int8() -> Rows:
    """What do the rollout's int8 weights and int8 cache save in a whole decode step of 32 rows?"""
    for title, weights, kept in (("bf16", False, False), ("int8 weights", True, False), ("int8 cache", False, True),
                                  ("both", True, True)):
        yield title, decode_step(mesh_of(), ROWS, int8_weights=weights, int8_cache=kept)


def decode_loop() -> Rows:
    """Does the loop around a decode step of 32 rows need more memory than the step?"""
    yield "one step", decode_step(mesh_of(), ROWS)
    for title, first in (("tokens before heads, as in Tunix", False), ("heads before tokens", True)):
        with patch.object(cache, "heads_first", lambda mesh, first=first: first), \
                patch.object(programs, "heads_first", lambda mesh, first=first: first):
            yield f"the loop, {title}", decode_step(mesh_of(), ROWS, program="decode loop")
    yield "the same in 8 bits", decode_step(mesh_of(), ROWS, program="decode loop", int8_weights=True, int8_cache=True)


def split() -> Rows:
    """How should four chips share the decoding of 128 rows of the 2B?"""
    yield "weights on each chip", decode_step(mesh_of("v5e", 4, 1), 128)
    yield "tp 4", decode_step(mesh_of("v5e", 1, 4), 128)
    yield "Tunix's default over fsdp 4", decode_step(mesh_of("v5e", 4, 1), 128, sharded=True)


def rows() -> Rows:
    """How much more does a chip decode per second with more rows, in each step?"""
    for count in (8, 32, 64, 96):
        yield f"{count} rows", decode_step(mesh_of(), count)


def cache_length() -> Rows:
    """What does a step of 32 rows save while the cache is still short? `rows` has the whole one, 1,024 tokens."""
    for reply in (0, 384):
        yield f"{256 + reply} tokens", decode_step(mesh_of(), ROWS, reply)


def v6e() -> Rows:
    """Do the programs of `rows` and `remat` need the same memory on a v6e, and how much faster are they?"""
    config = replace(config_of(MODEL, remat=True), num_layers=4)
    mesh = mesh_of("v6e")
    yield f"decode step, {ROWS} rows, v6e", decode_step(mesh, ROWS)
    run = Run(config, None, Plan(mesh, None, {}), FOUR_ROWS, BF16)
    yield "DECODER, v6e", compile_program(sft_programs(run)[0])


def counted() -> Rows:
    """Is the compiler's "bytes accessed" the traffic of HBM? One matmul, in one piece and in two halves."""
    def halves(x_BD, w_DF):
        half = WIDTH // 2
        return x_BD[:, :half] @ w_DF[:half] + x_BD[:, half:] @ w_DF[half:]

    mesh = mesh_of()
    arguments = array(mesh, (ROWS, WIDTH), BF16), array(mesh, (WIDTH, HIDDEN), BF16)
    for title, function in (("whole", jnp.matmul), ("two halves", halves)):
        program = Program(title, mesh, ROWS, function, arguments)
        seen = program.lower().compile().cost_analysis()["bytes accessed"] / 1e6
        yield f'{title}: "bytes accessed" {seen:.1f} MB', compile_program(program)


QUESTIONS = {function.__name__: function for function in (
    cache_layout, cache_int8, weight_int8, step_int8, decode_loop, sampling, remat, loss, split, rows, cache_length,
    v6e, counted)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(QUESTIONS))
    options = parser.parse_args()
    if unknown := set(options.names) - set(QUESTIONS):
        parser.error(f"no question {', '.join(sorted(unknown))}: choose from {', '.join(QUESTIONS)}")
    for name in options.names or QUESTIONS:
        print(f"\n{name}: {QUESTIONS[name].__doc__}\n\n| {name} | arguments, MiB | temporaries, MiB | GFLOP | "
              "HBM traffic, MB | roofline, µs | collectives |\n|---|---|---|---|---|---|---|")
        for title, found in QUESTIONS[name]():
            if found.arguments is None:
                print(f"| {title} | does not fit: needs {found.needed / 2**20:,.0f} MiB | | | | | |", flush=True)
                continue
            work = "| | |"
            if roofline := found.roofline(CHIPS["v6e" if title.endswith("v6e") else "v5e"]):
                work = (f"{found.flops / 1e9:,.2f} | {found.traffic / 1e6:,.1f} | {1e6 * roofline[0]:,.1f}, "
                        f"{roofline[1]} |")
            print(f"| {title} | {found.arguments / 2**20:,.1f} | {found.temporaries / 2**20:,.2f} | {work} "
                  f"{sum(found.collectives.values())} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

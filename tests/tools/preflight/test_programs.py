from __future__ import annotations

from dataclasses import is_dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_gemma import small_config, small_profile
from tiny_run import ROWS, short_tokenizer
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.gemma import model as gemma2
from tunix.models.gemma3 import model as gemma3
from tunix.utils import sharding_utils

from reasonkit.data.rows import sft_batches
from reasonkit.models import cache
from reasonkit.models.cache import install_sharded_cache
from reasonkit.models.load import LoadedModel, quantize_int8
from reasonkit.models.lora import add_lora
from reasonkit.models.mesh import Plan, make_mesh, plan_mesh
from reasonkit.train.decode import SegmentSampler
from reasonkit.train.rollout import in_int8
from tools.flax import init_random
from tools.preflight import programs
from tools.preflight.abstract import abstract_model, bytes_of, constraints
from tools.preflight.programs import PROGRAMS, Run, is_shared

SMALL = small_profile()


def leaves(node):
    return dict(jax.tree.leaves_with_path(nnx.to_pure_dict(nnx.state(node))))


def run_of(plan, judge=None, **changes):
    return Run(small_config(**changes), judge, plan, SMALL)


@pytest.mark.parametrize(("fsdp", "tp", "kv_heads", "replicated", "dtype"),
                         [(8, 1, 1, True, jnp.float32), (4, 2, 2, False, jnp.float32), (8, 1, 1, True, jnp.bfloat16)])
def test_the_shapes_are_those_of_the_model_that_runs(fsdp, tp, kv_heads, replicated, dtype):
    mesh = make_mesh(jax.devices(), fsdp, tp)
    layout = gemma3.ShardingConfig.get_default_sharding(is_sampling=replicated)
    config = small_config(kv_heads=kv_heads, shd_config=layout, param_dtype=dtype)
    ours, theirs = abstract_model(config, mesh, lora_rank=4), add_lora(init_random(config, mesh), mesh, 4, 8.0)
    ours, theirs = leaves(ours), leaves(theirs)
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        real = theirs[path]
        assert (leaf.shape, leaf.dtype) == (real.shape, real.dtype), path
        assert leaf.sharding.is_equivalent_to(real.sharding, real.ndim), (path, leaf.sharding, real.sharding)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_the_shapes_of_a_judge_of_integers_are_those_that_are_read(kv_heads):
    mesh = make_mesh(jax.devices()[:4], 4 // kv_heads, kv_heads)
    config = small_config(kv_heads=kv_heads)
    real = leaves(quantize_int8(LoadedModel(init_random(config, mesh), None, config, "judge", None), mesh).model)
    ours = leaves(abstract_model(config, mesh, int8=True))
    assert ours.keys() == real.keys() and {leaf.dtype.name for leaf in ours.values()} == {"float32", "int8"}
    for path, leaf in ours.items():
        assert (leaf.shape, leaf.dtype) == (real[path].shape, real[path].dtype), path
        shard, theirs = leaf.sharding.shard_shape(leaf.shape), real[path].sharding.shard_shape(leaf.shape)
        assert shard == theirs, (path, shard, theirs)


def test_gemma_2_is_bfloat16_unless_told():
    mesh = make_mesh(jax.devices(), 8, 1)
    layout = gemma2.ShardingConfig.get_default_sharding(is_sampling=True)
    config = gemma2.ModelConfig(
        num_layers=2, num_embed=40, embed_dim=16, hidden_dim=24, num_heads=2, head_dim=8, num_kv_heads=1,
        final_logit_softcap=30.0, use_post_attn_norm=True, use_post_ffw_norm=True, sliding_window_size=8,
        attention_types=(gemma2.AttentionType.LOCAL_SLIDING, gemma2.AttentionType.GLOBAL), shd_config=layout)
    for dtype, expected in ((None, jnp.bfloat16), (jnp.float32, jnp.float32)):
        model = abstract_model(config, mesh, dtype, lora_rank=2)
        base, adapter = (jax.tree.leaves(nnx.state(model, kind)) for kind in (nnx.Not(nnx.LoRAParam), nnx.LoRAParam))
        assert {leaf.dtype for leaf in base} == {jnp.dtype(expected)}
        assert {leaf.dtype for leaf in adapter} == {jnp.dtype(jnp.float32)}


def test_what_else_is_in_memory_counts():
    """Beside each program: the reference's adapter, the optimiser, and the other model on a shared device."""
    def size(*trees):
        return sum(np.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(trees))

    judge = small_config(embed_dim=48)
    apart = run_of(plan_mesh(jax.devices(), judge=True), judge)
    shared = run_of(plan_mesh(jax.devices()[:1], judge=True), judge)
    assert is_shared(shared.plan) and not is_shared(apart.plan)
    adapter, moments = size(apart.adapter), size(nnx.state(apart.optimizer(passes=True)))
    base, other = size(nnx.state(apart.policy)) - adapter, size(nnx.state(apart.judge))
    assert adapter > 0 and moments > 3 * adapter and other > base > 0  # two moments, and the sum of a step's gradients
    plain = size(nnx.state(apart.optimizer()))
    assert 2 * adapter < plain < 3 * adapter

    def beside(run):
        programs = [program for build in PROGRAMS.values() for program in build(run)]
        return {program.title: bytes_of(program.resident, program.looked_up) for program in programs}

    expected = {"SFT train step": 0, "SimPO train step": 0, "GRPO train step": adapter,
                "GRPO reference": adapter + moments, "rollout prefill": adapter + moments,
                "one decode step": adapter + moments, "decode loop": adapter + moments, "judge prefill": 0,
                "distillation prefill": plain, "distillation decode step": plain, "distillation loop": plain,
                "distillation train step": 0, "teacher's pass": 0, "reward model's pass": 0,
                "policy's own pass": adapter + moments}
    assert beside(apart) == expected
    expected = {title: held + other for title, held in expected.items()}
    expected |= {"SFT train step": 0, "SimPO train step": 0, "judge prefill": base + 2 * adapter + moments,
                 "reward model's pass": base + 2 * adapter + moments, "teacher's pass": base + adapter + plain}
    assert beside(shared) == expected


@pytest.mark.parametrize("name", ["sft", "grpo"])
def test_all_of_an_adapter_is_float32_on_a_bfloat16_base(name):
    """Bytes by hand: the base at 2 a weight; the adapter, its moments and the sum of its gradients at 4."""
    run = run_of(plan_mesh(jax.devices(), judge=False), param_dtype=jnp.bfloat16)
    program, *_ = PROGRAMS[name](run)
    moments, params, batch = program.arguments
    weights = [sum(leaf.size for leaf in jax.tree.leaves(nnx.state(run.policy, kind)))
               for kind in (nnx.Not(nnx.LoRAParam), nnx.LoRAParam)]
    arrays = [leaf for leaf in jax.tree.leaves(moments) if leaf.ndim > 1 or leaf.size > 1]
    assert {leaf.dtype.name for leaf in arrays} == {"float32"}
    assert sum(leaf.size for leaf in arrays) == {"sft": 2, "grpo": 3}[name] * weights[1]
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params)) == 2 * weights[0] + 4 * weights[1]
    (_, _), norm, adapter, _ = jax.eval_shape(program.function, *program.arguments)
    assert norm.dtype == jnp.float32 and {leaf.dtype.name for leaf in jax.tree.leaves(adapter)} == {"float32"}


def test_the_cache_is_written_in_place_and_the_batch_split():
    run = run_of(plan_mesh(jax.devices(), judge=False))
    prefill, decode, loop = PROGRAMS["rollout"](run)
    for program in (prefill, decode, loop):
        held = program.arguments[program.donated[0]]
        assert held["layer_1"]["k"].shape == (16, 12, 2, 16)
        assert held["layer_1"]["k"].sharding.shard_shape((16, 12, 2, 16)) == (2, 12, 2, 16)
    memory = decode.lower().compile().memory_analysis()
    assert memory.alias_size_in_bytes >= 2 * 2 * (2 * 12 * 2 * 16) * 4  # k and v of two layers, on one device


@pytest.mark.parametrize("first", [False, True])
def test_the_cache_has_the_order_of_a_run(first, monkeypatch):
    mesh = make_mesh(jax.devices(), 4, 2)
    for module in (cache, programs):
        monkeypatch.setattr(module, "heads_first", lambda mesh: first)
    install_sharded_cache()
    with mesh:
        real = init_random(small_config(), mesh).init_cache(8, 12, jnp.float32)
    ours = programs._cache(run_of(Plan(mesh, None, {})), 8, 12, False)
    assert jax.tree.structure(ours) == jax.tree.structure(real)
    for leaf, theirs in zip(jax.tree.leaves(ours), jax.tree.leaves(real), strict=True):
        assert (leaf.shape, leaf.dtype) == (theirs.shape, theirs.dtype)
        assert leaf.sharding.is_equivalent_to(theirs.sharding, theirs.ndim)
    assert real["layer_0"]["k"].shape == ((8, 2, 12, 16) if first else (8, 12, 2, 16))


@pytest.mark.parametrize("int8", [False, True])
def test_the_loop_is_what_the_samplers_run(tmp_path, int8):
    """What `SegmentSampler` calls, and what Tunix's loop carries besides numbers of a row: the cache and the tokens."""
    mesh, config, tokenizer = make_mesh(jax.devices(), 8, 1), small_config(), short_tokenizer(tmp_path)
    profile = replace(SMALL, grpo=replace(SMALL.grpo, segments=True, int8_weights=int8, int8_cache=int8))
    _, _, loop, early = PROGRAMS["rollout"](replace(run_of(plan_mesh(jax.devices(), judge=False)), profile=profile))
    assert (loop.title, early.title) == ("decode loop", "early decode step")
    assert loop.lower().compile().memory_analysis().alias_size_in_bytes >= 2 * 2 * (2 * 12 * 2 * 16) * (4 - 3 * int8)

    policy, called = add_lora(init_random(config, mesh), mesh, 4, 8.0), {}
    install_sharded_cache()
    for kind, name in ((SegmentSampler, "_segment"), (Sampler, "_compiled_decode_fn")):
        sampler = kind(in_int8(policy, int8, int8) if int8 else policy, tokenizer, CacheConfig(12, 2, 2, 16))

        run = getattr(sampler, name)

        def kept(*arguments, run=run, kind=kind, **settings):
            called[kind] = jax.eval_shape(lambda *shapes: shapes, *arguments), settings
            return run(*arguments, **settings)

        setattr(sampler, name, kept)
        with mesh:
            sampler(["a"] * 16, max_generation_steps=4, max_prompt_length=8, temperature=1.0, top_p=1.0, seed=0)

    def sizes(*trees):
        return sorted((leaf.shape, leaf.dtype.name) for leaf in jax.tree.leaves(trees))

    (params, cache, tokens, logps, done, rows, pads, eos, key, step, enough), settings = called[SegmentSampler]
    assert settings == {"temperature": 1.0, "top_p": 1.0, "top_k": None, "return_logprobs": False} and logps is None
    ours = [leaf for leaf in sizes(loop.arguments) if leaf != ((2,), "int32")]  # as many as there are stop tokens
    assert ours == sizes(params, cache, key, tokens, done, rows, pads, step, enough) and eos.dtype == jnp.int32
    (params, state), _ = called[Sampler]
    large = [leaf for leaf in ours if len(leaf[0]) > 1]
    assert [leaf for leaf in sizes(params, state) if len(leaf[0]) > 1] == sorted([*large, ((16, 12), "int32")])


def test_constraints_reach_the_trace_and_are_taken_back():
    mesh = make_mesh(jax.devices(), 8, 1)
    before = sharding_utils.shard, gemma2.shard

    def trace():
        def shard(x):  # a new function each time: JAX keeps the trace of one it has seen
            return gemma2.shard(sharding_utils.shard(x, ("fsdp", None)), ("fsdp", "tp"))

        with mesh:
            return str(jax.make_jaxpr(shard)(jnp.zeros((8, 4)))).count("sharding_constraint[")

    assert trace() == 0, "Tunix constrains on a CPU by itself: the context is no longer needed"
    with pytest.raises(ZeroDivisionError), constraints(mesh):
        assert trace() == 2
        raise ZeroDivisionError
    assert (sharding_utils.shard, gemma2.shard) == before


def test_the_batch_of_sft_is_that_of_a_run(tmp_path):
    (program,) = PROGRAMS["sft"](run_of(plan_mesh(jax.devices(), judge=False)))
    *_, batch = program.arguments
    real = next(sft_batches(ROWS, short_tokenizer(tmp_path), 8, 100, 0, pack=True))
    assert {name: (leaf.shape[:1], leaf.dtype) for name, leaf in batch.items()} == {
        name: (array.shape[:1], array.dtype) for name, array in real.items()}


def test_the_sizes_are_all_settings_that_the_programs_read():
    """By which the forecast knows programs that it has compiled before."""
    class Seen:
        def __init__(self, settings, names):
            self.settings, self.names = settings, names

        def __getattr__(self, name):
            found = getattr(self.settings, name)
            if is_dataclass(found):
                return Seen(found, self.names)
            self.names.add((type(self.settings).__name__, name))
            return found

    read, listed = set(), set()
    run = replace(run_of(plan_mesh(jax.devices()[:1], judge=True), small_config()), profile=Seen(SMALL, read))
    for build in PROGRAMS.values():
        build(run)
    programs.sizes(Seen(SMALL, listed))
    numbers = {("SimpoSettings", name) for name in ("beta", "gamma", "label_smoothing")}  # of one and the same program
    assert read - numbers == listed - {("DistillSettings", "beta")}, "which is read when it is compiled"


@pytest.mark.parametrize("name", ["judge", "distill", "teacher", "reward model"])
def test_a_program_with_another_model_needs_it(name):
    plan = plan_mesh(jax.devices(), judge=True)
    for run in (run_of(plan), run_of(plan_mesh(jax.devices(), judge=False), small_config())):
        with pytest.raises(ValueError, match="need a judge_config and a plan with a judge: pass both"):
            PROGRAMS[name](run)

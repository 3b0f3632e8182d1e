"""The sampler in segments against Tunix's: the same tokens and log-probabilities, by less work."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from tiny_gemma import TOKENS, bump, forward, gemma2_config, small_config
from tiny_run import short_tokenizer
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.gemma import model as gemma2
from tunix.models.gemma3 import model as gemma3

from reasonkit.models import cache
from reasonkit.models.cache import install_sharded_cache
from reasonkit.models.lora import add_lora
from reasonkit.models.mesh import make_mesh
from reasonkit.train import decode
from reasonkit.train.decode import SegmentSampler
from reasonkit.train.rollout import in_int8
from tools.flax import init_random

pytestmark = pytest.mark.usefixtures("compiled")

PROMPT, NEW, SEGMENT = 16, 33, 16
PROMPTS = [f"add {a} and {b}" for a in range(2) for b in range(4)]
GROUPS = [prompt for prompt in PROMPTS[:4] for _ in range(4)]
STOPS = list(range(4, 30))  # half of the rows are done after 10 to 20 tokens
SAMPLED = {"temperature": 0.9, "top_p": 1.0, "top_k": None}
NUCLEUS = {"temperature": 0.9, "top_p": 0.8, "top_k": 50}
GREEDY = {"temperature": 0.0, "top_p": None, "top_k": None}


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(jax.devices()[:4], 2, 2)


@pytest.fixture(scope="module")
def one():
    return make_mesh(jax.devices()[:1], 1, 1)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return short_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def models(mesh, one):
    """Both Gemmas, whose local layers' windows are shorter than a prompt, and one with an adapter on four chips."""
    small = small_config()
    second = gemma2.Gemma(gemma2_config(), rngs=nnx.Rngs(0))
    nnx.update(second, jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape, x.dtype),
                                    nnx.state(second)))
    policy = add_lora(init_random(small, mesh), mesh, 4, 8.0, 0)
    bump(policy)
    return {"gemma3": init_random(small, one), "gemma2": second, "policy": policy, "int8": in_int8(policy, True, True)}


@pytest.fixture(autouse=True)
def short_segments(monkeypatch):
    monkeypatch.setattr(decode, "SEGMENT", SEGMENT)


def make(kind, model, tokenizer):
    install_sharded_cache()
    config = model.config
    return kind(model, tokenizer, CacheConfig(PROMPT + NEW, config.num_layers, config.num_kv_heads, config.head_dim))


def run(sampler, mesh, prompts, stops=STOPS, **settings):
    with mesh:
        output = sampler(prompts, max_generation_steps=NEW, max_prompt_length=PROMPT, seed=0, eos_tokens=stops,
                         return_logprobs=True, **settings)
    return output, [len(tokens) for tokens in output.tokens]


def assert_same(ours, stock):
    assert ours.text == stock.text
    np.testing.assert_array_equal(ours.padded_prompt_tokens, stock.padded_prompt_tokens)
    for tokens, theirs, logps, expected in zip(ours.tokens, stock.tokens, ours.logprobs, stock.logprobs, strict=True):
        np.testing.assert_array_equal(tokens, theirs)
        np.testing.assert_allclose(logps, expected, atol=2e-5)


@pytest.mark.parametrize("name, settings, prompts", [
    ("gemma3", SAMPLED, GROUPS), ("gemma2", SAMPLED, GROUPS), ("policy", SAMPLED, GROUPS), ("gemma3", NUCLEUS, PROMPTS),
    ("gemma3", GREEDY, PROMPTS), ("gemma2", GREEDY, GROUPS), ("gemma3", SAMPLED, PROMPTS[:3]),
    ("int8", SAMPLED, GROUPS)])
def test_draws_are_tunixs(models, mesh, one, tokenizer, name, settings, prompts):
    place = one if name.startswith("gemma") else mesh
    stock, lengths = run(make(Sampler, models[name], tokenizer), place, prompts, **settings)
    ours, _ = run(make(SegmentSampler, models[name], tokenizer), place, prompts, **settings)
    assert_same(ours, stock)
    if settings is SAMPLED and prompts is GROUPS:
        assert np.median(lengths) < 24 < max(lengths), "no row is dropped: the test shows nothing"


@pytest.mark.parametrize("kind", [Sampler, SegmentSampler])
@pytest.mark.parametrize("name", ["gemma3", "gemma2", "policy", "int8"])
def test_heads_come_first_on_a_tpu_and_nothing_else_changes(models, mesh, one, tokenizer, kind, name, monkeypatch):
    place, shapes = one if name.startswith("gemma") else mesh, []
    ours, _ = run(make(kind, models[name], tokenizer), place, GROUPS, **SAMPLED)
    for module in (cache, decode):
        monkeypatch.setattr(module, "heads_first", lambda mesh: True)
    sampler = make(kind, models[name], tokenizer)
    part = {Sampler: "_compiled_decode_fn", SegmentSampler: "_segment"}[kind]

    decoding = getattr(sampler, part)

    def spy(params, state, *rest, **settings):
        leaves = [leaf for leaf in jax.tree.leaves(state) if getattr(leaf, "ndim", 0) == 4]
        shapes.extend(leaf.shape[1:3] for leaf in leaves)
        assert place is one or all(leaf.sharding.is_equivalent_to(
            NamedSharding(mesh, PartitionSpec("fsdp", "tp", None, None)), 4) for leaf in leaves)
        return decoding(params, state, *rest, **settings)

    setattr(sampler, part, spy)
    assert_same(run(sampler, place, GROUPS, **SAMPLED)[0], ours)
    assert shapes and all(heads == 2 < size for heads, size in shapes)


@pytest.mark.parametrize("name", ["gemma3", "gemma2"])
def test_a_cache_in_tunixs_own_order_is_read_on_a_tpu_too(models, one, tokenizer, name, monkeypatch):
    """As Tunix's sampler makes it in a process that has installed no cache of ours."""
    ours, _ = run(make(Sampler, models[name], tokenizer), one, GROUPS, **SAMPLED)
    sampler, kept = make(Sampler, models[name], tokenizer), []

    def init_cache(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(cache, "heads_first", lambda mesh: False)
            kept.append(cache._init_cache(*arguments))
        return kept[-1]

    monkeypatch.setattr(type(models[name]), "init_cache", init_cache)
    monkeypatch.setattr(cache, "heads_first", lambda mesh: True)
    assert_same(run(sampler, one, GROUPS, **SAMPLED)[0], ours)
    assert kept[0]["layer_0"]["k"].shape[1] > kept[0]["layer_0"]["k"].shape[2]


@pytest.mark.parametrize("name", ["gemma3", "gemma2"])
@pytest.mark.parametrize("kind", [Sampler, SegmentSampler])
def test_a_policy_that_trains_with_remat_samples_the_same(models, one, tokenizer, name, kind):
    """As Kaggle's does. `nnx.remat` cannot be traced in a sampler's loop."""
    library = {"gemma3": gemma3, "gemma2": gemma2}[name]
    config = replace(small_config() if name == "gemma3" else gemma2_config(),
                     remat_config=library.RematConfig.DECODER)
    saving = (gemma3.Gemma3 if name == "gemma3" else gemma2.Gemma)(config, rngs=nnx.Rngs(0))
    nnx.update(saving, nnx.state(models[name]))
    ours, _ = run(make(kind, saving, tokenizer), one, GROUPS, **SAMPLED)
    assert_same(ours, run(make(kind, models[name], tokenizer), one, GROUPS, **SAMPLED)[0])
    for model, saves in ((saving, True), (models[name], False)):
        graph, state = nnx.split(model)
        traced = jax.make_jaxpr(lambda state, graph=graph: forward(nnx.merge(graph, state), TOKENS))(state)
        assert ("remat" in str(traced)) is saves


def test_rows_that_stop_at_once_are_dropped_before_the_first_segment(models, one, tokenizer):
    most = [*range(4, 340)]
    stock, lengths = run(make(Sampler, models["gemma3"], tokenizer), one, GROUPS, most, **SAMPLED)
    ours, _ = run(make(SegmentSampler, models["gemma3"], tokenizer), one, GROUPS, most, **SAMPLED)
    assert_same(ours, stock)
    assert 0 < np.count_nonzero(lengths) <= 8, "all fit in half of the rows: the test needs other stop tokens"


@pytest.mark.parametrize("name", ["gemma3", "policy"])
def test_rows_fall_and_the_cache_grows_by_few_programs(models, mesh, one, tokenizer, name):
    """Each compiled once, also where the arrays come from several chips."""
    sampler, shapes, place = make(SegmentSampler, models[name], tokenizer), [], mesh if name == "policy" else one
    segment, prefill = sampler._segment, sampler._prefill

    def spy(params, cache, tokens_RS, *rest, **settings):
        shapes.append(tokens_RS.shape)
        made = segment(params, cache, tokens_RS, *rest, **settings)
        for leaf in jax.tree.leaves(made[1]):
            assert leaf.ndim == 1 or leaf.shape[:2] == tokens_RS.shape and (
                leaf.sharding.is_equivalent_to(NamedSharding(place, PartitionSpec("fsdp", None, "tp", None)), 4))
        return made

    sampler._segment = spy
    first, second = (run(sampler, place, GROUPS, **SAMPLED)[0] for _ in range(2))
    assert first.text == second.text and shapes[:len(shapes) // 2] * 2 == shapes
    rows, sizes = zip(*shapes[:len(shapes) // 2], strict=True)
    assert sorted(rows, reverse=True) == [*rows] and {*rows} <= {16, 8, 4, 2} and rows[0] == 16 > rows[-1]
    assert sorted(sizes) == [*sizes] and {*sizes} <= {32, 48, 49} and sizes[0] == 32 < sizes[-1]
    assert (segment._cache_size(), prefill._cache_size()) == (len({*shapes}), 1)


def test_what_it_does_not_do_is_refused(models, one, tokenizer):
    sampler = make(SegmentSampler, models["gemma3"], tokenizer)
    for wish in ({"return_logits": True}, {"forbidden_tokens": [5]}, {"beam_size": 2}):
        with one, pytest.raises(ValueError, match="use Tunix's Sampler"):
            sampler(PROMPTS, max_generation_steps=NEW, max_prompt_length=PROMPT, **wish)

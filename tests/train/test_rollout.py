"""Completions: greedy ones against an argmax by hand, sampled ones against the stock sampler that never stops."""

from __future__ import annotations

import gc

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec
from tiny_gemma import forward
from tiny_run import CONFIG, ROWS, short_tokenizer
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.gemma3 import model as gemma3

from reasonkit.models import cache
from reasonkit.models.cache import install_sharded_cache
from reasonkit.models.mesh import make_mesh
from reasonkit.text.tags import TAGS
from reasonkit.train.decode import SegmentSampler
from reasonkit.train.rollout import Rollout, generator, sampling
from tools.flax import init_random

pytestmark = pytest.mark.usefixtures("compiled")

PROMPT, NEW = 32, 12  # tokens; a prompt of ROWS has 29 with <bos>
PROMPTS = [TAGS.prompt(question) for question in ROWS["question"][:8]]


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(jax.devices(), 8, 1)


@pytest.fixture(scope="module")
def model(mesh):
    return init_random(CONFIG, mesh)


@pytest.fixture(scope="module")
def one():
    """A mesh of one chip, on which nothing is slow."""
    return make_mesh(jax.devices()[:1], 1, 1)


@pytest.fixture(scope="module")
def small(one):
    return init_random(CONFIG, one)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return short_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def by_hand(model, tokenizer):
    """Greedy completions from whole forward passes: no cache, no sampler."""
    rows = [[tokenizer.bos_id(), *tokenizer.encode(prompt)] for prompt in PROMPTS]
    starts = [len(row) for row in rows]
    for _ in range(NEW):
        tokens_BL = np.zeros((8, PROMPT + NEW), np.int32)
        for tokens_L, row in zip(tokens_BL, rows, strict=True):
            tokens_L[:len(row)] = row
        logits_BLV = np.asarray(forward(model, tokens_BL))
        for row, logits_LV in zip(rows, logits_BLV, strict=True):
            row.append(int(logits_LV[len(row) - 1].argmax()))
    return [row[start:] for row, start in zip(rows, starts, strict=True)]


def rollout(model, tokenizer, mesh, **changes):
    config = sampling(tokenizer, **{"max_prompt_length": PROMPT, "max_new_tokens": NEW, "temperature": 1.0, **changes})
    worker = Rollout(model, tokenizer, mesh, config)

    def draw(prompts=PROMPTS):
        with mesh:
            return worker.generate(prompts, config)

    return worker, draw


class Caught(Exception):
    pass


def catch(monkeypatch, owner, name):
    """Ends each call of a sampler with what it makes there."""
    make = getattr(owner, name)

    def caught(*args, **settings):
        raise Caught(make(*args, **settings))

    monkeypatch.setattr(gemma3.Gemma3, "init_cache", gemma3.Gemma3.init_cache)  # to have it back afterwards
    monkeypatch.setattr(owner, name, caught)


def lists(output):
    return [tokens.tolist() for tokens in output.tokens]


# Settings


def test_temperature_zero_means_greedy(tokenizer):
    config = sampling(tokenizer, max_prompt_length=PROMPT, max_new_tokens=NEW, temperature=0)
    assert config.top_p is None
    assert config.kv_cache_size == PROMPT + NEW and tuple(config.eos_tokens) == tokenizer.stop_ids


def test_a_temperature_below_zero_is_refused(tokenizer):
    with pytest.raises(ValueError, match="temperature -1.0: sampling needs one above 0"):
        sampling(tokenizer, max_prompt_length=PROMPT, max_new_tokens=NEW, temperature=-1.0)


# Greedy


def test_greedy_decoding_is_the_argmax(model, tokenizer, mesh, by_hand):
    _, draw = rollout(model, tokenizer, mesh, temperature=0)
    assert lists(draw()) == by_hand and lists(draw()) == by_hand
    assert not any(tokenizer.pad_id() in tokens for tokens in by_hand)
    generate = generator(model, tokenizer, mesh, max_prompt_length=PROMPT, max_new_tokens=NEW, batch_size=8)
    replies = generate(PROMPTS)
    assert replies == [tokenizer.decode(tokens) for tokens in by_hand] and all(replies)


def test_weights_that_are_trained_meanwhile_are_read_anew(tokenizer, one, by_hand):
    model = init_random(CONFIG, one)
    generate = generator(model, tokenizer, one, max_prompt_length=PROMPT, max_new_tokens=NEW, batch_size=8)
    expected = [tokenizer.decode(tokens) for tokens in by_hand]
    assert generate(PROMPTS) == expected
    nnx.update(model.embedder, jax.tree.map(lambda leaf: leaf[::-1], nnx.state(model.embedder)))
    assert generate(PROMPTS) != expected


def test_a_last_batch_is_filled_up(small, tokenizer, one, by_hand, monkeypatch):
    sizes, sample = [], Sampler.__call__

    def spy(self, prompts, **settings):
        sizes.append(len(prompts))
        return sample(self, prompts, **settings)

    monkeypatch.setattr(Sampler, "__call__", spy)
    generate = generator(small, tokenizer, one, max_prompt_length=PROMPT, max_new_tokens=NEW, batch_size=3)
    assert generate(PROMPTS[:5]) == [tokenizer.decode(tokens) for tokens in by_hand[:5]]
    assert sizes == [3, 3] and generate([]) == []


def test_samples_depend_on_the_seed_alone(small, tokenizer, one):
    generate = generator(small, tokenizer, one, max_prompt_length=PROMPT, max_new_tokens=NEW, batch_size=3,
                         temperature=1.0)
    asked = PROMPTS[:1] * 6
    first = generate(asked, 1)
    assert generate(asked, 1) == first != generate(asked, 2)
    assert len({*first}) == 6, "neither rows nor batches repeat each other"


def test_prompts_that_are_too_long_are_refused_and_never_padded(small, tokenizer, one, monkeypatch):
    length = len(tokenizer.encode(PROMPTS[0]))

    def build(limit):
        return generator(small, tokenizer, one, max_prompt_length=limit, max_new_tokens=2, batch_size=1)

    with pytest.raises(ValueError, match=rf"a prompt has {length} tokens, and with <bos> max_prompt_length {length}"):
        build(length)(PROMPTS[:1])
    catch(monkeypatch, Sampler, "init_sample_state")
    with pytest.raises(Caught) as caught:
        build(length + 1)(PROMPTS[:1])
    assert caught.value.args[0].num_input_tokens == length + 1, "Tunix padded the batch to a power of two"


# Sampling


def test_every_call_draws_other_samples_and_every_seed_its_own(small, tokenizer, one):
    _, draw = rollout(small, tokenizer, one, seed=4)
    first, second, third = (lists(draw()) for _ in range(3))
    assert first != second != third != first
    _, again = rollout(small, tokenizer, one, seed=4)
    assert (lists(again()), lists(again())) == (first, second)
    _, other = rollout(small, tokenizer, one, seed=5)
    assert lists(other()) not in (first, second, third)
    resumed, go_on = rollout(small, tokenizer, one, seed=4)
    resumed.calls = 2
    assert lists(go_on()) == third and resumed.calls == 3
    assert len({tuple(tokens) for tokens in first}) > 1, "the rows of a batch are all alike"



def test_completions_end_with_the_stop_token_that_was_drawn(small, tokenizer, one):
    length, prompts = 48, [PROMPTS[0]] * 64
    worker, draw = rollout(small, tokenizer, one, max_new_tokens=length)
    cache = CacheConfig(PROMPT + length, CONFIG.num_layers, CONFIG.num_kv_heads, CONFIG.head_dim)
    stock, ended = Sampler(small, tokenizer, cache), []
    for call in range(2):
        output = draw(prompts)
        with one:  # the same draws, by a sampler that has nothing to stop at
            drawn = stock(prompts, max_generation_steps=length, max_prompt_length=PROMPT, temperature=1.0, top_p=1.0,
                          seed=jax.random.fold_in(jax.random.PRNGKey(0), call), eos_tokens=[-1]).tokens
        for tokens, text, all_L in zip(output.tokens, output.text, drawn, strict=True):
            stops = np.flatnonzero(np.isin(all_L, tokenizer.stop_ids))
            whole = all_L[:stops[0] + 1] if stops.size else all_L
            np.testing.assert_array_equal(tokens, whole)
            ended += whole[-1:].tolist() if stops.size else []
            assert text == tokenizer.decode(whole[:-1] if stops.size else whole)
        assert worker.mean_lengths[call] == np.mean([len(tokens) for tokens in output.tokens])
    assert set(ended) == set(tokenizer.stop_ids), "the draws have not both stop tokens: the test shows nothing"


# The cache


@pytest.mark.parametrize(("batch", "rows"), [(8, "fsdp"), (3, None)])
def test_the_cache_is_created_on_all_chips(model, tokenizer, mesh, monkeypatch, batch, rows):
    """Before the first program runs: Tunix's own lies on the first chip, and is copied or replicated by the prefill."""
    catch(monkeypatch, cache, "_init_cache")
    generate = generator(model, tokenizer, mesh, max_prompt_length=PROMPT, max_new_tokens=2, batch_size=batch)
    _, draw = rollout(model, tokenizer, mesh, max_new_tokens=2)
    for call in (generate, draw):
        with pytest.raises(Caught) as caught:
            call(PROMPTS[:batch])
        leaves = jax.tree.leaves(caught.value.args[0])
        assert len(leaves) == 3 * CONFIG.num_layers
        for leaf in leaves:
            assert leaf.sharding.mesh == mesh and len(leaf.sharding.device_set) == 8
            if leaf.ndim == 4:
                assert leaf.sharding.spec == PartitionSpec(rows, None, "tp", None)
                assert leaf.addressable_shards[0].data.shape[0] == (1 if rows else batch)


def test_no_cache_is_left_in_memory_after_a_call(model, tokenizer, mesh):
    """The train step needs its room. The length is that of no other cache here."""
    worker, draw = rollout(model, tokenizer, mesh, max_new_tokens=7)
    draw(PROMPTS)
    gc.collect()
    assert worker.calls == 1 and not [leaf.shape for leaf in jax.live_arrays() if PROMPT + 7 in leaf.shape[1:3]
                                      and leaf.ndim == 4]


@pytest.mark.parametrize(("tp", "heads"), [(2, 1), (4, 2)])
def test_kv_heads_are_split_where_they_divide(model, tp, heads):
    """Two heads over two chips, but whole on each of four; on one device where there is no mesh, as the judges load."""
    install_sharded_cache()
    with make_mesh(jax.devices(), 8 // tp, tp), jax.transfer_guard_device_to_device("disallow_explicit"):
        whole = model.init_cache(8, 16, np.float32)  # each chip fills its own part
    assert set(whole) == {"layer_0", "layer_1"}
    assert whole["layer_1"]["k"].addressable_shards[0].data.shape == (tp, 16, heads, CONFIG.head_dim)
    alone = model.init_cache(8, 16, np.float32)["layer_0"]
    assert alone["v"].shape == (8, 16, 2, CONFIG.head_dim) and len(alone["v"].sharding.device_set) == 1
    assert alone["end_index"].shape == (8,)


def test_a_prompts_logits_are_of_its_last_token_alone(small, one, tokenizer):
    """Else a prefill holds (rows, prompt, vocabulary), gigabytes of a chip."""
    sampler = SegmentSampler(small, tokenizer, CacheConfig(PROMPT + NEW, 2, CONFIG.num_kv_heads, CONFIG.head_dim))
    compiled, shapes = sampler._prefill, []

    def prefill(*args):
        shapes.extend(line for line in compiled.lower(*args).as_text().splitlines()
                      if f"x{CONFIG.num_embed}xf32>" in line)
        return compiled(*args)

    sampler._prefill = prefill
    with one:
        sampler(PROMPTS, max_generation_steps=NEW, max_prompt_length=PROMPT)
    assert shapes and not [line for line in shapes if f"8x{PROMPT}x{CONFIG.num_embed}x" in line]

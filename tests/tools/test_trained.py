"""`scorer`: what all logits at once would give, without making them. tests/test_lm_eval.py has what uses it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_gemma import bump, forward, gemma2_config, small_config, train_tokenizer
from tunix.models.gemma import model as gemma2

from reasonkit.models.load import LoadedModel, Tokenizer
from reasonkit.models.lora import add_lora
from reasonkit.models.mesh import make_mesh
from tools import trained
from tools.flax import init_random

PAIRS = [("user add 1 and 2", ", model 3"), ("", "4 plus 4"), ("user", " add 1 and 2, model 3 plus 4 is 7: 5 6 8"),
         ("3 plus", "")] * 3


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(jax.devices()[:1], 1, 1)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer(train_tokenizer(tmp_path_factory.mktemp("pieces")), "gemma3")


@pytest.fixture(params=["gemma2", "gemma3"])
def policy(request, mesh, tokenizer):
    if request.param == "gemma3":
        model = init_random(small_config(), mesh)
    else:
        model = gemma2.Gemma(gemma2_config(), rngs=nnx.Rngs(0))
        nnx.update(model, jax.tree.map(lambda x: x + 0.02, nnx.state(model)))  # its feed-forward begins with zeros
    model = add_lora(model, mesh, 4, 8.0)
    bump(model)
    return LoadedModel(model, tokenizer, model.config, "small", tokenizer.path.parent)


def test_chunks_have_the_scores_of_all_logits_at_once(policy, mesh, monkeypatch):
    """A row of 64 tokens has five chunks."""
    found = trained.scorer(policy, mesh, 64)(PAIRS)
    monkeypatch.setattr(trained, "CHUNK", 8 * 400 * 14)
    assert trained.scorer(policy, mesh, 64)(PAIRS) == [(pytest.approx(total, abs=1e-4), greedy)
                                                       for total, greedy in found]
    for (total, greedy), (context, continuation) in zip(found, PAIRS, strict=True):
        ids = [policy.tokenizer.bos_id(), *policy.tokenizer.encode(context + continuation)]
        places = range(len(policy.tokenizer.encode(context)), len(ids) - 1)
        logp_TV = np.asarray(jax.nn.log_softmax(forward(policy.model, np.array([ids], np.int32))[0]))
        assert total == pytest.approx(sum(logp_TV[place, ids[place + 1]] for place in places), abs=1e-3)
        assert greedy == all(logp_TV[place].argmax() == ids[place + 1] for place in places)


def test_no_array_of_all_logits_is_made(mesh, tokenizer, monkeypatch):
    """Of 8 rows of 64 tokens and 32,768 words."""
    reads = []
    monkeypatch.setattr(trained, "prefill", lambda *arguments: reads.append(arguments[2]))
    monkeypatch.setattr(trained, "CHUNK", 8 * 32768 * 8)
    model = init_random(small_config(num_embed=32768), mesh)
    trained.scorer(LoadedModel(model, tokenizer, model.config, "small", tokenizer.path.parent), mesh, 64)
    (read,), rows_BT = reads, jnp.ones((8, 64), jnp.int32)
    inputs = rows_BT, rows_BT, None, jnp.ones((8, 64, 64), bool)
    graph, state = nnx.split(model)
    made = jax.jit(lambda state: read(nnx.merge(graph, state), inputs, rows_BT)).lower(state).compile()
    assert made.memory_analysis().temp_size_in_bytes < 8 * 64 * 32768 * 4 / 2

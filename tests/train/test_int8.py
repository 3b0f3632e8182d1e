"""Sampling in 8-bit integers: near the policy, with its current adapter, and weighed in the loss by the difference."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_gemma import bump, gemma2_config, small_config
from tiny_run import ROWS, new_policy, short_tokenizer
from tunix.models.gemma import model as gemma2

from reasonkit.models.cache import install_sharded_cache, round_to_int8
from reasonkit.models.lora import add_lora, lora_state
from reasonkit.models.mesh import make_mesh
from reasonkit.rewards.mix import RewardMix
from reasonkit.session.run_log import RunLog
from reasonkit.session.time_budget import TimeBudget
from reasonkit.settings import GrpoSettings
from reasonkit.text.tags import TAGS
from reasonkit.train.grpo import grpo
from reasonkit.train.policy_loss import completion_logprobs
from reasonkit.train.rollout import Rollout, in_int8, sampling
from tools.flax import init_random

pytestmark = pytest.mark.usefixtures("compiled")

PROMPT, NEW = 32, 12
PROMPTS = [TAGS.prompt(question) for question in ROWS["question"][:8]]
KINDS = {"weights": (True, False), "cache": (False, True), "both": (True, True)}


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(jax.devices()[:4], 4, 1)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return short_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def base(mesh):
    return init_random(small_config(), mesh)


@pytest.fixture(scope="module")
def policies(base, mesh):
    second = gemma2.Gemma(gemma2_config(), rngs=nnx.Rngs(0))
    nnx.update(second, jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape, x.dtype),
                                    nnx.state(second)))
    made = {"gemma3": add_lora(base, mesh, 4, 8.0, 0), "gemma2": add_lora(second, mesh, 4, 8.0, 0)}
    for policy in made.values():
        bump(policy)
    return made


def worker(policy, tokenizer, mesh, sampled):
    settings = sampling(tokenizer, max_prompt_length=PROMPT, max_new_tokens=NEW, temperature=1.0, seed=3, logprobs=True)
    made = Rollout(policy, tokenizer, mesh, settings, sampled=sampled)

    def draw():
        with mesh:
            return made.generate(PROMPTS, settings)

    return made, draw


def difference(policy, made, output, tokenizer, mesh):
    """The policy's log-probabilities of the drawn tokens, less the rollout's, of real tokens."""
    drawn_BL = np.stack([np.pad(row, (0, NEW - len(row))) for row in output.tokens])
    with mesh:
        logps_BL = completion_logprobs(
            *nnx.split(policy), jnp.array(output.left_padded_prompt_tokens), jnp.array(drawn_BL),
            pad_id=tokenizer.pad_id(), eos_id=tokenizer.eos_id())
    lengths = np.array([len(row) for row in output.tokens])
    return (np.asarray(logps_BL) - made.logprobs[-1])[np.arange(NEW) < lengths[:, None]]


@pytest.mark.parametrize("family", ["gemma3", "gemma2"])
@pytest.mark.parametrize("kind", [None, *KINDS])
def test_what_is_drawn_is_nearly_as_likely_by_the_policy(policies, tokenizer, mesh, family, kind):
    policy = policies[family]
    made, draw = worker(policy, tokenizer, mesh, kind and in_int8(policy, *KINDS[kind]))
    found = np.abs(difference(policy, made, draw(), tokenizer, mesh))
    if kind is None:
        assert found.max() < 1e-4, "the control: without integers the rollout is the policy"
    else:
        assert 1e-4 < found.mean() < 0.05 and found.max() < 0.3


def test_integers_are_kept(policies):
    install_sharded_cache()
    policy = policies["gemma3"]
    sampled = in_int8(policy, True, True)
    matrices = [leaf.get_value().size for path, leaf in nnx.to_flat_state(nnx.state(policy, nnx.Not(nnx.LoRAParam)))
                if path[0] == "layers" and leaf.get_value().ndim > 1]
    kept = [leaf.size for leaf in jax.tree.leaves(nnx.state(sampled)) if leaf.dtype == jnp.int8]
    words = policy.embedder.input_embedding[...]
    assert len(kept) == 6 * policy.config.num_layers + 1 and sum(kept) == sum(matrices) + words.size
    assert not hasattr(policy.embedder, "int8_head"), "the policy's own logits changed too"
    assert sampled.embedder.input_embedding[...] is policy.embedder.input_embedding[...], "the embedding was copied"
    layer = sampled.init_cache(4, 16, jnp.bfloat16)["layer_0"]
    assert layer["k"].dtype == layer["v"].dtype == jnp.int8 and layer["k_scale"].shape == (*layer["k"].shape[:3], 1)
    assert policy.init_cache(4, 16, jnp.bfloat16)["layer_0"]["k"].dtype == jnp.bfloat16, "the policy's changed too"


def test_every_call_has_the_adapter_of_its_time(base, tokenizer, mesh):
    policy = add_lora(base, mesh, 4, 8.0, 0)
    made, draw = worker(policy, tokenizer, mesh, in_int8(policy, True, False))
    assert made.model() is policy, "Tunix would copy the weights after every step"
    draw()
    bump(policy, 0.3)
    output = draw()
    assert np.abs(difference(policy, made, output, tokenizer, mesh)).mean() < 0.05
    bump(policy, -0.3)
    assert np.abs(difference(policy, made, output, tokenizer, mesh)).mean() > 0.1, "the test could not fail"


def test_rounding_is_to_the_nearest_of_255_steps():
    x_BTKH = jax.random.normal(jax.random.key(0), (2, 3, 2, 64), jnp.bfloat16).at[0, 0, 0].set(0)
    steps_BTKH, scale_BTK1 = round_to_int8(x_BTKH)
    back_BTKH = steps_BTKH.astype(jnp.float32) * scale_BTK1.astype(jnp.float32)
    assert np.abs(steps_BTKH).max() <= 127 and not np.abs(back_BTKH[0, 0, 0]).any()
    # the scale is rounded to bfloat16's 8 bits, so the largest number may be cut by half a step
    assert (np.abs(back_BTKH - x_BTKH.astype(jnp.float32)) <= 1.01 * scale_BTK1.astype(jnp.float32)).all()


@pytest.mark.slow
def test_grpo_samples_in_integers_and_logs_how_far_off_they_are(base, tokenizer, mesh, tmp_path):
    settings = GrpoSettings(
        steps=2, prompts_per_step=4, num_generations=4, micro_prompts=2, rollout_micro_prompts=2, beta=0.02,
        max_prompt_length=PROMPT, max_new_tokens=NEW, learning_rate=1e-2, int8_weights=True, int8_cache=True,
        segments=True)
    policy, log = new_policy(base, mesh, tokenizer), RunLog(tmp_path / "log.jsonl")
    reward = RewardMix([(length, 1.0)], log)
    before = jax.tree.map(jnp.copy, lora_state(policy.model))
    result = grpo(policy, mesh, ROWS, reward, settings, TimeBudget(1, 0), log, tmp_path / "checkpoints", 0, 0)
    rows = log.read("grpo_step")
    assert result.steps == len(rows) == 2
    assert all(1e-8 < row["rollout_kl"] < 0.01 for row in rows)
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(lora_state(policy.model)),
                                              strict=True))


def length(prompts, completions, **columns):
    return [float(len(completion)) for completion in completions]

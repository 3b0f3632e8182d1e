"""Each dial of GRPO's loss, on a model whose logits are a table, so that the right gradient is known exactly."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tunix.rl import common, function_registry
from tunix.rl.common import TrainExample

from reasonkit.settings import CHOICES, LossSettings
from reasonkit.train.policy_loss import SampledExample, loss_config

V, PROMPT, STOP = 6, 1, 2  # token 0 is padding
ESTIMATORS = CHOICES["advantage_estimator"]


class Identity(nnx.Module):
    """An embedding by which hidden states are logits."""

    def __init__(self):
        self.input_embedding = jnp.eye(V)


class Bigrams(nnx.Module):
    """Logits (V, V) of the next token by the last one."""

    def __init__(self, logits_VV):
        self.table, self.embedder, self.num_embed = nnx.Param(jnp.asarray(logits_VV, jnp.float32)), Identity(), V

    def __call__(self, tokens_BL, *inputs, **others):
        return self.table[tokens_BL], None


def table(seed):
    return np.random.default_rng(seed).normal(size=(V, V)).astype(np.float32)


def example(completions, advantages, reference=None, temperature=1.0):
    """What the learner passes on: completions of different lengths, padded with 0."""
    length = max(map(len, completions))
    ids_BL = np.array([[*tokens, *[0] * (length - len(tokens))] for tokens in completions])
    made = TrainExample(prompt_ids=jnp.full((len(ids_BL), 1), PROMPT), prompt_mask=jnp.ones((len(ids_BL), 1), bool),
                        completion_ids=jnp.array(ids_BL), completion_mask=jnp.array(ids_BL != 0),
                        advantages=jnp.array(advantages, jnp.float32), ref_per_token_logps=None,
                        old_per_token_logps=None)
    if reference is None:
        return made
    graph, state = nnx.split(Bigrams(reference))
    return made.replace(ref_per_token_logps=common.compute_per_token_logps(
        graph, state, made.prompt_ids, made.completion_ids, 0, STOP, temperature=temperature))


def gradient(made, policy, temperature=1.0, names=("kl", "entropy"), **dials):
    """The gradient (V, V) of the loss by the table of `policy`, and the metrics."""
    config = loss_config(LossSettings(**dials), num_generations=2)
    config.temperature = temperature  # set by the learner from the rollout's
    loss_fn = function_registry.get_policy_loss_fn(config.policy_loss_fn)
    (_, aux), grads = nnx.value_and_grad(
        lambda model: loss_fn(model, made, algo_config=config, pad_id=0, eos_id=STOP), has_aux=True)(Bigrams(policy))
    return np.asarray(grads["table"][...]), {name: float(aux[name]) for name in names}


def pull(made, policy, temperature=1.0, **dials):
    """The part (V, V) of the gradient that is the penalty's, and the metrics."""
    whole, aux = gradient(made, policy, temperature, **{"beta": 1.0, **dials})
    return whole - gradient(made, policy, temperature, **{**dials, "beta": 0.0})[0], aux


SIX = [[3, 2], [4, 5, 2], [5, 5, 5, 2], [2], [3, 4, 3, 3, 2], [4, 2]]
ADVANTAGES = [1.0, -1.0, 0.5, -0.5, 2.0, -2.0]


# the penalty

@pytest.mark.parametrize("mode", CHOICES["kl_loss_mode"])
def test_two_references_give_two_gradients_and_each_pulls_towards_its_own(mode):
    """Every next token once, from a uniform policy: the batch is the expectation, and the gradient is known."""
    policy, tokens = np.zeros((V, V), np.float32), np.arange(1, V)
    policy[PROMPT, 0] = -1e9  # padding is never drawn
    pi_V = np.array([0, *[1 / (V - 1)] * (V - 1)])
    seen = []
    for seed in (1, 2):
        reference = table(seed)
        reference[PROMPT, 0] = -1e9
        grads, aux = pull(example([[token] for token in tokens] * 2, [1.0] * 2 * len(tokens), reference), policy,
                          kl_loss_mode=mode)
        ref_V = np.asarray(jax.nn.softmax(reference[PROMPT]))
        log_ratio = np.log(pi_V[1:] / ref_V[1:])
        kl = float(pi_V[1:] @ log_ratio)
        expected = {"low_var_kl": pi_V - ref_V,  # of KL(reference || policy), by the logits
                    "mse_kl": np.array([0, *(pi_V[1:] * (log_ratio - kl))])}[mode]  # of KL(policy || reference)
        np.testing.assert_allclose(grads[PROMPT], expected, atol=1e-5)
        assert aux["kl"] == pytest.approx(kl, abs=1e-5), "k3 is unbiased, whatever the penalty"
        seen.append(grads)
    assert np.abs(seen[0] - seen[1]).max() > 0.01


def test_tunixs_default_penalty_has_no_reference_in_its_gradient_and_is_refused():
    """What is left of it under a mean per sequence is a push on the length of replies."""
    config = loss_config(LossSettings(beta=1.0), 2)
    config.temperature, config.kl_loss_mode = 1.0, "kl"
    loss_fn = function_registry.get_policy_loss_fn("grpo")

    def push(model, made):
        return loss_fn(model, made, algo_config=config, pad_id=0, eos_id=STOP)[0]

    grads = [nnx.grad(push)(Bigrams(table(0)), example(SIX, [0.0] * 6, table(seed)))["table"][...] for seed in (1, 2)]
    np.testing.assert_array_equal(*grads)
    assert np.abs(grads[0]).max() > 0.1
    with pytest.raises(ValueError, match="kl_loss_mode='kl' is not offered: its gradient does not contain the refer"):
        LossSettings(kl_loss_mode="kl")


@pytest.mark.parametrize("mode", CHOICES["kl_loss_mode"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_at_the_reference_the_penalty_pushes_nowhere(mode, temperature):
    """A policy that is its own reference is held by nothing, also when it samples colder."""
    grads, aux = pull(example(SIX, ADVANTAGES, table(0), temperature), table(0), temperature, kl_loss_mode=mode)
    assert np.abs(grads).max() < 1e-6 and abs(aux["kl"]) < 1e-6


@pytest.mark.parametrize("mode", CHOICES["kl_loss_mode"])
def test_a_group_of_equal_rewards_is_not_moved_by_the_penalty_but_its_kl_is_logged(mode):
    """Groups of two. In the first one reply may lie at the group's mean: it is held like its neighbour."""
    far, here = table(1), table(0)
    grads, aux = gradient(example(SIX, [0.0] * 6, far), here, beta=1.0, kl_loss_mode=mode)
    assert (grads == 0).all() and aux["kl"] > 0.1
    only = pull(example(SIX, [1.0, *[0.0] * 5], far), here, kl_loss_mode=mode)[0]
    both = pull(example(SIX[:2], [1.0, -1.0], far), here, kl_loss_mode=mode)[0]
    np.testing.assert_allclose(only, both / 3, atol=1e-6)


@pytest.mark.parametrize("mode", CHOICES["loss_agg_mode"])
def test_what_is_logged_is_a_mean_over_tokens_whatever_the_loss_is(mode):
    made, logits = example(SIX, ADVANTAGES, table(1)), np.asarray(jax.nn.log_softmax(table(0)))
    entropy_V = -(np.exp(logits) * logits).sum(-1)
    before = [row for tokens in SIX for row in [PROMPT, *tokens[:-1]]]
    aux = gradient(made, table(0), beta=0.1, loss_agg_mode=mode)[1]
    assert aux["entropy"] == pytest.approx(entropy_V[before].mean(), rel=1e-5)
    assert aux["kl"] == pytest.approx(gradient(made, table(0), beta=0.1)[1]["kl"], rel=1e-5)


def test_a_dial_that_is_not_offered_is_named():
    for name in CHOICES:
        with pytest.raises(ValueError, match=f"{name}='best' is not offered; choose one of"):
            LossSettings(**{name: "best"})


# the advantage

def estimate(name, rewards, group=4):
    config = loss_config(LossSettings(advantage_estimator=name), group)
    estimator = function_registry.get_advantage_estimator(config.advantage_estimator)
    return np.asarray(estimator(rewards=np.array(rewards, np.float64), num_generations=group))


def test_advantages_are_those_of_the_papers():
    rewards = np.array([0.0, 1.0, 1.0, 0.0, 0.5, 2.0, 0.0, 0.0])
    group_G = rewards.reshape(2, 4)
    centred = group_G - group_G.mean(1, keepdims=True)
    np.testing.assert_allclose(estimate("grpo", rewards),
                               (centred / (group_G.std(1, ddof=1, keepdims=True) + 1e-6)).ravel(), rtol=1e-6)
    np.testing.assert_allclose(estimate("drgrpo", rewards), centred.ravel(), rtol=1e-6)
    np.testing.assert_allclose(estimate("rloo", rewards), (centred * 4 / 3).ravel(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 2.3, 1.75])
def test_a_group_of_equal_rewards_has_no_advantage_at_all(name, value):
    """All right, all wrong, and with a silent judge, whose mean over the group may differ in its last digit."""
    group = [value, value * (1 + 2e-16), value, value, value, np.nextafter(value, 9), value]
    assert (estimate(name, [*group, *np.linspace(0, 1, 7)], 7)[:7] == 0).all()
    assert (estimate(name, [*group, *np.linspace(0, 1, 7)], 7)[7:] != 0).sum() >= 6


# the sum over tokens

def aggregated(mode, made, **dials):
    return gradient(made, table(0), beta=0.0, loss_agg_mode=mode, **dials)[0]


def test_the_loss_of_tokens_becomes_one_number_as_it_is_said():
    """By hand: the gradient of -advantage times log p, per token, with each mode's weight."""
    probabilities, lengths = np.asarray(jax.nn.softmax(table(0), axis=-1)), list(map(len, SIX))
    for mode, weights in {
        "sequence-mean-token-mean": [1 / length / 6 for length in lengths],
        "sequence-mean-token-scale": [1 / max(lengths) / 6] * 6,
        "seq-mean-token-sum": [1 / 6] * 6,
        "token-mean": [1 / sum(lengths)] * 6,
    }.items():
        expected = np.zeros((V, V))
        for tokens, advantage, weight in zip(SIX, ADVANTAGES, weights, strict=True):
            for before, token in zip([PROMPT, *tokens], tokens, strict=False):
                expected[before] -= weight * advantage * (np.eye(V)[token] - probabilities[before])
        np.testing.assert_allclose(aggregated(mode, example(SIX, ADVANTAGES)), expected, atol=1e-6, err_msg=mode)


def in_micro_batches(mode):
    """As Tunix accumulates: the mean of the gradients of passes of two completions each, padded alike."""
    whole = example(SIX, ADVANTAGES)
    passes = [jax.tree.map(lambda x, rows=slice(n, n + 2): x[rows], whole) for n in (0, 2, 4)]
    return np.mean([aggregated(mode, each) for each in passes], axis=0), aggregated(mode, whole)


@pytest.mark.parametrize("mode", CHOICES["loss_agg_mode"][:3])
def test_micro_batches_change_nothing(mode):
    np.testing.assert_allclose(*in_micro_batches(mode), atol=1e-6)


def test_a_mean_over_tokens_is_one_of_each_micro_batch():
    passes, whole = in_micro_batches("token-mean")
    assert np.abs(passes - whole).max() > 0.01


def test_with_one_update_per_rollout_the_ratio_and_its_clipping_do_nothing():
    plain = aggregated("sequence-mean-token-mean", example(SIX, ADVANTAGES))
    for dials in ({"epsilon": 0.01}, {"epsilon_high": 0.28}, {"loss_algo": "gspo-token"}):
        np.testing.assert_allclose(aggregated("sequence-mean-token-mean", example(SIX, ADVANTAGES), **dials), plain,
                                   atol=1e-7, err_msg=str(dials))


def test_clipping_goes_as_high_as_it_is_told_once_the_ratio_is_not_one():
    """Old log-probabilities 0.25 below: the ratio 1.28 is past 0.2 and within 0.3."""
    made = example(SIX, [1.0] * 6)
    graph, state = nnx.split(Bigrams(table(0)))
    logps_BL = common.compute_per_token_logps(graph, state, made.prompt_ids, made.completion_ids, 0, STOP)
    made = made.replace(old_per_token_logps=logps_BL - 0.25)
    assert np.abs(aggregated("token-mean", made)).max() < 1e-7
    assert np.abs(aggregated("token-mean", made, epsilon_high=0.3)).max() > 0.01


# a rollout that is not quite the policy

@pytest.mark.parametrize(("likelier", "weight"), [(1.0, 1.0), (0.5, 0.5), (1.5, 1.5), (4.0, 2.0)])
def test_a_token_is_weighed_by_how_much_likelier_the_policy_makes_it_at_most_twice(likelier, weight):
    """The penalty is not weighed."""
    policy, made = table(0), example(SIX, ADVANTAGES, table(1))
    graph, state = nnx.split(Bigrams(policy))
    logps_BL = common.compute_per_token_logps(graph, state, made.prompt_ids, made.completion_ids, 0, STOP)
    sampled = SampledExample(**vars(made), rollout_logps=logps_BL - np.log(likelier))
    plain, _ = gradient(made, policy, beta=0.0)
    weighed, aux = gradient(sampled, policy, beta=0.0, names=("rollout_kl",))
    np.testing.assert_allclose(weighed, weight * plain, atol=1e-6)
    assert aux["rollout_kl"] == pytest.approx(likelier - 1 - np.log(likelier), abs=1e-5)
    np.testing.assert_allclose(pull(sampled, policy)[0], pull(made, policy)[0], atol=1e-5)

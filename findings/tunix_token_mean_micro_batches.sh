#!/usr/bin/env bash
# With micro-batches, Tunix's GRPO loss "token-mean" gives tokens of short completions more weight.
#
# Guess:     loss_agg_mode="token-mean" counts every token of a step alike. Two micro-batches, whose gradients Tunix adds
#            up for one update, then move the weights exactly as one batch of all the rows does.
# Versions:  google-tunix 0.1.7, jax 0.10.2, flax 0.12.8, optax 0.2.8, Python 3.11, CPU.
# Behaviour: the mean is taken within each micro-batch, and optax.MultiSteps then takes the mean of these means. Here one
#            micro-batch has 16 tokens and the other 4, so a token of the second counts four times as much, and the
#            update is another one. The default "sequence-mean-token-mean" makes the same update both ways.
# Output:    sequence-mean-token-mean: the updates differ by 0.0 % of their norm
#            token-mean: the updates differ by 77.0 % of their norm
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install google-tunix==0.1.7 jax==0.10.2 jaxlib==0.10.2 flax==0.12.8 optax==0.2.8
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.rl import common, function_registry
from tunix.rl.grpo.grpo_learner import GRPOConfig
from tunix.sft import peft_trainer

V, PROMPT, STOP = 6, 1, 2


class Bigrams(nnx.Module):
    """A language model whose logits of the next token depend on the last one alone."""

    def __init__(self):
        self.table = nnx.Param(jnp.asarray(np.random.default_rng(0).normal(size=(V, V)), jnp.float32))

    def __call__(self, tokens, **others):
        return self.table[tokens], None


long, short = [3, 4, 5, 3, 4, 5, 3, 2], [5, 2, 0, 0, 0, 0, 0, 0]
completions = jnp.array([long, long[::-1][1:] + [2], short, [4, 2, 0, 0, 0, 0, 0, 0]])
advantages = jnp.array([1.0, -0.5, 0.7, -1.2])


def example(rows):
    ids = completions[rows]
    prompts = jnp.full((len(ids), 1), PROMPT)
    return common.TrainExample(
        prompt_ids=prompts, prompt_mask=prompts != 0, completion_ids=ids, completion_mask=ids != 0,
        advantages=advantages[rows], ref_per_token_logps=None, old_per_token_logps=None)


def update(mode, *batches):
    """What one optimiser step of plain gradient descent adds to the weights."""
    config = GRPOConfig(num_generations=2, beta=0.0, loss_agg_mode=mode)
    config.temperature = 1.0
    loss_fn, model = function_registry.get_policy_loss_fn("grpo"), Bigrams()
    before = np.asarray(model.table[...])
    trainer = peft_trainer.PeftTrainer(model, optax.sgd(1.0), peft_trainer.TrainingConfig(
        eval_every_n_steps=100, max_steps=1, gradient_accumulation_steps=len(batches)))
    trainer.with_loss_fn(lambda model, example: loss_fn(model, example, algo_config=config, pad_id=0, eos_id=STOP)[0])
    trainer.with_gen_model_input_fn(lambda rows: {"example": rows})
    trainer.train(list(batches))
    return np.asarray(trainer.model.table[...]) - before


for mode in ("sequence-mean-token-mean", "token-mean"):
    whole = update(mode, example(slice(0, 4)))
    parts = update(mode, example(slice(0, 2)), example(slice(2, 4)))
    apart = np.linalg.norm(whole - parts) / np.linalg.norm(whole)
    print(f"{mode}: the updates differ by {apart:.1%} of their norm".replace("%", " %"))
    assert (apart > 0.1) == (mode == "token-mean") and np.linalg.norm(whole) > 0.05
    assert mode == "token-mean" or apart < 1e-5
PYTHON

#!/usr/bin/env bash
# Tunix's default KL penalty does not pull the policy towards the reference.
#
# Guess:     with beta > 0, Tunix's GRPO at its default settings pulls the policy back towards the reference. So two
#            references give two gradients, and descending the penalty lowers the KL.
# Versions:  google-tunix 0.1.7, jax 0.10.2, flax 0.12.8, Python 3.11, CPU.
# Behaviour: GRPOConfig.kl_loss_mode is "kl": log p - log p_ref of the sampled token. Its derivative with respect to
#            the policy does not contain the reference. Two references give gradients that are equal bit for bit and
#            not zero. With the default mean per sequence they change the length of completions. With "low_var_kl", the
#            default until 0.1.6, the gradients differ as expected.
# Output:    default mode: kl
#            kl: largest difference between the gradients of two references 0, largest entry 0.22
#            low_var_kl: largest difference between the gradients of two references 0.371, largest entry 0.52
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install google-tunix==0.1.7 jax==0.10.2 jaxlib==0.10.2 flax==0.12.8
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tunix.rl import common, function_registry
from tunix.rl.grpo.grpo_learner import GRPOConfig

V, PROMPT, STOP = 6, 1, 2


class Bigrams(nnx.Module):
    """A language model whose logits of the next token depend on the last one alone."""

    def __init__(self, seed):
        self.table = nnx.Param(jnp.asarray(np.random.default_rng(seed).normal(size=(V, V)), jnp.float32))

    def __call__(self, tokens, **others):
        return self.table[tokens], None


completions = jnp.array([[3, 2, 0, 0], [4, 5, 2, 0], [5, 5, 5, 2], [2, 0, 0, 0]])
prompts = jnp.full((4, 1), PROMPT)


def gradient(reference_seed, **options):
    config = GRPOConfig(num_generations=2, beta=1.0, **options)
    config.temperature = 1.0
    graph, state = nnx.split(Bigrams(reference_seed))
    logps = common.compute_per_token_logps(graph, state, prompts, completions, 0, STOP)
    example = common.TrainExample(
        prompt_ids=prompts, prompt_mask=prompts != 0, completion_ids=completions, completion_mask=completions != 0,
        advantages=jnp.zeros(4), ref_per_token_logps=logps, old_per_token_logps=None)
    loss_fn = function_registry.get_policy_loss_fn("grpo")
    grads = nnx.grad(lambda model: loss_fn(model, example, algo_config=config, pad_id=0, eos_id=STOP)[0])(Bigrams(0))
    return np.asarray(jax.tree.leaves(grads)[0])


print("default mode:", GRPOConfig(num_generations=2).kl_loss_mode)
assert GRPOConfig(num_generations=2).kl_loss_mode == "kl"
for mode, options in (("kl", {}), ("low_var_kl", {"kl_loss_mode": "low_var_kl"})):
    first, second = gradient(1, **options), gradient(2, **options)
    apart = np.abs(first - second).max()
    print(f"{mode}: largest difference between the gradients of two references {apart:.3g}, largest entry {np.abs(first).max():.2f}")
    assert (apart == 0) == (mode == "kl") and np.abs(first).max() > 0.05
PYTHON

#!/usr/bin/env bash
# A column of the data with two dimensions reaches Tunix's reward functions flattened, so they read other rows' values.
#
# Guess:     a batch {"prompts": (4,), "options": (4, 3)} is cut into micro-batches by its first axis. The reward for a
#            completion sees its own question's three options, or the learner raises for a shape that it can't cut.
# Versions:  google-tunix 0.1.7, jax 0.10.2, flax 0.12.8, Python 3.11, CPU.
# Behaviour: where a batch is cut into micro-batches, each array is flattened first and then cut at the same places as
#            the prompts. So each question gets one option, the second and third questions get options of the first, and
#            the fourth gets one of the second. There is no error and no warning. Where the micro-batch is the whole
#            batch, each question has its own three options.
# Output:    micro-batches of 4 prompts: {'first': ['1a', '1b', '1c'], 'second': ['2a', '2b', '2c'], 'third': ['3a', '3b',
#            '3c'], 'fourth': ['4a', '4b', '4c']}
#            micro-batches of 2 prompts: {'first': '1a', 'second': '1b', 'third': '1c', 'fourth': '2a'}
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install google-tunix==0.1.7 jax==0.10.2 jaxlib==0.10.2 flax==0.12.8
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON' 2>errors || { cat errors; exit 1; }
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, Mesh
from tunix.models.gemma3.model import Gemma3, ModelConfig
from tunix.rl import rl_cluster
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rollout.base_rollout import RolloutConfig

config = ModelConfig(num_layers=1, num_embed=64, embed_dim=32, hidden_dim=64, num_heads=2, head_dim=16, num_kv_heads=1,
                     sliding_window_size=16, param_dtype=jnp.float32)
mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"), axis_types=(AxisType.Auto,) * 2)


class Letters:
    """A token per letter."""

    def encode(self, text, **others):
        return [4 + ord(letter) % 60 for letter in text]

    def decode(self, ids, **others):
        return " ".join(map(str, ids))

    def pad_id(self):
        return 0

    def eos_id(self):
        return 1

    def bos_id(self):
        return 2

    def dedup_bos_ids(self, ids):
        return ids


def seen(micro_batch):
    """What the reward function is given for each completion: its question and its options."""
    found = []

    def reward(prompts, completions, options, **columns):
        found.extend(zip(map(str, prompts), np.asarray(options).tolist(), strict=True))
        return [float(number) for number in range(len(completions))]

    roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)
    training = rl_cluster.RLTrainingConfig(actor_optimizer=optax.sgd(0.0), eval_every_n_steps=10, max_steps=1,
                                           mini_batch_size=4, train_micro_batch_size=micro_batch)
    rollout = RolloutConfig(max_tokens_to_generate=4, max_prompt_length=8, kv_cache_size=16, temperature=1.0, top_p=1.0)
    cluster = rl_cluster.RLCluster(
        actor=Gemma3(config, rngs=nnx.Rngs(0)), reference=Gemma3(config, rngs=nnx.Rngs(0)), tokenizer=Letters(),
        cluster_config=rl_cluster.ClusterConfig(role_to_mesh=dict.fromkeys(roles, mesh), rollout_engine="vanilla",
                                                offload_to_cpu=False, training_config=training, rollout_config=rollout))
    batch = {"prompts": np.array(["first", "second", "third", "fourth"]),
             "options": np.array([["1a", "1b", "1c"], ["2a", "2b", "2c"], ["3a", "3b", "3c"], ["4a", "4b", "4c"]])}
    GRPOLearner(cluster, GRPOConfig(num_generations=2, beta=0.0), reward).train([batch])
    return dict(found)


whole, cut = seen(4), seen(2)
print("micro-batches of 4 prompts:", whole)
print("micro-batches of 2 prompts:", cut)
assert whole["fourth"] == ["4a", "4b", "4c"] and [*cut.values()] == ["1a", "1b", "1c", "2a"]
PYTHON

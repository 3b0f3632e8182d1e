#!/usr/bin/env bash
# Tunix's RLCluster keeps one copy of a replicated policy in host memory per device, though nothing is offloaded.
#
# Guess:     with offload_to_cpu=False (the default), a cluster whose roles share one mesh holds no copy of the weights
#            in host memory.
# Versions:  google-tunix 0.1.7, jax 0.10.2, flax 0.12.8, Python 3.11, CPU with four virtual devices.
# Behaviour: the constructor copies the actor's whole state to "pinned_host" and keeps its sharding. Weights that are
#            replicated over four devices are there four times. Only GRPO with num_iterations > 1 reads the copy. For a
#            2B in bfloat16 that is 5.2 GB per device (arithmetic, not run).
# Output:    kept in pinned_host: 4.0 times the policy's bytes
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install google-tunix==0.1.7 jax==0.10.2 jaxlib==0.10.2 flax==0.12.8
cd "$folder"
JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=4 "$folder/venv/bin/python" - <<'PYTHON'
import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tunix.rl import rl_cluster
from tunix.rl.rollout import base_rollout

mesh = Mesh(np.array(jax.devices()).reshape(4, 1), ("fsdp", "tp"))
policy = nnx.Linear(256, 256, rngs=nnx.Rngs(0))
nnx.update(policy, jax.device_put(nnx.state(policy), NamedSharding(mesh, PartitionSpec())))


class Letters:
    """A tokenizer of one id per character, with the methods that Tunix asks for."""

    def encode(self, text):
        return [2 + ord(letter) for letter in text]

    def decode(self, ids):
        return "".join(chr(number - 2) for number in ids)

    def bos_id(self):
        return 1

    def eos_id(self):
        return 1

    def pad_id(self):
        return 0


class NoRollout(base_rollout.BaseRollout):
    """Samples nothing. The copy is made before a cluster samples."""

    def __init__(self, rollout_actor, **others):
        self.actor = rollout_actor

    def generate(self, prompts, rollout_config, **others):
        raise NotImplementedError

    def get_per_token_logps(self, prompt_tokens, completion_tokens):
        raise NotImplementedError

    def update_params(self, params, filter_types=None):
        pass

    def pad_id(self):
        return 0

    def eos_id(self):
        return 1

    def model(self):
        return self.actor


roles = rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT
cluster = rl_cluster.RLCluster(
    actor=policy, reference=nnx.clone(policy), tokenizer=Letters(), cluster_config=rl_cluster.ClusterConfig(
        role_to_mesh=dict.fromkeys(roles, mesh), rollout_engine=NoRollout, offload_to_cpu=False,
        training_config=rl_cluster.RLTrainingConfig(
            actor_optimizer=optax.sgd(1e-3), eval_every_n_steps=10, max_steps=10),
        rollout_config=base_rollout.RolloutConfig(max_prompt_length=8, max_tokens_to_generate=8)))
kept = jax.tree.leaves(cluster._anchor_policy_state)
assert {leaf.sharding.memory_kind for leaf in kept} == {"pinned_host"}
held = sum(shard.data.nbytes for leaf in kept for shard in leaf.addressable_shards)
once = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(policy)))
print(f"kept in pinned_host: {held / once:.1f} times the policy's bytes")
assert held == 4 * once
PYTHON

#!/usr/bin/env bash
# A reward function that abstains in Tunix gives its completion the lowest reward of the group.
#
# Guess:     None for a completion, as a judge that failed would give, means "no reward". Tunix leaves the completion out
#            of its group's mean and gives it no advantage, or raises.
# Versions:  google-tunix 0.1.7, jax 0.10.2, flax 0.12.8, Python 3.11, CPU.
# Behaviour: None becomes NaN, and the sum over the functions takes NaN as 0. Where the judge gives 1, 2, 3 and nothing,
#            the completion without a reward gets the most negative advantage, and the others get more than they should.
#            There is no warning. Only a function that returns None instead of a list raises.
# Output:    rewards [2. 3. 4. 1.]
#            advantages [-0.39  0.39  1.16 -1.16]
#            advantages of the three that were judged, alone [-1.  0.  1.]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install google-tunix==0.1.7 jax==0.10.2 jaxlib==0.10.2 flax==0.12.8
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import warnings

import numpy as np
from tunix.rl import function_registry
from tunix.rl.grpo.grpo_learner import GRPOConfig
from tunix.rl.reward_manager import SequenceRewardManager


def tag_format(prompts, completions, **columns):
    return [1.0] * len(completions)


def judge(prompts, completions, **columns):
    return [1.0, 2.0, 3.0, None]


with warnings.catch_warnings():
    warnings.simplefilter("error")
    found = SequenceRewardManager([tag_format, judge], GRPOConfig(num_generations=4))(["question"] * 4, list("abcd"))
rewards = np.asarray(found["rewards"])
estimate = function_registry.get_advantage_estimator("grpo")
advantages = np.asarray(estimate(rewards, 4))
print("rewards", rewards)
print("advantages", advantages.round(2))
print("advantages of the three that were judged, alone", np.asarray(estimate(rewards[:3], 3)).round(2))
assert rewards.tolist() == [2, 3, 4, 1] and advantages.argmin() == 3 and advantages[3] < -1
PYTHON

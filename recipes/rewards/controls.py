"""Rewards that can teach nothing. A gain counts only if it is larger than with these controls."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reasonkit.rewards.rules import RewardFn


def constant(prompts: Sequence[str], completions: Sequence[str], **columns) -> list[float | None]:
    """1.0 for every reply. What a run gains with it does not come from the reward.

    >>> constant(["2+2?"] * 2, ["4", ""])
    [1.0, 1.0]
    """
    return [1.0] * len(completions)


constant.spurious = True  # it does not look at the completion


def shuffle_rewards(fn: RewardFn) -> RewardFn:
    """The rewards of `fn`, dealt at random to the completions of a call. The spread stays and the information goes.

    The name is "shuffled". Source of the control: "Spurious rewards" (arXiv 2506.10947), where random rewards taught.

    >>> def brief(prompts, completions, **columns): return [1.0 if len(c) < 3 else 0.0 for c in completions]
    >>> sorted(shuffle_rewards(brief)(["a?"] * 3, ["yes", "no", "I do not know"]))
    [0.0, 0.0, 1.0]
    """
    rng = np.random.default_rng(0)

    def reward(prompts: Sequence[str], completions: Sequence[str], **columns) -> list[float | None]:
        values = fn(prompts=prompts, completions=completions, **columns)
        return [values[n] for n in rng.permutation(len(values))]

    reward.__name__ = "shuffled"
    reward.spurious = True
    return reward

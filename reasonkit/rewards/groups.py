"""The arithmetic of groups: a group is `num_generations` consecutive completions of one prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FLAT = 1e-9  # a spread below this is rounding, not a preference


def check_groups(prompts: Sequence[str], completions: Sequence[str], num_generations: int) -> None:
    """Raises ValueError for rows that are not made of whole groups."""
    n = len(prompts)
    if n == 0 or n != len(completions) or num_generations < 1 or n % num_generations:
        raise ValueError(f"{n} prompts and {len(completions)} completions do not make groups of "
                         f"num_generations={num_generations}; pass each prompt that many times in a row")
    for start in range(0, n, num_generations):
        group = {str(prompt) for prompt in prompts[start:start + num_generations]}
        if len(group) > 1:
            raise ValueError(f"rows {start} to {start + num_generations - 1} are one group but {len(group)} "
                             f"different prompts; pass each prompt {num_generations} times in a row")


def group_means(values_B: np.ndarray, heard_B: np.ndarray, num_generations: int) -> np.ndarray:
    """For each completion the mean of what was heard in its group, 0.0 if that is nothing."""
    heard_GN = heard_B.reshape(-1, num_generations)
    count_G = np.maximum(heard_GN.sum(axis=1), 1)
    return np.repeat(np.where(heard_GN, values_B.reshape(-1, num_generations), 0.0).sum(axis=1) / count_G,
                     num_generations)


def correlation(values_B: np.ndarray, others_B: np.ndarray, heard_B: np.ndarray, num_generations: int) -> float | None:
    """Pearson's, of the deviations from the group's mean; None where one of the two does not vary."""
    a, b = ((x - group_means(x, heard_B, num_generations))[heard_B] for x in (values_B, others_B))
    if not heard_B.any() or min(np.abs(a).max(), np.abs(b).max()) < FLAT:
        return None
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))

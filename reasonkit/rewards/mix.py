"""`RewardMix` combines several rewards into one for Tunix, and writes a log row per call.

Tunix adds up reward functions with `nansum`, so no signal counts as 0. In a group where the others score 1, that is a
punishment. Here the part's mean over the same group replaces it, so it gives no advantage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from reasonkit.rewards.rules import LARGEST, NOT_OWED, RewardFn, ask
from reasonkit.session.run_log import NullLog, RunLog

FLAT = 1e-9  # a spread below this is rounding, not a preference
PROMPT_TAIL = 300  # characters of the sample's prompt that are logged


class NoSignalError(RuntimeError):
    """A part of the reward gave no signal for more completions than `max_no_signal` allows."""


@dataclass
class Scores:
    """What some parts of a reward return, by the part's name."""

    values: dict[str, np.ndarray]  # (B,), NaN for no signal
    causes: dict[str, Counter[str]]  # of no signal
    extra: dict[str, Any]  # what the parts read in the first completion


class RewardMix:
    """One reward for Tunix: the weighted sum of `parts`, given as (function, weight). Weight 0 means logged only.

    A group is `num_generations` consecutive completions of one prompt. If a part's value is None, not finite or
    beyond `LARGEST`, its mean over the rest of the group replaces it, or 0.0 if it has no signal in the whole group.

    Each call writes one "reward" row to `log`. `length_correlation` is the correlation of each part with the
    completion's length in characters, within groups. `group` holds one whole group of the last call, if possible one
    whose rewards differ.

    A judge may score some completions while others are still being sampled. `ask_ahead` asks the parts marked `rowwise`
    (such as `rubric`) about a few groups, in any thread, but only in one at a time. `in_parts` takes its answers.

    Raises ValueError for unusable parts and for a batch that is not made of groups. Raises NoSignalError, after
    logging, if a part with a weight has no signal for more than the share `max_no_signal` of a call's completions, not
    counting those that owe none (`rules.NOT_OWED`).

    >>> def brief(prompts, completions, **columns): return [1.0 if len(c) < 3 else 0.0 for c in completions]
    >>> def shy(prompts, completions, **columns): return [4.0 if c == "yes" else None for c in completions]
    >>> RewardMix([(brief, 1.0), (shy, 0.5)], NullLog())(["a?"] * 2, ["yes", "no"], num_generations=2)
    [2.0, 3.0]
    """

    def __init__(self, parts: Sequence[tuple[RewardFn, float]], log: RunLog | NullLog, max_no_signal: float = 0.5):
        names = [getattr(fn, "__name__", None) for fn, _ in parts]
        if None in names or len(set(names)) < len(names):
            raise ValueError(f"the parts are named {names}; give each its own __name__, for the log")
        weights = [weight for _, weight in parts]
        if not all(abs(weight) <= LARGEST for weight in weights) or not any(weights):
            raise ValueError(f"the weights are {weights}; give finite ones of at most {LARGEST:g}, not all 0")
        if not 0.0 <= max_no_signal <= 1.0:
            raise ValueError(f"max_no_signal is {max_no_signal}; give a share in [0, 1]")
        self.functions = dict(zip(names, (fn for fn, _ in parts), strict=True))
        self.weights = dict(zip(names, weights, strict=True))
        self.log, self.max_no_signal, self.group = log, max_no_signal, None
        self.__name__ = "reward"  # Tunix logs it

    # Tunix passes num_generations because the parameter is named like its config's field.
    def __call__(self, prompts: Sequence[str], completions: Sequence[str], num_generations: int, mode: str = "train",
                 **columns) -> list[float]:
        columns |= {"num_generations": num_generations, "mode": mode}
        answer = partial(self.ask_ahead, prompts, completions, **columns)
        return next(self.in_parts([answer], prompts, completions, **columns))

    def ask_ahead(self, prompts: Sequence[str], completions: Sequence[str], rowwise: bool = True, **columns) -> Scores:
        """The scores of the rowwise parts, or of the others, for some groups of a call."""
        found = Scores({}, {}, {})
        columns |= {"log_extra": lambda name, values: found.extra.update({name: values[0]})}
        for name, fn in self.functions.items():
            if getattr(fn, "rowwise", False) is rowwise:
                found.values[name], found.causes[name] = ask(fn, prompts, completions, columns)
        return found

    def in_parts(self, answers: Sequence[Callable[[], Scores]], prompts: Sequence[str], completions: Sequence[str],
                 num_generations: int, mode: str = "train", **columns) -> Iterator[list[float]]:
        """The rewards of one call, in as many equal slices as there are `answers`, which wait for what `ask_ahead`
        returns. The other parts see the whole call."""
        check_groups(prompts, completions, num_generations)
        found = self.ask_ahead(prompts, completions, False, num_generations=num_generations, mode=mode, **columns)
        total_B, size = np.zeros(len(prompts)), len(prompts) // len(answers)
        for number, answer in enumerate(answers, 1):
            rows = slice((number - 1) * size, number * size)
            ahead = answer()
            found.extra = ahead.extra | found.extra  # only the first slice has the first completion
            for name, values in ahead.values.items():
                found.values.setdefault(name, np.full(len(prompts), np.nan))[rows] = values
                found.causes.setdefault(name, Counter()).update(ahead.causes[name])
            for name, weight in self.weights.items():
                if weight:
                    total_B[rows] += weight * fill_in(found.values[name][rows], num_generations)
            if number == len(answers):
                self._log(found, total_B, prompts, completions, num_generations, mode)
            yield total_B[rows].tolist()

    def _log(self, found: Scores, total_B: np.ndarray, prompts: Sequence[str], completions: Sequence[str],
             num_generations: int, mode: str) -> None:
        """Write the call's row. Raises NoSignalError."""
        lengths_B = np.array([len(c) for c in completions], np.float64)
        rows, correlations, sample, too_few = {}, {}, {}, []
        for name, weight in self.weights.items():
            values_B, causes = found.values[name], dict(found.causes[name])
            heard_B = np.isfinite(values_B)
            no_signal, not_owed = 1.0 - float(heard_B.mean()), causes.get(NOT_OWED, 0)
            rows[name] = {"weight": weight, "mean": float(values_B[heard_B].mean()) if heard_B.any() else None,
                          "no_signal": no_signal, "causes": causes}
            correlations[name] = correlation(values_B, lengths_B, num_generations)
            sample[name] = float(values_B[0]) if heard_B[0] else None
            if weight and (~heard_B).sum() - not_owed > self.max_no_signal * (len(prompts) - not_owed):
                too_few.append(f"{name}: {no_signal:.0%} of {len(prompts)} completions ({causes})")
        flat_G = np.ptp(total_B.reshape(-1, num_generations), axis=1) < FLAT
        group = slice(start := int(np.argmin(flat_G)) * num_generations, start + num_generations)
        self.group = {"prompt": str(prompts[start]), "completions": list(map(str, completions[group])),
                      "weights": self.weights, "totals": total_B[group],
                      "parts": {name: values_B[group] for name, values_B in found.values.items()}}
        self.log.write(
            "reward", mode=mode, completions=len(prompts), mean=float(total_B.mean()), parts=rows,
            flat_groups=float(flat_G.mean()), mean_length=float(lengths_B.mean()), length_correlation=correlations,
            sample={"prompt": str(prompts[0])[-PROMPT_TAIL:], "completion": str(completions[0]),
                    "total": float(total_B[0]), "parts": sample, "extra": found.extra},
        )
        if too_few:
            raise NoSignalError(f"no signal from {'; '.join(too_few)}, past max_no_signal={self.max_no_signal:.0%}; "
                                "mend what the causes name, or give the part weight 0 to train without it")


def check_groups(prompts: Sequence[str], completions: Sequence[str], num_generations: int) -> None:
    """Raises ValueError if the rows are not made of whole groups."""
    n = len(prompts)
    if n == 0 or n != len(completions) or num_generations < 1 or n % num_generations:
        raise ValueError(f"{n} prompts and {len(completions)} completions do not make groups of "
                         f"num_generations={num_generations}; pass each prompt that many times in a row")
    for start in range(0, n, num_generations):
        if (different := len({*map(str, prompts[start:start + num_generations])})) > 1:
            raise ValueError(f"rows {start} to {start + num_generations - 1} are one group but {different} "
                             f"different prompts; pass each prompt {num_generations} times in a row")


def fill_in(values_B: np.ndarray, num_generations: int) -> np.ndarray:
    """The values, with NaN replaced by the mean of the group, or by 0.0 if the whole group is NaN."""
    heard_B = np.isfinite(values_B)
    return np.where(heard_B, values_B, _group_means(values_B, heard_B, num_generations))


def correlation(values_B: np.ndarray, others_B: np.ndarray, num_generations: int) -> float | None:
    """Pearson's correlation of the deviations from the group's mean, without NaN. None if one does not vary."""
    heard_B = np.isfinite(values_B)
    a, b = ((x - _group_means(x, heard_B, num_generations))[heard_B] for x in (values_B, others_B))
    if not heard_B.any() or min(np.abs(a).max(), np.abs(b).max()) < FLAT:
        return None
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def _group_means(values_B: np.ndarray, heard_B: np.ndarray, num_generations: int) -> np.ndarray:
    heard_GN = heard_B.reshape(-1, num_generations)
    sums_G = np.where(heard_GN, values_B.reshape(-1, num_generations), 0.0).sum(axis=1)
    return np.repeat(sums_G / np.maximum(heard_GN.sum(axis=1), 1), num_generations)

"""`compose`: one reward for Tunix out of several, and what of it is logged.

Departure from Tunix: it sums reward functions with `nansum`, so that a None becomes 0, which in a group of ones is a
punishment. Here the part's mean over the same group is put in its place, which carries no advantage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from reasonkit.rewards.groups import FLAT, check_groups, correlation, group_means
from reasonkit.rewards.rules import LARGEST, RewardFn, ask
from reasonkit.session.run_log import NullLog, RunLog

Weight = float | Callable[[float], float]  # fixed, or a function of the run's progress in [0, 1]
Asked = tuple[dict[str, tuple[np.ndarray, Counter[str]]], dict]  # part -> values and causes; what it read
PROMPT_TAIL = 300  # characters of the sample's prompt that are logged


class NoSignalError(RuntimeError):
    """A part of the reward gave no signal for more completions than `max_no_signal` allows."""


def compose(
    parts: Sequence[tuple[RewardFn, Weight]], log: RunLog | NullLog, max_no_signal: float = 0.5, total_calls: int = 0
) -> RewardFn:
    """One reward for Tunix: the weighted sum of `parts`, given as (function, weight).

    A group is `num_generations` consecutive completions of one prompt. Where a part is None, not finite or beyond
    `LARGEST`, the mean of that part over the rest of its group stands in; where a whole group has no signal, 0.0 does
    for every member. Either way the part adds nothing to the advantage of a completion it could not score.
    Weight 0: computed and logged, not trained on. A weight may be a function of progress, the calls in mode "train"
    so far over `total_calls`, at most 1; they are counted in `calls` of what is returned: set that to resume.

    A judge may work ahead: `ahead(prompts, completions, **columns)` of what is returned asks the parts marked `rowwise`
    (`rubric` is), from any one thread; `in_parts(answers, prompts, ...)` takes these answers for equal parts of a call,
    in order, each as a function that waits for it, and yields each part's rewards: those of the one call.

    Each call writes one "reward" row to `log`: what is logged is what is trained on. Its `length_correlation` is that
    of each part with the completion's length in characters, within groups, because groups are what training compares;
    `sample["extra"]` holds what the parts read in the first completion.

    Raises ValueError for unusable parts or a batch that is not made of groups, and NoSignalError (after
    logging) when, in one call, a part of any weight but 0 has no signal on more than this share of the
    completions.

    >>> def brief(prompts, completions, **columns): return [1.0 if len(c) < 3 else 0.0 for c in completions]
    >>> def shy(prompts, completions, **columns): return [4.0 if c == "yes" else None for c in completions]
    >>> compose([(brief, 1.0), (shy, 0.5)], NullLog())(["a?"] * 2, ["yes", "no"], num_generations=2)
    [2.0, 3.0]
    """
    names = [getattr(fn, "__name__", None) for fn, _ in parts]
    if None in names or len(set(names)) < len(names):
        raise ValueError(f"the parts are named {names}; give each its own __name__, for the log")
    constant = [weight for _, weight in parts if not callable(weight)]
    if not all(abs(weight) <= LARGEST for weight in constant) or not (any(constant) or len(constant) < len(parts)):
        raise ValueError(f"the weights are {constant}; give finite ones of at most {LARGEST:g}, not all 0")
    if len(constant) < len(parts) and total_calls < 1:
        raise ValueError(f"total_calls is {total_calls}; a weight that follows progress needs the calls of the run")
    if not 0.0 <= max_no_signal <= 1.0:
        raise ValueError(f"max_no_signal is {max_no_signal}; give a share in [0, 1]")

    def asked(rowwise: bool, prompts: Sequence[str], completions: Sequence[str], columns: dict) -> Asked:
        extra = {}
        columns = columns | {"log_extra": lambda name, values: extra.update({name: values[0]})}
        return {name: ask(fn, prompts, completions, columns) for name, (fn, _) in zip(names, parts, strict=True)
                if getattr(fn, "rowwise", False) is rowwise}, extra

    def ahead(prompts: Sequence[str], completions: Sequence[str], **columns) -> Asked:
        return asked(True, prompts, completions, columns)

    def in_parts(answers: Sequence[Callable[[], Asked]], prompts: Sequence[str], completions: Sequence[str],
                 num_generations: int, mode: str = "train", **columns) -> Iterator[list[float]]:
        check_groups(prompts, completions, num_generations)
        weights = {name: weight if not callable(weight) else _at(name, weight, min(1.0, reward.calls / total_calls))
                   for name, (_, weight) in zip(names, parts, strict=True)}
        found, extra = asked(False, prompts, completions, columns | {"num_generations": num_generations, "mode": mode})
        size, stop = len(prompts) // len(answers), 0
        for answer in answers:
            start, stop = stop, stop + size
            some, read = answer()
            extra = read | extra  # what was read in the first completion stays
            for name, (values, why) in some.items():
                raw_B, causes = found.setdefault(name, (np.full(len(prompts), np.nan), Counter()))
                raw_B[start:stop] = values
                causes.update(why)
            heard, total_B = {name: np.isfinite(raw_B) for name, (raw_B, _) in found.items()}, np.zeros(len(prompts))
            for name in filter(weights.get, weights):
                raw_B, heard_B = found[name][0], heard[name]
                total_B += weights[name] * np.where(heard_B, raw_B, group_means(raw_B, heard_B, num_generations))
            if stop < len(prompts):
                yield total_B[start:stop].tolist()
        lengths_B = np.array([len(c) for c in completions], np.float64)
        rows, correlations, sample_parts, over = {}, {}, {}, []
        for name, weight in weights.items():
            (raw_B, causes), heard_B = found[name], heard[name]
            share = 1.0 - float(heard_B.mean())
            rows[name] = {"weight": weight, "mean": float(raw_B[heard_B].mean()) if heard_B.any() else None,
                          "no_signal": share, "causes": dict(causes)}
            correlations[name] = correlation(raw_B, lengths_B, heard_B, num_generations)
            sample_parts[name] = float(raw_B[0]) if heard_B[0] else None
            if weight and share > max_no_signal:
                over.append(f"{name}: {share:.0%} of {len(prompts)} completions ({dict(causes)})")
        log.write(
            "reward", mode=mode, completions=len(prompts), mean=float(total_B.mean()), parts=rows,
            flat_groups=float((np.ptp(total_B.reshape(-1, num_generations), axis=1) < FLAT).mean()),
            mean_length=float(lengths_B.mean()), length_correlation=correlations,
            sample={"prompt": str(prompts[0])[-PROMPT_TAIL:], "completion": str(completions[0]),
                    "total": float(total_B[0]), "parts": sample_parts, "extra": extra},
        )
        if over:
            raise NoSignalError(f"no signal from {'; '.join(over)}, past max_no_signal={max_no_signal:.0%}; "
                                "mend what the causes name, or give the part weight 0 to train without it")
        reward.calls += mode == "train"
        yield total_B[start:].tolist()

    # Tunix passes num_generations because the parameter is named like its config's field
    def reward(prompts: Sequence[str], completions: Sequence[str], num_generations: int, mode: str = "train",
               **columns) -> list[float]:
        columns |= {"num_generations": num_generations, "mode": mode}
        return next(in_parts([lambda: ahead(prompts, completions, **columns)], prompts, completions, **columns))

    reward.calls, reward.ahead, reward.in_parts = 0, ahead, in_parts
    return reward


def _at(name: str, weight: Callable[[float], float], progress: float) -> float:
    value = float(weight(progress))
    if not abs(value) <= LARGEST:
        raise ValueError(f"the weight of {name} is {value} at progress {progress:.3f}; make it finite on [0, 1], and "
                         f"at most {LARGEST:g}")
    return value

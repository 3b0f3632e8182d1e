"""Reward functions for GRPO: format, exact answer, and `gate`, which turns two rewards into one.

A reward is a function `(prompts, completions, **columns) -> list[float | None]` with one value per completion. None
means "no signal", never a low score. As in TRL, a reward that takes `log_extra` can report what it read, one value per
completion. Its `failures` count by cause why values are None, and `faults` why a value is low although nothing was
scored. More rewards, such as a judge's, are in `recipes/rewards`, and `mix.RewardMix` combines several.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from copy import copy

import numpy as np

from reasonkit.text.answers import grade
from reasonkit.text.tags import TAGS

RewardFn = Callable[..., list[float | None]]
LogExtra = Callable[[str, Sequence], None]
NOT_OWED = "open"  # the kind of rows that no program can grade, and the cause of their missing signal
LARGEST = 1e9  # of a value or a weight: the squares of their products still fit the learner's float32
# Of each row only the worst defect counts, so leaving the answer out is never better than starting it.
PENALTIES = (
    {"missing_answer": 0.6, "empty_answer": 0.5, "unclosed_answer": 0.3, "duplicated_answer": 0.3},
    {"missing_reasoning": 0.4, "empty_reasoning": 0.3, "unclosed_reasoning": 0.2, "duplicated_reasoning": 0.2},
    {"nested": 0.2, "misordered": 0.2, "text_outside": 0.2, "malformed_tag": 0.1},
)


def no_extra(name: str, values: Sequence) -> None:
    """The `log_extra` for a call without a log."""


def ask(fn: RewardFn, prompts: Sequence[str], completions: Sequence[str],
        columns: dict) -> tuple[np.ndarray, Counter[str]]:
    """The values of `fn`, float64 (B,), NaN for no signal, and the counts of its failures and faults by cause.

    A value that is not finite or beyond `LARGEST` is no signal. `fn` gets copies of its arguments, which it may change.
    Raises ValueError for anything but one value per completion.
    """
    failed, faulty = (Counter(getattr(fn, name, {})) for name in ("failures", "faults"))
    values = fn(prompts=list(prompts), completions=list(completions),
                **{name: copy(values) for name, values in columns.items()})
    if len(values) != len(completions):
        raise ValueError(f"{fn.__name__} gave {len(values)} values for {len(completions)} completions")
    raw_B = np.array([_float(value) for value in values])
    failures, faults = Counter(getattr(fn, "failures", {})) - failed, Counter(getattr(fn, "faults", {})) - faulty
    silent, large_B = sum(value is None for value in values), np.isfinite(raw_B) & (np.abs(raw_B) > LARGEST)
    not_finite = int((~np.isfinite(raw_B)).sum()) - silent
    raw_B[large_B | np.isinf(raw_B)] = np.nan
    # + drops causes with a count of 0
    return raw_B, failures + faults + Counter(
        none=silent - failures.total(), non_finite=not_finite, too_large=int(large_B.sum()))


def _float(value) -> float:
    try:
        return math.nan if value is None else float(value)
    except OverflowError:  # a whole number of more than 308 digits
        return math.inf


def tag_format(prompts: Sequence[str], completions: Sequence[str], **columns) -> list[float | None]:
    """0.0 for a completion in perfect format, else down to -1.0 by `PENALTIES`. More defects never score higher.

    Source: the format reward of DeepSeek-R1 (arXiv 2501.12948). Here it is a graded penalty, because a policy could
    collect a bonus without right answers.

    >>> right = TAGS.render(reasoning="2 + 2 = 4", answer="4")
    >>> tag_format(["2+2?"] * 2, [right, "<reasoning>2 + 2 = 4</reasoning>"])
    [0.0, -0.6]
    """
    return [0.0 - _penalty(TAGS.parse(completion).defects) for completion in completions]  # 0.0 for no defect, not -0.0


def _penalty(defects: Sequence[str]) -> float:
    return min(1.0, sum(max((row.get(defect, 0.0) for defect in defects), default=0.0) for row in PENALTIES))


def exact_answer(prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], kind: Sequence[str],
                 log_extra: LogExtra = no_extra, **columns) -> list[float | None]:
    """1.0 for a right answer, else 0.0, also for an answer that can't be read.

    The tags are read leniently, because `tag_format` punishes bad format. Columns: `answer` (the gold answers) and
    `kind` (of `answers.KINDS`). None, with the cause "unusable_gold", for an unknown kind and for a gold answer that is
    not of its kind. Source: the correctness reward of DeepSeek-R1 (arXiv 2501.12948), with typed answers.

    >>> exact_answer(["2+2?"] * 2, ["<answer>4</answer>", "It is 4."], answer=["4", "4"], kind=["number"] * 2)
    [1.0, 0.0]
    """
    verdicts = grade(completions, answer, kind)
    not_owed = sum(str(k) == NOT_OWED for k in kind)
    exact_answer.failures[NOT_OWED] += not_owed
    exact_answer.failures["unusable_gold"] += verdicts.count(None) - not_owed
    log_extra("answer_read", [verdict and verdict.extracted for verdict in verdicts])
    log_extra("answer_why", ["the gold answer can't be used" if verdict is None else verdict.why
                             for verdict in verdicts])
    return [None if verdict is None else float(verdict.correct) for verdict in verdicts]


exact_answer.failures = Counter()


def gate(fn: RewardFn, condition: RewardFn, at_least: float = 0.0) -> RewardFn:
    """`fn`, but at most 0.0 if `condition` is below `at_least`. Then a penalty stays and None becomes 0.0.

    The value is None if `condition` is None, or if `fn` has no value for any completion of the prompt, as for an open
    question. A value that is not finite counts as None. A judge's part stays one (`rowwise`).

    >>> paid = gate(exact_answer, tag_format)
    >>> replies = [TAGS.render(reasoning="2 + 2 = 4", answer="4"), "<answer>4</answer>"]
    >>> paid.__name__, paid(["2+2?"] * 2, replies, answer=["4", "4"], kind=["number"] * 2)
    ('exact_answer_if_tag_format', [1.0, 0.0])
    """

    def reward(prompts: Sequence[str], completions: Sequence[str], **columns) -> list[float | None]:
        values_B, keys_B = (ask(f, prompts, completions, columns)[0] for f in (fn, condition))
        capped_B = np.where(keys_B < at_least, np.minimum(np.nan_to_num(values_B), 0.0), values_B)
        heard = {prompt for prompt, value in zip(prompts, values_B, strict=True) if not math.isnan(value)}
        capped_B[np.isnan(keys_B) | [prompt not in heard for prompt in prompts]] = np.nan
        return [None if math.isnan(value) else value for value in capped_B.tolist()]

    reward.__name__ = f"{fn.__name__}_if_{condition.__name__}"
    reward.failures, reward.faults = (getattr(fn, name, Counter()) for name in ("failures", "faults"))
    reward.rowwise = getattr(fn, "rowwise", False)
    return reward

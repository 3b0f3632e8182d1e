"""Reward functions for GRPO: form, the exact answer, closeness, a rubric, and `gate`, which makes one of two.

A reward is a plain function `(prompts, completions, **columns) -> list[float | None]`, one value a
completion; None means "no signal" and is never a low score. A reward that takes `log_extra` may tell it what it
read, as in TRL: `log_extra(name, one value a completion)`. One that knows why a value is None counts it, by cause, in
its `failures`; why a value is low though nothing was scored, in its `faults`. Rewards that read the text alone are in
`recipes/rewards`; `mix.RewardMix` makes one of several.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from copy import copy

import numpy as np

from reasonkit.judge.judge import Judge, JudgeFailure, JudgeItem, JudgeVerdict
from reasonkit.judge.rubric import rubric_from_json
from reasonkit.rewards.work import missing_work
from reasonkit.text.answers import answer_of, grade, kind_of
from reasonkit.text.numbers import value_pairs
from reasonkit.text.tags import TAGS

RewardFn = Callable[..., list[float | None]]
LogExtra = Callable[[str, Sequence], None]
DECIMALS = 1  # of a judge's score: the finer ones are its noise, which a group's normalisation would blow up
LARGEST = 1e9  # of a value or a weight: the squares of their products are still float32, as the learner has them
# of each row only the worst defect counts: leaving the answer out is never better than starting it
PENALTIES = (
    {"missing_answer": 0.6, "empty_answer": 0.5, "unclosed_answer": 0.3, "duplicated_answer": 0.3},
    {"missing_reasoning": 0.4, "empty_reasoning": 0.3, "unclosed_reasoning": 0.2, "duplicated_reasoning": 0.2},
    {"nested": 0.2, "misordered": 0.2, "text_outside": 0.2, "malformed_tag": 0.1},
)


def no_extra(name: str, values: Sequence) -> None:
    """The `log_extra` of a reward that is called without a log."""


def ask(fn: RewardFn, prompts: Sequence[str], completions: Sequence[str],
        columns: dict) -> tuple[np.ndarray, Counter[str]]:
    """The values of `fn`, NaN for no signal, and how many of them there are by cause, those of its `faults` too.

    It is given copies: what it does to its arguments, no other part sees. A value that is not finite or beyond
    `LARGEST` is no signal. Raises ValueError for anything but one value a completion.
    """
    known = [Counter(getattr(fn, name, {})) for name in ("failures", "faults")]
    values = fn(prompts=list(prompts), completions=list(completions),
                **{name: copy(values) for name, values in columns.items()})
    if len(values) != len(completions):
        raise ValueError(f"{fn.__name__} gave {len(values)} values for {len(completions)} completions")
    raw_B = np.array([_float(value) for value in values])
    failures, faults = (Counter(getattr(fn, name, {})) - before
                        for name, before in zip(("failures", "faults"), known, strict=True))
    silent, large_B = sum(value is None for value in values), np.isfinite(raw_B) & (np.abs(raw_B) > LARGEST)
    not_finite = int((~np.isfinite(raw_B)).sum()) - silent
    raw_B[large_B | np.isinf(raw_B)] = np.nan
    # + drops the causes that did not occur
    return raw_B, failures + faults + Counter(
        none=silent - failures.total(), non_finite=not_finite, too_large=int(large_B.sum()))


def _float(value) -> float:
    try:
        return math.nan if value is None else float(value)
    except OverflowError:  # a whole number of more than 308 digits
        return math.inf


def tag_format(prompts: Sequence[str], completions: Sequence[str], **columns) -> list[float | None]:
    """0.0 for a reply in perfect form, else down to -1.0 by `PENALTIES`: good form pays nothing.

    More defects never score higher. Source: the format reward of DeepSeek-R1 (arXiv 2501.12948), graded, and
    turned into a penalty so that form can't be collected in place of a right answer.

    >>> right = TAGS.render(reasoning="2 + 2 = 4", answer="4")
    >>> tag_format(["2+2?"] * 2, [right, "<reasoning>2 + 2 = 4</reasoning>"])
    [0.0, -0.6]
    """
    return [_form(TAGS.parse(reply).defects) for reply in completions]


def _form(defects: Sequence[str]) -> float:
    worst = (max((row[defect] for defect in defects if defect in row), default=0.0) for row in PENALTIES)
    return 0.0 - min(1.0, sum(worst))


def exact_answer(prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], kind: Sequence[str],
                 log_extra: LogExtra = no_extra, **columns) -> list[float | None]:
    """1.0 where the answer is right, else 0.0; no readable answer is a wrong one.

    The tags are read leniently, as bad form is `tag_format`'s to punish. Columns: `answer` (the gold answers)
    and `kind` (of `answers.KINDS`). None, with the cause "unusable_gold", for a row whose kind is unknown or whose gold
    answer is not of its kind: notebook 1 leaves such rows out. Source: the correctness reward of DeepSeek-R1 (arXiv
    2501.12948), with typed answers.

    >>> exact_answer(["2+2?"] * 2, ["<answer>4</answer>", "It is 4."], answer=["4", "4"], kind=["number"] * 2)
    [1.0, 0.0]
    """
    verdicts = grade(completions, answer, kind)
    exact_answer.failures["unusable_gold"] += verdicts.count(None)
    log_extra("answer_read", [verdict and verdict.extracted for verdict in verdicts])
    log_extra("answer_why", ["the gold answer can't be used" if verdict is None else verdict.why
                             for verdict in verdicts])
    return [None if verdict is None else 1.0 if verdict.correct else 0.0 for verdict in verdicts]


exact_answer.failures = Counter()


def numeric_closeness(
    prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], kind: Sequence[str], **columns
) -> list[float | None]:
    """1 - |x - gold| / |gold| for an answer x, at least 0.0, and 1.0 wherever `exact_answer` is.

    Another unit than the gold answer's, and no readable number, are 0.0. None for a gold answer of another kind than
    "number": in a mix with few of those, raise `RewardMix`'s max_no_signal. Columns, and None with a cause, as in
    `exact_answer`. Source: the ratio steps of the answer reward in Tunix's GRPO demo, made continuous.

    >>> numeric_closeness(["2+2?"] * 2, ["<answer>4</answer>", "<answer>5</answer>"], ["4", "4"], ["number"] * 2)
    [1.0, 0.75]
    """
    return [_closeness(reply, gold) if str(k) == "number" else None
            for reply, gold, k in zip(completions, answer, kind, strict=True)]


def _closeness(reply: str, gold: str | None) -> float | None:
    (verdict,) = grade([reply], [gold], ["number"])
    if verdict is None:
        numeric_closeness.failures["unusable_gold"] += 1
    if verdict is None or verdict.correct or verdict.extracted is None:
        return None if verdict is None else float(verdict.correct)
    pairs = value_pairs(*map(kind_of("number").read, (answer_of(TAGS.parse(reply), gold, "number"), gold)))
    return max((float(max(0, 1 - abs(x - expected) / abs(expected))) for x, expected in pairs if expected), default=0.0)


numeric_closeness.failures = Counter()


def rubric(judge: Judge) -> RewardFn:
    """The judge's score in [0, 1] of each whole raw completion, to `DECIMALS`; None where the judge failed.

    Columns: `question`, and `rubric` as the JSON of `judge.rubric_to_json`. A reasoning that is no work
    (`work.missing_work`) is 0.0 and no question to a judge, who may forgive one criterion for another. Its `failures`
    are the judge's by cause, "out_of_range" for a score outside [0, 1], "no_verdict" for anything else than a verdict
    or a failure, and "unusable_rubric" for a row whose rubric can't be read. Its `faults` are "no_work", and the causes
    of verdicts that the reply itself prevented. Raises ValueError for a judge that does not answer one to one. Source:
    Rubrics as Rewards (arXiv 2507.17746).

    >>> from reasonkit.judge.rubric import Criterion, rubric_to_json
    >>> class Because:
    ...     def score(self, items): return [JudgeVerdict(float("because" in item.reply), ()) for item in items]
    >>> reward = rubric(Because())
    >>> rubrics = [rubric_to_json([Criterion("Reasons", "Gives a reason.", 1.0)])] * 3
    >>> replies = [f"<reasoning>{text}</reasoning>" for text in
    ...            ("wet, because rain fell all night", "wet, rain fell all night", "because")]
    >>> reward(["Why is it wet?"] * 3, replies, question=["Why is it wet?"] * 3, rubric=rubrics)
    [1.0, 0.0, 0.0]
    """

    if judge is None:
        raise ValueError("the rubric has no judge: give the recipe uses_judge=True")

    def reward(
        prompts: Sequence[str], completions: Sequence[str], question: Sequence[str], rubric: Sequence[str],
        log_extra: LogExtra = no_extra, **columns,
    ) -> list[float | None]:
        results = [_unjudged(*row) for row in zip(question, completions, rubric, strict=True)]
        items = [item for item in results if isinstance(item, JudgeItem)]
        told = judge.score(items) if items else []
        if len(told) != len(items):
            raise ValueError(f"the judge gave {len(told)} results for {len(items)} items, not one each")
        verdicts = map(_usable, told)
        results = [next(verdicts) if isinstance(result, JudgeItem) else result for result in results]
        reward.failures.update(result.cause for result in results if isinstance(result, JudgeFailure))
        reward.faults.update(result.cause for result in results if isinstance(result, JudgeVerdict) and result.cause)
        log_extra("rubric", [r.detail if isinstance(r, JudgeFailure) else r.cause or r.per_criterion for r in results])
        return [None if isinstance(result, JudgeFailure) else round(result.score, DECIMALS) for result in results]

    reward.__name__ = "rubric"
    reward.failures, reward.faults = Counter(), Counter()
    reward.rowwise = True
    return reward


def _unjudged(question: str, reply: str, rubric: str) -> JudgeItem | JudgeVerdict | JudgeFailure:
    """What there is to ask a judge, or why nothing is."""
    try:
        item = JudgeItem(str(question), reply, rubric_from_json(rubric))
    except ValueError as error:
        return JudgeFailure("unusable_rubric", str(error))
    if missing_work(item.question, TAGS.parse(reply)):
        return JudgeVerdict(0.0, (0.0,) * len(item.rubric), "no_work")
    return item


def _usable(result) -> JudgeVerdict | JudgeFailure:
    if not isinstance(result, JudgeVerdict):
        return result if isinstance(result, JudgeFailure) else JudgeFailure("no_verdict", f"{result!r:.80}")
    if isinstance(result.score, int | float | np.number) and 0.0 <= result.score <= 1.0:
        return result
    return JudgeFailure("out_of_range", f"a score of {result.score!r:.80}, expected a number in [0, 1]")


def gate(fn: RewardFn, condition: RewardFn, at_least: float = 0.0) -> RewardFn:
    """`fn`, without credit where `condition` is below `at_least`: what is above 0.0 there, or None, becomes 0.0.

    A penalty stays. Where `condition` itself is None, so is the value; not finite is None. Named "<fn>_if_<condition>".

    >>> paid = gate(exact_answer, tag_format)
    >>> replies = [TAGS.render(reasoning="2 + 2 = 4", answer="4"), "<answer>4</answer>"]
    >>> paid.__name__, paid(["2+2?"] * 2, replies, answer=["4", "4"], kind=["number"] * 2)
    ('exact_answer_if_tag_format', [1.0, 0.0])
    """

    def reward(prompts: Sequence[str], completions: Sequence[str], **columns) -> list[float | None]:
        values, keys = ([x if math.isfinite(x) else None for x in ask(f, prompts, completions, columns)[0].tolist()]
                        for f in (fn, condition))
        return [None if key is None else value if key >= at_least else min(value or 0.0, 0.0)
                for value, key in zip(values, keys, strict=True)]

    reward.__name__ = f"{fn.__name__}_if_{condition.__name__}"
    reward.failures, reward.faults = (getattr(fn, name, Counter()) for name in ("failures", "faults"))
    return reward

"""Reward functions for GRPO, and `compose`, which makes one of several.

A reward is a plain function `(prompts, completions, **columns) -> list[float | None]`, one value a
completion; None means "no signal" and is never a low score. A reward that takes `log_extra` may tell it what it
read, as in TRL: `log_extra(name, one value a completion)`. What it is not: a judge (`judge`) or an answer
checker (`answers`). Rewards that read the text alone are in `text_rewards`.

Departure from Tunix: it sums reward functions with `nansum`, so that a None becomes 0, which in a group of ones is a
punishment. `compose` puts the part's mean over the same group in its place, which carries no advantage.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from reasonkit.answers import KINDS, check
from reasonkit.groups import FLAT, check_groups, correlation, group_means
from reasonkit.judge import Judge, JudgeFailure, JudgeItem
from reasonkit.numerals import value_pairs
from reasonkit.replies import answer_of
from reasonkit.rubrics import rubric_from_json
from reasonkit.runlog import NullLog, RunLog
from reasonkit.tags import TAGS

RewardFn = Callable[..., list[float | None]]
Weight = float | Callable[[float], float]  # fixed, or a function of the run's progress in [0, 1]
LogExtra = Callable[[str, Sequence], None]
Asked = tuple[dict[str, tuple[np.ndarray, Counter[str]]], dict]  # part -> values and causes; what it read
DECIMALS = 1  # of a judge's score: the finer ones are its noise, which a group's normalisation would blow up
PROMPT_TAIL = 300  # characters of the sample's prompt that are logged
# of each row only the worst defect counts: leaving the answer out is never better than starting it
PENALTIES = (
    {"missing_answer": 0.6, "empty_answer": 0.5, "unclosed_answer": 0.3, "duplicated_answer": 0.3},
    {"missing_reasoning": 0.4, "empty_reasoning": 0.3, "unclosed_reasoning": 0.2, "duplicated_reasoning": 0.2},
    {"nested": 0.2, "misordered": 0.2, "text_outside": 0.2, "malformed_tag": 0.1},
)


def no_extra(name: str, values: Sequence) -> None:
    """The `log_extra` of a reward that is called without a log."""


class NoSignalError(RuntimeError):
    """A part of the reward gave no signal for more completions than `max_no_signal` allows."""


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
    and `kind` (of `answers.KINDS`). Raises ValueError for an unknown kind or a gold answer that is not of its
    kind. Source: the correctness reward of DeepSeek-R1 (arXiv 2501.12948), with typed answers.

    >>> exact_answer(["2+2?"] * 2, ["<answer>4</answer>", "It is 4."], answer=["4", "4"], kind=["number"] * 2)
    [1.0, 0.0]
    """
    verdicts = [check(answer_of(TAGS.parse(reply), str(gold), str(k)), str(gold), str(k))
                for reply, gold, k in zip(completions, answer, kind, strict=True)]
    log_extra("answer_read", [verdict.extracted for verdict in verdicts])
    log_extra("answer_why", [verdict.why for verdict in verdicts])
    return [1.0 if verdict.correct else 0.0 for verdict in verdicts]


def numeric_closeness(
    prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], kind: Sequence[str], **columns
) -> list[float | None]:
    """1 - |x - gold| / |gold| for an answer x, at least 0.0, and 1.0 wherever `exact_answer` is.

    Another unit than the gold answer's, and no readable number, are 0.0. None for a gold answer of another kind than
    "number": in a mix with few of those, raise `compose`'s max_no_signal. Columns and errors as in `exact_answer`.
    Source: the ratio steps of the answer reward in Tunix's GRPO demo, made continuous.

    >>> numeric_closeness(["2+2?"] * 2, ["<answer>4</answer>", "<answer>5</answer>"], ["4", "4"], ["number"] * 2)
    [1.0, 0.75]
    """
    return [_closeness(answer_of(TAGS.parse(reply), str(gold), "number"), str(gold)) if str(k) == "number" else None
            for reply, gold, k in zip(completions, answer, kind, strict=True)]


def _closeness(answer: str | None, gold: str) -> float:
    verdict = check(answer, gold, "number")
    if verdict.correct or verdict.extracted is None:
        return 1.0 if verdict.correct else 0.0
    pairs = value_pairs(*map(KINDS["number"].read, (answer, gold)))
    return max((float(max(0, 1 - abs(x - expected) / abs(expected))) for x, expected in pairs if expected), default=0.0)


def rubric(judge: Judge) -> RewardFn:
    """The judge's score in [0, 1] of each whole raw completion, to `DECIMALS`; None where the judge failed.

    Columns: `question`, and `rubric` as the JSON of `judge.rubric_to_json`. The function counts the judge's
    failures by cause in its `failures`. Raises ValueError for a rubric that can't be read, or a judge that
    does not answer one to one. Source: Rubrics as Rewards (arXiv 2507.17746).

    >>> from reasonkit.judge import DeterministicJudge
    >>> from reasonkit.rubrics import Criterion, rubric_to_json
    >>> reward = rubric(DeterministicJudge([lambda item: float("because" in item.reply)]))
    >>> rubrics = [rubric_to_json([Criterion("Reasons", "Gives a reason.", 1.0)])] * 2
    >>> reward(["Why?"] * 2, ["because it rains", "it rains"], question=["Why?"] * 2, rubric=rubrics)
    [1.0, 0.0]
    """

    def reward(
        prompts: Sequence[str], completions: Sequence[str], question: Sequence[str], rubric: Sequence[str],
        log_extra: LogExtra = no_extra, **columns,
    ) -> list[float | None]:
        items = [JudgeItem(str(q), reply, rubric_from_json(r))
                 for q, reply, r in zip(question, completions, rubric, strict=True)]
        results = judge.score(items)
        if len(results) != len(items):
            raise ValueError(f"the judge gave {len(results)} results for {len(items)} items, not one each")
        reward.failures.update(result.cause for result in results if isinstance(result, JudgeFailure))
        log_extra("rubric", [r.detail if isinstance(r, JudgeFailure) else r.per_criterion for r in results])
        return [None if isinstance(result, JudgeFailure) else round(result.score, DECIMALS) for result in results]

    reward.__name__ = "rubric"
    reward.failures = Counter()
    reward.rowwise = True
    return reward


def gate(fn: RewardFn, condition: RewardFn, at_least: float = 0.0) -> RewardFn:
    """`fn`, without credit where `condition` is below `at_least`: what is above 0.0 there, or None, becomes 0.0.

    A penalty stays. Where `condition` itself is None, so is the value; not finite is None. Named "<fn>_if_<condition>".

    >>> paid = gate(exact_answer, tag_format)
    >>> replies = [TAGS.render(reasoning="2 + 2 = 4", answer="4"), "<answer>4</answer>"]
    >>> paid.__name__, paid(["2+2?"] * 2, replies, answer=["4", "4"], kind=["number"] * 2)
    ('exact_answer_if_tag_format', [1.0, 0.0])
    """

    def reward(prompts: Sequence[str], completions: Sequence[str], **columns) -> list[float | None]:
        values, keys = ([x if math.isfinite(x) else None for x in _ask(f, prompts, completions, columns)[0].tolist()]
                        for f in (fn, condition))
        return [None if key is None else value if key >= at_least else min(value or 0.0, 0.0)
                for value, key in zip(values, keys, strict=True)]

    reward.__name__ = f"{fn.__name__}_if_{condition.__name__}"
    reward.failures = getattr(fn, "failures", Counter())
    return reward


def compose(
    parts: Sequence[tuple[RewardFn, Weight]], log: RunLog | NullLog, max_no_signal: float = 0.5, total_calls: int = 0
) -> RewardFn:
    """One reward for Tunix: the weighted sum of `parts`, given as (function, weight).

    A group is `num_generations` consecutive completions of one prompt. Where a part is None or not finite,
    the mean of that part over the rest of its group stands in; where a whole group has no signal, 0.0 does
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
    if not all(map(math.isfinite, constant)) or not (any(constant) or len(constant) < len(parts)):
        raise ValueError(f"the weights are {constant}; give finite ones, not all 0")
    if len(constant) < len(parts) and total_calls < 1:
        raise ValueError(f"total_calls is {total_calls}; a weight that follows progress needs the calls of the run")
    if not 0.0 <= max_no_signal <= 1.0:
        raise ValueError(f"max_no_signal is {max_no_signal}; give a share in [0, 1]")

    def asked(rowwise: bool, prompts: Sequence[str], completions: Sequence[str], columns: dict) -> Asked:
        extra = {}
        columns = columns | {"log_extra": lambda name, values: extra.update({name: values[0]})}
        return {name: _ask(fn, prompts, completions, columns) for name, (fn, _) in zip(names, parts, strict=True)
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
    if not math.isfinite(value):
        raise ValueError(f"the weight of {name} is {value} at progress {progress:.3f}; make it finite on [0, 1]")
    return value


def _ask(fn: RewardFn, prompts, completions, columns) -> tuple[np.ndarray, Counter[str]]:
    """The part's values, NaN or inf for no signal, and why there was none: cause -> completions."""
    before = Counter(getattr(fn, "failures", {}))
    values = fn(prompts=prompts, completions=completions, **columns)
    if len(values) != len(completions):
        raise ValueError(f"{fn.__name__} gave {len(values)} values for {len(completions)} completions")
    raw_B = np.array([np.nan if value is None else value for value in values], np.float64)
    causes = Counter(getattr(fn, "failures", {})) - before
    silent = sum(value is None for value in values)
    not_finite = int((~np.isfinite(raw_B)).sum()) - silent
    # + drops the causes that did not occur
    return raw_B, causes + Counter(none=silent - causes.total(), non_finite=not_finite)

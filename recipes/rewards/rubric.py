"""`rubric`: a judge's score as a reward. Completions that are cut off or show no work get 0.0, and it is not asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from reasonkit.judge.judge import Judge, JudgeFailure, JudgeItem, JudgeVerdict, Result
from reasonkit.judge.rubric import rubric_from_json
from reasonkit.rewards.rules import LogExtra, RewardFn, no_extra
from reasonkit.rewards.work import missing_work
from reasonkit.text.tags import TAGS

DECIMALS = 1  # of a judge's score: dividing by the group's std would amplify the noise of finer ones


def rubric(judge: Judge) -> RewardFn:
    """The judge's score in [0, 1] for each whole raw completion, rounded to `DECIMALS`, or None if the judge failed.

    Columns: `question`, and `rubric` as JSON (`judge.rubric.rubric_to_json`). The judge is not asked about a completion
    that was cut off or has no answer, because it may like the longest one best, nor about one whose reasoning shows no
    work (`work.missing_work`), because one criterion may make up for another. These score 0.0. `failures` are the
    judge's causes, "out_of_range" (a score outside [0, 1]), "no_verdict" (neither verdict nor failure) and
    "unusable_rubric". `faults` are "unfinished", "no_work" and the causes of verdicts that the completion prevented.
    Raises ValueError without a judge, and unless it gives one result per item. Source: Rubrics as Rewards (arXiv
    2507.17746).

    >>> from reasonkit.judge.rubric import Criterion, rubric_to_json
    >>> class Because:
    ...     def score(self, items): return [JudgeVerdict(float("because" in item.reply), ()) for item in items]
    >>> reward = rubric(Because())
    >>> rubrics = [rubric_to_json([Criterion("Reasons", "Gives a reason.", 1.0)])] * 3
    >>> replies = [TAGS.render(reasoning=text, answer="The rain.") for text in
    ...            ("wet, because rain fell all night", "wet, rain fell all night", "because")]
    >>> replies[1] = replies[0].removesuffix("</answer>")
    >>> reward(["Why is it wet?"] * 3, replies, question=["Why is it wet?"] * 3, rubric=rubrics)
    [1.0, 0.0, 0.0]
    """
    if judge is None:
        raise ValueError("the rubric has no judge: give the recipe uses_judge=True")

    def reward(prompts: Sequence[str], completions: Sequence[str], question: Sequence[str], rubric: Sequence[str],
               log_extra: LogExtra = no_extra, **columns) -> list[float | None]:
        results = [_judge_item(*row) for row in zip(question, completions, rubric, strict=True)]
        places = [n for n, item in enumerate(results) if isinstance(item, JudgeItem)]
        answers = judge.score([results[n] for n in places]) if places else []
        if len(answers) != len(places):
            raise ValueError(f"the judge gave {len(answers)} results for {len(places)} items, not one each")
        for n, answer in zip(places, answers, strict=True):
            results[n] = _check_score(answer)
        reward.failures.update(result.cause for result in results if isinstance(result, JudgeFailure))
        reward.faults.update(result.cause for result in results if isinstance(result, JudgeVerdict) and result.cause)
        log_extra("rubric", [r.detail if isinstance(r, JudgeFailure) else r.cause or r.per_criterion for r in results])
        return [None if isinstance(result, JudgeFailure) else round(result.score, DECIMALS) for result in results]

    reward.__name__ = "rubric"
    reward.failures, reward.faults = Counter(), Counter()
    reward.rowwise = True
    return reward


def _judge_item(question: str, reply: str, rubric: str) -> JudgeItem | Result:
    try:
        item = JudgeItem(str(question), reply, rubric_from_json(rubric))
    except ValueError as error:
        return JudgeFailure("unusable_rubric", str(error))
    parsed = TAGS.parse(reply)
    cause = "unfinished" if not parsed.is_finished else missing_work(item.question, parsed) and "no_work"
    return JudgeVerdict(0.0, (0.0,) * len(item.rubric), cause) if cause else item


def _check_score(result) -> Result:
    """`result`, or a failure if it is neither verdict nor failure, or has a score outside [0, 1]."""
    if not isinstance(result, JudgeVerdict):
        return result if isinstance(result, JudgeFailure) else JudgeFailure("no_verdict", f"{result!r:.80}")
    if isinstance(result.score, int | float | np.number) and 0.0 <= result.score <= 1.0:
        return result
    return JudgeFailure("out_of_range", f"a score of {result.score!r:.80}, expected a number in [0, 1]")

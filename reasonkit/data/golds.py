"""What a recipe's own rewards give to the gold completions, and whether enough rows have some: steps of notebook 1.

A gold completion is the reasoning and answer of a row in our format, which SFT imitates. If no part of the reward pays
for it, GRPO would unlearn it, so the row is left out. Parts that ask a judge don't count, because none is loaded yet.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from datasets import Dataset

from reasonkit.config import STAGES, Profile, Recipe
from reasonkit.data.filters import Ledger, Row
from reasonkit.data.rows import GRPO_COLUMNS, without_terse
from reasonkit.data.screening import MAX_LEFT_OUT, is_worked
from reasonkit.judge.judge import JudgeFailure, JudgeItem, Result
from reasonkit.rewards.mix import FLAT, RewardMix
from reasonkit.rewards.rules import RewardFn, ask, no_extra
from reasonkit.session.run_log import NullLog
from reasonkit.text.tags import TAGS

BATCH = 1024  # completions per call
TAIL = 80  # characters of a completion in the ledger


class Mark(NamedTuple):
    """What a part of the reward gives to the gold completions."""

    part: str
    weight: float
    scored: int  # how many have a value
    full: int  # how many have the best value that any of them has, or 0.0 if that is more
    lowest: float  # NaN without values
    example: str  # a completion with the lowest value


class _NoJudge:  # in place of the judge that is not loaded yet
    failures: Counter[str] = Counter()

    def score(self, items: Sequence[JudgeItem]) -> list[Result]:
        return [JudgeFailure("no_judge", "no judge is loaded in notebook 1")] * len(items)


def check_golds(recipe: Recipe, train: Dataset, ledger: Ledger) -> tuple[Dataset, list[Mark]]:
    """The training rows without those whose gold completion earns nothing, as a step of the ledger, and the marks.

    A part of the reward pays if it has a weight and some gold completion earns something from it. A control that does
    not look at the row (`spurious`) does not count. A row goes if no part that pays gives it anything. All rows stay if
    a judge may pay, or if more than `MAX_LEFT_OUT` of them would go, because then the reward is at fault, and a note
    says so. Rows without a gold completion stay. Raises ValueError for parts that can't be mixed, and naming the recipe
    or the part that fails.
    """
    try:
        parts = recipe.rewards(_NoJudge() if recipe.asks else None, train["question"])
    except Exception as error:  # whatever a recipe of one's own may raise
        raise ValueError(f"the rewards of recipe {recipe.name!r} can't be made: {type(error).__name__}: "
                         f"{error}") from error
    if not parts:
        return train, []
    mix = RewardMix(parts, NullLog())  # refuses parts that can't be mixed
    rows = list(train)
    golds = [row for row in rows if is_worked(row)]
    replies = [TAGS.render(reasoning=row["reasoning"], answer=row["answer"]) for row in golds]
    earned = {name: np.sign(mix.weights[name] or 1.0) * _values(recipe, name, fn, golds, replies)
              for name, fn in mix.functions.items()}
    paying = [name for name, earned_N in earned.items() if mix.weights[name] and np.nanmax(earned_N, initial=0.0) > 0
              and not getattr(mix.functions[name], "spurious", False)]
    judged = any(mix.weights[name] and getattr(fn, "rowwise", False) for name, fn in mix.functions.items())
    best_N = np.fmax.reduce([np.full(len(golds), np.nan), *(earned[name] for name in paying)])
    refused = {golds[n]["id"]: replies[n] for n in np.flatnonzero(best_N <= 0) if not judged}
    if len(refused) > MAX_LEFT_OUT * len(golds):
        ledger.notes.append(f"{', '.join(paying)} in recipe {recipe.name!r} gives nothing for {len(refused):,} of "
                            f"{len(golds):,} gold completions. So the reward is at fault, and no row was left out")
        refused = {}
    elif not paying and golds and not recipe.asks:
        ledger.notes.append(f"no part of the reward of recipe {recipe.name!r} pays for any of {len(golds):,} gold "
                            "completions, and it has no judge: it can't teach right answers")
    left = ledger.keep("gold completions", rows, lambda number, row: (
        (f"nothing from {', '.join(paying)}", refused[row["id"]][-TAIL:]) if row["id"] in refused else None))
    marks = [_mark(name, mix.weights[name], earned_N, replies) for name, earned_N in earned.items()]
    return Dataset.from_list(left) if refused else train, marks


def check_worked(recipe: Recipe, profile: Profile, splits: Mapping[str, Dataset]) -> None:
    """Raises ValueError if SFT has less than one batch of worked rows, the judge's exam has none, or a later stage has
    less than one batch of rows. They would say so only after the models are loaded."""
    train = without_terse(splits["train"]) if profile.sft.skip_terse else splits["train"]
    for name, rows, count, needed, what in (
            ("train", train, profile.sft.batch_size, "sft" in recipe.shares, "SFT"),
            ("validation", splits["validation"], 1, recipe.uses_judge and "grpo" in recipe.shares, "the judge's exam")):
        if needed and (worked := sum(map(is_worked, rows))) < count:
            raise ValueError(f"{worked} of {len(splits[name])} rows of {name!r} have a worked solution, and "
                             f"{what} needs {count}: take data with reasoning, let notebook 1b write it, or let the "
                             "mix use sources whose licence is not open (`other_licences = true`)")
    for setting in ("grpo_prompts_per_step", "distill_batch_size"):
        stage, _, name = setting.partition("_")
        count, rows = getattr(getattr(profile, stage), name), len(splits["train"])
        if stage in recipe.shares and rows < count:
            raise ValueError(f"'train' has {rows} rows, and a step of {STAGES[stage].title} takes {count}: add "
                             f"questions, or set {setting} to at most {rows} in SETTINGS")


def _values(recipe: Recipe, name: str, fn: RewardFn, golds: list[Row], replies: list[str]) -> np.ndarray:
    """The part's values, (N,), NaN for no signal and if the part asks the judge."""
    values_N = np.full(len(golds), np.nan)
    for start in range(0, 0 if getattr(fn, "rowwise", False) else len(golds), BATCH):
        batch = slice(start, start + BATCH)
        columns = {column: np.array([row[column] for row in golds[batch]]) for column in GRPO_COLUMNS}
        prompts = [TAGS.prompt(row["question"]) for row in golds[batch]]
        try:
            values_N[batch], _ = ask(fn, prompts, replies[batch], columns | {
                "num_generations": 1, "mode": "eval", "log_extra": no_extra})
        except Exception as error:  # whatever a reward of one's own may raise
            raise ValueError(f"the part {name!r} of the reward of recipe {recipe.name!r} fails on gold completions, "
                             f"with {type(error).__name__}: {error}") from error
    return values_N


def _mark(name: str, weight: float, earned_N: np.ndarray, replies: list[str]) -> Mark:
    if np.isnan(earned_N).all():
        return Mark(name, weight, 0, 0, math.nan, "")
    full = int((earned_N > np.nanmax(earned_N, initial=0.0) - FLAT).sum())
    worst, scored = int(np.nanargmin(earned_N)), int((~np.isnan(earned_N)).sum())
    return Mark(name, weight, scored, full, float(earned_N[worst] * np.sign(weight or 1.0)), replies[worst])

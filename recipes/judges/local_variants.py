"""Two other ways to ask a local judge: one rating for the whole rubric, and every prompt in both orders.

A recipe chooses them by its field `judge`, such as `judge=variant("explicit", both_orders=True)`.
Sources: implicit aggregation of Rubrics as Rewards (arXiv 2507.17746), here from 1 to 5, because 10 is two tokens.
Judges prefer certain places in a list of levels or criteria (arXiv 2602.02219). Asking in both orders averages it out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from reasonkit.config import Profile
from reasonkit.judge.judge import (
    RATINGS,
    SCALE,
    JudgeItem,
    JudgeVerdict,
    LocalJudge,
    is_chat,
    judge_prompt,
    judge_turn,
    one_line,
    weighted_score,
)
from reasonkit.judge.rubric import Criterion
from reasonkit.models.load import LoadedModel
from reasonkit.models.logprobs import rating_logprobs


def overall_prompt(question: str, reply: str, rubric: Sequence[Criterion], reverse: bool = False,
                   chat: bool = False) -> str:
    """The implicit prompt: one rating for all criteria together, each listed with its weight.

    With `reverse`, criteria, levels and scale are in the opposite order.
    """
    lines = [f"- {one_line(c, reverse)} (weight {c.weight:g})" for c in rubric[::-1 if reverse else 1]]
    return judge_turn(question, reply, f"all criteria together, by their weights, {SCALE[reverse]}",
                      "\n".join(["Criteria:", *lines]), chat)


class LocalVariant(LocalJudge):
    """A `LocalJudge` with mode "explicit" (one prompt per criterion) or "implicit" (one prompt, whose rating is the
    score). `both_orders` asks each prompt a second time in the opposite order and takes the mean, for twice the work.

    Raises ValueError for an unknown mode.
    """

    def __init__(self, rating_logprobs: Callable[[list[str]], np.ndarray], name: str, chat: bool = False, *,
                 mode: str = "implicit", both_orders: bool = False) -> None:
        if mode not in ("explicit", "implicit"):
            raise ValueError(f"mode is {mode!r}; give 'explicit' or 'implicit'")
        super().__init__(rating_logprobs, name, chat)
        self.mode, self.both_orders = mode, both_orders

    def prompts(self, item: JudgeItem) -> list[str]:
        """In the usual order, then in the opposite one."""
        orders = (False, True) if self.both_orders else (False,)
        if self.mode == "implicit":
            return [overall_prompt(item.question, item.reply, item.rubric, back, self.chat) for back in orders]
        return [judge_prompt(item.question, item.reply, c, back, self.chat) for back in orders for c in item.rubric]

    def verdict(self, item: JudgeItem, met_P: np.ndarray) -> JudgeVerdict:
        """The mean over the orders, then weighted. An implicit rating is the score."""
        met_C = met_P.reshape(1 + self.both_orders, -1).mean(axis=0)
        return weighted_score(met_C, item.rubric[:len(met_C)])


def variant(mode: str = "implicit", both_orders: bool = False) -> Callable[..., LocalVariant]:
    """A value for a recipe's `judge`. It makes a `LocalVariant` of the profile's judge model."""

    def make(judge_model: LoadedModel, mesh: Mesh, profile: Profile, folder: Path) -> LocalVariant:
        rate = rating_logprobs(judge_model, mesh, RATINGS, max_length=profile.judge_max_length,
                               batch_size=profile.judge_batch)
        return LocalVariant(rate, judge_model.name, is_chat(judge_model.name), mode=mode, both_orders=both_orders)

    return make

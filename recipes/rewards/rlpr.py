"""`rlpr`: how much the reasoning raises the policy's own probability of the reference answer. No judge is needed.

Source: RLPR (arXiv 2506.18254). In place of its filter by deviation the reward is rounded, as a judge's score is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from reasonkit.config import Profile
from reasonkit.data.screening import POSED
from reasonkit.models.load import LoadedModel
from reasonkit.models.logprobs import next_logprobs, prefill, split_tokens
from reasonkit.rewards.rules import NOT_OWED, RewardFn
from reasonkit.session.manifest import code_sha256
from reasonkit.text.tags import TAGS, neutralise
from recipes.rewards.rubric import DECIMALS


def mean_probability(loaded: LoadedModel, mesh: Mesh, max_length: int,
                     batch_size: int) -> Callable[[Sequence[str], Sequence[str]], np.ndarray]:
    """(contexts, targets) -> float32 (texts,): the mean probability of the target's tokens after its context.

    Context and target are tokenised as one text, and the target begins with the first token that differs from those of
    the context. The stop token counts, because otherwise the beginning of a longer answer would be as good as the
    answer. NaN if the whole is longer than `max_length` tokens. Raises ValueError as `prefill`. Source: RLPR.
    """

    ask = prefill(loaded, mesh, read_probability, 1, max_length, batch_size)

    def score(contexts: Sequence[str], targets: Sequence[str]) -> np.ndarray:
        texts = [split_tokens(loaded.tokenizer, *pair) for pair in zip(contexts, targets, strict=True)]
        return ask([(same, [*tail, loaded.tokenizer.end_of_turn]) for same, tail in texts])[:, 0]

    return score


def read_probability(model: nnx.Module, inputs: tuple, piece_BT: jax.Array) -> jax.Array:
    """What `prefill` reads: the mean probability of the tokens of the second piece, (B, 1)."""
    hidden_BTD, _ = model(*inputs, hidden=True)
    logps_BT, _ = next_logprobs(model, hidden_BTD[:, :-1], inputs[0][:, 1:])
    return jnp.mean(jnp.exp(logps_BT), axis=-1, where=piece_BT[:, 1:] == 1)[:, None]


class PolicyItself:
    """What a recipe's `judge` makes for `rlpr`: the policy under the weights of the moment, which reads its completions
    again. Raises ValueError as `prefill`."""

    of_policy = True  # `Recipe.judge` gets the policy, and no judge model is loaded
    identity = f"the policy itself {code_sha256([mean_probability, read_probability])[:12]}"

    def __init__(self, policy: LoadedModel, mesh: Mesh, profile: Profile, folder: Path) -> None:
        self.probability = mean_probability(policy, mesh, profile.judge_max_length, profile.judge_batch)
        self.failures: Counter[str] = Counter()


def rlpr(policy: PolicyItself) -> RewardFn:
    """How much the reasoning raises the policy's probability of the reference answer: clip(p - p0, 0, 1), rounded to
    `DECIMALS`.

    p is the mean probability of the tokens of the reference answer, its closing tag and the stop token, after prompt
    and reasoning. p0 is the same after the prompt only. Both are under the current weights. 0.0 without reasoning. None
    for a row without a reference, also one whose answer is the problem (`POSED`), and, with the cause "too_long", if
    prompt, reasoning and answer are longer than the policy reads. Columns: `answer` and `kind`. Source: RLPR's debiased
    reward.
    """

    def reward(prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], kind: Sequence[str],
               **columns) -> list[float | None]:
        pairs = []  # (context, target) with the reasoning and without it
        references = ["" if k in POSED else neutralise(str(gold)).strip() for gold, k in zip(answer, kind, strict=True)]
        for prompt, reply, gold in zip(prompts, completions, references, strict=True):
            text = TAGS.parse(reply).reasoning  # it can't end the turn, because it is neutralised
            before = "" if text is None else f"{TAGS.reasoning_start}{neutralise(text)}{TAGS.reasoning_end}\n"
            pairs.append([(f"{prompt}{said}{TAGS.answer_start}", f"{gold}{TAGS.answer_end}") for said in (before, "")])
        asked = list(dict.fromkeys(pair for both, gold in zip(pairs, references, strict=True) if gold for pair in both))
        contexts, targets = ([pair[side] for pair in asked] for side in (0, 1))
        p = dict(zip(asked, policy.probability(contexts, targets), strict=True))
        gains = [math.nan if not gold else 0.0 if with_it == without else float(p[with_it] - p[without])
                 for (with_it, without), gold in zip(pairs, references, strict=True)]
        too_long = int(np.isnan(gains).sum()) - references.count("")
        policy.failures["too_long"] += too_long
        reward.failures.update({NOT_OWED: references.count(""), "too_long": too_long})
        return [None if math.isnan(gain) else round(min(1.0, max(0.0, gain)), DECIMALS) for gain in gains]

    reward.__name__ = "rlpr"
    reward.failures = Counter()
    reward.rowwise = True  # like a judge's part, it can't be asked before the models are loaded
    return reward

"""Rewards from forward passes of a model: RLPR, and our own reward model, which scores the flow of the reasoning.

Entry points: `rlpr`, and `trace_features`, `train_teacher`, `ThoughtJudge`. A text that is too long for the model is
never cut. Sources: RLPR (arXiv 2506.18254), without its filter by deviation, because groups with equal rewards have no
advantage anyway. ThoughtTeacher is an idea of the Gemma2-Deep entry.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from safetensors import safe_open
from safetensors.numpy import save_file
from scipy.optimize import minimize
from scipy.special import expit

from reasonkit.judge.judge import BLINDED, JudgeFailure, JudgeItem, JudgeVerdict, Result
from reasonkit.models.load import LoadedModel, Tokenizer
from reasonkit.models.logprobs import next_logprobs, prefill
from reasonkit.rewards.rules import RewardFn
from reasonkit.session.files import replace_file
from reasonkit.text.tags import TAGS, neutralise

LOWEST = 4  # log-probabilities that a head reads
FLATTEN = 1e-3  # the weight of |w|^2 / 2 against the mean loss, for features of unit variance


def mean_probability(loaded: LoadedModel, mesh: Mesh, max_length: int,
                     batch_size: int) -> Callable[[Sequence[str], Sequence[str]], np.ndarray]:
    """(contexts, targets) -> float32 (texts,): the mean probability of the target's tokens after its context.

    Context and target are tokenised as one text, and the target begins with the first token that differs from those of
    the context. The stop token counts, because otherwise the beginning of a longer answer would be as good as the
    answer. NaN if the whole is longer than `max_length` tokens. Raises ValueError as `prefill`. Source: RLPR.
    """

    def read(model: nnx.Module, inputs: tuple, piece_BT: jax.Array) -> jax.Array:
        logits_BTV = model(*inputs)[0][:, :-1].astype(jnp.float32)
        picked_BT = jnp.take_along_axis(logits_BTV, inputs[0][:, 1:, None], axis=-1)[..., 0]
        p_BT = jnp.exp(picked_BT - jax.nn.logsumexp(logits_BTV, axis=-1))
        return jnp.mean(p_BT, axis=-1, where=piece_BT[:, 1:] == 1)[:, None]

    ask = prefill(loaded, mesh, read, 1, max_length, batch_size)

    def score(contexts: Sequence[str], targets: Sequence[str]) -> np.ndarray:
        texts = [_joined(loaded.tokenizer, *pair) for pair in zip(contexts, targets, strict=True)]
        return ask([(same, [*tail, loaded.tokenizer.end_of_turn]) for same, tail in texts])[:, 0]

    return score


def _joined(tokenizer: Tokenizer, context: str, target: str) -> tuple[list[int], list[int]]:
    """The tokens of BOS, context and target as one text, split before the first token that the target changed."""
    alone, ids = tokenizer.encode(context), tokenizer.encode(context + target)
    same = len(commonprefix([alone, ids]))
    return [tokenizer.bos_id(), *ids[:same]], ids[same:]


def rlpr(policy: LoadedModel, mesh: Mesh, max_length: int, batch_size: int) -> RewardFn:
    """How much the reasoning raises the policy's probability of the reference answer: clip(p - p0, 0, 1).

    p is the mean probability of the reference answer's tokens after prompt and reasoning, and p0 the same after the
    prompt only, both under the current weights. 0.0 without reasoning. None if prompt, reasoning and answer are
    longer than `max_length` tokens. Columns: `answer`. Raises ValueError as `prefill`. Source: RLPR's debiased reward.
    """
    probability = mean_probability(policy, mesh, max_length, batch_size)

    def reward(prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str],
               **columns) -> list[float | None]:
        pairs = []  # (context, target) with the reasoning and without it
        for prompt, reply, gold in zip(prompts, completions, answer, strict=True):
            text = TAGS.parse(reply).reasoning  # it can't end the turn, because it is neutralised
            before = "" if text is None else f"{TAGS.reasoning_start}{neutralise(text)}{TAGS.reasoning_end}\n"
            pairs.append([(f"{prompt}{said}{TAGS.answer_start}", f"{gold}{TAGS.answer_end}") for said in (before, "")])
        asked = list(dict.fromkeys(pair for both in pairs for pair in both))
        contexts, targets = ([pair[side] for pair in asked] for side in (0, 1))
        p = dict(zip(asked, probability(contexts, targets), strict=True))
        gains = [0.0 if with_it == without else float(p[with_it] - p[without]) for with_it, without in pairs]
        return [None if np.isnan(gain) else min(1.0, max(0.0, gain)) for gain in gains]

    reward.__name__ = "rlpr"
    return reward


def trace_features(frozen: LoadedModel, mesh: Mesh, max_length: int,
                   batch_size: int) -> Callable[[Sequence[str], Sequence[str]], np.ndarray]:
    """(questions, reasonings) -> float32 (texts, 2 D + 1 + LOWEST): what the model makes of the reasoning's tokens.

    The mean of the states that its logits are made of, that of the last token, the mean of the tokens'
    log-probabilities, and the LOWEST lowest of these, 0.0 where there are fewer tokens. A slip is one unlikely token,
    which a mean hides. The reasoning is read after the prompt of its question, as the policy writes it. NaN if the two
    are longer than `max_length` tokens. Raises ValueError as `prefill`, and if the model has an adapter.
    """
    if jax.tree.leaves(nnx.state(frozen.model, nnx.LoRAParam)):
        raise ValueError(f"{frozen.name} has an adapter, and training would change its features: load the base "
                         "model without one")

    def read(model: nnx.Module, inputs: tuple, piece_BT: jax.Array) -> jax.Array:
        hidden_BTD, _ = model(*inputs, hidden=True)
        logps_BT, _ = next_logprobs(model, hidden_BTD[:, :-1], inputs[0][:, 1:])
        its_BT, hidden_BTD = piece_BT[:, 1:] == 1, hidden_BTD[:, 1:].astype(jnp.float32)
        mean_BD = jnp.mean(hidden_BTD, axis=1, where=its_BT[..., None])
        mean_B1 = jnp.mean(logps_BT, axis=1, where=its_BT, keepdims=True)
        lowest_BN = jnp.sort(jnp.where(its_BT, logps_BT, 0.0), axis=1)[:, :LOWEST]
        return jnp.concatenate([mean_BD, hidden_BTD[:, -1], mean_B1, lowest_BN], axis=1)  # rows are left-padded

    ask = prefill(frozen, mesh, read, 2 * frozen.config.embed_dim + 1 + LOWEST, max_length, batch_size)

    def features(questions: Sequence[str], reasonings: Sequence[str]) -> np.ndarray:
        return ask([_joined(frozen.tokenizer, f"{TAGS.prompt(neutralise(question))}{TAGS.reasoning_start}",
                            neutralise(reasoning)) for question, reasoning in zip(questions, reasonings, strict=True)])

    return features


@dataclass(frozen=True)
class ThoughtTeacher:
    """A trained head on `trace_features` of the model named `model`: P(good) = sigmoid(features . weights_D + bias).

    `fault` says why the head must not be used, if there is a reason.
    """

    model: str
    weights_D: np.ndarray
    bias: float
    fault: str = ""

    def score(self, features_ND: np.ndarray) -> np.ndarray:
        """Scores in [0, 1], float64 (N,). NaN stays NaN. Raises ValueError for features of another width."""
        if features_ND.shape[1:] != self.weights_D.shape:
            raise ValueError(f"features of shape {features_ND.shape} for a head of {self.weights_D.shape[0]} weights, "
                             f"trained on {self.model}: use the model that it was trained on")
        return expit(features_ND.astype(np.float64) @ self.weights_D + self.bias)

    def save(self, path: Path | str) -> None:
        """Write it to `path` as safetensors, whole or not at all."""
        arrays = {"weights_D": self.weights_D, "bias": np.array([self.bias])}
        with replace_file(path) as temporary:
            save_file(arrays, temporary, metadata={"model": self.model, "fault": self.fault})

    @classmethod
    def load(cls, path: Path | str) -> ThoughtTeacher:
        """Read it back. Raises FileNotFoundError if there is no file."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"no reward model at {path}: train one in notebook 02c, or put it there")
        with safe_open(path, "numpy") as file:
            return cls(file.metadata()["model"], file.get_tensor("weights_D"), float(file.get_tensor("bias")[0]),
                       file.metadata().get("fault", ""))


def train_teacher(model: str, features_ND: np.ndarray, good_N: np.ndarray) -> ThoughtTeacher:
    """Logistic regression with a ridge (`FLATTEN`) on `trace_features` of good and bad traces, by SciPy's L-BFGS.

    Rows with NaN (too long) are left out. Raises ValueError if the rest are not of both kinds.

    >>> features = np.array([[0.0, 5.0], [1.0, 5.0], [9.0, 5.0], [10.0, 5.0]])
    >>> teacher = train_teacher("toy", features, np.array([False, False, True, True]))
    >>> (teacher.score(features) > 0.5).tolist()
    [False, False, True, True]
    """
    kept_N = np.isfinite(features_ND).all(axis=1)
    x_ND, y_N = features_ND[kept_N].astype(np.float64), np.asarray(good_N, np.float64)[kept_N]
    if not 0 < y_N.sum() < len(y_N):
        raise ValueError(f"{int(y_N.sum())} good traces of {len(y_N)} that fit: give some of both kinds")
    mean_D = x_ND.mean(axis=0)
    scale_D = np.maximum(x_ND.std(axis=0), 1e-6)
    z_ND = (x_ND - mean_D) / scale_D

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        logit_N = z_ND @ w[:-1] + w[-1]
        slope_N = (expit(logit_N) - y_N) / len(y_N)
        value = np.mean(np.logaddexp(0.0, logit_N) - y_N * logit_N) + FLATTEN / 2 * w[:-1] @ w[:-1]
        return float(value), np.append(slope_N @ z_ND + FLATTEN * w[:-1], slope_N.sum())

    fit = minimize(loss, np.zeros(z_ND.shape[1] + 1), jac=True, method="L-BFGS-B")
    weights_D = fit.x[:-1] / scale_D
    return ThoughtTeacher(model, weights_D, float(fit.x[-1] - mean_D @ weights_D))


class ThoughtJudge:
    """A `ThoughtTeacher` as a judge. It scores a completion by its reasoning, whatever the rubric.

    Without reasoning it is 0.0, and for reasoning that is too long it is 0.0 with the cause "reply_too_long". A teacher
    with a `fault` gives no verdict. Raises ValueError if it was trained on another model, and as `trace_features`.
    """

    def __init__(self, teacher: ThoughtTeacher, frozen: LoadedModel, mesh: Mesh, max_length: int,
                 batch_size: int) -> None:
        if teacher.model != frozen.name:
            raise ValueError(f"the reward model was trained on {teacher.model}, but the model is {frozen.name}: "
                             f"load {teacher.model}")
        self.teacher, self.failures = teacher, Counter()
        self._features = trace_features(frozen, mesh, max_length, batch_size)
        digest = hashlib.sha256(np.append(teacher.weights_D, teacher.bias).tobytes()).hexdigest()
        self.identity = f"thought teacher {digest[:12]} on {teacher.model}"

    def score(self, items: Sequence[JudgeItem]) -> list[Result]:
        if self.teacher.fault:
            self.failures["unfit"] += len(items)
            return [JudgeFailure("unfit", self.teacher.fault)] * len(items)
        reasonings = [TAGS.parse(item.reply).reasoning for item in items]
        asked = [(item.question, text) for item, text in zip(items, reasonings, strict=True) if text]
        scores = iter(self.teacher.score(self._features(*zip(*asked, strict=True))) if asked else ())
        found = [float(next(scores)) if text else 0.0 for text in reasonings]
        too_long = JudgeVerdict(0.0, (0.0,), BLINDED["prompt_too_long"])
        return [too_long if np.isnan(score) else JudgeVerdict(score, (score,)) for score in found]

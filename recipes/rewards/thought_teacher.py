"""`ThoughtJudge`: our own reward model, a linear head that scores the flow of the reasoning.

`trace_features` are what a frozen model makes of it, and `train_teacher` fits the head. Reasoning that is too long for
the model is never cut. Source: the idea of the Gemma2-Deep entry's ThoughtTeacher.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from reasonkit.models.load import LoadedModel
from reasonkit.models.logprobs import next_logprobs, prefill, split_tokens
from reasonkit.session.files import replace_file
from reasonkit.text.tags import TAGS, neutralise

LOWEST = 4  # log-probabilities that a head reads
FLATTEN = 1e-3  # the weight of |w|^2 / 2 against the mean loss, for features of unit variance


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

    ask = prefill(frozen, mesh, read_features, 2 * frozen.config.embed_dim + 1 + LOWEST, max_length, batch_size)

    def features(questions: Sequence[str], reasonings: Sequence[str]) -> np.ndarray:
        return ask([split_tokens(frozen.tokenizer, f"{TAGS.prompt(neutralise(question))}{TAGS.reasoning_start}",
                            neutralise(reasoning)) for question, reasoning in zip(questions, reasonings, strict=True)])

    return features


def read_features(model: nnx.Module, inputs: tuple, piece_BT: jax.Array) -> jax.Array:
    """What `prefill` reads: the features of the second piece, (B, 2 D + 1 + LOWEST)."""
    hidden_BTD, _ = model(*inputs, hidden=True)
    logps_BT, _ = next_logprobs(model, hidden_BTD[:, :-1], inputs[0][:, 1:])
    its_BT, hidden_BTD = piece_BT[:, 1:] == 1, hidden_BTD[:, 1:].astype(jnp.float32)
    mean_BD = jnp.mean(hidden_BTD, axis=1, where=its_BT[..., None])
    mean_B1 = jnp.mean(logps_BT, axis=1, where=its_BT, keepdims=True)
    lowest_BN = jnp.sort(jnp.where(its_BT, logps_BT, 0.0), axis=1)[:, :LOWEST]
    return jnp.concatenate([mean_BD, hidden_BTD[:, -1], mean_B1, lowest_BN], axis=1)  # rows are left-padded


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

"""Scores one greedy reply a problem, says how sure the scores are, and compares two results.

A reply is *correct* when its answer, read leniently, is right: a right answer behind a bad tag still counts
here, and the form is reported apart, as the format rate. Rates carry Wilson intervals, means bootstrap ones.

It is not a benchmark harness (no few-shot prompts, no data sets) and it does not sample: `generate` does, and
decides how. Sources: Wilson, JASA 22 (1927); pass@k, arXiv 2107.03374; BCa bootstrap, Efron, JASA 82 (1987);
exact McNemar as the binomial test on discordant pairs. Departure: step accuracy is ours, and programmatic.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from reasonkit.answers import check
from reasonkit.budget import write_atomic
from reasonkit.replies import answer_of
from reasonkit.tags import TAGS

SAMPLE_KEYS = ("id", "family", "kind", "question", "gold", "completion", "answer",
               "format_ok", "correct", "steps", "failures")
_FIELDS = ("correct", "format_ok", "steps")
_RESAMPLES = 9999


class Interval(NamedTuple):
    """A mean in [0, 1] and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


class Difference(NamedTuple):
    """The mean change between two results, in [-1, 1], its interval, two-sided p-value and problem count."""

    mean: float
    low: float
    high: float
    p_value: float
    n: int

    def __str__(self) -> str:
        return (f"{100 * self.mean:+.1f} points [{100 * self.low:+.1f}, {100 * self.high:+.1f}], "
                f"p = {self.p_value:.2g}, n = {self.n}")


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval (low, high) of a rate. ValueError for numbers that make no rate or level."""
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of n={n}: need n > 0 and 0 <= successes <= n")
    interval = stats.binomtest(successes, n).proportion_ci(_level(level), method="wilson")
    return float(interval.low), float(interval.high)


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that one of k samples is right, unbiased, from c right ones of n: 1 - C(n-c, k) / C(n, k).

    ValueError unless 0 <= c <= n and 1 <= k <= n. Source: arXiv 2107.03374, section 2.1.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass_at_k(n={n}, c={c}, k={k}): need 0 <= c <= n and 1 <= k <= n")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def step_accuracy(reasoning: str | None, reference: str) -> float:
    """The share of steps, parted by ';', that equal the reference's step at the same place.

    The longer of the two counts, so missing and surplus steps cost alike. Case and the width of white space
    don't matter. No reasoning is 0.0. ValueError if the reference has no step.

    >>> step_accuracy("2 + 3 = 5; 5 * 4 = 21", "2 + 3 = 5; 5 * 4 = 20")
    0.5
    """
    expected = _steps(reference)
    if not expected:
        raise ValueError(f"the reference reasoning {reference!r} has no step: write steps parted by ';'")
    found = _steps(reasoning or "")
    return sum(a == b for a, b in zip(found, expected, strict=False)) / max(len(found), len(expected))


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """Every scored reply, in order, as dicts with `SAMPLE_KEYS`; all figures are computed from them.

    `answer` is the lenient reading (or None), `steps` the step accuracy in [0, 1], `failures` the names of
    all that went wrong: the defects of form, "wrong answer" or "no answer", and "runaway" (cut off inside a
    tag: an answer never closed, or a reasoning never closed and no answer). ValueError without samples.
    """

    samples: list[dict[str, Any]] = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        if not self.samples:
            raise ValueError("no samples: a result needs at least one scored problem")

    def __str__(self) -> str:
        return (f"n = {self.n} · accuracy {self.accuracy} · format {self.format_rate} "
                f"· step accuracy {self.step_accuracy}")

    @property
    def n(self) -> int:
        return len(self.samples)

    @property
    def accuracy(self) -> Interval:
        """The share of problems with a right answer, whatever the reply's form; Wilson interval."""
        return self._rate("correct")

    @property
    def format_rate(self) -> Interval:
        """The share of replies of strictly the asked form, whatever they answer; Wilson interval."""
        return self._rate("format_ok")

    @property
    def step_accuracy(self) -> Interval:
        """The mean of `steps`; seeded bootstrap interval."""
        return Interval(*_bootstrap(np.array([sample["steps"] for sample in self.samples]), 0.95, seed=0))

    @property
    def failures(self) -> dict[str, int]:
        """How many replies show each kind of failure, most frequent first; one reply may show several."""
        counts = Counter(kind for sample in self.samples for kind in set(sample["failures"]))
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def by_family(self) -> dict[str, EvalResult]:
        """One result a family, by name."""
        names = sorted({sample["family"] for sample in self.samples})
        return {name: EvalResult([s for s in self.samples if s["family"] == name]) for name in names}

    def to_json(self, path: str | Path) -> Path:
        """Writes all samples, atomically; `from_json` gives an equal result back."""
        # ASCII escapes keep any str, lone surrogates included
        write_atomic(Path(path), json.dumps({"n": self.n, "samples": self.samples}, indent=1))
        return Path(path)

    @classmethod
    def from_json(cls, path: str | Path) -> EvalResult:
        """Reads what `to_json` wrote. ValueError, naming the file, if it holds anything else."""
        try:
            samples = json.loads(Path(path).read_text(encoding="utf-8"))["samples"]
            missing = {key for sample in samples for key in SAMPLE_KEYS if key not in sample}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no evaluation result ({error!r}): evaluate again") from error
        if missing or not samples:
            raise ValueError(f"{path} lacks {sorted(missing) or 'samples'}: evaluate again")
        return cls(samples)

    def _rate(self, name: str) -> Interval:
        successes = sum(sample[name] for sample in self.samples)
        return Interval(successes / self.n, *wilson(successes, self.n))


def evaluate(
    generate: Callable[[list[str]], list[str]], problems: Iterable[Any], batch_size: int,
    on_batch: Callable[[EvalResult], None] = lambda so_far: None,
) -> EvalResult:
    """Asks every problem once, through `TAGS.prompt`, and scores the replies.

    `problems` are objects or mappings (rows of a `datasets.Dataset` will do) with id, family, kind, question,
    answer and reasoning. `generate` gets `batch_size` prompts, the last time maybe fewer, and returns as many
    replies, greedy ones for a result that can be repeated. `on_batch` gets what is scored so far. ValueError:
    no problems, a field that is missing or blank, an id that comes twice, a batch size below 1, another
    number of replies than prompts.
    """
    rows = [_row(problem) for problem in problems]
    if not rows:
        raise ValueError("no problems to evaluate: the data set is empty; check the split and its size")
    twice = [name for name, count in Counter(row["id"] for row in rows).items() if count > 1]
    if twice:
        raise ValueError(f"{len(twice)} problem ids come twice, {twice[0]!r} first: results are paired by id")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    samples = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start:start + batch_size]
        replies = generate([TAGS.prompt(row["question"]) for row in batch])
        if len(replies) != len(batch):
            raise ValueError(f"generate returned {len(replies)} replies to {len(batch)} prompts, "
                             f"from problem {start}: it must return one each")
        samples += [_score(row, reply) for row, reply in zip(batch, replies, strict=True)]
        on_batch(EvalResult(samples))
    return EvalResult(samples)


def paired(
    a: EvalResult, b: EvalResult, field: str = "correct", level: float = 0.95, seed: int = 0
) -> Difference:
    """The change from `a` to `b` on the same problems, b - a: positive when b is the better one.

    The interval is a paired bootstrap (BCa; just the point where all differences are equal). The p-value is
    the exact McNemar test for `correct` and `format_ok`, a sign-flip permutation test for `steps`. ValueError
    for another field, and for results on other problems (ids, questions or gold answers; any order will do).
    """
    if field not in _FIELDS:
        raise ValueError(f"field {field!r} is not one of {_FIELDS}")
    first, second = ({s["id"]: s for s in result.samples} for result in (a, b))
    other = [key for key in first.keys() | second.keys()
             if key not in first or key not in second
             or any(first[key][name] != second[key][name] for name in ("question", "gold"))]
    if other:
        raise ValueError(f"the results are on other problems: {len(other)} of them differ, such as id "
                         f"{min(other)!r}; evaluate both on one test set")
    change = np.array([float(second[key][field]) - float(first[key][field]) for key in first])
    if field == "steps":
        p_value = _sign_flip(change, seed)
    else:
        gained, lost = int((change > 0).sum()), int((change < 0).sum())
        p_value = float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return Difference(*_bootstrap(change, level, seed), p_value, len(change))


def _row(problem: Any) -> dict[str, str]:
    get = problem.__getitem__ if isinstance(problem, Mapping) else lambda name: getattr(problem, name)
    try:
        row = {name: get(name) for name in ("id", "family", "kind", "question", "answer", "reasoning")}
    except (KeyError, AttributeError) as error:
        raise ValueError(f"a problem lacks a field ({error}): {problem!r:.200}") from error
    for name in row:
        if not isinstance(row[name], str) or not row[name].strip():
            raise ValueError(f"problem {row['id']!r}: {name} is {row[name]!r}, must be a str, not blank")
    return row


def _score(row: dict[str, str], reply: str) -> dict[str, Any]:
    parsed = TAGS.parse(reply)
    answer = answer_of(parsed, row["answer"], row["kind"])
    correct = check(answer, row["answer"], row["kind"]).correct
    failures = list(parsed.defects)
    if not correct:
        failures.append("no answer" if answer is None else "wrong answer")
    if "unclosed_answer" in failures or ("unclosed_reasoning" in failures and answer is None):
        failures.append("runaway")
    return {"id": row["id"], "family": row["family"], "kind": row["kind"], "question": row["question"],
            "gold": row["answer"], "completion": reply, "answer": answer, "format_ok": bool(parsed.ok),
            "correct": bool(correct), "steps": step_accuracy(parsed.reasoning, row["reasoning"]),
            "failures": failures}


def _steps(text: str) -> list[str]:
    return [step for part in text.casefold().split(";") if (step := " ".join(part.split()))]


def _level(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level={level}: must lie between 0 and 1, such as 0.95")
    return level


def _bootstrap(values: np.ndarray, level: float, seed: int) -> tuple[float, float, float]:
    mean, level = float(values.mean()), _level(level)
    if np.ptp(values) == 0:
        return mean, mean, mean  # BCa is undefined; every resample, so every percentile, is this one value
    found = stats.bootstrap((values,), np.mean, n_resamples=_RESAMPLES, confidence_level=level, method="BCa",
                            batch=_batch(values), rng=np.random.default_rng(seed))
    return mean, float(found.confidence_interval.low), float(found.confidence_interval.high)


def _sign_flip(change: np.ndarray, seed: int) -> float:
    """Two-sided p-value of a mean of zero when each difference is as likely as its negative."""
    if len(change) < 2:
        return 1.0  # one pair, whichever sign it has, is no evidence
    test = stats.permutation_test((change,), np.mean, permutation_type="samples", n_resamples=_RESAMPLES,
                                  batch=_batch(change), rng=np.random.default_rng(seed))
    return float(test.pvalue)


def _batch(values: np.ndarray) -> int:
    """Resamples drawn at once: about 16 MB of them, however many values there are."""
    return max(1, 2_000_000 // len(values))

"""Scores one greedy reply a problem, says how sure the scores are, and compares two results.

A reply is *correct* when the answer in its tag, read leniently, is right, and right *by content* when that is so or,
without an answer tag, what it says last is right: how a stock model is scored that was never shown the tags. The form
is reported apart, as the format rate. `intervals` says how sure a figure is; `generate` decides how replies are made.
Sources: pass@k, arXiv 2107.03374. Departure: step accuracy is ours, and programmatic.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from reasonkit.eval import intervals
from reasonkit.session.files import RecordError, preview, read, write_atomic
from reasonkit.session.records import Results
from reasonkit.text.answers import COMPLETION_SECONDS, answer_of, check, time_limit
from reasonkit.text.tags import STOP_MARKERS, TAGS

SAMPLE_KEYS = ("id", "family", "kind", "question", "gold", "completion", "answer",
               "format_ok", "correct", "content", "steps", "failures")
_FIELDS = ("correct", "content", "format_ok", "steps")
_TAG = re.compile(rf"<\s*+(/?+)\s*+(?:{TAGS.reasoning}|{TAGS.answer})\s*+>", re.IGNORECASE)
_NUMBER = re.compile(r"-?[0-9][0-9,]*+(?:[./][0-9]++)?")


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
        p_value = "p < 0.001" if self.p_value < 0.001 else f"p = {self.p_value:.2g}"
        return f"{100 * self.mean:+.1f} points [{100 * self.low:+.1f}, {100 * self.high:+.1f}], {p_value}, n = {self.n}"


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

    `answer` is the lenient reading (or None), `content` whether the reply is right with or without tags, `steps` the
    step accuracy in [0, 1], `failures` the names of all that went wrong: the defects of form, "wrong answer" or "no
    answer", and "runaway" (cut off inside a tag: an answer never closed, or a reasoning never closed and no answer).
    `left_out` problems could not be asked or scored, and count nowhere. ValueError without samples.
    """

    samples: list[dict[str, Any]] = dataclasses.field(repr=False)
    left_out: int = 0

    def __post_init__(self) -> None:
        if not self.samples:
            raise ValueError("no samples: a result needs at least one scored problem")

    def __str__(self) -> str:
        return (f"n = {self.n} · accuracy {self.accuracy} · by content {self.content_accuracy} "
                f"· format {self.format_rate} · step accuracy {self.step_accuracy}")

    @property
    def n(self) -> int:
        return len(self.samples)

    @property
    def accuracy(self) -> Interval:
        """The share of problems with a right answer in an answer tag, whatever else is wrong with the form."""
        return self._mean("correct")

    @property
    def content_accuracy(self) -> Interval:
        """The share of problems with a right answer, in a tag or, in a reply without one, as what it says last."""
        return self._mean("content")

    @property
    def format_rate(self) -> Interval:
        """The share of replies of strictly the asked form, whatever they answer."""
        return self._mean("format_ok")

    @property
    def step_accuracy(self) -> Interval:
        """The mean of `steps`."""
        return self._mean("steps")

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
        write_atomic(Path(path), json.dumps({"n": self.n, "left_out": self.left_out, "samples": self.samples},
                                            indent=1))
        return Path(path)

    @classmethod
    def from_json(cls, path: str | Path) -> EvalResult:
        """Reads what `to_json` wrote. ValueError, naming file, key and value, if it holds anything else."""
        found = read(Path(path), Results, "evaluate again")
        samples = [sample.model_dump() for sample in found.samples]
        if len({sample["id"] for sample in samples}) < len(samples) or found.n not in (None, len(samples)):
            raise RecordError(f"{path} has {len(samples)} samples, some with one id or not {found.n}: evaluate again")
        for sample in samples:
            if sample["content"] is None:  # an older file has what it is made of
                sample["content"] = _content(sample["completion"], sample["gold"], sample["kind"])
        return cls(samples, found.left_out)

    def _mean(self, name: str) -> Interval:
        values = [float(sample[name]) for sample in self.samples]
        return Interval(math.fsum(values) / self.n, *intervals.interval(values, 0.0, 1.0))


def evaluate(
    generate: Callable[[list[str]], list[str]], problems: Iterable[Any], batch_size: int,
    on_batch: Callable[[EvalResult], None] = lambda so_far: None,
) -> EvalResult:
    """Asks every problem once, through `TAGS.prompt`, and scores the replies.

    `problems` are objects or mappings (rows of a `datasets.Dataset` will do) with id, family, kind, question,
    answer and reasoning. `generate` gets `batch_size` prompts, the last time maybe fewer, and returns as many
    replies, greedy ones for a result that can be repeated. `on_batch` gets what is scored so far. A problem with a
    field that is missing or blank, or a gold answer that can't be read, is left out, counted and told. ValueError:
    no problem that can be scored, an id that comes twice, a batch size below 1, another number of replies than prompts.
    """
    rows, faults = [], []
    for number, problem in enumerate(problems, 1):
        try:
            rows.append(_row(problem))
        except ValueError as error:
            faults.append(f"row {number}: {error}")
    if not rows:
        raise ValueError(faults[0] if faults else
                         "no problems to evaluate: the data set is empty; check the split and its size")
    if faults:
        print(f"{len(faults)} of {len(rows) + len(faults)} problems can't be scored and are left out. The first, "
              f"{faults[0]}")
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
    return EvalResult(samples, len(faults))


def compare_paired(a: EvalResult, b: EvalResult, field: str = "correct", level: float = 0.95) -> Difference:
    """The change from `a` to `b` on the same problems, b - a: positive when b is the better one.

    Interval and p-value are `intervals`', of the changes of the single problems, and of one mind: p is below 1 - level
    exactly when zero lies outside. ValueError for another field, and for results on other problems (ids, questions or
    gold answers; any order will do).
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
    change = [float(second[key][field]) - float(first[key][field]) for key in first]
    return Difference(math.fsum(change) / len(change), *intervals.interval(change, -1.0, 1.0, level),
                      intervals.p_value(change, -1.0, 1.0), len(change))


def _row(problem: Any) -> dict[str, str]:
    get = problem.__getitem__ if isinstance(problem, Mapping) else lambda name: getattr(problem, name)
    try:
        row = {name: get(name) for name in ("id", "family", "kind", "question", "answer", "reasoning")}
    except (KeyError, AttributeError) as error:
        raise ValueError(f"a problem lacks a field ({error}): {preview(problem, 200)}") from error
    for name in row:
        if not isinstance(row[name], str) or not (_steps(row[name]) if name == "reasoning" else row[name].strip()):
            raise ValueError(f"problem {preview(row['id'])}: {name} is {preview(row[name])}, must be a str, not blank")
    check(None, row["answer"], row["kind"])  # refuses a gold answer that it can't read, and an unknown kind
    return row


@time_limit(COMPLETION_SECONDS)
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
            "correct": bool(correct), "content": _content(reply, row["answer"], row["kind"]),
            "steps": step_accuracy(parsed.reasoning, row["reasoning"]), "failures": failures}


def _content(reply: str, gold: str, kind: str) -> bool:
    """Whether the answer is right, in its tag or, where no tag holds one, as the text after the last tag: the whole
    of it, its last line or, as lm-evaluation-harness's "flexible-extract", its last number. Cut-off reasoning has none.
    """
    found = answer_of(TAGS.parse(reply), gold, kind)
    if found is not None:
        return check(found, gold, kind).correct
    *_, last = None, *_TAG.finditer(reply)
    if last and not last[1]:
        return False
    text = reply[last.end():] if last else reply
    for marker in STOP_MARKERS:
        text = text.replace(marker, "")
    lines = [line for line in text.splitlines() if line.strip()]
    numbers = _NUMBER.findall(text) if kind == "number" else []
    return any(check(words, gold, kind).correct for words in (text, *lines[-1:], *numbers[-1:]))


def _steps(text: str) -> list[str]:
    return [step for part in text.casefold().split(";") if (step := " ".join(part.split()))]

"""Scores one greedy completion per problem, says how certain the scores are, and compares two results.

Entry points: `evaluate`, `compare_paired`, `EvalResult`. The statistics are in `intervals`. A completion is *correct*
if the answer in its tag is right. *By content* it is right if what it says last is, in a tag or without one. Step
accuracy is our own measure, computed by a program.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from reasonkit.eval import intervals
from reasonkit.session.files import preview, write_atomic
from reasonkit.text.answers import COMPLETION_SECONDS, answer_of, check, time_limit
from reasonkit.text.tags import STOP_MARKERS, TAGS

_FIELDS = ("correct", "content", "format_ok", "steps")
_NUMBER = re.compile(r"(?:(?<![0-9])-)?[0-9][0-9,]*+(?:[./][0-9]++)?")
_APART = re.compile(r"(?:(?:[-+/^<>{\u2212\u00d7\u00f7]|(?<!\*)\*)\s*|[0-9]:)\Z")  # before a part of something else
_BULLET = re.compile(r"^\s*[-*\u2022]\s+")
_MARKED = re.compile(r"\$([^$\n]++)\$|\\\(([^\n]+?)\\\)|\*\*([^*\n]++)\*\*")  # a formula, or bold words
_READ = ("number", "yes_no", "quantity", "expression", "date")  # as a text, a list or an option any words can be read
_UNSURE = re.compile(r"\b(?:not|cannot|never|neither|nor|no|or|whether|if|unclear|false)\b|n't\b", re.IGNORECASE)


class Interval(NamedTuple):
    """A mean in [0, 1] and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


class Difference(NamedTuple):
    """The mean change between two results, in [-1, 1], with its interval, two-sided p-value and number of problems."""

    mean: float
    low: float
    high: float
    p_value: float
    n: int

    def __str__(self) -> str:
        p_value = "p < 0.001" if self.p_value < 0.001 else f"p = {self.p_value:.2g}"
        return f"{100 * self.mean:+.1f} points [{100 * self.low:+.1f}, {100 * self.high:+.1f}], {p_value}, n = {self.n}"


def step_accuracy(reasoning: str | None, reference: str) -> float:
    """The share of steps, separated by ';', that equal the reference's step at the same place.

    It is a share of the longer of the two, so missing and surplus steps cost the same. Case and the amount of white
    space are ignored. Without reasoning it is 0.0. Raises ValueError if the reference has no steps.

    >>> step_accuracy("2 + 3 = 5; 5 * 4 = 21", "2 + 3 = 5; 5 * 4 = 20")
    0.5
    """
    expected = _steps(reference)
    if not expected:
        raise ValueError(f"the reference reasoning {reference!r} has no step: separate its steps with ';'")
    found = _steps(reasoning or "")
    return sum(a == b for a, b in zip(found, expected, strict=False)) / max(len(found), len(expected))


def _mean(name: str, doc: str) -> property:
    """The mean of a field of the samples, as an `Interval`."""
    return property(lambda result: mean_of([float(s[name]) for s in result.samples if s[name] is not None]), doc=doc)


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """Every scored completion, in order, as a dict. All figures come from these.

    In a sample, `answer` is the lenient reading or None, `content` says whether the completion is right with or without
    tags, and `steps` is its step accuracy, None if the worked solution has fewer than two steps. `failures` lists its
    format defects, "wrong answer" or "no answer", and "runaway" if it was cut off in its answer, or in its reasoning
    before any answer. `left_out` counts the problems that could not be scored. Raises ValueError without samples.
    """

    samples: list[dict[str, Any]] = dataclasses.field(repr=False)
    left_out: int = 0

    def __post_init__(self) -> None:
        if not self.samples:
            raise ValueError("no samples: a result needs at least one scored problem")

    def __str__(self) -> str:
        n = f", n = {self.steps_n}" * (self.steps_n < self.n)
        steps = f" · step accuracy {self.step_accuracy}{n}" if self.has_steps else ""
        return (f"n = {self.n} · accuracy {self.accuracy} · content accuracy {self.content_accuracy} "
                f"· format {self.format_rate}{steps}")

    @property
    def n(self) -> int:
        return len(self.samples)

    accuracy = _mean("correct", "The share of problems with a right answer in an answer tag, whatever the format.")
    content_accuracy = _mean("content", "The share of problems that are right by what the completion says last, in a "
                                        "tag or without one.")
    format_rate = _mean("format_ok", "The share of completions in exactly the requested format, whatever they answer.")
    step_accuracy = _mean("steps", "The mean of `steps`, over `steps_n` problems.")

    @property
    def steps_n(self) -> int:
        """How many problems have a step accuracy."""
        return sum(sample["steps"] is not None for sample in self.samples)

    @property
    def has_steps(self) -> bool:
        """Whether most problems have a step accuracy. If not, its mean says little and is not shown."""
        return 2 * self.steps_n > self.n

    @property
    def failures(self) -> dict[str, int]:
        """How many completions show each kind of failure, most frequent first. One may show several."""
        counts = Counter(kind for sample in self.samples for kind in set(sample["failures"]))
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def by_family(self) -> dict[str, EvalResult]:
        """One result per family, by name."""
        names = sorted({sample["family"] for sample in self.samples})
        return {name: EvalResult([s for s in self.samples if s["family"] == name]) for name in names}

    def to_json(self, path: Path) -> Path:
        """Writes all samples, atomically. `from_json` reads them back."""
        found = {"n": self.n, "left_out": self.left_out, "samples": self.samples}
        write_atomic(path, json.dumps(found, indent=1))  # its ASCII escapes keep lone surrogates, too
        return path

    @classmethod
    def from_json(cls, path: Path) -> EvalResult:
        """Reads what `to_json` wrote."""
        found = json.loads(path.read_text(encoding="utf-8"))
        return cls(found["samples"], found["left_out"])


def mean_of(values: Sequence[float]) -> Interval:
    """The mean of values in [0, 1]. Without values, 0 with the widest interval."""
    if not values:
        return Interval(0.0, 0.0, 1.0)
    return Interval(math.fsum(values) / len(values), *intervals.interval(values, 0.0, 1.0))


def difference_of(changes: Sequence[float]) -> Difference:
    """The mean of changes in [-1, 1], one per problem. Without changes, 0 with the widest interval."""
    if not changes:
        return Difference(0.0, -1.0, 1.0, 1.0, 0)
    return Difference(math.fsum(changes) / len(changes), *intervals.interval(changes, -1.0, 1.0),
                      intervals.p_value(changes, -1.0, 1.0), len(changes))


def evaluate(generate: Callable[[list[str]], list[str]], problems: Iterable[Any], batch_size: int) -> EvalResult:
    """Ask every problem once, through `TAGS.prompt`, and score the completions.

    `problems` are objects or mappings, such as rows of a `datasets.Dataset`, with id, family, kind, question, answer
    and reasoning. `generate` gets up to `batch_size` prompts and returns as many completions. The result is
    repeatable only if they are greedy. Problems with a missing or blank field or an unreadable gold answer are left out
    and counted, and a line is printed. Raises ValueError if no problem can be scored, for a repeated id, for a batch
    size below 1, and if there are not as many completions as prompts.
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
    if twice := [name for name, count in Counter(row["id"] for row in rows).items() if count > 1]:
        raise ValueError(f"{len(twice)} problem ids occur twice, such as {twice[0]!r}: give each problem its own id")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    samples = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start:start + batch_size]
        completions = generate([TAGS.prompt(row["question"]) for row in batch])
        if len(completions) != len(batch):
            raise ValueError(f"generate returned {len(completions)} completions to {len(batch)} prompts, "
                             f"from problem {start}: it must return one each")
        samples += [_score(row, completion) for row, completion in zip(batch, completions, strict=True)]
    return EvalResult(samples, len(faults))


def compare_paired(a: EvalResult, b: EvalResult, field: str = "correct") -> Difference:
    """The change from `a` to `b` on the same problems, b - a. It is positive if b is better.

    The interval and the p-value of `intervals` are computed from the changes per problem. They agree: p is below 0.05
    exactly when the interval excludes zero. The order of the problems does not matter. Raises ValueError for an unknown
    field, and if ids, questions or gold answers differ.
    """
    if field not in _FIELDS:
        raise ValueError(f"field {field!r} is not one of {_FIELDS}")
    first, second = ({(s["id"], s["question"], s["gold"]): s[field] for s in result.samples} for result in (a, b))
    if other := {key for key, *_ in first.keys() ^ second.keys()}:
        raise ValueError(f"the results are on different problems: {len(other)} of them differ, such as id "
                         f"{min(other)!r}; evaluate both on one test set")
    return difference_of([float(second[asked]) - float(value) for asked, value in first.items() if value is not None])


def _row(problem: Any) -> dict[str, str]:
    try:
        row = {name: problem[name] if isinstance(problem, Mapping) else getattr(problem, name)
               for name in ("id", "family", "kind", "question", "answer", "reasoning")}
    except (KeyError, AttributeError) as error:
        raise ValueError(f"a problem lacks a field ({error}): {preview(problem, 200)}") from error
    for name in row:
        if not isinstance(row[name], str) or not (name == "reasoning" or row[name].strip()):
            raise ValueError(f"problem {preview(row['id'])}: {name} is {preview(row[name])}, must be a str, not blank")
    check(None, row["answer"], row["kind"])  # refuses a gold answer that it can't read, and an unknown kind
    return row


@time_limit(COMPLETION_SECONDS)
def _score(row: dict[str, str], completion: str) -> dict[str, Any]:
    parsed = TAGS.parse(completion)
    answer = answer_of(parsed, row["answer"], row["kind"])
    correct = check(answer, row["answer"], row["kind"]).correct
    failures = list(parsed.defects)
    if not correct:
        failures.append("no answer" if answer is None else "wrong answer")
    if "unclosed_answer" in failures or ("unclosed_reasoning" in failures and answer is None):
        failures.append("runaway")
    return {"id": row["id"], "family": row["family"], "kind": row["kind"], "question": row["question"],
            "gold": row["answer"], "completion": completion, "answer": answer, "format_ok": bool(parsed.ok),
            "correct": bool(correct),
            "content": bool(correct) or _content(completion, answer, row["answer"], row["kind"]),
            # prose is one step, which no other wording equals
            "steps": step_accuracy(parsed.reasoning, row["reasoning"]) if len(_steps(row["reasoning"])) > 1 else None,
            "failures": failures}


def _content(completion: str, answer: str | None, gold: str, kind: str) -> bool:
    """Whether what a completion says last is right, like lm-evaluation-harness's "flexible-extract". It reads the text
    of the answer tag or, without one, the text after the last tag, in the same way. So writing the tags changes
    nothing. The whole text counts, or else the first reading that makes an answer: the last line, what stands there
    after a colon or "is", its last formula or bold words, and the last number. Reasoning that was cut off has none."""
    *_, last = None, *TAGS.tag.finditer(completion)
    if answer is None and last and not last["slash"]:
        return False
    text = answer if answer is not None else completion[last.end():] if last else completion
    for marker in STOP_MARKERS:
        text = text.replace(marker, "")
    lines = [_BULLET.sub("", line) for line in text.splitlines() if line.strip()] or [""]
    if len(lines) > 1 and check(text, gold, kind).correct:
        return True
    said = [line := lines[-1]]
    places = [line.rpartition(mark)[::2] for mark in (": ", " is ", " are ") if mark in line]
    places += [(line[:match.start()], next(filter(None, match.groups()))) for match in [*_MARKED.finditer(line)][-1:]]
    said += [words.rstrip(" .") for before, words in places if not _UNSURE.search(before.rpartition(",")[2])]
    if kind == "number":
        said += [match[0] for match in [*_NUMBER.finditer(text)][-1:] if not _APART.search(text[:match.start()])]
    for words in dict.fromkeys(said):
        found = check(words, gold, kind)
        decided = kind in _READ or kind == "choice" and re.fullmatch("[A-J](?:;.*)?", found.extracted or "")
        if found.correct or found.extracted is not None and decided:
            return found.correct
    return False


def _steps(text: str) -> list[str]:
    return [step for part in text.casefold().split(";") if (step := " ".join(part.split()))]

"""Teacher data: asks a stronger model, or the policy itself, for worked solutions, and records all of it.

Entry points: `api_teacher`, `local_teacher`, `collect`. `traces` says what is kept. A run log records everything that
was asked, answered and paid, so no answer is paid twice. A teacher may be told the answer: STaR (arXiv 2203.14465).
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import jax
from jax.sharding import Mesh

from reasonkit.config import Recipe
from reasonkit.data.readers import MAX_CHARACTERS
from reasonkit.data.screening import OPEN, POSED
from reasonkit.judge.judge import Judge
from reasonkit.models.load import LoadedModel
from reasonkit.session.run_log import RunLog
from reasonkit.session.time_budget import TimeBudget
from reasonkit.text.tags import TAGS, neutralise, printable
from reasonkit.train.loop import out_of_memory
from reasonkit.train.rollout import generator
from recipes.judges.api_calls import ApiCalls, ApiLimits
from recipes.judges.api_client import CallError, Service, service_from_secrets
from recipes.judges.api_judge import ApiJudge
from recipes.stages.traces import Sample, examine, score

START, END = "<start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n"
TOLD = "The right answer is {}. Write the reasoning that leads to it, as if nobody had told you."
STYLES = {
    "tags": "",  # only our prompt
    "scaffold": "Reason in five steps, each on a line that begins with its name and a colon. Identify: what is asked. "
                "Determine: what is known. Explore: the ways to solve it. Act: solve it. Evaluate: check the result.",
    "steps": "Think step by step.",  # for a small model that knows no tags: its last line is taken as the answer
}
QUIET = 60.0  # seconds between two lines about the progress
HOUR = 60.0  # minutes
FINAL = {"auth", "spending_limit", "memory"}  # causes after which nothing more is asked


@dataclass(frozen=True)
class Teacher:
    """Who answers. `ask(requests, seed, on_text)` gives a text or an error for each, and calls `on_text(number, text)`
    as soon as there is one. It takes `batch()` requests at once, each of which must pass `fits`. endpoint: the host,
    or "local". spent: dollars so far."""

    name: str
    endpoint: str
    sampling: Mapping[str, Any]
    batch: Callable[[], int]
    ask: Callable[[list[str], int, Callable[[int, str], None]], list[str | CallError]] = field(repr=False)
    fits: Callable[[str], bool] = lambda request: True
    spent: Callable[[], float] = lambda: 0.0

    @property
    def provenance(self) -> dict[str, Any]:
        """Everything that a completion depends on besides its prompt."""
        return {"teacher": self.name, "endpoint": self.endpoint, "sampling": dict(self.sampling)}


def api_teacher(service: Service, limits: ApiLimits, log: RunLog) -> Teacher:
    """A model behind an API. What `log` says was paid counts towards the limit. Raises ValueError as `ApiCalls`."""
    calls = ApiCalls(service, limits, log)

    def ask(requests: list[str], seed: int, on_text: Callable[[int, str], None]) -> list[str | CallError]:
        return calls.ask([(request, None) for request in requests], calls.deadline(), [], on_text)

    sampling = {"temperature": service.temperature, "max_tokens": service.max_tokens}
    return Teacher(service.name, urlsplit(service.endpoint).netloc, sampling, lambda: 4 * limits.concurrency,
                   ask, spent=lambda: calls.spent)


def teacher_from_secrets(dollars: float, price: tuple[float, float] | None, log: RunLog) -> Teacher:
    """The API whose key is among the secrets. See `api_client.service_from_secrets`. `price`: dollars per million
    tokens in and out, for a model without a known price. Raises ValueError without a key, and as `api_teacher`."""
    service = _service("teacher", max_tokens=8192, temperature=1.0)
    limits = ApiLimits(dollars, {service.name: price} if price else {}, call_seconds=180, batch_seconds=900)
    return api_teacher(service, limits, log)


def judge_from_secrets(dollars: float, price: tuple[float, float] | None, log: RunLog) -> ApiJudge:
    """A judge behind the same API, with the limit and the price of `teacher_from_secrets`."""
    service = _service("judge", max_tokens=4096)
    return ApiJudge(service, ApiLimits(dollars, {service.name: price} if price else {}), log=log)


def _service(role: str, **options) -> Service:
    if service := service_from_secrets(**options):
        return service
    raise ValueError(f"no {role}: set the secret GEMINI_API_KEY or GOOGLE_API_KEY, or OPENAI_API_KEY with "
                     f"OPENAI_MODEL and OPENAI_BASE_URL, or take a local {role}")


def local_teacher(model: LoadedModel, mesh: Mesh, *, max_prompt_length: int, max_new_tokens: int,
                  batch_size: int) -> Teacher:
    """A Gemma on the mesh, which costs nothing. It takes `batch_size` requests at once. If the chips run out of memory,
    it takes half as many, for good, because each size compiles anew. When not even one per part of the mesh fits, it
    gives errors, whose cause "memory" ends `collect`."""

    def of_size(rows: int) -> Callable[..., list[str]]:
        return generator(model.model, model.tokenizer, mesh, max_prompt_length=max_prompt_length,
                         max_new_tokens=max_new_tokens, batch_size=rows, temperature=1.0)

    rows, generate = batch_size, of_size(batch_size)

    def ask(requests: list[str], seed: int, on_text: Callable[[int, str], None]) -> list[str | CallError]:
        nonlocal rows, generate
        texts: list[str | CallError] = []
        while left := requests[len(texts):]:
            why = ""
            try:
                new = generate([f"{START}{request}{END}" for request in left[:rows]], seed + len(texts))
            except jax.errors.JaxRuntimeError as error:
                if not (why := out_of_memory(error)):
                    raise
            if why:  # the block above has ended, so the error and the arrays of the failed call are gone
                fewer = rows // 2 // mesh.shape["fsdp"] * mesh.shape["fsdp"]
                if not fewer:
                    return texts + [CallError("memory", f"even {rows} questions at once do not fit. {why}")] * len(left)
                if rows == batch_size:
                    print(f"{rows} questions at once need more memory than the chips have: the teacher takes fewer now")
                rows, generate = fewer, of_size(fewer)
                continue
            for number, text in enumerate(new, len(texts)):
                on_text(number, text)
            texts += new
        return texts

    def fits(request: str) -> bool:
        return len(model.tokenizer.encode(f"{START}{request}{END}")) < max_prompt_length

    sampling = {"temperature": 1.0, "max_tokens": max_new_tokens}
    return Teacher(model.name, "local", sampling, lambda: rows, ask, fits)


@dataclass(frozen=True)
class TeacherSettings:
    """A question is asked until it has `keep` kept and `reject` rejected completions, at most `tries` times.

    `style` is one of `STYLES`. With `tell_answer` the teacher is told the gold answer. Raises ValueError for an unknown
    style and for numbers below 1.
    """

    tries: int = 4
    keep: int = 1
    reject: int = 0
    style: str = "tags"
    tell_answer: bool = False

    def __post_init__(self) -> None:
        if self.style not in STYLES or min(self.tries, self.keep) < 1:
            raise ValueError(f"style={self.style!r}, tries={self.tries!r}, keep={self.keep!r}: give one of "
                             f"{', '.join(STYLES)}, and numbers above 0")

    def tells(self, row: Mapping[str, str]) -> bool:
        """Whether the teacher is told the answer of this row."""
        return self.tell_answer and row["kind"] != OPEN


def request_for(row: Mapping[str, str], settings: TeacherSettings) -> str:
    """What the teacher is asked, without chat turns. In the style "tags" it is the prompt of training.

    >>> f"{START}{request_for({'question': 'How many?', 'kind': 'number'}, TeacherSettings())}{END}" == (
    ...     TAGS.prompt("How many?"))
    True
    """
    parts = [row["question"], TOLD.format(row["answer"]) if settings.tells(row) else "", STYLES[settings.style]]
    text = printable(neutralise("\n".join(filter(None, parts))))
    return text if settings.style == "steps" else TAGS.prompt(text).removeprefix(START).removesuffix(END)


def minutes_to_ask(budget: TimeBudget, recipe: Recipe, most: float) -> float:
    """The recipe's share of the session for its teacher, or an hour if it has none or the session grows. `most`
    minutes are a limit in place of the hour, and 0 is none."""
    share = recipe.shares.get("teacher")
    if share and not budget.grows:
        budget.shares.setdefault("teacher", share)  # a finished stage has none
        return min(most or math.inf, budget.part("teacher", 1))
    return min(most or HOUR, budget.part("teacher", 1))


def collect(rows: Iterable[Mapping[str, str]], teacher: Teacher, settings: TeacherSettings, log: RunLog,
            judge: Judge | None = None, minutes: float = math.inf) -> list[Sample]:
    """Every completion of the teacher to these rows so far, those in `log` included.

    A question without a gold answer is asked only if there is a judge. It stops early, and says why, if the money or
    the `minutes` are used up, the key is refused, the chips run out of memory, or a whole batch has no answer. Raises
    ValueError for a greedy teacher with several tries, because it would repeat itself.
    """
    if settings.tries > 1 and teacher.sampling["temperature"] == 0:
        raise ValueError(f"temperature 0 gives {settings.tries} equal completions: raise it, or set tries=1")
    identity = json.dumps(teacher.provenance, sort_keys=True)
    asked, skipped = {}, 0  # asked: by the prompt's hash
    for row in rows:
        request = request_for(row, settings)
        if row["kind"] not in POSED and (judge or row["kind"] != OPEN) and teacher.fits(request):
            asked.setdefault(hashlib.sha256(request.encode()).hexdigest(), (row, request))
        else:
            skipped += 1
    if skipped:
        print(f"{skipped} questions are not asked: too long for the teacher, plans, or without an answer or a judge")
    found: dict[str, list[Sample]] = {key: [] for key in asked}

    def add(completions: Iterable[tuple[str, str, float]]) -> None:
        new = []
        for key, text, seconds in completions:
            row, told = asked[key][0], settings.tells(asked[key][0])
            new.append({**examine(row, text, settings.style, told), "prompt_sha256": key, "gold_told": told,
                        "date": time.strftime("%Y-%m-%d", time.gmtime(seconds))})
        if judge:
            score(new, judge)
        for sample in new:
            found[sample["prompt_sha256"]].append(sample)

    def is_open(key: str) -> bool:
        kept = sum(not sample["cause"] for sample in found[key])
        return len(found[key]) < settings.tries and (
            kept < settings.keep or len(found[key]) - kept < settings.reject)

    def batches() -> Iterator[list[str]]:
        for _ in range(settings.tries):
            left = [key for key in asked if is_open(key)]
            while left:
                size = teacher.batch()
                yield left[:size]
                left = left[size:]

    def ask(keys: list[str], seed: int) -> str:
        """Ask once more about these prompts. Returns why nothing more should be asked, or ""."""
        new: dict[int, tuple[str, str, float]] = {}

        def on_text(number: int, text: str) -> None:
            text = text[:MAX_CHARACTERS + 1]
            log.write("completion", teacher=identity, prompt=keys[number], text=text)
            new[number] = keys[number], text, time.time()

        answers = teacher.ask([asked[key][1] for key in keys], seed, on_text)
        add(list(new.values()))  # a call past its deadline may still answer
        why = ""
        for error in (answer for number, answer in enumerate(answers) if number not in new):
            log.write("unanswered", teacher=identity, cause=error.cause, detail=str(error)[:300])
            if error.cause in FINAL or not new:
                why = f"{error.cause}: {str(error)[:300]}"
        return why

    earlier = [row for row in log.read("completion") if row["teacher"] == identity]
    add((row["prompt"], row["text"], row["t"]) for row in earlier if row["prompt"] in asked)
    end = time.monotonic() + 60 * minutes
    printed = time.monotonic()
    for keys in batches():
        seed = len(earlier) + sum(map(len, found.values()))  # grows with the log, so no sample is drawn twice
        if why := f"the {minutes:g} minutes are over" if time.monotonic() > end else ask(keys, seed):
            print(f"stopped early ({why}). Run this again to ask the rest: what was answered is kept")
            break
        if time.monotonic() > printed + QUIET:
            printed = time.monotonic()
            print(f"{sum(map(len, found.values()))} completions, {sum(map(is_open, asked))} of {len(asked)} questions "
                  f"are open, {teacher.spent():.4f} dollars so far")
    return [sample for samples in found.values() for sample in samples]

"""What is kept of a teacher's completions: `examine` finds why one is rejected, `traces` and `pairs` are for training.

A completion must pass the filters for data (`data.filters`), and then the checker of its kind decides, or the
judge if there is no gold answer. Source: rejection sampling, RFT (arXiv 2308.01825).
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from jax.sharding import Mesh

from reasonkit.data.filters import Ledger, gold_row_fault, repair, text_fault
from reasonkit.data.readers import MAX_CHARACTERS
from reasonkit.data.screening import OPEN, POSED
from reasonkit.judge.judge import Judge, JudgeFailure, JudgeItem
from reasonkit.judge.rubric import rubric_from_json
from reasonkit.models.distributed import broadcast_from_main, is_main_process, on_main_process
from reasonkit.rewards.work import missing_work
from reasonkit.session.files import write_atomic
from reasonkit.session.manifest import file_sha256
from reasonkit.text.answers import grade
from reasonkit.text.tags import TAGS, Parsed, printable
from reasonkit.train.rollout import generator
from recipes.rewards.text import scaffold

WRONG, NO_WORK, LOW, UNJUDGED = "wrong answer", "no work", "low score", "not judged"
LEAST_SCORE = 0.7  # that a judge must give
COLUMNS = ("id", "question", "reasoning", "answer", "kind", "rubric", "source", "licence", "domain", "task",
           "prompt_sha256", "gold_told", "date", "score")
_MENTIONED = re.compile(r"(?i)\b(?:given|provided|stated|told|known)\b[^.\n]{0,20}\banswer\b")
_THOUGHT = re.compile(r"(?s)\A\s*<think>.*?</think>\s*")

Sample = dict[str, Any]  # a row with one completion, its score by a judge, and why it is rejected ("cause", "example")


def examine(row: Mapping[str, str], text: str, style: str = "tags", told: bool = False) -> Sample:
    """The row with a completion in our tags, its reasoning and its answer. `cause` is "" unless it is rejected.

    In the style "steps" the last line of `text` is the answer. `told`: the teacher knew the gold answer. A thought in
    <think> tags before the completion, which some services leave there, is dropped. Without a gold answer only the form
    is examined. `prompt_sha256` is the row's id, in place of which a teacher has its request's hash.
    """
    text = _THOUGHT.sub("", printable(text))
    if style == "steps":
        steps, _, last = text.strip().rpartition("\n")
        text = f"{TAGS.reasoning_start}{steps}{TAGS.reasoning_end}\n{TAGS.answer_start}{last}{TAGS.answer_end}"
    parsed = TAGS.parse(text)
    if parsed.ok:  # without white space around, and stop markers after it
        text = TAGS.render(reasoning=parsed.reasoning, answer=parsed.answer)
    answer = parsed.answer or "" if row["kind"] == OPEN else row["answer"]
    made = repair({**row, "reasoning": parsed.reasoning or "", "answer": answer})
    cause, example = _fault(made, text, parsed, style, told) or ("", "")
    return {"source": row["family"], "domain": row["family"], "licence": "", "task": "", **made,
            "completion": text, "score": None, "cause": cause, "example": example, "prompt_sha256": row["id"]}


def _fault(made: Mapping[str, str], text: str, parsed: Parsed, style: str, told: bool) -> tuple[str, str] | None:
    if len(text) > MAX_CHARACTERS:
        return "row too long", text[:80]
    if parsed.defects:
        refused = text_fault({**made, "reasoning": text, "answer": ""})
        return refused or (f"format: {parsed.defects[0]}", text[:80])
    if fault := text_fault(made) or gold_row_fault(made):
        return fault
    if why := missing_work(made["question"], parsed):
        return NO_WORK, f"{why}: {made['reasoning'][:80]}"
    if told and (said := _MENTIONED.search(made["reasoning"])):
        return "tells that it was told", said[0]
    if style == "scaffold" and scaffold([""], [text], question=[made["question"]]) != [0.0]:
        return "scaffold broken", text[:80]
    if made["kind"] != OPEN and not grade([text], [made["answer"]], [made["kind"]])[0].correct:
        return WRONG, f"{parsed.answer!r:.40} for {made['answer']!r:.40}"
    return None


def read_or_make(path: Path, make: Callable[[], list[dict[str, Any]] | None]) -> list[dict[str, Any]]:
    """The rows of a JSONL file. If it does not exist, `make` makes them, so a resumed stage reads the same rows. If it
    gives None, for want of time, there are no rows and no file. Several processes all read what the first one made."""
    if not broadcast_from_main(is_main_process() and path.exists()):
        rows = make()
        if broadcast_from_main(rows is None):
            return []
        on_main_process(write_atomic)(path, "".join(f"{json.dumps(row)}\n" for row in rows or ()))
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def sampled_file(folder: Path, name: str, inputs: Mapping[str, Path], settings, questions: int, seed: int) -> Path:
    """The file in `folder` for what is made from `own_completions`. Other inputs or settings get another file."""
    limits = settings.num_generations, settings.max_prompt_length, settings.max_new_tokens
    hashes = {what: file_sha256(path) for what, path in sorted(inputs.items())}
    made_from = json.dumps([hashes, limits, questions, seed])
    return folder / f"{name}-{hashlib.sha256(made_from.encode()).hexdigest()[:8]}.jsonl"


def checkable(rows: Dataset, count: int, seed: int) -> list[dict[str, str]]:
    """`count` of the rows, at random, with an answer that a program can check."""
    return rows.filter(lambda row: row["kind"] not in (OPEN, *POSED)).shuffle(seed).to_list()[:count]


def own_completions(policy, mesh: Mesh, rows: Sequence[Mapping[str, str]], settings, batch_size: int, minutes: float,
                    seed: int) -> list[Sample]:
    """`settings.num_generations` completions of the policy to each row at temperature 1, as `examine` finds them.

    `settings` are those of SimPO or GRPO. `batch_size` completions are sampled at once, until the `minutes` are over.
    """
    generate = generator(policy.model, policy.tokenizer, mesh, max_prompt_length=settings.max_prompt_length,
                         max_new_tokens=settings.max_new_tokens, batch_size=batch_size, temperature=1.0)
    size, samples, end = max(1, batch_size // settings.num_generations), [], time.monotonic() + 60 * minutes
    for start in range(0, len(rows), size):
        if broadcast_from_main(time.monotonic() >= end):
            print(f"the {minutes:.0f} minutes for completions are over: {start} of {len(rows)} questions were asked")
            break
        some = [row for row in rows[start:start + size] for _ in range(settings.num_generations)]
        texts = generate([TAGS.prompt(row["question"]) for row in some], seed + start)
        samples += [{**examine(row, text), "by": "policy"} for row, text in zip(some, texts, strict=True)]
    return samples


def score(samples: Iterable[Sample], judge: Judge) -> None:
    """Score what is not rejected, and reject low scores, because a right option may be a guess. Without a gold answer,
    a failure of the judge rejects too."""
    left = [sample for sample in samples if not sample["cause"]]
    items = [JudgeItem(row["question"], row["completion"], rubric_from_json(row["rubric"])) for row in left]
    for sample, result in zip(left, judge.score(items) if items else [], strict=True):
        if isinstance(result, JudgeFailure):
            if sample["kind"] == OPEN:
                sample["cause"], sample["example"] = UNJUDGED, f"{result.cause}: {result.detail[:80]}"
            continue
        sample["score"] = result.score
        if result.score < LEAST_SCORE:
            sample["cause"], sample["example"] = LOW, f"{result.score:.2f}: {sample['completion'][:80]}"


def traces(samples: Sequence[Sample], provenance: Mapping[str, Any]) -> tuple[list[dict[str, Any]], Ledger]:
    """The best kept completion of each question as a row that says where it comes from, and the ledger of the others.

    The best has the highest score of the judge, and is the first of equals. If none is kept, prints the counts.
    """
    ledger, best = Ledger(), _best(samples)
    tries = Counter(sample["prompt_sha256"] for sample in samples)
    kept = ledger.keep("completions", samples,
                       lambda number, row: (row["cause"], row["example"]) if row["cause"] else None)
    kept = ledger.keep("best of its question", kept, lambda number, row: (
        None if best[row["prompt_sha256"]] is row else ("another one is better", row["completion"][:80])))
    if not kept:
        print(f"{provenance['teacher']} gave {len(samples)} completions to {len(tries)} questions, and none can be "
              f"used: change the teacher, the style or the questions. The causes:\n{ledger}", file=sys.stderr)
    return [{**{name: row[name] for name in COLUMNS}, **provenance, "tries": tries[row["prompt_sha256"]]}
            for row in kept], ledger


def _best(samples: Sequence[Sample]) -> dict[str, Sample]:
    kept = [sample for sample in reversed(samples) if not sample["cause"]]
    # the last one of a question stays: the highest score, and of equals the first
    return {sample["prompt_sha256"]: sample for sample in sorted(kept, key=lambda sample: sample["score"] or 0.0)}


def pairs(samples: Sequence[Sample]) -> list[dict[str, str]]:
    """For `stages.simpo`, one pair per question that has both: the best kept completion, and a rejected one.

    One with a wrong answer or a low score is taken before one with another fault, and one that was cut off comes last.
    `by` says who wrote the chosen one, if the samples do.
    """
    best, made = _best(samples), {}
    for sample in sorted(samples, key=lambda sample: (sample["cause"] not in (WRONG, LOW),
                                                      TAGS.parse(sample["completion"]).cut_off)):
        chosen = best.get(sample["prompt_sha256"])
        if chosen and sample["cause"] not in ("", UNJUDGED) and sample["completion"].strip():
            made.setdefault(chosen["prompt_sha256"], {
                "question": chosen["question"], "chosen": chosen["completion"], "rejected": sample["completion"],
                "cause": sample["cause"], "by": chosen.get("by", "teacher")})
    return list(made.values())

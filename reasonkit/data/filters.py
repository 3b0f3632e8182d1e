"""Cleaning rows: `repair`, `text_fault`, `near_duplicates`, `find_contaminated`, `screen`, and the `Ledger` of it.

Near-duplicates share 80 % of their word triples, their numbers and the answer. Two such texts share one of the rarest
fifth of their triples, which finds the candidates. A training row with 13 words in a row of a test question is
contaminated. Shorter runs flag exam phrases. Sources: prefix filtering, Bayardo et al. 2007; 13-grams, GPT-3.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import count
from typing import NamedTuple

import numpy as np
from datasets import Dataset
from scipy.sparse import csr_array

from reasonkit.data.screening import COLUMNS, MAX_LEFT_OUT, OPEN, completion_length, prompt_fault, row_fault
from reasonkit.session.files import preview
from reasonkit.text.answers import grade
from reasonkit.text.tags import INVISIBLE, TAGS
from reasonkit.text.words import words

GRAM, SIMILAR = 3, 0.8  # words of a shingle, and the Jaccard similarity from which two questions are one
RUN = 13  # words
NEIGHBOURS = 32  # texts that each one is compared with, of those that share a rare run with it
FOREIGN = 0.3  # share of letters outside of the Latin script
Row = dict[str, str]
_UNSEEN = str.maketrans(dict.fromkeys(INVISIBLE, "") | {"\u00a0": " ", "\r": "\n", "\u2028": "\n", "\u2029": "\n"})
REFUSALS = ("as an ai model", "as an ai language model", "i'm sorry, but i", "i am sorry, but i", "i'm sorry but i",
            "i cannot help", "i can't help", "i cannot assist", "i can't assist", "i cannot fulfil", "i can't fulfil")
_TOLD = re.compile(r"(?i)\banswer\s*(?:is|:|=)\s*")
_OPENING = re.compile(r"(?i)\W*(?:(?:so|thus|hence|therefore|the|my|final|right|correct),?\s+){0,4}"
                      r"(?:(?:answer|option|choice)\s*(?:is|:|=)|ans\b\.?\s*(?:is|:|=)?)[\s(\['\"$*]*")
_GOES_ON = re.compile(r"\w|[.,]\d|\s*[-+*/^=\u00d7\u00f7]\s*\w")
_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio, to mix bits
_MARKUP = re.compile(r"(?i)</?think>|<br\s*/?>|<newline>")


class Dropped(NamedTuple):
    step: str
    cause: str
    id: str
    example: str


@dataclass
class Ledger:
    """The rows before and after each step, in order, and every row that was dropped. Counts add up."""

    steps: list[tuple[str, int, int]] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def keep(self, step: str, rows: Sequence[Row], fault: Callable[[int, Row], tuple[str, str] | None]) -> list[Row]:
        """The rows for which `fault(number, row)` is None. For others it returns a short cause and an example."""
        left = []
        for number, row in enumerate(rows):
            if found := fault(number, row):
                self.dropped.append(Dropped(step, found[0], str(row["id"]), found[1]))
            else:
                left.append(row)
        self.steps.append((step, len(rows), len(left)))
        return left

    def __str__(self) -> str:
        lines = [*self.notes, f"{'step':<22}{'before':>8}{'after':>8}"]
        lines += [f"{step:<22}{before:>8}{after:>8}" for step, before, after in self.steps]
        examples = {(row.step, row.cause): row for row in reversed(self.dropped)}
        for (step, cause), times in Counter((row.step, row.cause) for row in self.dropped).most_common():
            row = examples[step, cause]
            lines.append(f"{times:>7} {step}: {cause}, as {row.id}: {row.example!r:.160}")
        return "\n".join(lines)


def repair(row: Row) -> Row:
    """The row with composed Unicode, plain line ends and spaces, and without invisible signs and left-over markup."""
    mended = dict(row)
    for name in ("question", "reasoning", "answer"):
        text = unicodedata.normalize("NFC", row[name].replace("\r\n", "\n").translate(_UNSEEN))
        text = _MARKUP.sub(lambda mark: "" if "think" in mark[0].lower() else "\n", text)
        mended[name] = re.sub(r"\n{3,}", "\n\n", text).strip()
    return mended


def text_fault(row: Mapping[str, str]) -> tuple[str, str] | None:
    """The (cause, example) of a refusal to answer, an answer given away in the question or before the reasoning, or a
    script other than Latin. None if there is no such fault."""
    said = row["reasoning"] + "\n" + row["answer"]
    low = said.casefold()
    if refusal := next((phrase for phrase in REFUSALS if phrase in low), None):
        return "refusal", low[low.index(refusal):][:80]
    for match in _TOLD.finditer(row["question"]):
        if row["answer"] and row["question"].startswith(row["answer"], match.end()):
            return "answer in the question", row["question"][match.start():match.end() + 40]
    if (opening := _OPENING.match(row["reasoning"])) and row["answer"]:
        first = row["reasoning"][opening.end():].casefold()
        answer = row["answer"].casefold().lstrip("([$")[:1 if row["kind"] == "choice" else None]
        if first.startswith(answer) and not _GOES_ON.match(first, len(answer)):
            return "answer before the reasoning", row["reasoning"][:80]
    text = row["question"] + said
    if not text.isascii():
        letters = [sign for sign in text if sign.isalpha()]
        if sum(sign > "\u024f" for sign in letters) > FOREIGN * len(letters):
            return "another language", row["question"][:80]
    return None


def gold_row_fault(row: Mapping[str, str]) -> tuple[str, str] | None:
    """As `row_fault`, but the gold completion must also earn full marks from the grader that the rewards use."""
    fault = row_fault(row)
    if fault or row["kind"] in (OPEN, "plan"):
        return fault
    gold = TAGS.render(reasoning=row["reasoning"] or "none", answer=row["answer"])
    (verdict,) = grade([gold], [row["answer"]], [row["kind"]])
    return None if verdict and verdict.correct else ("gold completion not right", gold[-80:])


def screen(splits: Mapping[str, Dataset], tokenizer, max_prompt_length: int, ledger: Ledger,
           max_new_tokens: int | None = None) -> dict[str, Dataset]:
    """The usable rows of each split, which is one step of the ledger.

    A row needs its own id, a prompt within the limit, and what `row_fault` asks for. Outside "train" it needs a gold
    answer, because a program scores it. A worked solution of more than `max_new_tokens` tokens loses its reasoning,
    because SFT would teach a length at which GRPO, the evaluation and the competition's judges cut the answer off.
    Raises ValueError, with a row and its fault, for a missing column and if more than `MAX_LEFT_OUT` of a split go.
    """
    made = {}
    for name, rows in splits.items():
        usable = _usable(name, rows, tokenizer, max_prompt_length, ledger)
        if max_new_tokens:
            long = [row for row in usable if completion_length(row, tokenizer) > max_new_tokens]
            ledger.notes += [f"{name}: {len(long)} worked solutions have more than {max_new_tokens} tokens and lost "
                             "their reasoning"] * bool(long)
            for row in long:
                row["reasoning"] = ""
        made[name] = Dataset.from_list(usable)
    return made


def _usable(name: str, rows: Dataset, tokenizer, max_prompt_length: int, ledger: Ledger) -> list[Row]:
    if missing := [column for column in COLUMNS if column not in rows.column_names]:
        raise ValueError(f"the rows of {name!r} have no {missing[0]!r}: a row needs {', '.join(COLUMNS)}")
    before, ids = len(ledger.dropped), set()

    def fault(number: int, row: Row) -> tuple[str, str] | None:
        found = row_fault(row) or prompt_fault(row["question"], tokenizer, max_prompt_length)
        if not found and name != "train" and row["kind"] == OPEN:
            found = "no gold answer", "the kind is open, and an evaluation checks answers: leave such rows to training"
        if not found and row["id"] in ids:
            found = "id comes twice", f"id {preview(row['id'])} is that of an earlier row: give each its own"
        ids.add(str(row["id"]))
        return found and (found[0], f"row {number + 1}: {found[1]}")

    kept = ledger.keep(f"screening of {name}", list(rows), fault)
    if (gone := len(rows) - len(kept)) > MAX_LEFT_OUT * len(rows):
        first = ledger.dropped[before]
        raise ValueError(f"{gone} of {len(rows)} rows of {name!r} can't be used, more than {MAX_LEFT_OUT:.0%}. The "
                         f"first, {first.id!r}: {first.example}")
    return kept


def shingles(texts: Sequence[str], size: int) -> tuple[np.ndarray, np.ndarray]:
    """The hashes of each text's runs of `size` words and the number of its text. A shorter text is one run."""
    vocabulary: defaultdict[str, int] = defaultdict(count(1).__next__)
    flat = array("q")
    lengths = np.zeros(len(texts), np.int64)
    for number, text in enumerate(texts):
        said = words(text)
        flat.extend(map(vocabulary.__getitem__, said))
        flat.extend([0] * (size - len(said)))
        lengths[number] = max(size, len(said))
    hashed = b"".join(blake2b(word.encode("utf-8", "replace"), digest_size=8).digest() for word in vocabulary)
    codes = np.frombuffer(bytes(8) + hashed, "<u8")[np.frombuffer(flat, np.int64)]
    runs = np.zeros(max(0, len(codes) - size + 1), np.uint64)
    with np.errstate(over="ignore"):
        for place in range(size):
            runs *= _ODD
            runs += codes[place:place + len(runs)]
        runs = (runs ^ (runs >> np.uint64(31))) * _ODD
        runs ^= runs >> np.uint64(29)
    owner = np.repeat(np.arange(len(texts)), lengths - size + 1)
    inside = np.arange(len(owner)) + owner * (size - 1)  # places of the runs that do not reach into the next text
    return runs[inside], owner


def near_duplicates(texts: Sequence[str], answers: Sequence[str]) -> dict[int, int]:
    """Maps each near-duplicate to the earlier text that it repeats, both by number.

    The two must have the same answer and numbers, because "hotter" for "colder" makes another question.
    """
    if not texts:
        return {}
    runs, owner = shingles(texts, GRAM)
    run = np.unique(runs, return_inverse=True)[1]
    bags = csr_array((np.ones(len(run), np.int32), (owner, run)))  # texts by runs, and each run counts once
    bags.data[:] = 1
    run, size_N = bags.indices, np.diff(bags.indptr)
    owner = np.repeat(np.arange(len(texts)), size_N)
    rarest = np.lexsort((run, np.bincount(run)[run], owner))  # those of each text, the rarest first
    rank = np.arange(len(run)) - bags.indptr[owner]
    prefix = rarest[rank <= (1 - SIMILAR) * size_N[owner] + 1e-9]
    run, owner = run[prefix], owner[prefix]
    alike: dict[tuple[str, ...], int] = {}  # another answer or number makes another question
    alike_N = np.array([alike.setdefault((answer, *re.findall(r"\d+", text)), len(alike))
                        for text, answer in zip(texts, answers, strict=True)])
    sum_N = bags @ np.arange(bags.shape[1])  # brings equal texts together
    order = np.lexsort((owner, sum_N[owner], alike_N[owner], run))
    run, owner = run[order], owner[order]
    pairs = [np.empty(0, np.int64)]
    for shift in range(1, NEIGHBOURS + 1):
        one, two = owner[shift:], owner[:-shift]
        fits = (run[shift:] == run[:-shift]) & (alike_N[one] == alike_N[two])
        pairs.append((np.minimum(one, two) * len(texts) + np.maximum(one, two))[fits])
    earlier, later = np.divmod(np.unique(np.concatenate(pairs)), len(texts))
    shared = bags[earlier].multiply(bags[later]).sum(axis=1)
    similar = shared >= SIMILAR * (size_N[earlier] + size_N[later] - shared)
    return dict(zip(later[similar][::-1].tolist(), earlier[similar][::-1].tolist(), strict=True))


def find_contaminated(train: Sequence[str], test: Sequence[str]) -> dict[int, int]:
    """Maps each training text that shares a run of `RUN` words with a test text to such a test text, by number."""
    (runs, owner), (asked, asked_owner) = shingles(train, RUN), shingles(test, RUN)
    asker = dict(zip(asked.tolist(), asked_owner.tolist(), strict=True))
    return {int(owner[hit]): asker[int(runs[hit])] for hit in np.flatnonzero(np.isin(runs, asked))}

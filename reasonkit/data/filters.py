"""Cleaning rows: `repair`, `text_fault`, `near_duplicates`, `contaminated`. A `Ledger` keeps what each step dropped.

Near-duplicates share 80 % of their word triples, their numbers and the answer: a MinHash finds candidates, which are
compared exactly. A training row with 13 words in a row of a test question is contaminated. Shorter runs flag exam
phrases. Sources: one-permutation hashing, Li et al. 2012; 13-grams, GPT-3 (arXiv 2005.14165).
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

import numpy as np

from reasonkit.data.screening import OPEN, LeftOut, row_fault
from reasonkit.text.answers import grade
from reasonkit.text.tags import INVISIBLE, TAGS
from reasonkit.text.words import words

GRAM, SIMILAR = 3, 0.8  # words of a shingle, and the Jaccard similarity from which two questions are one
RUN = 13  # words
BINS, ROWS = 64, 4  # of a MinHash signature, and of one band of it
FOREIGN = 0.3  # share of letters outside of the Latin script
Row = dict[str, str]
_TEXTS = ("question", "reasoning", "answer")
_UNSEEN = str.maketrans(dict.fromkeys(INVISIBLE, "") | {"\u00a0": " ", "\r": "\n", "\u2028": "\n", "\u2029": "\n"})
REFUSALS = ("as an ai model", "as an ai language model", "i'm sorry, but i", "i am sorry, but i", "i'm sorry but i",
            "i cannot help", "i can't help", "i cannot assist", "i can't assist", "i cannot fulfil", "i can't fulfil")
_TOLD = re.compile(r"(?i)\banswer\s*(?:is|:|=)\s*")
_OPENING = re.compile(r"(?i)\W*(?:(?:so|thus|hence|therefore|the|my|final|right|correct),?\s+){0,4}"
                      r"(?:answer|option|choice)\s*(?:is|:|=)[\s(\['\"$*]*")
_GOES_ON = re.compile(r"\w|[.,]\d|\s*[-+*/^=\u00d7\u00f7]\s*\w")
_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio, to mix bits
_MARKUP = re.compile(r"(?i)</?think>|<br\s*/?>|<newline>")


class Dropped(NamedTuple):
    """A row that a step left out."""

    step: str
    source: str
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
        """The rows for which `fault(number, row)` is None. It gives a short cause and an example otherwise."""
        left = []
        for number, row in enumerate(rows):
            if found := fault(number, row):
                self.dropped.append(Dropped(step, row["source"], found[0], row["id"], found[1]))
            else:
                left.append(row)
        self.steps.append((step, len(rows), len(left)))
        return left

    def add_screening(self, usable: Mapping[str, Sequence], left_out: Sequence[LeftOut]) -> None:
        """What `screening.screen` has kept and left out, as one step per split."""
        for split, rows in usable.items():
            step, gone = f"screening of {split}", [row for row in left_out if row.split == split]
            self.steps.append((step, len(rows) + len(gone), len(rows)))
            self.dropped += [Dropped(step, "", row.cause, row.id, row.why) for row in gone]

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
    for name in _TEXTS:
        text = unicodedata.normalize("NFC", row[name].replace("\r\n", "\n").translate(_UNSEEN))
        if "<" in text:
            text = _MARKUP.sub(lambda mark: "" if "think" in mark[0].lower() else "\n", text)
        mended[name] = re.sub(r"\n{3,}", "\n\n", text).strip()
    return mended


def text_fault(row: Mapping[str, str]) -> tuple[str, str] | None:
    """A refusal in place of an answer, an answer told in the question or before any reasoning, or another script than
    Latin."""
    said = row["reasoning"] + "\n" + row["answer"]
    low = said.casefold()
    for phrase in REFUSALS:
        if phrase in low:
            return "refusal", low[low.index(phrase):][:80]
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
    """As `row_fault`. The rendered gold completion must also earn full marks from the grader of the rewards."""
    if fault := row_fault(row):
        return fault
    if row["kind"] in (OPEN, "plan"):
        return None
    gold = TAGS.render(reasoning=row["reasoning"] or "none", answer=row["answer"])
    (verdict,) = grade([gold], [row["answer"]], [row["kind"]])
    return None if verdict and verdict.correct else ("gold completion not right", gold[-80:])


# -- shingles, as arrays over all rows


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
    codes = np.array([0, *map(hash_word, vocabulary)], np.uint64)[np.frombuffer(flat, np.int64)]
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


def hash_word(word: str) -> int:
    """64 bits of a word, the same in every process (FNV-1a)."""
    code = 0xCBF29CE484222325
    for byte in word.encode("utf-8", "replace"):
        code = (code ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return code


def near_duplicates(texts: Sequence[str], answers: Sequence[str]) -> dict[int, int]:
    """Of each text that is nearly an earlier one with the same answer, the number of that one.

    Another answer makes it another question: "hotter" for "colder" changes one word.
    """
    runs, owner = shingles(texts, GRAM)
    order = np.lexsort((runs, owner))
    runs = runs[order]
    new = np.ones(len(runs), bool)
    new[1:] = (owner[1:] != owner[:-1]) | (runs[1:] != runs[:-1])
    runs, owner = runs[new], owner[new]
    bounds = np.searchsorted(owner, np.arange(len(texts) + 1))
    signatures = _signatures(runs, owner, len(texts))
    pairs = [_candidates(signatures[:, start:start + ROWS]) for start in range(0, BINS, ROWS)]
    found: dict[int, int] = {}
    for later, earlier in np.unique(np.concatenate(pairs), axis=0)[:, ::-1].tolist() if pairs else ():
        unlike = (signatures[later] == signatures[earlier]).mean() < SIMILAR / 2
        if unlike or later in found or answers[later] != answers[earlier]:
            continue
        a, b = (runs[bounds[n]:bounds[n + 1]] for n in (earlier, later))
        shared = len(np.intersect1d(a, b, assume_unique=True))
        numbers = {tuple(re.findall(r"\d+", texts[n])) for n in (earlier, later)}
        if shared >= SIMILAR * (len(a) + len(b) - shared) and len(numbers) == 1:
            found[later] = earlier
    return found


def _signatures(runs: np.ndarray, owner: np.ndarray, count: int) -> np.ndarray:
    """One-permutation MinHash: the least hash of each bin. An empty bin takes the next one's."""
    signatures = np.zeros((count, BINS), np.uint64)
    bins = (runs >> np.uint64(58)).astype(np.int64)
    cell = owner * BINS + bins
    first = np.ones(len(cell), bool)
    first[1:] = cell[1:] != cell[:-1]
    filled = np.zeros(count * BINS, bool)
    filled[cell[first]] = True
    signatures.reshape(-1)[cell[first]] = runs[first]
    twice = np.tile(filled.reshape(count, BINS), 2)
    places = np.where(twice, np.arange(2 * BINS), 2 * BINS)
    nearest = np.minimum.accumulate(places[:, ::-1], axis=1)[:, ::-1][:, :BINS] % BINS
    return np.take_along_axis(signatures, nearest, axis=1)


def _candidates(band: np.ndarray) -> np.ndarray:
    """Pairs (earlier, later) of rows with an equal band: each row with its group's first and with the one before."""
    key = np.zeros(len(band), np.uint64)
    with np.errstate(over="ignore"):
        for column in band.T:
            key = (key ^ column) * _ODD
            key ^= key >> np.uint64(32)
    order = np.argsort(key, kind="stable")
    same = np.zeros(len(order), bool)
    same[1:] = key[order][1:] == key[order][:-1]
    starts = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
    members = np.flatnonzero(same)
    return np.concatenate([np.stack([order[starts[members]], order[members]], 1),
                           np.stack([order[members - 1], order[members]], 1)])


def contaminated(train: Sequence[str], test: Sequence[str]) -> dict[int, int]:
    """Of each training text that shares a run of `RUN` words with a test text, the number of such a test text."""
    runs, owner = shingles(train, RUN)
    asked, asked_owner = shingles(test, RUN)
    order = np.argsort(asked, kind="stable")
    asked, asked_owner = asked[order], asked_owner[order]
    place = np.minimum(np.searchsorted(asked, runs), max(0, len(asked) - 1))
    hits = np.flatnonzero(asked[place] == runs) if len(asked) else []
    return {int(owner[hit]): int(asked_owner[place[hit]]) for hit in hits}

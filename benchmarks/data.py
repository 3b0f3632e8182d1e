"""How long cleaning takes, and against datasets and datasketch: `python benchmarks/data.py [ROWS]`.

Made-up questions of ordinary length, of which 5 % are exact copies, 5 % near copies and 1 % tell a test question, go
through the text checks, exact and near duplicates and decontamination. It prints processor seconds, peak memory, what
was found of what was planted, growth from a quarter of the rows, and the same by datasets and datasketch's MinHashLSH.
"""

from __future__ import annotations

import argparse
import random
import resource
import time

import checkout  # noqa: F401

from reasonkit.data.filters import RUN, find_contaminated, near_duplicates, repair, text_fault
from reasonkit.data.screening import question_key

LENGTH = (20, 80)  # words of a question


def make(count: int, seed: int) -> tuple[list[dict], list[str], set[int], set[int], set[int]]:
    """Rows, test questions, and the numbers of the exact copies, the near copies and the contaminated rows."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("aeioubcdfglmnprst", k=rng.randint(3, 9))) for _ in range(20_000)]

    def question() -> str:
        return " ".join(rng.choices(words, k=rng.randint(*LENGTH))) + "?"

    test = [question() for _ in range(1000)]
    texts = [question() for _ in range(count)]
    exact, near, leaked = set(), set(), set()
    for number in range(count // 2, count):
        kind = rng.random()
        earlier = texts[number - count // 2]
        if kind < 0.1:
            texts[number] = "  " + earlier.upper()
            exact.add(number)
        elif kind < 0.2:
            parts = earlier.split()
            parts[-2] = "other"
            texts[number] = " ".join(parts)
            near.add(number)
        elif kind < 0.22:
            texts[number] = " ".join([question(), *rng.choice(test).split()[:RUN + 2]])
            leaked.add(number)
    rows = [{"id": str(n), "source": "s", "question": text, "reasoning": "So it is.", "answer": "4", "kind": "number"}
            for n, text in enumerate(texts)]
    return rows, test, exact, near, leaked


def ours(rows: list[dict], test: list[str]) -> tuple[set[int], set[int], set[int]]:
    """The numbers of exact copies, near copies and contaminated rows that are found."""
    rows = [repair(row) for row in rows]
    assert not any(map(text_fault, rows))
    first: dict[str, int] = {}
    exact = {n for n, row in enumerate(rows) if first.setdefault(question_key(row["question"]), n) != n}
    left = [n for n in range(len(rows)) if n not in exact]
    near = {left[n] for n in near_duplicates([rows[n]["question"] for n in left], ["4"] * len(left))}
    left = [n for n in left if n not in near]
    return exact, near, {left[n] for n in find_contaminated([rows[n]["question"] for n in left], test)}


def theirs(rows: list[dict], test: list[str]) -> tuple[set[int], set[int], set[int]]:
    """The same by the usual means: datasets for the rows, MinHashLSH for near copies, sets of 13-grams."""
    from datasets import Dataset, disable_progress_bars
    from datasketch import MinHash, MinHashLSH

    disable_progress_bars()

    def grams(text: str, size: int) -> set[str]:
        words = text.casefold().rstrip("?").split()
        return {" ".join(words[n:n + size]) for n in range(max(1, len(words) - size + 1))}

    table = Dataset.from_list(rows).map(lambda row: {"key": " ".join(row["question"].casefold().split())})
    seen: set[str] = set()
    exact, near, leaked = set(), set(), set()
    lsh = MinHashLSH(threshold=0.8, num_perm=64)
    asked = {gram for text in test for gram in grams(text, RUN)}
    for number, row in enumerate(table):
        if row["key"] in seen:
            exact.add(number)
            continue
        seen.add(row["key"])
        signature = MinHash(num_perm=64)
        signature.update_batch([gram.encode() for gram in grams(row["question"], 3)])
        if lsh.query(signature):
            near.add(number)
            continue
        lsh.insert(str(number), signature)
        if grams(row["question"], RUN) & asked:
            leaked.add(number)
    return exact, near, leaked


def seconds_of(run, count: int) -> float:
    rows, test, *planted = make(count, 0)
    start = time.process_time()
    found = run(rows, test)
    seconds = time.process_time() - start
    shares = [f"{name} {len(got & want)} of {len(want)}, {len(got - want)} others"
              for name, got, want in zip(("exact", "near", "contaminated"), found, planted, strict=True)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{run.__name__:>7} {count:>7} rows {seconds:6.1f} s of one core, peak {peak:.2f} GB: {'; '.join(shares)}",
          flush=True)
    return seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="?", type=int, default=100_000)
    count = parser.parse_args().rows
    quarter, whole = seconds_of(ours, count // 4), seconds_of(ours, count)
    print(f"growth {whole / quarter / 4:.2f} x linear")
    try:
        print(f"datasets with datasketch take {seconds_of(theirs, count) / whole:.1f} times as long")
    except ImportError as error:
        print(f"{error}: pip install datasketch to compare")

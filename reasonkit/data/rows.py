"""Rows on disk and in batches: `save_splits`, `read_rows`, `sft_batches`, `grpo_batches`.

Batches are functions of (rows, seed), so a resumed run sees the same order.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset
from pyarrow.parquet import read_table

from reasonkit.data.screening import COLUMNS, is_worked, prompt_length, row_fault
from reasonkit.rewards.work import missing_work
from reasonkit.session import files
from reasonkit.session.files import preview
from reasonkit.text.tags import TAGS

WINDOW = 4096  # rows that are packed together
GRPO_COLUMNS = ("id", "question", "answer", "kind", "rubric")


class TooFewRows(ValueError):
    """The rows do not fill one batch. It ends a stage, but not the run (`train.loop.FAILURES`)."""


def check_columns(rows: Dataset, where: str) -> None:
    """Raises ValueError, naming row and column, unless the rows have `COLUMNS`, all of them texts."""
    for name in COLUMNS:
        if name not in rows.column_names:
            raise ValueError(f"the rows of {where} have no {name!r}: a row needs {', '.join(COLUMNS)}")
        for number, value in enumerate(rows[name], 1):
            if not isinstance(value, str):
                raise ValueError(f"row {number} of {where}: {name!r} is {preview(value)}, and must be of type str, in "
                                 "quotes")


def save_splits(splits: Mapping[str, Dataset], folder: Path) -> dict[str, Path]:
    """Write one Parquet file per split, atomically, the same rows as the same bytes. Raises as `check_columns`."""
    paths = {name: folder / f"{name}.parquet" for name in splits}
    for name, rows in splits.items():
        check_columns(rows, str(paths[name]))
    for name, rows in splits.items():
        with files.replace_file(paths[name], rows.data.nbytes) as partial:
            rows.to_parquet(partial, write_page_checksum=True)
    return paths


def read_rows(path: Path) -> Dataset:
    """Read one split. Raises ValueError, naming the file, if missing, empty or damaged, and as `check_columns`."""
    again = "run notebook 01 (data curation)"
    try:
        data = pa.BufferReader(files.read_file(path))
        rows = Dataset.from_list(read_table(data, use_threads=False, page_checksum_verification=True).to_pylist())
    except files.RecordError as error:
        raise ValueError(f"no rows in {path}, which is {error}: {again} first") from None
    except (ValueError, OSError, pa.ArrowException) as error:  # of a file that is no Parquet, or only a part of one
        raise ValueError(f"{path} is damaged ({preview(str(error))}): delete the file, and {again} again") from None
    if not len(rows):
        raise ValueError(f"no rows in {path}: {again} first")
    check_columns(rows, str(path))
    return rows


def check_rows(size: int, batch_size: int) -> None:
    """Raises TooFewRows when `size` rows do not fill one batch."""
    if size < batch_size:
        raise TooFewRows(f"{size} rows are fewer than one batch of {batch_size}: add rows or lower the batch size")


def shuffle_rows(rows: Sequence, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    """Endless batches of row numbers, in a new order each epoch. Raises TooFewRows as `check_rows`."""
    check_rows(len(rows), batch_size)
    for epoch in count():
        order = np.random.default_rng([seed, epoch]).permutation(len(rows))
        for start in range(0, len(rows) - batch_size + 1, batch_size):
            yield order[start:start + batch_size]


def sft_pairs(rows: Dataset, tokenizer, max_length: int) -> list[tuple[list[int], list[int]]]:
    """The token ids of prompt and completion, stop token included, of each row that SFT can imitate (`is_worked`).

    Rows with a `row_fault` or more than `max_length` tokens are left out, never cut.
    """
    pairs = []
    for row in rows:
        if row_fault(row) or not is_worked(row):
            continue
        prompt = [tokenizer.bos_id(), *tokenizer.encode(TAGS.prompt(row["question"]))]
        text = TAGS.render(reasoning=row["reasoning"], answer=row["answer"])
        completion = [*tokenizer.encode(text), tokenizer.end_of_turn]
        if len(prompt) + len(completion) <= max_length:
            pairs.append((prompt, completion))
    return pairs


def without_terse(rows: Dataset) -> Dataset:
    """The worked rows whose reasoning shows some work, as far as `missing_work` can tell."""
    return rows.select([n for n, row in enumerate(rows) if is_worked(row) and not missing_work(
        row["question"], TAGS.parse(TAGS.render(reasoning=row["reasoning"], answer=row["answer"])))])


def pack_rows(sizes: Sequence[int], max_length: int, seed: int) -> Iterator[list[int]]:
    """Endless sequences as lists of row numbers. The `sizes` of the rows of one add up to at most `max_length`.

    Each epoch has every row once, in a new order. Best fit decreasing, among `WINDOW` shuffled rows at a time: the
    longest first, each into the fullest sequence with room for it, or a new one. Then the sequences are shuffled.
    """
    for epoch in count():
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(len(sizes)).tolist()
        for start in range(0, len(order), WINDOW):
            made: list[tuple[int, int, list[int]]] = []  # room, when it was begun, rows: the fullest first
            for begun, number in enumerate(sorted(order[start:start + WINDOW], key=lambda number: -sizes[number])):
                at = bisect_left(made, (sizes[number],))
                room, first, numbers = made.pop(at) if at < len(made) else (max_length, begun, [])
                insort(made, (room - sizes[number], first, [*numbers, number]))
            yield from (made[place][-1] for place in rng.permutation(len(made)))


def sft_batches(rows: Dataset, tokenizer, batch_size: int, max_length: int, seed: int,
                pack: bool = False) -> Iterator[dict[str, np.ndarray]]:
    """Endless SFT batches of `batch_size` right-padded sequences: `tokens_BL` int32, `loss_mask_BL`, 1 on completions
    and their stop tokens, and `piece_BL`, the number of a token's row in its sequence from 1, or 0 for padding.

    A sequence is one row or, with `pack`, those of `pack_rows`. Then a batch may end one epoch and begin the next.
    The stop token is part of the target because a policy that never learns to stop runs into the token limit.
    Raises TooFewRows when the rows of `sft_pairs` are fewer than `batch_size`.
    """
    pairs = sft_pairs(rows, tokenizer, max_length)
    if len(pairs) < batch_size:
        raise TooFewRows(f"{len(pairs)} rows are fewer than one batch of {batch_size}: add rows or lower the batch "
                         f"size. Of {len(rows)}, the others have no reasoning or more than {max_length} tokens")
    sequences = (pack_rows([len(prompt) + len(completion) for prompt, completion in pairs], max_length, seed) if pack
                 else ([number] for numbers in shuffle_rows(pairs, batch_size, seed) for number in numbers))
    while True:
        tokens_BL = np.full((batch_size, max_length), tokenizer.pad_id(), np.int32)
        loss_mask_BL, piece_BL = np.zeros((batch_size, max_length), np.float32), np.zeros_like(tokens_BL)
        for sequence, numbers in enumerate(islice(sequences, batch_size)):
            end = 0
            for piece, (prompt, completion) in enumerate((pairs[number] for number in numbers), 1):
                start, replied, end = end, end + len(prompt), end + len(prompt) + len(completion)
                tokens_BL[sequence, start:end] = prompt + completion
                loss_mask_BL[sequence, replied:end] = 1.0
                piece_BL[sequence, start:end] = piece
        yield {"tokens_BL": tokens_BL, "loss_mask_BL": loss_mask_BL, "piece_BL": piece_BL}


def grpo_batches(rows: Dataset, tokenizer, batch_size: int, max_prompt_length: int, seed: int,
                 order: Callable[[Sequence[str], int, int], Iterator[np.ndarray]] = shuffle_rows,
                 ) -> Iterator[dict[str, np.ndarray]]:
    """Endless GRPO batches of `batch_size` prompts: 1-D numpy arrays of str, the only columns Tunix handles safely.

    Longer prompts than `max_prompt_length` tokens are left out, because Tunix would pad the batch to the next power of
    two and compile anew. `order(ids, batch_size, seed)` yields row numbers among the rows left. Raises as it does.
    """
    rows = rows.select([n for n, question in enumerate(rows["question"])
                        if prompt_length(question, tokenizer) <= max_prompt_length])
    columns = {name: list(rows[name]) for name in GRPO_COLUMNS}  # in one array, each text is as long as the longest
    for numbers in order(columns["id"], batch_size, seed):
        batch = {name: [values[number] for number in numbers] for name, values in columns.items()}
        batch["prompts"] = [TAGS.prompt(question) for question in batch["question"]]
        yield {name: np.array(values) for name, values in batch.items()}

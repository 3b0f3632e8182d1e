"""Packing: which rows share a sequence, and how the batches of it look."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import ROWS, short_tokenizer

from reasonkit.data import rows
from reasonkit.data.rows import pack_rows, sft_batches, sft_pairs

LENGTH = 1024
# Lengths as of worked solutions: most are short, a few are near the limit.
SIZES = [int(size) for size in np.random.default_rng(0).lognormal(np.log(250), 0.6, 4000) if size <= LENGTH]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return short_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def epochs(sizes, max_length, seed, count):
    """The sequences of so many epochs."""
    sequences, found = pack_rows(sizes, max_length, seed), []
    for _ in range(count):
        seen, epoch = 0, []
        while seen < len(sizes):
            epoch.append(next(sequences))
            seen += len(epoch[-1])
        found.append(epoch)
    return found


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60), st.integers(0, 9))
def test_an_epoch_has_every_row_once_and_no_sequence_is_too_long(sizes, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "WINDOW", 25)
        found = epochs(sizes, 20, seed, 2)
    for epoch in found:
        assert Counter(itertools.chain(*epoch)) == Counter(range(len(sizes)))
        assert all(sum(sizes[number] for number in numbers) <= 20 for numbers in epoch)


def test_at_most_two_percent_is_padding():
    (epoch,) = epochs(SIZES, LENGTH, 0, 1)
    assert 1 - sum(SIZES) / (LENGTH * len(epoch)) < 0.02
    assert sum(SIZES) / (LENGTH * len(SIZES)) < 0.3, "one row per sequence would do, too"


def test_sequences_are_a_function_of_the_seed_and_new_in_each_epoch():
    first, second = epochs(SIZES, LENGTH, 1, 2)
    assert [first, second] == epochs(SIZES, LENGTH, 1, 2)
    assert first != second and first != epochs(SIZES, LENGTH, 2, 1)[0]


def test_long_and_short_rows_come_throughout_an_epoch():
    """The sequences that are packed first have the longest rows, and would make the first batches."""
    (epoch,) = epochs(SIZES, LENGTH, 0, 1)
    halves = [np.mean([len(numbers) for numbers in half]) for half in (epoch[::2], epoch[1::2], epoch[:500])]
    assert max(halves) < 1.1 * min(halves)


def test_packed_batches_have_the_rows_of_the_plain_ones(tokenizer):
    """Each row whole, numbered from 1 without gaps, its loss on the same tokens; then padding."""
    plain = {tuple(batch["tokens_BL"][0][batch["piece_BL"][0] > 0]): tuple(batch["loss_mask_BL"][0])
             for batch in itertools.islice(sft_batches(ROWS, tokenizer, 1, 48, 0), len(ROWS))}
    assert len(plain) == len(ROWS)
    seen = Counter()
    for batch in itertools.islice(sft_batches(ROWS, tokenizer, 2, 100, 0, pack=True), 8):
        assert [array.shape for array in batch.values()] == [(2, 100)] * 3
        for tokens_L, mask_L, piece_L in zip(*batch.values(), strict=True):
            last = piece_L.max()
            assert last >= 2 and (np.diff(piece_L[piece_L > 0]) >= 0).all()
            assert (piece_L[(piece_L > 0).sum():] == 0).all() and (tokens_L[piece_L == 0] == tokenizer.pad_id()).all()
            assert not mask_L[piece_L == 0].any()
            for piece in range(1, last + 1):
                row = tuple(tokens_L[piece_L == piece])
                assert tuple(mask_L[piece_L == piece]) == plain[row][:len(row)]
                seen[row] += 1
    assert set(seen) <= set(plain) and sum(seen.values()) > len(ROWS)


def test_a_row_longer_than_the_limit_is_left_out_of_a_packed_batch(tokenizer):
    some = Dataset.from_list([*ROWS, {**ROWS[0], "question": "1 plus 2 plus 3"}])
    *short, long = [prompt + completion for prompt, completion in sft_pairs(some, tokenizer, 200)]
    limit = len(long) - 1
    batches = itertools.islice(sft_batches(some, tokenizer, 1, limit, 0, pack=True), 2 * len(ROWS))
    seen = Counter(tuple(batch["tokens_BL"][0][batch["piece_BL"][0] > 0]) for batch in batches)
    assert seen == dict.fromkeys(map(tuple, short), 2)
    with pytest.raises(ValueError, match="30 rows are fewer than one batch of 31: add rows"):
        next(sft_batches(some, tokenizer, 31, limit, 0, pack=True))

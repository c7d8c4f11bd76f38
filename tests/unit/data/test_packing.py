"""Packed sequences: nothing lost but the tail, documents and bytes accounted for."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opmix.data.cache import TokenSplit
from opmix.data.packing import PackedSequences, held_out_batch
from opmix.errors import DataError

Make = Callable[..., TokenSplit]
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30)


@given(LENGTHS, st.integers(2, 16))
def test_sequences_are_the_tokens_in_order(make_split: Make, lengths: list[int], length: int) -> None:
    split = make_split(lengths)
    if split.num_tokens < length:
        with pytest.raises(DataError, match=rf"'x' train has {split.num_tokens} tokens, a sequence needs {length}"):
            PackedSequences(split, length)
        return
    packed = PackedSequences(split, length)
    rows = [packed[i] for i in range(len(packed))]
    whole = len(packed) * length
    assert split.num_tokens - whole < length
    np.testing.assert_array_equal(np.concatenate(rows), split.tokens[:whole])
    np.testing.assert_array_equal(packed.batch(range(len(packed))), rows)
    assert all(row.dtype == np.int64 and row.shape == (length,) for row in rows)


@given(LENGTHS, st.integers(2, 16))
def test_documents_and_bytes_inside_sequences(make_split: Make, lengths: list[int], length: int) -> None:
    split = make_split([length, *lengths], byte_counts=[7 * n + 1 for n in (length, *lengths)])
    packed = PackedSequences(split, length)
    share = np.repeat(split.byte_counts / np.diff(split.offsets), np.diff(split.offsets))
    starts = set(split.offsets[:-1].tolist())
    for i in range(len(packed)):
        here = range(i * length, (i + 1) * length)
        assert packed.boundaries(i).tolist() == [t - here.start for t in here if t in starts]
        expected: list[int] = []
        for t in here:
            expected.append(0 if t in starts or not expected else expected[-1] + 1)
        assert packed.position_ids(i).tolist() == expected
        assert packed.num_bytes(i) == pytest.approx(share[here.start : here.stop].sum())


def test_index_out_of_range(make_split: Make) -> None:
    packed = PackedSequences(make_split([10, 10]), 8)
    for index in (-1, 2):
        with pytest.raises(IndexError):
            packed[index]
        with pytest.raises(IndexError):
            packed.batch([0, index])


@given(st.integers(1, 300), st.integers(1, 400), st.integers(0, 5))
def test_held_out_rows_are_spread_and_different(make_split: Make, total: int, num: int, seed: int) -> None:
    packed = PackedSequences(make_split([2 * total]), 2)
    rows = held_out_batch(packed, num, seed)
    assert len(rows) == min(num, total)
    assert len(set(rows.tolist())) == len(rows)
    assert rows.min() >= 0
    assert rows.max() < total
    np.testing.assert_array_equal(rows, held_out_batch(packed, num, seed))
    gaps = np.diff(np.sort(rows))
    assert not gaps.size or gaps.max() <= math.ceil(2 * total / len(rows))

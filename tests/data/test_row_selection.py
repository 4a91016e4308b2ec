"""Row selections and label values equal dense tables, and need little memory for many rows."""

import tracemalloc

import numpy as np
import pytest

from featgan.data import row_selection
from featgan.data.conditions import ColumnValues, OneHotValues
from featgan.data.row_selection import AllRows, KnownRows, RowSelection, select_rows


def selection_of(mask: np.ndarray) -> RowSelection:
    return select_rows(len(mask), lambda chunk: mask[chunk])


@pytest.mark.parametrize("count", [1, 7, 511, 512, 513, 4000])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99, 1.0])
def test_selection_equals_the_array_of_known_rows(count: int, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_selection, "CHUNK_ROWS", 1024)
    monkeypatch.setattr(row_selection, "LOOKUPS_PER_CALL", 100)
    rng = np.random.default_rng(count)
    mask = rng.random(count) < share
    selection, expected = selection_of(mask), np.flatnonzero(mask)
    assert isinstance(selection, AllRows if mask.all() else KnownRows)
    assert len(selection) == len(expected) and list(selection) == expected.tolist()
    assert np.asarray(selection).tolist() == expected.tolist()
    order = rng.permutation(len(expected))
    assert selection[order].tolist() == expected[order].tolist() and selection[order].dtype == np.int64
    assert selection[order.astype(np.uint32)].tolist() == expected[order].tolist()
    assert selection[3:300].tolist() == expected[3:300].tolist() and selection[:1].tolist() == expected[:1].tolist()
    starts = np.unique(np.concatenate([[0, count], rng.integers(0, count, 20)]))
    expected_counts = np.diff(np.searchsorted(expected, starts))
    assert selection.counts_per_shard(starts).tolist() == expected_counts.tolist()


def test_label_values_equal_rows_of_dense_tables() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 5, 200).astype(np.int16)
    rows, flipped = rng.integers(0, 200, 64), rng.random(64) < 0.5
    table = np.zeros((200, 5), np.float32)
    known = np.flatnonzero(labels >= 0)
    table[known, labels[known]] = 1
    columns = (rng.random(200, np.float32), rng.integers(-1, 2, 200).astype(np.int8))
    for values, expected in (
        (OneHotValues(labels, 5)(rows, flipped), table[rows]),
        (ColumnValues(columns)(rows, flipped), np.stack(columns, 1).astype(np.float32)[rows]),
    ):
        assert values.dtype == np.float32 and values.flags.c_contiguous and values.flags.writeable
        assert np.array_equal(values, expected)


def test_selection_of_many_rows_needs_little_memory() -> None:
    count = 5_000_000
    labels = np.zeros(count, np.int16)
    labels[::3] = -1
    tracemalloc.start()
    selection = select_rows(count, lambda chunk: labels[chunk] >= 0)
    values = OneHotValues(labels, 1000)
    rows = selection[np.arange(0, len(selection), 10_000)]
    assert values(rows, np.zeros(len(rows), bool)).shape == (len(rows), 1000)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (labels[rows] == 0).all() and peak_bytes < 24 << 20, peak_bytes

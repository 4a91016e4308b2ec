"""Tests of the order of the images: permutations of any size, and windows of shards."""

import hashlib
import time

import numpy as np
import pytest

from featgan.data.order import (
    MAX_STORED_PERMUTATION,
    ORDER_STREAM,
    EpochOrder,
    FeistelPermutation,
    random_permutation,
    random_stream,
)

LARGE_COUNT = 1_000_000_000


def feistel(count: int, seed: int = 0) -> FeistelPermutation:
    return FeistelPermutation(count, random_stream(seed, ORDER_STREAM))


def chi_square(observed: np.ndarray, expected: float) -> float:
    """Return the chi-square statistic minus its mean, in standard deviations."""
    statistic = float(((observed - expected) ** 2 / expected).sum())
    freedom = observed.size - 1
    return (statistic - freedom) / float(np.sqrt(2 * freedom))


def random_counts(seed: int) -> np.ndarray:
    """Return the number of images of 1 to 40 shards; some are empty."""
    generator = np.random.default_rng(seed)
    counts = generator.integers(0, 30, int(generator.integers(1, 41)))
    counts[generator.integers(len(counts))] += 1
    return np.asarray(counts)


def test_feistel_network_is_a_permutation_of_any_size() -> None:
    for count in range(1, 3001):
        numbers = feistel(count, count).at(slice(0, count))
        assert np.bincount(numbers, minlength=count).max() == 1 and len(numbers) == count, count


def test_sample_of_a_large_feistel_permutation_is_uniform() -> None:
    numbers = feistel(LARGE_COUNT).at(slice(0, 200_000))
    assert len(np.unique(numbers)) == len(numbers)
    assert 0 <= numbers.min() and numbers.max() < LARGE_COUNT
    assert abs(chi_square(np.bincount(numbers * 1000 // LARGE_COUNT, minlength=1000), 200)) < 4
    # The last digits and the distance of neighbors are not predictable either.
    assert abs(chi_square(np.bincount(numbers % 997, minlength=997), 200_000 / 997)) < 4
    steps = np.diff(numbers) % LARGE_COUNT
    assert abs(chi_square(np.bincount(steps * 1000 // LARGE_COUNT, minlength=1000), 199_999 / 1000)) < 4


def test_large_permutation_needs_little_time_and_memory() -> None:
    start = time.perf_counter()
    permutation = random_permutation(LARGE_COUNT, random_stream(0, ORDER_STREAM))
    assert isinstance(permutation, FeistelPermutation)
    permutation.at(slice(LARGE_COUNT - 256, LARGE_COUNT))
    assert time.perf_counter() - start < 1


def test_displacement_of_a_feistel_permutation_has_the_distribution_of_random_permutations() -> None:
    count, num_seeds = 2000, 100
    displacements = np.concatenate(
        [feistel(count, seed).at(slice(0, count)) - np.arange(count) for seed in range(num_seeds)]
    )
    wrapped = displacements % count
    assert abs(chi_square(np.bincount(wrapped // 20, minlength=100), num_seeds * 20)) < 4
    # The mean distance of a random permutation is (N^2 - 1) / (3 N), and one element is expected to stay.
    assert np.abs(displacements).mean() == pytest.approx((count**2 - 1) / (3 * count), rel=0.02)
    assert 70 < (displacements == 0).sum() < 130


def test_different_epochs_and_seeds_have_different_orders() -> None:
    for window in (0, 2):
        keys = [(seed, dataset, epoch) for seed in range(3) for dataset in range(2) for epoch in range(3)]
        orders = {EpochOrder(*key, [20] * 5, window)[:].tobytes() for key in keys}
        assert len(orders) == len(keys)


@pytest.mark.parametrize("count", [1, 2, 1000, 65_537])
def test_order_without_a_window_is_the_permutation_of_numpy(count: int) -> None:
    order = EpochOrder(7, 1, 4, [count // 3, count - count // 3], 0)
    expected = random_stream(7, ORDER_STREAM, 1, 4).permutation(count)
    assert np.array_equal(order[:], expected)
    assert np.array_equal(order[count // 4 : count // 2], expected[count // 4 : count // 2])


def test_orders_are_those_of_earlier_versions() -> None:
    """A resumed run must see the same batches, also after an update of numpy or featgan."""

    def digest(numbers: np.ndarray) -> str:
        assert numbers.dtype == np.int64
        return hashlib.sha256(numbers.astype("<i8").tobytes()).hexdigest()[:16]

    assert digest(EpochOrder(1, 0, 2, [400, 0, 600], 0)[:]) == "1edea6378e1aa578"
    assert digest(EpochOrder(1, 0, 2, [400, 0, 600, 100, 7], 2)[:]) == "81391ff72e5d71ba"
    assert digest(EpochOrder(1, 0, 2, [MAX_STORED_PERMUTATION, 1], 0)[1000:2000]) == "81a57298b9f941f0"


@pytest.mark.parametrize("window", [0, 1, 2, 3, 7, 100])
def test_epoch_contains_every_image_once(window: int) -> None:
    for seed in range(20):
        counts = random_counts(seed)
        order = EpochOrder(seed, 0, 0, counts, window)
        assert len(order) == counts.sum()
        assert np.array_equal(np.sort(order[:]), np.arange(counts.sum()))


@pytest.mark.parametrize("window", [0, 1, 3, 7])
def test_range_of_positions_is_that_part_of_the_whole_order(window: int) -> None:
    generator = np.random.default_rng(window)
    for seed in range(10):
        counts = random_counts(seed)
        order, count = EpochOrder(seed, 0, 1, counts, window), int(counts.sum())
        whole = EpochOrder(seed, 0, 1, counts, window)[:]
        for _ in range(20):
            start, stop = np.sort(generator.integers(0, count + 1, 2)).tolist()
            assert np.array_equal(order[start:stop], whole[start:stop])
        assert np.array_equal(order[count - 1 : count + 10], whole[-1:])


@pytest.mark.parametrize("window", [1, 2, 3, 50])
def test_each_shard_is_in_exactly_one_window(window: int) -> None:
    for seed in range(20):
        counts = random_counts(seed)
        order = EpochOrder(seed, 0, 0, counts, window)
        shard_of = np.repeat(np.arange(len(counts)), counts)[order[:]]
        windows = [order.window_of(position) for position in range(len(order))]
        assert windows == sorted(windows)
        assert sorted(np.concatenate([order.shards_of(index) for index in range(order.num_windows)])) == sorted(
            set(shard_of)
        )
        for index in range(order.num_windows):
            start, end = order.window_starts[index : index + 2]
            assert set(shard_of[start:end]) == set(order.shards_of(index))
            assert len(order.shards_of(index)) == window or index == order.num_windows - 1


def test_images_are_permuted_inside_windows() -> None:
    num_images, observed = 200, np.zeros(100)
    for seed in range(20):
        order = EpochOrder(seed, 0, 0, [50] * 60, 4)
        for start in order.window_starts[:-1].tolist():
            # The places of the images of this window in the order of their indices.
            places = np.argsort(np.argsort(order[start : start + num_images]))
            observed += np.bincount((places - np.arange(num_images)) % num_images // 2, minlength=100)
    assert abs(chi_square(observed, observed.sum() / 100)) < 4


def test_large_window_needs_no_memory() -> None:
    order = EpochOrder(0, 0, 0, np.full(10, MAX_STORED_PERMUTATION), 5)
    middle = int(order.window_starts[1])
    indices = order[middle - 1000 : middle + 1000]
    assert set(indices[:1000] // MAX_STORED_PERMUTATION) == set(order.shards_of(0))
    assert set(indices[1000:] // MAX_STORED_PERMUTATION) == set(order.shards_of(1))
    assert all(isinstance(permutation, FeistelPermutation) for permutation in order.permutations.values())


def test_permutations_of_two_windows_are_kept() -> None:
    order = EpochOrder(0, 0, 0, np.full(10, 20), 1)
    for start in range(0, 200, 10):
        order[start : start + 15]
    assert list(order.permutations) == [8, 9]

"""Tests of the fit of the feature space to more features than fit into memory."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from featgan.data.feature_cache import space_fitting
from featgan.data.feature_cache.space_fitting import SpaceFitting, group_shards
from featgan.data.feature_cache.storage import array_path
from featgan.data.shards.split import Split
from featgan.errors import UserError
from featgan.features.space import FeatureSpace
from tests.helpers.limits import measure_call

NUM_FEATURES = 6
COUNTS = [40, 1, 33, 60, 60, 5, 60, 60, 60, 60, 17, 60]


@dataclass
class FakeSplit:
    """The shards of a split, without images."""

    shard_counts: Sequence[int] = field(default_factory=lambda: list(COUNTS))
    name: str = "train"

    @property
    def shard_names(self) -> list[str]:
        return [f"train-{number:05d}" for number in range(len(self.shard_counts))]

    def __len__(self) -> int:
        return sum(self.shard_counts)


@pytest.fixture
def features(tmp_path: Path) -> np.ndarray:
    """Write the features of all shards, float32 [N, 2, F]."""
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, (sum(COUNTS), 2, NUM_FEATURES)) @ rng.normal(0, 2, (NUM_FEATURES, NUM_FEATURES)) + 5
    values = values.astype(np.float32)
    parts = np.split(values, np.cumsum(COUNTS)[:-1])
    for name, part in zip(FakeSplit().shard_names, parts, strict=True):
        np.save(array_path(tmp_path, name, "features"), part)
    return values


def open_fitting(folder: Path) -> SpaceFitting:
    return SpaceFitting(folder, cast(Split, FakeSplit()), NUM_FEATURES)


def are_equal(first: FeatureSpace | None, second: FeatureSpace | None) -> bool:
    """Return whether two spaces are bitwise equal."""
    assert first is not None
    assert second is not None
    return all(torch.equal(tensor, second.tensors()[name]) for name, tensor in first.tensors().items())


@pytest.fixture
def limited_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow at most 100 feature vectors in memory."""
    monkeypatch.setattr(space_fitting, "MAX_SPACE_ROWS", 100)


def test_small_features_are_fitted_as_in_earlier_releases(tmp_path: Path, features: np.ndarray) -> None:
    rows = np.concatenate([features[:, 0], features[:, 1]])
    assert open_fitting(tmp_path).fits_into_memory
    assert are_equal(open_fitting(tmp_path).fit(4), FeatureSpace.fit(torch.from_numpy(rows), 4))


@pytest.mark.usefixtures("limited_memory")
def test_all_rows_are_used_if_they_do_not_fit_into_memory(tmp_path: Path, features: np.ndarray) -> None:
    fitting = open_fitting(tmp_path)
    assert not fitting.fits_into_memory
    space = fitting.fit(None)
    assert space is not None
    expected = FeatureSpace.fit(torch.from_numpy(features.reshape(-1, NUM_FEATURES)))
    for name, tensor in expected.tensors().items():
        assert torch.allclose(space.tensors()[name].double(), tensor.double(), rtol=1e-5, atol=1e-5), name


@pytest.mark.usefixtures("limited_memory", "features")
@pytest.mark.parametrize("world_size", [1, 3, 16])
def test_space_does_not_depend_on_the_number_of_processes_and_threads(
    tmp_path: Path, world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = open_fitting(tmp_path).fit(4)
    for rank in range(world_size):
        open_fitting(tmp_path).save_groups(rank, world_size)
    assert len(list(tmp_path.glob(".sums-*.npz"))) == len(open_fitting(tmp_path).groups)
    # The features are not read again; only the sample for the quantiles is.
    monkeypatch.setattr(SpaceFitting, "compute_group", None)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        monkeypatch.setattr(space_fitting, "count_cores", lambda: 4)
        assert are_equal(open_fitting(tmp_path).fit(4), expected)
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(num_threads)
    open_fitting(tmp_path).remove_saved_groups()
    assert not list(tmp_path.glob(".sums-*"))


@pytest.mark.usefixtures("limited_memory", "features")
def test_damaged_and_unrelated_sums_are_computed_again(tmp_path: Path) -> None:
    fitting = open_fitting(tmp_path)
    expected = fitting.fit(4)
    fitting.save_groups(0, 1)
    fitting.group_path(0).write_bytes(fitting.group_path(0).read_bytes()[:-100])
    fitting.group_path(1).write_bytes(fitting.group_path(2).read_bytes())
    assert are_equal(open_fitting(tmp_path).fit(4), expected)


@pytest.mark.usefixtures("limited_memory")
def test_values_that_are_not_finite_are_a_user_error(tmp_path: Path, features: np.ndarray) -> None:
    path = array_path(tmp_path, "train-00010", "features")
    part = np.load(path)
    part[3, 1, 2] = np.nan
    np.save(path, part)
    with pytest.raises(UserError, match=r"train-00010\.features\.npy: contains values that are not finite"):
        open_fitting(tmp_path).fit(4)


@pytest.mark.usefixtures("limited_memory")
@pytest.mark.parametrize("is_limited", [True, False])
def test_equal_features_of_all_images_give_no_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_limited: bool
) -> None:
    monkeypatch.setattr(space_fitting, "MAX_SPACE_ROWS", 100 if is_limited else 10_000)
    for name, count in zip(FakeSplit().shard_names, COUNTS, strict=True):
        np.save(array_path(tmp_path, name, "features"), np.full((count, 2, NUM_FEATURES), 0.1, np.float32))
    assert open_fitting(tmp_path).fit(4) is None


@pytest.mark.parametrize("counts", [[5], [1] * 40, COUNTS, [1, 1000, 1, 1], [1000, *[1] * 20]])
@pytest.mark.parametrize("num_groups", [1, 3, 16])
def test_groups_contain_every_shard_once_and_in_order(counts: list[int], num_groups: int) -> None:
    groups = group_shards(counts, num_groups)
    assert [shard for group in groups for shard in group] == list(range(len(counts)))
    assert all(len(group) for group in groups)
    assert len(groups) <= num_groups


@pytest.mark.parametrize("step", [1, 7])
def test_reading_in_order_closes_the_files_that_were_read(tmp_path: Path, features: np.ndarray, step: int) -> None:
    arrays, rows = open_fitting(tmp_path).open_arrays(), np.arange(0, len(features), step)
    parts, num_open = [], []
    for part in arrays.read_in_order(rows, 50, with_flips=True):
        parts.append(part)
        num_open.append(len(arrays.maps))
    assert np.array_equal(np.concatenate(parts), features[rows].reshape(-1, NUM_FEATURES))
    assert max(num_open) <= 3 + 50 * step // 40
    assert len(arrays.maps) <= 1
    single = np.concatenate(list(arrays.read_in_order(rows, 50, with_flips=False)))
    assert np.array_equal(single, features[rows, 0])


FIT_SETUP = """
from featgan.data.feature_cache import space_fitting
from tests.data.test_space_fitting import FakeSplit
space_fitting.MAX_SPACE_ROWS = space_fitting.MAX_QUANTILE_ROWS = {max_rows}
fitting = space_fitting.SpaceFitting(Path({folder!r}), FakeSplit([4000] * 30), 64)
"""


@pytest.mark.parametrize(("max_rows", "is_bounded"), [(2_000, True), (240_000, False)])
def test_memory_is_bounded(tmp_path: Path, max_rows: int, is_bounded: bool) -> None:
    first, *others = (array_path(tmp_path, f"train-{number:05d}", "features") for number in range(30))
    np.save(first, np.random.default_rng(0).normal(0, 1, (4000, 2, 64)).astype(np.float32))
    for path in others:
        path.hardlink_to(first)
    call = measure_call(FIT_SETUP.format(folder=str(tmp_path), max_rows=max_rows), "fitting.fit(8)")
    # 240,000 rows in float64 need 123 MB, several times.
    assert (call.megabytes < 150) == is_bounded

"""The controls are what they say they are."""

import numpy as np
import pytest
import torch
from torch import Tensor

from featgan.features.space import FeatureSpace
from featgan.metrics.baselines import (
    derangement,
    jpeg_round_trip,
    mean_vector,
    nearest_rows,
)
from featgan.metrics.predictions import Response


def picture(seed: int, count: int = 3) -> Tensor:
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")
    return smooth.mul(255).to(torch.uint8)


def see(images: Tensor) -> tuple[Tensor, Tensor]:
    """A box whose features are the mean colours of the left and right half."""
    features = torch.cat([images[..., :16].mean((2, 3)), images[..., 16:].mean((2, 3))], 1)
    return features, features[:, :2]


def test_jpeg_changes_pixels_a_little() -> None:
    images = picture(0)
    changed = jpeg_round_trip(images)
    assert changed.dtype == torch.uint8 and changed.shape == images.shape
    difference = (changed.float() - images.float()).abs()
    assert 0 < difference.mean() < 4
    rough = jpeg_round_trip(images, quality=5)
    assert (rough.float() - images.float()).abs().mean() > difference.mean()


def test_jpeg_keeps_the_range_of_floats() -> None:
    images = picture(0).float() / 127.5 - 1
    changed = jpeg_round_trip(images)
    assert changed.dtype == torch.float32
    assert (changed - images).abs().mean() < 0.05


@pytest.mark.parametrize("count", [2, 3, 10, 101])
def test_nobody_keeps_its_own_condition(count: int) -> None:
    rows = derangement(count, seed=count)
    assert sorted(rows.tolist()) == list(range(count))
    assert (rows != np.arange(count)).all()
    assert np.array_equal(rows, derangement(count, seed=count))


def test_nearest_is_measured_in_deviations() -> None:
    training = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1000.0], [1.0, 1000.0]])
    space = FeatureSpace.fit(torch.from_numpy(training))
    wanted = np.array([[0.9, 300.0]])
    assert nearest_rows(space, wanted, training).tolist() == [1], "300 is little where the deviation is 500"
    assert nearest_rows(space, np.tile(wanted, (5, 1)), training, block=2).tolist() == [1] * 5


def test_mean_vector_has_the_heads_outputs() -> None:
    space = FeatureSpace.fit(torch.tensor([[0.0, 2.0], [2.0, 4.0]]))
    head = torch.tensor([[1.0, 1.0]]), torch.tensor([0.5])
    found = mean_vector(space, 3, head)
    assert found.features.tolist() == [[1, 3]] * 3
    assert found.outputs is not None and found.outputs.tolist() == [[4.5]] * 3
    assert mean_vector(space, 3).outputs is None


def test_rows_are_taken_with_their_outputs() -> None:
    response = Response.of(torch.eye(3), torch.arange(3)[:, None])
    taken = response.take(np.array([2, 0]))
    assert len(taken) == 2 and taken.features.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert taken.outputs is not None and taken.outputs.tolist() == [[2], [0]]

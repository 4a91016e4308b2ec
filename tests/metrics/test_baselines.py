"""Tests of the baselines."""

import numpy as np
import pytest
import torch
from torch import Tensor

from featgan.features.space import FeatureSpace
from featgan.metrics.baselines import (
    jpeg_round_trip,
    nearest_rows,
    random_derangement,
    training_mean_predictions,
)
from featgan.metrics.predictions import Predictions


def random_images(seed: int, count: int = 3) -> Tensor:
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")
    return smooth.mul(255).to(torch.uint8)


def predict(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean colors of the left and right half as features."""
    features = torch.cat([images[..., :16].mean((2, 3)), images[..., 16:].mean((2, 3))], 1)
    return features, features[:, :2]


def test_jpeg_changes_pixels_slightly() -> None:
    images = random_images(0)
    changed = jpeg_round_trip(images)
    assert changed.dtype == torch.uint8 and changed.shape == images.shape
    difference = (changed.float() - images.float()).abs()
    assert 0 < difference.mean() < 4
    rough = jpeg_round_trip(images, quality=5)
    assert (rough.float() - images.float()).abs().mean() > difference.mean()


def test_jpeg_keeps_the_range_of_floats() -> None:
    images = random_images(0).float() / 127.5 - 1
    changed = jpeg_round_trip(images)
    assert changed.dtype == torch.float32
    assert (changed - images).abs().mean() < 0.05


@pytest.mark.parametrize("count", [2, 3, 10, 101])
def test_shuffling_leaves_no_image_in_its_place(count: int) -> None:
    rows = random_derangement(count, seed=count)
    assert sorted(rows.tolist()) == list(range(count))
    assert (rows != np.arange(count)).all()
    assert np.array_equal(rows, random_derangement(count, seed=count))


def test_nearest_rows_are_found_in_standard_deviations() -> None:
    training = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1000.0], [1.0, 1000.0]])
    space = FeatureSpace.fit(torch.from_numpy(training))
    targets = np.array([[0.9, 300.0]])
    assert nearest_rows(space, targets, training).tolist() == [1], (
        "300 is small relative to a standard deviation of 500"
    )
    assert nearest_rows(space, np.tile(targets, (5, 1)), training, block=2).tolist() == [1] * 5


def test_training_mean_has_the_outputs_of_the_head() -> None:
    space = FeatureSpace.fit(torch.tensor([[0.0, 2.0], [2.0, 4.0]]))
    head = torch.tensor([[1.0, 1.0]]), torch.tensor([0.5])
    actual = training_mean_predictions(space, 3, head)
    assert actual.features.tolist() == [[1, 3]] * 3
    assert actual.outputs is not None and actual.outputs.tolist() == [[4.5]] * 3
    assert training_mean_predictions(space, 3).outputs is None


def test_rows_are_selected_with_their_outputs() -> None:
    predictions = Predictions.from_values(torch.eye(3), torch.arange(3)[:, None])
    selected = predictions.select_rows(np.array([2, 0]))
    assert len(selected) == 2 and selected.features.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert selected.outputs is not None and selected.outputs.tolist() == [[2], [0]]

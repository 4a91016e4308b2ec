"""Tests of directions: each changes one property of the source features."""

import pytest
import torch

from featgan.features import directions
from featgan.features.space import FeatureSpace


@pytest.fixture(scope="module")
def features() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(500, 5, generator=generator) @ torch.randn(5, 5, generator=generator) + 3
    return torch.cat([mixed, torch.full((500, 1), 2.0)], 1)  # the last feature is constant


@pytest.fixture(scope="module")
def space(features: torch.Tensor) -> FeatureSpace:
    return FeatureSpace.fit(features)


def test_whitened_components_are_white(space: FeatureSpace, features: torch.Tensor) -> None:
    whitened = space.project(features)
    assert whitened.shape == (500, 5)
    torch.testing.assert_close(whitened.T @ whitened / 500, torch.eye(5), atol=1e-4, rtol=0)
    assert (space.scales.diff() <= 0).all()


def test_dead_features_are_dropped_not_divided_by_zero(space: FeatureSpace, features: torch.Tensor) -> None:
    assert space.live.tolist() == [True] * 5 + [False] and space.condition_dim("standardized") == 5
    assert torch.isfinite(space.encode(features, "standardized")).all()


@pytest.mark.parametrize("encoding", ["raw", "standardized", "components"])
def test_decode_inverts_encode(space: FeatureSpace, features: torch.Tensor, encoding: str) -> None:
    torch.testing.assert_close(space.decode(space.encode(features, encoding), encoding), features, atol=1e-3, rtol=1e-3)


def test_a_sweep_changes_one_component_and_nothing_else(space: FeatureSpace, features: torch.Tensor) -> None:
    source = features[:7]
    for component in range(3):
        swept = directions.quantile_sweep(space, source, component, (0.1, 0.5, 0.9))
        change = space.project(swept) - space.project(source)[:, None]
        others = [index for index in range(5) if index != component]
        assert change[..., others].abs().max() < 1e-3
        expected = torch.quantile(space.project(features)[:, component], torch.tensor([0.1, 0.5, 0.9]))
        torch.testing.assert_close(space.project(swept)[0, :, component], expected, atol=2e-2, rtol=0)


def test_sweeps_do_not_accumulate(space: FeatureSpace, features: torch.Tensor) -> None:
    source = features[:4].clone()
    first = directions.quantile_sweep(space, source, 1)
    directions.quantile_sweep(space, source, 0)
    assert torch.equal(source, features[:4]) and torch.equal(first, directions.quantile_sweep(space, source, 1))


def test_projections_differ_and_end_at_the_source(space: FeatureSpace, features: torch.Tensor) -> None:
    kept = directions.leading_component_projections(space, features[:3], [0, 1, 5])
    torch.testing.assert_close(kept[:, 0], space.mean.expand(3, -1), atol=1e-4, rtol=0)
    torch.testing.assert_close(kept[:, 2], features[:3], atol=1e-3, rtol=1e-3)
    whitened = space.project(kept[:, 1])
    assert whitened[:, 1:].abs().max() < 1e-3 and whitened[:, 0].abs().max() > 1e-2


def test_interpolation_has_both_ends() -> None:
    line = directions.interpolate_features(torch.zeros(2, 3), torch.ones(2, 3), 5)
    assert line.shape == (2, 5, 3) and line[:, 0].max() == 0 and line[:, -1].min() == 1 and line[0, 1, 0] == 0.25


def test_class_directions(space: FeatureSpace, features: torch.Tensor) -> None:
    labels = torch.tensor([0, 2] * 250)
    means = directions.class_means(features, labels, 3)
    torch.testing.assert_close(means[2], features[1::2].mean(0))
    torch.testing.assert_close(means[1], features.mean(0))
    shifted = directions.shift_toward_class_means(features[:2], means)
    torch.testing.assert_close(
        (shifted[:, 2] - shifted[:, 0]), (means[2] - means[0]).expand(2, -1), atol=1e-4, rtol=1e-4
    )
    from_class = directions.shift_toward_class_means(features[:3], means, 1.5, torch.tensor([2, 0, -1]))
    torch.testing.assert_close(from_class[0, 0], features[0] + 1.5 * (means[0] - means[2]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(from_class[1, 0], features[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(from_class[2, 1], features[2] + 1.5 * (means[1] - means.mean(0)), atol=1e-4, rtol=1e-4)
    weight = torch.randn(3, 6)
    along = directions.shift_along_head_weights(space, features[:2], weight)
    gain = ((along - features[:2, None]) * weight[None]).sum(-1)
    assert (gain > 0).all() and (along[..., 5] == 2.0).all()


def test_a_source_is_shifted_until_the_target_probability_is_high(space: FeatureSpace, features: torch.Tensor) -> None:
    weight = 0.3 * torch.randn(4, 6, generator=torch.Generator().manual_seed(5))
    bias = torch.tensor([1.0, 0.0, -1.0, 0.0])
    outputs, steps = [3, 0, 1], torch.arange(2, 4.25, 0.5).tolist()
    shifts = torch.stack(
        [directions.shift_along_head_weights(space, features[:5], weight[outputs], step) for step in steps]
    )
    selected = directions.smallest_confident_shift(shifts, outputs, weight, bias)

    def target_probabilities(shifted: torch.Tensor) -> torch.Tensor:
        probabilities = torch.softmax(shifted @ weight.T + bias, -1)
        return torch.stack([probabilities[:, index, output] for index, output in enumerate(outputs)], 1)

    probabilities = target_probabilities(selected)
    unit = directions.shift_along_head_weights(space, features[:5], weight[outputs], 1.0) - features[:5, None]
    amounts = ((selected - features[:5, None]) * unit).sum(-1) / unit.square().sum(-1)
    assert selected.shape == (5, 3, 6) and amounts.min() > 1.99 and amounts.max() < 4.01
    stopped = (amounts > 2.01) & (amounts < 3.99)
    assert (probabilities[amounts < 3.99] >= 0.75).all() and stopped.any()
    assert (target_probabilities(selected - 0.5 * unit)[stopped] < 0.75).all()


def test_components_do_not_depend_on_the_order_of_the_rows(features: torch.Tensor, space: FeatureSpace) -> None:
    again = FeatureSpace.fit(features.flip(0))
    torch.testing.assert_close(again.components, space.components, atol=1e-4, rtol=0)


def test_valence_arousal_grid_is_five_by_five() -> None:
    grid = directions.valence_arousal_grid()
    assert grid.shape == (25, 2) and grid[0].tolist() == [-1, -1] and grid[1].tolist() == [-1, -0.5]


@pytest.mark.parametrize("names", [("Black_Hair", "Male", "Blond_Hair"), ("black_hair", "male", "Blond hair")])
def test_one_hair_color_at_a_time(names: tuple[str, ...]) -> None:
    flips = directions.attribute_flips(torch.tensor([[1.0, 0.0, 0.0]]), names)
    assert flips[0].tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]


def test_components_of_rounding_noise_are_not_kept() -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(300, 4, generator=generator) @ torch.randn(4, 12, generator=generator)
    space = FeatureSpace.fit(features, 8)
    assert space.num_components == 4 and space.scales.min() > 1e-2

"""Reconstruction and visibility of edits whose size is known."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from featgan.metrics.preservation import (
    MOST_DECIBELS,
    EditSizes,
    coarse_share,
    decibels,
    mean_absolute_difference,
    preservation_table,
    structural_similarity,
    tint_measure,
)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)) - 0.5


def test_an_exact_copy(images: Tensor) -> None:
    table = preservation_table(images, images, images, images)
    assert table["self_l1"].value == table["cycle_l1"].value == table["edit_l1"].value == 0
    assert table["self_psnr"].value == pytest.approx(MOST_DECIBELS)
    assert table["cycle_ssim"].value == pytest.approx(1)
    assert table["edit_coarse_share"].count == 0 and math.isnan(table["edit_coarse_share"].value)


def test_only_what_is_given_is_measured(images: Tensor) -> None:
    assert preservation_table(images) == {}
    assert list(preservation_table(images, edited=images)) == ["edit_l1", "edit_coarse_share"]


def test_a_known_shift(images: Tensor) -> None:
    shifted = images + 0.2
    assert mean_absolute_difference(images, shifted) == pytest.approx(np.full(6, 0.2), rel=1e-5)
    # 20 log10(range / error) with a range of 2.
    assert decibels(images, shifted) == pytest.approx(np.full(6, 20), rel=1e-4)


def test_structure_matters_more_than_brightness(images: Tensor) -> None:
    smooth = torch.nn.functional.interpolate(images[:, :, :4, :4], size=(32, 32), mode="bilinear")
    noise = 0.1 * torch.randn(smooth.shape, generator=torch.Generator().manual_seed(1))
    brighter = structural_similarity(smooth, smooth + noise.abs().mean())
    noisy = structural_similarity(smooth, smooth + noise)
    assert (brighter > noisy + 0.2).all()


def test_batches_change_nothing(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    other = images.flip(-1)
    whole = structural_similarity(images, other), decibels(images, other)
    monkeypatch.setattr("featgan.metrics.preservation.BATCH_SIZE", 1)
    assert structural_similarity(images, other) == pytest.approx(whole[0])
    assert decibels(images, other) == pytest.approx(whole[1])


def test_a_wave_counts_as_coarse_by_its_frequency() -> None:
    position = torch.arange(64) / 64
    waves = [torch.cos(2 * torch.pi * cycles * position).expand(3, 64, 64) for cycles in (3, 20)]
    # A quarter of Nyquist is 8 cycles over 64 pixels.
    shares = coarse_share(torch.stack([*waves, waves[0] + waves[1]]))
    assert shares.tolist() == pytest.approx([1, 0, 0.5], abs=1e-6)
    assert coarse_share(torch.ones(1, 3, 16, 24)).item() == pytest.approx(1)


@pytest.mark.parametrize("size", [(16, 24), (15, 21), (16, 21)])
def test_half_of_the_plane_holds_all_of_the_energy(size: tuple[int, int]) -> None:
    change = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    frequencies = (torch.fft.fftfreq(side) for side in size)
    below = torch.hypot(*torch.meshgrid(*frequencies, indexing="ij")) < 0.125
    energy = torch.fft.fft2(change.double()).abs().square().sum(1)
    expected = (energy * below).sum((1, 2)) / energy.sum((1, 2))
    assert coarse_share(change).tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_white_noise_is_hardly_coarse() -> None:
    noise = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert coarse_share(noise).mean().item() == pytest.approx(math.pi / 64, abs=0.01)


def test_images_must_match(images: Tensor) -> None:
    with pytest.raises(AssertionError):
        mean_absolute_difference(images, images[:3])


def test_edits_are_also_measured_where_another_decision_is_asked(images: Tensor) -> None:
    edited = images.clone()
    edited[:2] += 0.1  # a tint
    edited[2] += torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(2))
    asked = np.array([True, True, False, False, False, False])
    table = preservation_table(images, edited=edited, asked=asked)
    assert (table["asked_edit_l1"].value, table["asked_edit_l1"].count) == (pytest.approx(0.1), 2)
    assert table["asked_edit_coarse_share"].value == pytest.approx(1)
    assert table["asked_edit_constant_share"].value == pytest.approx(1)
    # Of the three edited images two are tints and one is noise; those that are copies have no share.
    assert table["edit_coarse_share"].value == pytest.approx(2.05 / 3, abs=0.02)
    assert table["edit_coarse_share"].count == 3


def test_a_wave_is_coarse_and_no_tint(images: Tensor) -> None:
    wave = torch.cos(2 * torch.pi * 2 * torch.arange(32) / 32).expand(6, 3, 32, 32)
    sizes = EditSizes.of(images, images + 0.1 * wave)
    assert sizes.coarse == pytest.approx(np.ones(6), abs=1e-4)
    assert sizes.constant == pytest.approx(np.zeros(6), abs=1e-4)
    assert np.abs(sizes.colour).max() < 1e-6


def test_a_tint_counts_when_all_edits_have_it() -> None:
    deviations = np.array([0.1, 0.2, 0.4])
    red = np.tile([[0.2, 0.0, 0.0]], (40, 1))
    assert tint_measure(red, deviations).value == pytest.approx(2)
    red[::2] *= -1
    assert tint_measure(red, deviations).value == pytest.approx(0), "half of the pictures redder, half less red"


def test_a_given_distance_is_taken_of_every_reconstruction(images: Tensor) -> None:
    table = preservation_table(images, images, images, images + 0.1, lpips=mean_absolute_difference)
    assert table["self_lpips"].value == table["cycle_lpips"].value == 0
    assert table["edit_lpips"].value == pytest.approx(0.1, rel=1e-4)

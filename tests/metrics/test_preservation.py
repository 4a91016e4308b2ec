"""Tests of preservation metrics with edits whose size is known."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from featgan.metrics.preservation import (
    MAX_PSNR,
    EditSizes,
    bootstrap_color_shift,
    l1_distance,
    low_frequency_share,
    preservation_metrics,
    psnr,
    ssim,
)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)) - 0.5


def test_an_exact_copy(images: Tensor) -> None:
    table = preservation_metrics(images, images, images, images)
    assert table["reconstruction_l1"].value == table["cycle_l1"].value == table["edit_l1"].value == 0
    assert table["reconstruction_psnr"].value == pytest.approx(MAX_PSNR)
    assert table["cycle_ssim"].value == pytest.approx(1)
    assert table["edit_low_frequency_share"].count == 0 and math.isnan(table["edit_low_frequency_share"].value)


def test_only_the_given_metrics_are_computed(images: Tensor) -> None:
    assert preservation_metrics(images) == {}
    assert list(preservation_metrics(images, edited=images)) == ["edit_l1", "edit_low_frequency_share"]


def test_a_known_brightness_change(images: Tensor) -> None:
    shifted = images + 0.2
    assert l1_distance(images, shifted) == pytest.approx(np.full(6, 0.2), rel=1e-5)
    # 20 log10(range / error) with a range of 2.
    assert psnr(images, shifted) == pytest.approx(np.full(6, 20), rel=1e-4)


def test_structure_matters_more_than_brightness(images: Tensor) -> None:
    smooth = torch.nn.functional.interpolate(images[:, :, :4, :4], size=(32, 32), mode="bilinear")
    noise = 0.1 * torch.randn(smooth.shape, generator=torch.Generator().manual_seed(1))
    brighter = ssim(smooth, smooth + noise.abs().mean())
    noisy = ssim(smooth, smooth + noise)
    assert (brighter > noisy + 0.2).all()


def test_the_batch_size_does_not_change_values(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    other = images.flip(-1)
    expected = ssim(images, other), psnr(images, other)
    monkeypatch.setattr("featgan.metrics.preservation.BATCH_SIZE", 1)
    assert ssim(images, other) == pytest.approx(expected[0])
    assert psnr(images, other) == pytest.approx(expected[1])


def test_the_low_frequency_share_of_a_wave_depends_on_its_frequency() -> None:
    position = torch.arange(64) / 64
    waves = [torch.cos(2 * torch.pi * cycles * position).expand(3, 64, 64) for cycles in (3, 20)]
    # A quarter of Nyquist is 8 cycles over 64 pixels.
    shares = low_frequency_share(torch.stack([*waves, waves[0] + waves[1]]))
    assert shares.tolist() == pytest.approx([1, 0, 0.5], abs=1e-6)
    assert low_frequency_share(torch.ones(1, 3, 16, 24)).item() == pytest.approx(1)


@pytest.mark.parametrize("size", [(16, 24), (15, 21), (16, 21)])
def test_the_half_plane_gives_the_energy_of_the_full_plane(size: tuple[int, int]) -> None:
    change = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    frequencies = (torch.fft.fftfreq(side) for side in size)
    below = torch.hypot(*torch.meshgrid(*frequencies, indexing="ij")) < 0.125
    energy = torch.fft.fft2(change.double()).abs().square().sum(1)
    expected = (energy * below).sum((1, 2)) / energy.sum((1, 2))
    assert low_frequency_share(change).tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_white_noise_has_a_small_low_frequency_share() -> None:
    noise = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert low_frequency_share(noise).mean().item() == pytest.approx(math.pi / 64, abs=0.01)


def test_images_must_match(images: Tensor) -> None:
    with pytest.raises(AssertionError):
        l1_distance(images, images[:3])


def test_edits_with_another_target_class_are_also_measured(images: Tensor) -> None:
    edited = images.clone()
    edited[:2] += 0.1  # a uniform color shift
    edited[2] += torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(2))
    target_differs = np.array([True, True, False, False, False, False])
    table = preservation_metrics(images, edited=edited, target_differs=target_differs)
    assert table["edit_l1_when_changed"].value == pytest.approx(0.1) and table["edit_l1_when_changed"].count == 2
    assert table["edit_low_frequency_share_when_changed"].value == pytest.approx(1)
    assert table["edit_uniform_share_when_changed"].value == pytest.approx(1)
    # Two edits are uniform color shifts and one is noise; the share of copies is NaN.
    assert table["edit_low_frequency_share"].value == pytest.approx(2.05 / 3, abs=0.02)
    assert table["edit_low_frequency_share"].count == 3


def test_wave_has_low_frequency_and_is_not_uniform(images: Tensor) -> None:
    wave = torch.cos(2 * torch.pi * 2 * torch.arange(32) / 32).expand(6, 3, 32, 32)
    sizes = EditSizes.from_images(images, images + 0.1 * wave)
    assert sizes.low_frequency_share == pytest.approx(np.ones(6), abs=1e-4)
    assert sizes.uniform_share == pytest.approx(np.zeros(6), abs=1e-4)
    assert np.abs(sizes.color_change).max() < 1e-6


def test_only_color_shifts_common_to_all_edits_count() -> None:
    stds = np.array([0.1, 0.2, 0.4])
    red = np.tile([[0.2, 0.0, 0.0]], (40, 1))
    assert bootstrap_color_shift(red, stds).value == pytest.approx(2)
    red[::2] *= -1
    assert bootstrap_color_shift(red, stds).value == pytest.approx(0), "half of the images become more red, half less"


def test_lpips_is_computed_for_every_reconstruction_if_given(images: Tensor) -> None:
    table = preservation_metrics(images, images, images, images + 0.1, lpips=l1_distance)
    assert table["reconstruction_lpips"].value == table["cycle_lpips"].value == 0
    assert table["edit_lpips"].value == pytest.approx(0.1, rel=1e-4)

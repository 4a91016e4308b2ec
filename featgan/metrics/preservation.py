"""What the edit leaves alone: reconstruction of the source, and how large and how coarse the edit itself is.

Images are float in [-1, 1], [N, 3, H, W]; L1 is in those units (a whole range of 2).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from featgan.metrics.intervals import Floats, Measure, as_floats, mean_measure

BATCH_SIZE = 128
"""Images compared at a time; bounds memory, changes no value."""

MOST_DECIBELS = 100.0
"""PSNR of identical images, which is infinite, so that means stay finite."""

NYQUIST = 0.5
"""Highest frequency an image can hold, in cycles per pixel."""

PerImage = Callable[[Tensor, Tensor], Tensor]


def in_batches(compare: PerImage, first: Tensor, second: Tensor) -> Floats:
    """A comparison of two image batches that gives one number per image, taken `BATCH_SIZE` images at a time => [N]."""
    assert first.shape == second.shape, (first.shape, second.shape)
    pairs = zip(torch.split(first, BATCH_SIZE), torch.split(second, BATCH_SIZE), strict=True)
    return as_floats(torch.cat([compare(one.float(), other.float()) for one, other in pairs]))


def mean_absolute_difference(first: Tensor, second: Tensor) -> Floats:
    """L1 per image [N], 0 to 2, over all pixels and channels."""
    return in_batches(lambda one, other: (one - other).abs().flatten(1).mean(1), first, second)


def decibels(first: Tensor, second: Tensor) -> Floats:
    """Peak signal to noise ratio per image [N] in dB, at most 100."""

    def compare(one: Tensor, other: Tensor) -> Tensor:
        ratio = peak_signal_noise_ratio(one, other, data_range=2.0, reduction="none", dim=(1, 2, 3))
        return ratio.clamp(max=MOST_DECIBELS)

    return in_batches(compare, first, second)


def structural_similarity(first: Tensor, second: Tensor) -> Floats:
    """SSIM per image [N] (Wang et al. 2004: Gaussian window of deviation 1.5), -1 to 1, on values in [0, 1]."""

    def compare(one: Tensor, other: Tensor) -> Tensor:
        # Its luminance term compares means, so it needs intensities that start at 0.
        one, other = (one + 1) / 2, (other + 1) / 2
        found = structural_similarity_index_measure(one, other, data_range=1.0, reduction="none")
        assert isinstance(found, Tensor)
        return found.reshape(len(one))

    return in_batches(compare, first, second)


def coarse_share(change: Tensor, cutoff: float = 0.25) -> Tensor:
    """Share of each change's energy below `cutoff` of the Nyquist frequency: [N, 3, H, W] => [N] in [0, 1].

    By the radius in the Fourier plane, constant part included. Not a number where nothing changed. White noise of the
    size of the image has about pi / 64 = .05 there; an edit that people see as a change of the face, most of it.
    """
    height, width = change.shape[-2:]
    vertical = torch.fft.fftfreq(height, device=change.device)
    horizontal = torch.fft.fftfreq(width, device=change.device)
    below = torch.hypot(vertical[:, None], horizontal[None]) < cutoff * NYQUIST
    energy = torch.fft.fft2(change.double()).abs().square().sum(1)
    return (energy * below).sum((1, 2)) / energy.sum((1, 2))


def reconstruction_table(source: Tensor, reconstruction: Tensor, prefix: str, seed: int = 0) -> dict[str, Measure]:
    """L1, PSNR and SSIM between sources and their reconstructions, names starting with `prefix`."""
    return {
        f"{prefix}_l1": mean_measure(mean_absolute_difference(source, reconstruction), seed),
        f"{prefix}_psnr": mean_measure(decibels(source, reconstruction), seed),
        f"{prefix}_ssim": mean_measure(structural_similarity(source, reconstruction), seed),
    }


def visibility_table(source: Tensor, edited: Tensor, seed: int = 0) -> dict[str, Measure]:
    """Size of the edit (mean |change|, 0 to 2) and the share of its energy that is coarse enough to be seen."""
    shares = in_batches(lambda one, other: coarse_share(other - one), source, edited)
    return {
        "edit_l1": mean_measure(mean_absolute_difference(source, edited), seed),
        "edit_coarse_share": mean_measure(shares, seed),
    }


def preservation_table(
    source: Tensor,
    reconstruction: Tensor | None = None,
    cycle: Tensor | None = None,
    edited: Tensor | None = None,
    seed: int = 0,
) -> dict[str, Measure]:
    """Every preservation measure for which images [N, 3, H, W] in [-1, 1] are given, row for row with `source`.

    `reconstruction` is G(x, c0), `cycle` is G(G(x, c), c0), `edited` is G(x, c).
    """
    table: dict[str, Measure] = {}
    if reconstruction is not None:
        table |= reconstruction_table(source, reconstruction, "self", seed)
    if cycle is not None:
        table |= reconstruction_table(source, cycle, "cycle", seed)
    if edited is not None:
        table |= visibility_table(source, edited, seed)
    return table

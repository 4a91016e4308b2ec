"""Preservation metrics: reconstruction of the source, and the size and spatial frequency of the edit.

Images are [N, 3, H, W], uint8 or float in [-1, 1]. L1 is in units of the float range, so it is at most 2.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from featgan.metrics.bootstrap import Booleans, Estimate, Floats, bootstrap_mean, bootstrap_statistic, to_float64
from featgan.system.images import to_float
from featgan.system.memory import choose_batch_size

BATCH_SIZE = 128
"""Number of images compared at a time; limits memory and does not change values."""

MAX_PSNR = 100.0
"""Maximum PSNR in dB. The PSNR of identical images is infinite, and means must be finite."""

NYQUIST = 0.5
"""Highest frequency in an image, in cycles per pixel."""

PerImageComparison = Callable[[Tensor, Tensor], Tensor]
"""A function of two float image batches that returns one or more values per image."""

ImageDistance = Callable[[Tensor, Tensor], Floats]
"""A function of two image batches that returns a distance per image [N]."""


def compare_in_batches(compare: PerImageComparison, first: Tensor, second: Tensor) -> Floats:
    """Apply a comparison that returns one value per image, in batches: two [N, 3, H, W] => [N] or [N, M]."""
    assert first.shape == second.shape, (first.shape, second.shape)
    batch_size = choose_batch_size(first.shape[-1], BATCH_SIZE)
    pairs = zip(torch.split(first, batch_size), torch.split(second, batch_size), strict=True)
    return to_float64(torch.cat([compare(to_float_images(one), to_float_images(other)) for one, other in pairs]))


def to_float_images(images: Tensor) -> Tensor:
    """Convert uint8 or float images to float in [-1, 1]."""
    return images.float() if images.is_floating_point() else to_float(images)


def l1_distance(first: Tensor, second: Tensor) -> Floats:
    """Compute the mean absolute difference over all pixels and channels: [N], 0 to 2."""
    return compare_in_batches(lambda one, other: (one - other).abs().flatten(1).mean(1), first, second)


def psnr(first: Tensor, second: Tensor) -> Floats:
    """Compute the peak signal-to-noise ratio of each image in dB: [N], at most 100."""

    def compare(one: Tensor, other: Tensor) -> Tensor:
        ratio = peak_signal_noise_ratio(one, other, data_range=2.0, reduction="none", dim=(1, 2, 3))
        return ratio.clamp(max=MAX_PSNR)

    return compare_in_batches(compare, first, second)


def ssim(first: Tensor, second: Tensor) -> Floats:
    """Compute SSIM (Wang et al. 2004, Gaussian window with SD 1.5) of each image: [N], -1 to 1, on values in [0, 1]."""

    def compare(one: Tensor, other: Tensor) -> Tensor:
        # The luminance term compares means, so it needs intensities that start at 0.
        one, other = (one + 1) / 2, (other + 1) / 2
        similarity = structural_similarity_index_measure(one, other, data_range=1.0, reduction="none")
        assert isinstance(similarity, Tensor)
        return similarity.reshape(len(one))

    return compare_in_batches(compare, first, second)


def low_frequency_share(change: Tensor, cutoff: float = 0.25) -> Tensor:
    """Compute the share of each change's energy below `cutoff` of the Nyquist frequency: [N, 3, H, W] => [N].

    Values are in [0, 1], by the radius in the Fourier plane, including the constant part. NaN if nothing changed. White
    noise has a share of about pi / 64 = 0.05; an edit that people see as a change of the face has a large share.
    """
    height, width = change.shape[-2:]
    vertical = torch.fft.fftfreq(height, device=change.device)
    horizontal = torch.fft.rfftfreq(width, device=change.device)
    below = torch.hypot(vertical[:, None], horizontal[None]) < cutoff * NYQUIST
    plane = torch.view_as_real(torch.fft.rfft2(change.float())).square().sum((1, 4)).double()
    # rfft2 returns half of the plane: every column counts twice, except the first and the last of an even width.
    twice = torch.full((width // 2 + 1,), 2.0, device=change.device, dtype=torch.float64)
    twice[0] = 1
    if width % 2 == 0:
        twice[-1] = 1
    energy = plane * twice
    return (energy * below).sum((1, 2)) / energy.sum((1, 2))


@dataclass(frozen=True)
class EditSizes:
    """Size of N edits, the frequency distribution of their energy, and their color shift."""

    l1: Floats  # [N], mean |change|
    low_frequency_share: Floats  # [N], share of the energy below a quarter of Nyquist; NaN if nothing changed
    uniform_share: Floats  # [N], share of the energy that is equal in every pixel (a color shift)
    color_change: Floats  # [N, 3], mean change of each channel

    @classmethod
    def from_images(cls, source: Tensor, edited: Tensor) -> "EditSizes":
        """Compare two image batches [N, 3, H, W]."""
        if source is edited:
            zeros, undefined = np.zeros(len(source)), np.full(len(source), np.nan)
            return cls(zeros, undefined, undefined, np.zeros((len(source), 3)))

        def compare(one: Tensor, other: Tensor) -> Tensor:
            change = other - one
            energy, color = change.double().square().mean((2, 3)).sum(1), change.double().mean((2, 3))
            constant = color.square().sum(1) / energy
            return torch.stack(
                [change.abs().mean((1, 2, 3)), low_frequency_share(change), constant, *color.unbind(1)], 1
            )

        columns = compare_in_batches(compare, source, edited).T
        return cls(columns[0], columns[1], columns[2], columns[3:].T)


def mean_colors(images: Tensor) -> Floats:
    """Compute the mean of each channel: [N, 3], in [-1, 1]."""
    return compare_in_batches(lambda one, other: one.mean((2, 3)), images, images)


def reconstruction_metrics(
    source: Tensor, reconstruction: Tensor, prefix: str, lpips: ImageDistance | None = None, seed: int = 0
) -> dict[str, Estimate]:
    """Compute L1, PSNR, SSIM and, if given, LPIPS between sources and reconstructions; names start with `prefix`."""
    table = {
        f"{prefix}_l1": bootstrap_mean(l1_distance(source, reconstruction), seed),
        f"{prefix}_psnr": bootstrap_mean(psnr(source, reconstruction), seed),
        f"{prefix}_ssim": bootstrap_mean(ssim(source, reconstruction), seed),
    }
    return table | ({f"{prefix}_lpips": bootstrap_mean(lpips(source, reconstruction), seed)} if lpips else {})


def edit_size_metrics(sizes: EditSizes, target_differs: Booleans | None = None, seed: int = 0) -> dict[str, Estimate]:
    """Compute the size of the edits (mean |change|, 0 to 2) and the low-frequency share of their energy.

    If `target_differs` [N] selects the pairs whose decision should change, the metrics are also computed over those
    pairs, with the share of energy that is uniform (a color shift).
    """
    table = {
        "edit_l1": bootstrap_mean(sizes.l1, seed),
        "edit_low_frequency_share": bootstrap_mean(sizes.low_frequency_share, seed),
    }
    if target_differs is not None:
        table["edit_l1_when_changed"] = bootstrap_mean(sizes.l1[target_differs], seed)
        table["edit_low_frequency_share_when_changed"] = bootstrap_mean(sizes.low_frequency_share[target_differs], seed)
        table["edit_uniform_share_when_changed"] = bootstrap_mean(sizes.uniform_share[target_differs], seed)
    return table


def bootstrap_color_shift(color_change: Floats, stds: Floats, seed: int = 0) -> Estimate:
    """Estimate the length of the mean color change [N, 3], in SD [3] of the mean colors of real images; at least 0.

    Opposite changes cancel, so the value measures a color shift that is common to all edits. By chance it is about
    sqrt(3 / N) SD.
    """
    scaled = color_change / np.maximum(stds, 1e-9)
    return bootstrap_statistic(lambda weights: np.linalg.norm(weights @ scaled, axis=1), len(scaled), seed)


def preservation_metrics(
    source: Tensor,
    reconstruction: Tensor | None = None,
    cycle: Tensor | None = None,
    edited: Tensor | None = None,
    target_differs: Booleans | None = None,
    lpips: ImageDistance | None = None,
    sizes: EditSizes | None = None,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Compute the preservation metrics for which images [N, 3, H, W] are given, in the order of `source`.

    `reconstruction` is G(x, c0), `cycle` is G(G(x, c), c0), and `edited` is G(x, c). `sizes` are the sizes of the edits
    if they are already computed.
    """
    table: dict[str, Estimate] = {}
    for prefix, images in (("reconstruction", reconstruction), ("cycle", cycle)):
        if images is not None:
            table |= reconstruction_metrics(source, images, prefix, lpips, seed)
    if edited is not None:
        table |= edit_size_metrics(sizes or EditSizes.from_images(source, edited), target_differs, seed)
        table |= {"edit_lpips": bootstrap_mean(lpips(source, edited), seed)} if lpips else {}
    return table

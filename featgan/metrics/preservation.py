"""What the edit leaves alone: reconstruction of the source, and how large and how coarse the edit itself is.

Images are uint8 or float in [-1, 1], [N, 3, H, W]; L1 is in the latter's units (a whole range of 2).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from featgan.metrics.bootstrap import Booleans, Floats, Measure, as_floats, mean_measure, measure
from featgan.system.images import to_float

BATCH_SIZE = 128
"""Images compared at a time; bounds memory, changes no value."""

MOST_DECIBELS = 100.0
"""PSNR of identical images, which is infinite, so that means stay finite."""

NYQUIST = 0.5
"""Highest frequency an image can hold, in cycles per pixel."""

PerImage = Callable[[Tensor, Tensor], Tensor]

Distance = Callable[[Tensor, Tensor], Floats]
"""Two image batches => a distance per image [N]."""


def in_batches(compare: PerImage, first: Tensor, second: Tensor) -> Floats:
    """A comparison of two image batches that gives one number per image, taken `BATCH_SIZE` images at a time => [N]."""
    assert first.shape == second.shape, (first.shape, second.shape)
    pairs = zip(torch.split(first, BATCH_SIZE), torch.split(second, BATCH_SIZE), strict=True)
    return as_floats(torch.cat([compare(in_floats(one), in_floats(other)) for one, other in pairs]))


def in_floats(images: Tensor) -> Tensor:
    """Either form => float in [-1, 1]."""
    return images.float() if images.is_floating_point() else to_float(images)


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
    horizontal = torch.fft.rfftfreq(width, device=change.device)
    below = torch.hypot(vertical[:, None], horizontal[None]) < cutoff * NYQUIST
    plane = torch.view_as_real(torch.fft.rfft2(change.float())).square().sum((1, 4)).double()
    # Half of the plane is enough, of which every column but the first, and the last of an even width, stands for two.
    twice = torch.full((width // 2 + 1,), 2.0, device=change.device, dtype=torch.float64)
    twice[0] = 1
    if width % 2 == 0:
        twice[-1] = 1
    energy = plane * twice
    return (energy * below).sum((1, 2)) / energy.sum((1, 2))


@dataclass(frozen=True)
class EditSizes:
    """How large each of N edits is, where its energy lies, and how it shifts the picture's colour."""

    l1: Floats  # [N], mean |change|
    coarse: Floats  # [N], share of the energy below a quarter of Nyquist; not a number where nothing changed
    constant: Floats  # [N], share of the energy that is the same in every pixel: a tint
    colour: Floats  # [N, 3], mean change of each channel

    @classmethod
    def of(cls, source: Tensor, edited: Tensor) -> "EditSizes":
        """Of image batches [N, 3, H, W]."""
        if source is edited:
            none, undefined = np.zeros(len(source)), np.full(len(source), np.nan)
            return cls(none, undefined, undefined, np.zeros((len(source), 3)))

        def compare(one: Tensor, other: Tensor) -> Tensor:
            change = other - one
            energy, colour = change.double().square().mean((2, 3)).sum(1), change.double().mean((2, 3))
            constant = colour.square().sum(1) / energy
            return torch.stack([change.abs().mean((1, 2, 3)), coarse_share(change), constant, *colour.unbind(1)], 1)

        columns = in_batches(compare, source, edited).T
        return cls(columns[0], columns[1], columns[2], columns[3:].T)


def mean_colours(images: Tensor) -> Floats:
    """Mean of each channel [N, 3], in [-1, 1]."""
    return in_batches(lambda one, other: one.mean((2, 3)), images, images)


def reconstruction_table(
    source: Tensor, reconstruction: Tensor, prefix: str, lpips: Distance | None = None, seed: int = 0
) -> dict[str, Measure]:
    """L1, PSNR, SSIM and, where it is given, LPIPS between sources and reconstructions; names start with `prefix`."""
    table = {
        f"{prefix}_l1": mean_measure(mean_absolute_difference(source, reconstruction), seed),
        f"{prefix}_psnr": mean_measure(decibels(source, reconstruction), seed),
        f"{prefix}_ssim": mean_measure(structural_similarity(source, reconstruction), seed),
    }
    return table | ({f"{prefix}_lpips": mean_measure(lpips(source, reconstruction), seed)} if lpips else {})


def visibility_table(sizes: EditSizes, asked: Booleans | None = None, seed: int = 0) -> dict[str, Measure]:
    """Size of the edit (mean |change|, 0 to 2) and the share of its energy that is coarse enough to be seen.

    Over all pairs; where `asked` [N] says which pairs are asked for another decision, over those as well, with the
    share that is a mere tint.
    """
    table = {"edit_l1": mean_measure(sizes.l1, seed), "edit_coarse_share": mean_measure(sizes.coarse, seed)}
    if asked is not None:
        table["asked_edit_l1"] = mean_measure(sizes.l1[asked], seed)
        table["asked_edit_coarse_share"] = mean_measure(sizes.coarse[asked], seed)
        table["asked_edit_constant_share"] = mean_measure(sizes.constant[asked], seed)
    return table


def tint_measure(colour: Floats, deviations: Floats, seed: int = 0) -> Measure:
    """Length of the mean change of colour [N, 3], in deviations [3] of real pictures' mean colours; 0 is the least.

    Changes in opposite directions cancel: what is left is a tint that every edit of this kind gets. Chance alone leaves
    about sqrt(3 / N) of one deviation.
    """
    scaled = colour / np.maximum(deviations, 1e-9)
    return measure(lambda weights: np.linalg.norm(weights @ scaled, axis=1), len(scaled), seed)


def preservation_table(
    source: Tensor,
    reconstruction: Tensor | None = None,
    cycle: Tensor | None = None,
    edited: Tensor | None = None,
    asked: Booleans | None = None,
    lpips: Distance | None = None,
    sizes: EditSizes | None = None,
    seed: int = 0,
) -> dict[str, Measure]:
    """Every preservation measure for which images [N, 3, H, W] are given, row for row with `source`.

    `reconstruction` is G(x, c0), `cycle` is G(G(x, c), c0), `edited` is G(x, c); `sizes` those of the edits, where they
    have been taken already.
    """
    table: dict[str, Measure] = {}
    for prefix, images in (("self", reconstruction), ("cycle", cycle)):
        if images is not None:
            table |= reconstruction_table(source, images, prefix, lpips, seed)
    if edited is not None:
        table |= visibility_table(sizes or EditSizes.of(source, edited), asked, seed)
        table |= {"edit_lpips": mean_measure(lpips(source, edited), seed)} if lpips else {}
    return table

"""A sweep carried out: the edited images, the reconstruction, and how much changed between them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib import colormaps
from torch import Tensor

from featgan.images import to_float, to_uint8
from featgan.report.sources import Sources
from featgan.report.sweeps import Sweep

Edit = Callable[[Tensor, Tensor], Tensor]
"""(images float [M, 3, S, S], conditions [M, C]) => images float in [-1, 1], same shape."""


@dataclass(frozen=True)
class Rendering:
    """Frames uint8 [N, T, 3, S, S] of a sweep, and the reconstruction uint8 [N, 3, S, S] where it is known."""

    sweep: Sweep
    frames: Tensor
    reconstruction: Tensor | None

    def differences(self) -> Tensor | None:
        """|edit - reconstruction| averaged over colours, as a share of the whole range: float [N, T, S, S]."""
        if self.reconstruction is None:
            return None
        change = self.frames.float() - self.reconstruction[:, None].float()
        return change.abs().mean(2) / 255

    def visible_change(self) -> float | None:
        """Mean |edit - reconstruction| in [-1, 1] units at the two ends of the sweep, over images and pixels."""
        differences = self.differences()
        return None if differences is None else float(2 * differences[:, [0, -1]].mean())


def render_sweep(edit: Edit, sources: Sources, sweep: Sweep, reconstruction: Tensor | None) -> Rendering:
    """Ask the generator for every target of every source."""
    num_targets = sweep.conditions.shape[1]
    images = to_float(sources.images).repeat_interleave(num_targets, 0)
    edited = edit(images, sweep.conditions.flatten(0, 1))
    return Rendering(sweep, to_uint8(edited).unflatten(0, (len(sources), num_targets)).cpu(), reconstruction)


def difference_scale(renderings: Sequence[Rendering]) -> float:
    """The change, as a share of the range, that difference maps show brightest; one scale for a whole report.

    The 98th percentile over the components' films (all films, where there are no components), rounded up to a
    twentieth, so that maps can be compared with each other.
    """
    films = [rendering for rendering in renderings if rendering.sweep.film]
    components = [rendering for rendering in films if rendering.sweep.component is not None]
    maps = [rendering.differences() for rendering in components or films]
    peaks = [float(np.quantile(thinned(part), 0.98)) for part in maps if part is not None]
    return max(1, int(np.ceil(20 * max(peaks, default=0.0) - 1e-6))) / 20


def thinned(values: Tensor, most: int = 1_000_000) -> np.ndarray:
    """Up to `most` of the values, evenly spread."""
    return values.flatten()[:: -(-values.numel() // most)].numpy()


def difference_images(differences: Tensor, scale: float) -> Tensor:
    """Shares [..., S, S] => colours uint8 [..., 3, S, S], black for no change to pale yellow at `scale` and above."""
    colours = np.asarray(colormaps["magma"](np.linspace(0, 1, 256)))[:, :3]
    table = torch.from_numpy((255 * colours).round().astype(np.uint8))
    levels = (differences / scale).clamp(0, 1).mul(255).round().long()
    return table[levels].movedim(-1, -3)

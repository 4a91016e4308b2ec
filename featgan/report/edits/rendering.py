"""A sweep carried out: the edited images, what the black box sees in them, and how much changed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from matplotlib import colormaps
from torch import Tensor

from featgan.metrics.bootstrap import Floats
from featgan.metrics.predictions import Response
from featgan.report.edits.sources import Sources
from featgan.report.edits.sweeps import Sweep

Edit = Callable[[Tensor, Tensor], Tensor]
"""(images uint8 [M, 3, S, S], conditions [M, C]) => edited images, uint8 and of the same shape."""

Look = Callable[[Tensor], Response]
"""Images uint8 [M, 3, S, S] => the black box's features [M, F] and outputs [M, O]."""


@dataclass(frozen=True)
class Seen:
    """What the black box sees in the T frames of N sources."""

    features: Floats  # [N, T, F]
    outputs: Floats  # [N, T, O]


@dataclass(frozen=True)
class Rendering:
    """Frames uint8 [N, T, 3, S, S] of a sweep; where known, its reconstruction [N, 3, S, S] and what the box sees."""

    sweep: Sweep
    frames: Tensor
    reconstruction: Tensor | None
    seen: Seen | None = None

    @cached_property
    def differences(self) -> Tensor | None:
        """|edit - reconstruction| averaged over colours, as a share of the whole range: float [N, T, S, S]."""
        if self.reconstruction is None:
            return None
        total = torch.zeros(self.frames[:, :, 0].shape, dtype=torch.int16)
        for colour in range(3):
            total += (self.frames[:, :, colour].short() - self.reconstruction[:, None, colour].short()).abs_()
        return total.float().div_(3 * 255)

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """The first and the last frame of every source: two uint8 [N, 3, S, S]."""
        return self.frames[:, 0], self.frames[:, -1]


def render_sweep(
    edit: Edit, sources: Sources, sweep: Sweep, reconstruction: Tensor | None, look: Look | None = None
) -> Rendering:
    """Ask the generator for every target of every source, and the box, where there is one, what it sees in each."""
    num_targets = sweep.conditions.shape[1]
    images = sources.images.repeat_interleave(num_targets, 0)
    edited = edit(images, sweep.conditions.flatten(0, 1)).cpu()
    seen = None if look is None or not sweep.film else as_frames(look(edited), len(sources))
    return Rendering(sweep, edited.unflatten(0, (len(sources), num_targets)), reconstruction, seen)


def as_frames(response: Response, num_sources: int) -> Seen:
    """A response to all frames of all sources, told apart."""
    assert response.outputs is not None
    features, outputs = (np.stack(np.split(part, num_sources)) for part in (response.features, response.outputs))
    return Seen(features, outputs)


def difference_scale(renderings: Sequence[Rendering]) -> float:
    """The change, as a share of the range, that difference maps show brightest; one scale for a whole report.

    The 98th percentile over the components' films (all films, where there are no components), rounded up to a
    twentieth, so that maps can be compared with each other.
    """
    films = [rendering for rendering in renderings if rendering.sweep.film]
    components = [rendering for rendering in films if rendering.sweep.component is not None]
    maps = [rendering.differences for rendering in components or films]
    peaks = [float(np.quantile(thinned(part), 0.98)) for part in maps if part is not None]
    return max(1, int(np.ceil(20 * max(peaks, default=0.0) - 1e-6))) / 20


def thinned(values: Tensor, most: int = 1 << 17) -> np.ndarray:
    """Up to `most` of the values, evenly spread."""
    return values.flatten()[:: -(-values.numel() // most)].numpy()


@lru_cache(maxsize=1)
def colour_table() -> np.ndarray:
    """256 colours uint8 [256, 3], black to pale yellow."""
    colours = np.asarray(colormaps["magma"](np.linspace(0, 1, 256)))[:, :3]
    return (255 * colours).round().astype(np.uint8)


def difference_images(differences: Tensor, scale: float) -> Tensor:
    """Shares [..., S, S] => colours uint8 [..., 3, S, S], black for no change to pale yellow at `scale` and above."""
    levels = (differences * (255 / scale)).clamp_(0, 255).round_().byte()
    return torch.from_numpy(colour_table().take(levels.numpy(), 0)).movedim(-1, -3)

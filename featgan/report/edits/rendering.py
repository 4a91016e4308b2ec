"""Render a sweep: the edited images, the classifier's predictions for them, and difference maps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from matplotlib import colormaps
from torch import Tensor

from featgan.metrics.bootstrap import Floats
from featgan.metrics.predictions import Predictions
from featgan.report.edits.sources import SourceImages
from featgan.report.edits.sweeps import Sweep

EditFunction = Callable[[Tensor, Tensor], Tensor]
"""(images uint8 [M, 3, S, S], conditions [M, C]) => edited images, uint8 and of the same shape."""

PredictFunction = Callable[[Tensor], Predictions]
"""Images uint8 [M, 3, S, S] => the classifier's features [M, F] and outputs [M, O]."""


@dataclass(frozen=True)
class FramePredictions:
    """The classifier's predictions for the T frames of N sources."""

    features: Floats  # [N, T, F]
    outputs: Floats  # [N, T, O]


@dataclass(frozen=True)
class RenderedSweep:
    """Frames uint8 [N, T, 3, S, S] of a sweep; reconstructions [N, 3, S, S] and predictions if known."""

    sweep: Sweep
    frames: Tensor
    reconstruction: Tensor | None
    predictions: FramePredictions | None = None

    @cached_property
    def differences(self) -> Tensor | None:
        """|edit - reconstruction| averaged over the color channels, as a share of the range: float [N, T, S, S]."""
        if self.reconstruction is None:
            return None
        total = torch.zeros(self.frames[:, :, 0].shape, dtype=torch.int16)
        for channel in range(3):
            total += (self.frames[:, :, channel].short() - self.reconstruction[:, None, channel].short()).abs_()
        return total.float().div_(3 * 255)

    @property
    def end_frames(self) -> tuple[Tensor, Tensor]:
        """The first and the last frame of every source: two uint8 [N, 3, S, S]."""
        return self.frames[:, 0], self.frames[:, -1]


def render_sweep(
    edit_fn: EditFunction,
    sources: SourceImages,
    sweep: Sweep,
    reconstruction: Tensor | None,
    predict_fn: PredictFunction | None = None,
) -> RenderedSweep:
    """Edit every source toward every target of the sweep, and predict the features and outputs of the edits."""
    num_targets = sweep.conditions.shape[1]
    images = sources.images.repeat_interleave(num_targets, 0)
    edited = edit_fn(images, sweep.conditions.flatten(0, 1)).cpu()
    predictions = (
        None if predict_fn is None or not sweep.has_film else split_frame_predictions(predict_fn(edited), len(sources))
    )
    return RenderedSweep(sweep, edited.unflatten(0, (len(sources), num_targets)), reconstruction, predictions)


def split_frame_predictions(predictions: Predictions, num_sources: int) -> FramePredictions:
    """Split predictions for N * T frames into those of each source: [N * T, ...] => [N, T, ...]."""
    assert predictions.outputs is not None
    features, outputs = (
        np.stack(np.split(array, num_sources)) for array in (predictions.features, predictions.outputs)
    )
    return FramePredictions(features, outputs)


def difference_scale(renderings: Sequence[RenderedSweep]) -> float:
    """Return the change, as a share of the range, that is the brightest color of every difference map of a report.

    It is the 98th percentile over the sweeps of components (or over all sweeps with a film), rounded up to a
    twentieth. One scale makes the maps comparable.
    """
    film_renderings = [rendering for rendering in renderings if rendering.sweep.has_film]
    components = [rendering for rendering in film_renderings if rendering.sweep.component is not None]
    maps = [rendering.differences for rendering in components or film_renderings]
    peaks = [float(np.quantile(subsample_values(difference), 0.98)) for difference in maps if difference is not None]
    return max(1, int(np.ceil(20 * max(peaks, default=0.0) - 1e-6))) / 20


def subsample_values(values: Tensor, max_values: int = 1 << 17) -> np.ndarray:
    """Return at most `max_values` of the values, evenly spaced."""
    return values.flatten()[:: -(-values.numel() // max_values)].numpy()


@lru_cache(maxsize=1)
def color_table() -> np.ndarray:
    """Return 256 colors uint8 [256, 3], from black to pale yellow."""
    colors = np.asarray(colormaps["magma"](np.linspace(0, 1, 256)))[:, :3]
    return (255 * colors).round().astype(np.uint8)


def difference_images(differences: Tensor, scale: float) -> Tensor:
    """Map shares [..., S, S] => colors uint8 [..., 3, S, S]: 0 is black, `scale` and more is pale yellow."""
    levels = (differences * (255 / scale)).clamp_(0, 255).round_().byte()
    return torch.from_numpy(color_table().take(levels.numpy(), 0)).movedim(-1, -3)

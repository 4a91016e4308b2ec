"""Baselines: trivial edits, and the noise floor of the classifier.

Each baseline replaces c', the features of the edited image, so that the same functions compute its metrics.
"""

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg

from featgan.features.space import FeatureSpace
from featgan.metrics.bootstrap import Floats, Integers, to_float64
from featgan.metrics.predictions import Predictions, standardize_features
from featgan.system.images import to_float, to_uint8

JPEG_QUALITY = 75
"""JPEG quality of the baselines `source_jpeg` and `target_jpeg`."""

MAX_DISTANCES = 1 << 24
"""Maximum number of distances computed at a time, which limits memory."""

LinearHead = tuple[Tensor, Tensor]
"""The classifier's last layer: weight [O, F], bias [O]."""


def jpeg_round_trip(images: Tensor, quality: int = JPEG_QUALITY) -> Tensor:
    """Compress images as JPEG and decode them: uint8 [N, 3, H, W] or float in [-1, 1] => same type, on the CPU."""
    if images.is_floating_point():
        return to_float(jpeg_round_trip(to_uint8(images), quality))
    files = encode_jpeg(list(images.cpu().unbind()), quality=quality)
    return torch.stack([decode_jpeg(file, mode=ImageReadMode.RGB) for file in files])


def random_derangement(count: int, seed: int = 0) -> Integers:
    """Return a permutation of `count` rows without fixed points, so that every pair gets the target of another.

    A single row stays in place.
    """
    order = np.random.default_rng(seed).permutation(count)
    shuffled = np.empty(count, dtype=np.int64)
    shuffled[order] = np.roll(order, 1)
    return shuffled


def nearest_rows(space: FeatureSpace, targets: Floats, training: Floats, block: int | None = None) -> Integers:
    """Find the row of the training features nearest to each target, standardized: raw [N, F], [T, F] => [N].

    `block` targets are processed at a time; by default as many as MAX_DISTANCES allows.
    """
    block = block or max(1, MAX_DISTANCES // max(len(training), 1))
    standardized_training = standardize_features(space, training)
    squares = (standardized_training**2).sum(1)
    standardized_targets = standardize_features(space, targets)
    starts = range(0, len(standardized_targets), block)
    nearest = [
        (squares - 2 * standardized_targets[start : start + block] @ standardized_training.T).argmin(1)
        for start in starts
    ]
    return np.concatenate(nearest) if nearest else np.zeros(0, dtype=np.int64)


def training_mean_predictions(space: FeatureSpace, count: int, head: LinearHead | None = None) -> Predictions:
    """Return the training mean for every pair; outputs are computed by the classifier's last layer if it is given."""
    features = np.tile(to_float64(space.mean), (count, 1))
    return Predictions(features, None if head is None else features @ to_float64(head[0]).T + to_float64(head[1]))

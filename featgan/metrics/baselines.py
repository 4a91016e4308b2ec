"""What the controls are made of: generators that do not do the job, and the box's own noise.

Each control stands in for c', what the box sees in the edited image, so that the same functions measure it.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg

from featgan.features.space import FeatureSpace
from featgan.metrics.bootstrap import Floats, Integers, as_floats
from featgan.metrics.predictions import Response, standardize
from featgan.system.images import to_float, to_uint8

QUALITY = 75
"""JPEG quality of the noise ceiling."""

MOST_DISTANCES = 1 << 24
"""Distances computed at a time, which bounds memory."""

Head = tuple[Tensor, Tensor]
"""The box's last layer: weight [O, F], bias [O]."""

See = Callable[[Tensor], tuple[Tensor, Tensor]]
"""A black box: images float in [-1, 1] => features [N, F], outputs [N, O]."""


def jpeg_round_trip(images: Tensor, quality: int = QUALITY) -> Tensor:
    """Images as JPEG keeps them: uint8 [N, 3, H, W] or float in [-1, 1] => the same type and shape, on the CPU."""
    if images.is_floating_point():
        return to_float(jpeg_round_trip(to_uint8(images), quality))
    files = encode_jpeg(list(images.cpu().unbind()), quality=quality)
    return torch.stack([decode_jpeg(file, mode=ImageReadMode.RGB) for file in files])


def derangement(count: int, seed: int = 0) -> Integers:
    """A permutation of `count` rows that leaves none in its place, so every pair gets another's request.

    One row alone stays.
    """
    order = np.random.default_rng(seed).permutation(count)
    shuffled = np.empty(count, dtype=np.int64)
    shuffled[order] = np.roll(order, 1)
    return shuffled


def nearest_rows(space: FeatureSpace, wanted: Floats, training: Floats, block: int | None = None) -> Integers:
    """Row of the training features nearest to each wanted vector, standardised: raw [N, F], [T, F] => [N].

    `block` wanted vectors at a time, as many as fit in MOST_DISTANCES by default.
    """
    block = block or max(1, MOST_DISTANCES // max(len(training), 1))
    known = standardize(space, training)
    squares = (known**2).sum(1)
    wishes = standardize(space, wanted)
    starts = range(0, len(wishes), block)
    found = [(squares - 2 * wishes[start : start + block] @ known.T).argmin(1) for start in starts]
    return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)


def mean_vector(space: FeatureSpace, count: int, head: Head | None = None) -> Response:
    """The training mean whatever is asked; outputs by the box's last layer where it is known."""
    features = np.tile(as_floats(space.mean), (count, 1))
    return Response(features, None if head is None else features @ as_floats(head[0]).T + as_floats(head[1]))


def respond(images: Tensor, see: See, batch_size: int = 64) -> Response:
    """The box's features and outputs of uint8 or float images [N, 3, H, W], a batch at a time."""
    batches = torch.split(images, batch_size)
    seen = [see(batch if batch.is_floating_point() else to_float(batch)) for batch in batches]
    return Response.of(torch.cat([features for features, _ in seen]), torch.cat([outputs for _, outputs in seen]))

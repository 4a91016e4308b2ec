"""What the measures say of generators that do not do the job, and of the box's own noise: printed beside every table.

Each control stands in for c', what the box sees in the edited image, so that the same functions measure it.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg

from featgan.directions import FeatureSpace
from featgan.images import to_float, to_uint8
from featgan.metrics.intervals import Floats, Integers, as_floats
from featgan.metrics.response import Response, standardize

QUALITY = 75
"""JPEG quality of the noise ceiling."""

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


def mirror(images: Tensor) -> Tensor:
    """Left and right exchanged, [..., W]."""
    return images.flip(-1)


def derangement(count: int, seed: int = 0) -> Integers:
    """A permutation of `count` rows that leaves none in its place, so every pair gets another's request.

    One row alone stays.
    """
    order = np.random.default_rng(seed).permutation(count)
    shuffled = np.empty(count, dtype=np.int64)
    shuffled[order] = np.roll(order, 1)
    return shuffled


def nearest_rows(space: FeatureSpace, wanted: Floats, training: Floats, block: int = 1024) -> Integers:
    """Row of the training features nearest to each wanted vector, standardised: raw [N, F], [T, F] => [N]."""
    known = standardize(space, training)
    squares = (known**2).sum(1)
    wishes = standardize(space, wanted)
    starts = range(0, len(wishes), block)
    found = [(squares - 2 * wishes[start : start + block] @ known.T).argmin(1) for start in starts]
    return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)


def identity_copy(source: Response) -> Response:
    """G(x, c) = x: perfect preservation and realism, no faithfulness."""
    return source


def mean_vector(space: FeatureSpace, count: int, head: Head | None = None) -> Response:
    """The training mean whatever is asked; outputs by the box's last layer where it is known."""
    features = np.tile(as_floats(space.mean), (count, 1))
    return Response(features, None if head is None else features @ as_floats(head[0]).T + as_floats(head[1]))


def nearest_real(space: FeatureSpace, target: Response, training: Response) -> Response:
    """The training image nearest to the request: faithful and real, but nobody's edit. Rows: `nearest_rows`."""
    return training.take(nearest_rows(space, target.features, training.features))


def noise_ceiling(images: Tensor, see: See, batch_size: int = 64) -> dict[str, Response]:
    """What the box sees in the target images after a JPEG round trip, and mirrored: as near as anyone can come.

    `images` uint8 or float in [-1, 1], [N, 3, H, W], those whose features are asked for.
    """
    changes: Mapping[str, Callable[[Tensor], Tensor]] = {"jpeg": jpeg_round_trip, "mirror": mirror}
    return {name: respond(change(images), see, batch_size) for name, change in changes.items()}


def respond(images: Tensor, see: See, batch_size: int = 64) -> Response:
    """The box's features and outputs of uint8 or float images [N, 3, H, W], a batch at a time."""
    floats = images if images.is_floating_point() else to_float(images)
    seen = [see(batch) for batch in torch.split(floats, batch_size)]
    return Response.of(torch.cat([features for features, _ in seen]), torch.cat([outputs for _, outputs in seen]))


def feature_controls(
    space: FeatureSpace,
    source: Response,
    target: Response,
    training: Response,
    head: Head | None = None,
    shuffled: Response | None = None,
    ceiling: Mapping[str, Response] | None = None,
) -> dict[str, Response]:
    """Every control's c' for N pairs, by name, in the order in which they are printed.

    `training` holds real images to take the nearest from. `shuffled` is what the box sees in G(x_i, c_j), j =
    `derangement(N)[i]`: it needs the generator, so the caller makes it. `ceiling` comes from `noise_ceiling`, or from
    a cache (the mirrored image's features are there already).
    """
    controls = {"identity_copy": identity_copy(source)}
    if shuffled is not None:
        controls["shuffled_condition"] = shuffled
    controls["mean_vector"] = mean_vector(space, len(target), head)
    controls["nearest_real"] = nearest_real(space, target, training)
    return controls | {f"ceiling_{name}": response for name, response in (ceiling or {}).items()}

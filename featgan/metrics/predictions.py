"""What a black box sees in N images, and the coordinates in which it is compared."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from featgan.features.space import FeatureSpace
from featgan.metrics.bootstrap import Floats, Integers, as_floats


@dataclass(frozen=True)
class Response:
    """Raw features [N, F] and outputs [N, O] of a black box; outputs are None where they cannot be known."""

    features: Floats
    outputs: Floats | None = None

    @classmethod
    def of(cls, features: Tensor | Floats, outputs: Tensor | Floats | None = None) -> "Response":
        """From tensors or arrays of any float type."""
        return cls(as_floats(features), None if outputs is None else as_floats(outputs))

    def __len__(self) -> int:
        return len(self.features)

    def take(self, rows: Integers) -> "Response":
        """The given rows, in that order."""
        return Response(self.features[rows], None if self.outputs is None else self.outputs[rows])


def standardize(space: FeatureSpace, features: Floats) -> Floats:
    """Raw [N, F] => standardised [N, L], dead features dropped."""
    live = as_floats(space.live).astype(bool)
    offsets = features[:, live] - as_floats(space.mean)[live]
    return np.divide(offsets, as_floats(space.std)[live])


def standardize_by(real: Floats, features: Floats) -> Floats:
    """Raw [N, F] => centred and in deviations of real images' features [M, F]; those that hardly vary are dropped."""
    deviations = real.std(0)
    live = deviations > 1e-6 * max(deviations.max(), 1e-12)
    return np.divide(features[:, live] - real.mean(0)[live], deviations[live])


def project(space: FeatureSpace, features: Floats) -> Floats:
    """Raw [N, F] => whitened principal components [N, K]."""
    return as_floats(space.to("cpu").project(torch.from_numpy(features).float()))

"""Predictions of a classifier for N images, and the coordinates in which features are compared."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from featgan.features.space import FeatureSpace
from featgan.metrics.bootstrap import Floats, Integers, to_float64


@dataclass(frozen=True)
class Predictions:
    """Raw features [N, F] and outputs [N, O] of a classifier; outputs are None if they are unknown."""

    features: Floats
    outputs: Floats | None = None

    @classmethod
    def from_values(cls, features: Tensor | Floats, outputs: Tensor | Floats | None = None) -> "Predictions":
        """Create predictions from tensors or arrays of any float type."""
        return cls(to_float64(features), None if outputs is None else to_float64(outputs))

    def __len__(self) -> int:
        return len(self.features)

    def select_rows(self, rows: Integers) -> "Predictions":
        """Select rows, in the given order."""
        return Predictions(self.features[rows], None if self.outputs is None else self.outputs[rows])


def standardize_features(space: FeatureSpace, features: Floats) -> Floats:
    """Standardize raw features, without constant ones: [N, F] => [N, L]."""
    live = to_float64(space.live).astype(bool)
    offsets = features[:, live] - to_float64(space.mean)[live]
    return np.divide(offsets, to_float64(space.std)[live])


def standardize_by_real(real: Floats, features: Floats) -> Floats:
    """Standardize raw features [N, F] by those of real images [M, F]; features that hardly vary are dropped."""
    stds = real.std(0)
    live = stds > 1e-6 * max(stds.max(), 1e-12)
    return np.divide(features[:, live] - real.mean(0)[live], stds[live])


def project_features(space: FeatureSpace, features: Floats) -> Floats:
    """Compute whitened principal components of raw features: [N, F] => [N, K]."""
    return to_float64(space.to("cpu").project(torch.from_numpy(features).float()))

"""The feature space of a black box: standardization and principal components."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

QUANTILE_LEVELS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
"""Training quantiles kept for each component."""


SMALLEST_VARIANCE = 1e-8
"""Of a component, relative to the first one's; below lies what float32 features make of zero."""


ENCODINGS = ("raw", "standardized", "components")


@dataclass(frozen=True)
class FeatureSpace:
    """The training features' mean, deviation and principal components; F features, L of them alive, K components.

    A feature that never varies on the training set (a dead unit) has std 1 and is left out of the components.
    """

    mean: Tensor  # [F]
    std: Tensor  # [F], 1 where dead
    live: Tensor  # [F] bool
    components: Tensor  # [K, F], orthonormal rows over the standardised live features, 0 where dead
    scales: Tensor  # [K], deviation along each component, descending
    quantiles: Tensor  # [K, len(QUANTILE_LEVELS)], of the whitened components

    @classmethod
    def fit(cls, features: Tensor, num_components: int | None = None) -> "FeatureSpace":
        """Fit on training features [N, F]; keeps at most `num_components` components (all by default).

        Components along which the features do not vary, but for rounding, are never kept: whitening would blow them up.
        Signs are fixed (the largest entry of each component is positive), so that two fits agree.
        """
        features = features.double()
        mean, std = features.mean(0), features.std(0, correction=0)
        live = std > 1e-6 * std.max().clamp_min(1e-12)
        std = torch.where(live, std, torch.ones_like(std))
        standardized = ((features - mean) / std) * live
        covariance = standardized.T @ standardized / len(features)
        variances, vectors = torch.linalg.eigh(covariance)
        varying = int((variances > SMALLEST_VARIANCE * variances.max()).sum())
        rank = varying if num_components is None else min(num_components, varying)
        components = vectors.flip(1)[:, :rank].T
        largest = components.gather(1, components.abs().argmax(1, keepdim=True))
        components = components * largest.sign()
        scales = variances.flip(0)[:rank].clamp_min(1e-12).sqrt()
        whitened = standardized @ components.T / scales
        levels = torch.tensor(QUANTILE_LEVELS, dtype=torch.float64)
        quantiles = torch.stack([torch.quantile(column, levels) for column in thin(whitened).unbind(1)])
        return cls(mean.float(), std.float(), live, components.float(), scales.float(), quantiles.float())

    @property
    def feature_dim(self) -> int:
        return len(self.mean)

    @property
    def num_components(self) -> int:
        return len(self.components)

    def standardize(self, features: Tensor) -> Tensor:
        """[..., F] => [..., F], zero mean and unit deviation on the training set; dead features 0."""
        return (features - self.mean) / self.std * self.live

    def project(self, features: Tensor) -> Tensor:
        """[..., F] => whitened components [..., K]: zero mean, unit deviation, uncorrelated on the training set."""
        return self.standardize(features) @ self.components.T / self.scales

    def reconstruct(self, whitened: Tensor) -> Tensor:
        """Whitened components [..., K] => features [..., F] in the components' span."""
        return self.mean + self.std * ((whitened * self.scales) @ self.components)

    def encode(self, features: Tensor, encoding: str) -> Tensor:
        """Features [..., F] => the condition as the generator takes it [..., C] (C is F, L or K)."""
        if encoding == "raw":
            return features
        if encoding == "standardized":
            return self.standardize(features)[..., self.live]
        assert encoding == "components", encoding
        return self.project(features)

    def decode(self, condition: Tensor, encoding: str) -> Tensor:
        """The inverse of `encode` on its range: condition [..., C] => features [..., F]."""
        if encoding == "raw":
            return condition
        if encoding == "components":
            return self.reconstruct(condition)
        assert encoding == "standardized", encoding
        standardized = condition.new_zeros(*condition.shape[:-1], self.feature_dim)
        standardized[..., self.live] = condition
        return self.mean + self.std * standardized

    def condition_dim(self, encoding: str) -> int:
        """C for an encoding."""
        return {"raw": self.feature_dim, "standardized": int(self.live.sum()), "components": self.num_components}[
            encoding
        ]

    def agrees(self, other: "FeatureSpace", encoding: str) -> bool:
        """Whether both encode features alike, but for the rounding of another machine."""
        if other.feature_dim != self.feature_dim or other.condition_dim(encoding) != self.condition_dim(encoding):
            return False
        probes = torch.cat([self.mean[None], self.mean + self.std.diag()])
        return torch.allclose(self.encode(probes, encoding), other.encode(probes, encoding), rtol=0.01, atol=0.01)

    def quantile(self, level: float) -> Tensor:
        """The training quantile of every whitened component [K], interpolated between the levels kept."""
        levels = torch.tensor(QUANTILE_LEVELS)
        right = int(torch.searchsorted(levels, torch.tensor(level)).clamp(1, len(levels) - 1))
        weight = (level - levels[right - 1]) / (levels[right] - levels[right - 1])
        return torch.lerp(self.quantiles[:, right - 1], self.quantiles[:, right], weight.clamp(0, 1))

    def tensors(self) -> dict[str, Tensor]:
        """What is saved with the model; `FeatureSpace(**tensors)` restores it."""
        return {field.name: getattr(self, field.name).contiguous() for field in fields(self)}

    def to(self, device: torch.device | str) -> "FeatureSpace":
        return FeatureSpace(**{name: tensor.to(device) for name, tensor in self.tensors().items()})


def thin(rows: Tensor, most: int = 100_000) -> Tensor:
    """Every n-th row, so that quantiles of millions of rows stay cheap."""
    return rows[:: max(1, len(rows) // most)]

"""The feature space of a classifier: standardization and principal components."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from featgan.features.feature_sums import FeatureSums

QUANTILE_LEVELS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
"""Levels of the training quantiles that are stored for each component."""


MIN_RELATIVE_VARIANCE = 1e-8
"""Minimum variance of a component, relative to the first; smaller values are rounding noise of float32 features."""


@dataclass(frozen=True)
class FeatureSpace:
    """Mean, standard deviation and principal components of the training features.

    F is the number of features, L the number of features that are not constant on the training set, and K the number of
    components. A constant feature has std 1 and is excluded from the components.
    """

    mean: Tensor  # [F]
    std: Tensor  # [F], 1 for constant features
    live: Tensor  # [F] bool, false for constant features
    components: Tensor  # [K, F], orthonormal rows over the standardized features, 0 for constant features
    scales: Tensor  # [K], standard deviation along each component, descending
    quantiles: Tensor  # [K, len(QUANTILE_LEVELS)], of the whitened components

    @classmethod
    def fit(cls, features: Tensor, num_components: int | None = None) -> "FeatureSpace":
        """Fit the space to training features [N, F]; keep at most `num_components` components (all by default).

        Components with no variance except rounding noise are never kept, because whitening would amplify the noise.
        The largest entry of each component is positive, so that two fits have equal signs.
        """
        features = features.double()
        mean, std = features.mean(0), features.std(0, correction=0)
        live = find_live_features(std)
        std = torch.where(live, std, torch.ones_like(std))
        standardized = ((features - mean) / std) * live
        variances, axes = compute_principal_axes(standardized if live.all() else standardized[:, live])
        return cls.from_axes(mean, std, live, variances, axes, standardized, num_components)

    @classmethod
    def from_sums(cls, sums: FeatureSums, sample: Tensor, num_components: int | None = None) -> "FeatureSpace":
        """Fit the space to the sums over more training features than fit into memory, as `fit` does.

        There must be at least as many rows as features. The quantiles are those of `sample` [n, F].
        """
        covariance = sums.covariance()
        mean, std = sums.mean, covariance.diagonal().clamp_min(0).sqrt()
        live = find_live_features(std)
        std = torch.where(live, std, torch.ones_like(std))
        correlation = covariance if live.all() else covariance[live][:, live]
        variances, axes = decompose_symmetric(correlation.div_(std[live]).div_(std[live][:, None]))
        standardized = sample.double().sub_(mean).div_(std).mul_(live)
        return cls.from_axes(mean, std, live, variances.flip(0), axes.flip(1), standardized, num_components)

    @classmethod
    def from_axes(
        cls,
        mean: Tensor,
        std: Tensor,
        live: Tensor,
        variances: Tensor,
        axes: Tensor,
        standardized: Tensor,
        num_components: int | None,
    ) -> "FeatureSpace":
        """Build the space from principal axes [L, K], with the quantiles of standardized rows [n, F]."""
        num_varying = int((variances > MIN_RELATIVE_VARIANCE * variances.max()).sum())
        rank = num_varying if num_components is None else min(num_components, num_varying)
        components = standardized.new_zeros(rank, len(mean))
        components[:, live] = axes[:, :rank].T
        largest = components.gather(1, components.abs().argmax(1, keepdim=True))
        components = components * largest.sign()
        scales = variances[:rank].clamp_min(1e-12).sqrt()
        whitened = standardized @ components.T / scales
        levels = torch.tensor(QUANTILE_LEVELS, dtype=torch.float64)
        quantiles = torch.stack([torch.quantile(column, levels) for column in subsample_rows(whitened).unbind(1)])
        return cls(mean.float(), std.float(), live, components.float(), scales.float(), quantiles.float())

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "FeatureSpace":
        """Return the space that `tensors` contains. Raises ValueError if a name, shape or value does not fit."""
        names = [field.name for field in fields(cls)]
        if set(tensors) != set(names):
            raise ValueError(f"contains {', '.join(sorted(tensors)) or 'nothing'}, not a feature space")
        num_features, num_components = tensors["mean"].numel(), tensors["scales"].numel()
        quantiles = (num_components, len(QUANTILE_LEVELS))
        shapes: list[tuple[int, ...]] = [(num_features,)] * 3
        shapes += [(num_components, num_features), (num_components,), quantiles]
        for name, shape in zip(names, shapes, strict=True):
            dtype = torch.bool if name == "live" else torch.float32
            if tuple(tensors[name].shape) != shape or tensors[name].dtype != dtype or 0 in shape:
                raise ValueError(f"{name} is {tensors[name].dtype} {list(tensors[name].shape)} in the feature space")
        if not (tensors["std"] > 0).all() or not (tensors["scales"] > 0).all():
            raise ValueError("a standard deviation in the feature space is not positive")
        return cls(**tensors)

    @property
    def feature_dim(self) -> int:
        """F, the number of features."""
        return len(self.mean)

    @property
    def num_components(self) -> int:
        """K, the number of components."""
        return len(self.components)

    def standardize(self, features: Tensor) -> Tensor:
        """Standardize features, [..., F] => [..., F]: mean 0 and SD 1 on the training set, 0 if constant."""
        return (features - self.mean) / self.std * self.live

    def project(self, features: Tensor) -> Tensor:
        """Compute whitened components, [..., F] => [..., K]: mean 0, SD 1 and uncorrelated on the training set."""
        return self.standardize(features) @ self.components.T / self.scales

    def reconstruct(self, whitened: Tensor) -> Tensor:
        """Compute features in the span of the components from whitened components, [..., K] => [..., F]."""
        return self.mean + self.std * ((whitened * self.scales) @ self.components)

    def encode(self, features: Tensor, encoding: str) -> Tensor:
        """Convert features [..., F] to the condition [..., C] of the generator (C is F, L or K)."""
        if encoding == "raw":
            return features
        if encoding == "standardized":
            return self.standardize(features)[..., self.live]
        assert encoding == "components", encoding
        return self.project(features)

    def decode(self, condition: Tensor, encoding: str) -> Tensor:
        """Convert a condition [..., C] to features [..., F]; the inverse of `encode` on its range."""
        if encoding == "raw":
            return condition
        if encoding == "components":
            return self.reconstruct(condition)
        assert encoding == "standardized", encoding
        standardized = condition.new_zeros(*condition.shape[:-1], self.feature_dim)
        standardized[..., self.live] = condition
        return self.mean + self.std * standardized

    def condition_dim(self, encoding: str) -> int:
        """Return C, the length of the condition, for an encoding."""
        return {"raw": self.feature_dim, "standardized": int(self.live.sum()), "components": self.num_components}[
            encoding
        ]

    def is_equivalent(self, other: "FeatureSpace", encoding: str) -> bool:
        """Whether both spaces encode features equally, except for rounding on another machine."""
        if other.feature_dim != self.feature_dim or other.condition_dim(encoding) != self.condition_dim(encoding):
            return False
        probe_features = torch.cat([self.mean[None], self.mean + self.std.diag()])
        return torch.allclose(
            self.encode(probe_features, encoding), other.encode(probe_features, encoding), rtol=0.01, atol=0.01
        )

    def quantile(self, level: float) -> Tensor:
        """Return the training quantile of every whitened component [K], interpolated between the stored levels."""
        levels = torch.tensor(QUANTILE_LEVELS)
        right = int(torch.searchsorted(levels, torch.tensor(level)).clamp(1, len(levels) - 1))
        weight = (level - levels[right - 1]) / (levels[right] - levels[right - 1])
        return torch.lerp(self.quantiles[:, right - 1], self.quantiles[:, right], weight.clamp(0, 1))

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that are saved with a model; `FeatureSpace(**tensors)` restores the space."""
        return {field.name: getattr(self, field.name).contiguous() for field in fields(self)}

    def to(self, device: torch.device | str) -> "FeatureSpace":
        """Copy the space to a device."""
        return FeatureSpace(**{name: tensor.to(device) for name, tensor in self.tensors().items()})


def find_live_features(std: Tensor) -> Tensor:
    """Return which features [F] are not constant, except for rounding, from their standard deviations."""
    return std > 1e-6 * std.max().clamp_min(1e-12)


def compute_principal_axes(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the variances [K], descending, and orthonormal axes [L, K] of centered rows [N, L]; K is min(N, L).

    With fewer rows than columns, the covariance has many equal eigenvalues of 0, for which LAPACK can fail or return
    infinity. The axes then come from the products of the rows. Axes without variance are 0 in that case.
    """
    num_rows, num_columns = rows.shape
    if num_rows >= num_columns:
        variances, axes = decompose_symmetric(rows.T @ rows / num_rows)
        return variances.flip(0), axes.flip(1)
    variances, weights = decompose_symmetric(rows @ rows.T / num_rows)
    variances, weights = variances.flip(0), weights.flip(1)
    axes = rows.T @ weights
    has_variance = variances > MIN_RELATIVE_VARIANCE * variances.max()
    return variances, axes / axes.norm(dim=0).clamp_min(1e-300) * has_variance


def decompose_symmetric(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues, ascending, and eigenvectors of a symmetric matrix; from NumPy if PyTorch fails."""
    with suppress(RuntimeError):  # LinAlgError is a subclass
        values, vectors = torch.linalg.eigh(matrix)
        if values.isfinite().all() and vectors.isfinite().all():
            return values, vectors
    array_values, array_vectors = np.linalg.eigh(matrix.numpy())
    return torch.from_numpy(array_values), torch.from_numpy(array_vectors)


def subsample_rows(rows: Tensor, max_rows: int = 100_000) -> Tensor:
    """Keep every n-th row, so that quantiles of millions of rows stay cheap."""
    return rows[:: max(1, len(rows) // max_rows)]

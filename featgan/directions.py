"""Directions in the condition's space: what to ask of the generator so that one property changes at a time.

The space is fitted once on the training features: standardise, then principal component analysis. Every direction
is computed from the source's own, untouched features, so that sweeping one component never carries over to the next.
"""

from collections.abc import Sequence
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


def set_component(space: FeatureSpace, features: Tensor, component: int, value: Tensor | float) -> Tensor:
    """Source features [N, F] with one whitened component at `value` (a number or [N]); all else untouched."""
    current = space.project(features)[:, component]
    change = (value - current) * space.scales[component]
    return features + change[:, None] * (space.components[component] * space.std)


def quantile_sweep(
    space: FeatureSpace, features: Tensor, component: int, levels: Sequence[float] = (0.1, 0.5, 0.9)
) -> Tensor:
    """Component at its training quantiles, all others as in the source: [N, F] => [N, len(levels), F]."""
    values = [float(space.quantile(level)[component]) for level in levels]
    return torch.stack([set_component(space, features, component, value) for value in values], 1)


def component_sweep(space: FeatureSpace, features: Tensor, component: int, values: Sequence[float]) -> Tensor:
    """Component at given whitened values: [N, F] => [N, len(values), F]."""
    return torch.stack([set_component(space, features, component, value) for value in values], 1)


def projections(space: FeatureSpace, features: Tensor, counts: Sequence[int]) -> Tensor:
    """The first i components of the source, the rest at their mean (0), for each i in `counts`: [N, len(counts), F]."""
    whitened = space.project(features)
    kept = [whitened * (torch.arange(space.num_components) < count) for count in counts]
    return torch.stack([space.reconstruct(part) for part in kept], 1)


def interpolation(source: Tensor, target: Tensor, num_steps: int) -> Tensor:
    """Straight line between two images' features, ends included: two [N, F] => [N, num_steps, F]."""
    weights = torch.linspace(0, 1, num_steps)[None, :, None]
    return torch.lerp(source[:, None], target[:, None], weights)


def class_means(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Mean training features of every class [num_classes, F]; a class without images gets the overall mean."""
    means = features.mean(0).repeat(num_classes, 1)
    for label in labels[labels >= 0].unique().tolist():
        means[label] = features[labels == label].mean(0)
    return means


def toward_class_means(features: Tensor, means: Tensor, amount: float = 1.0, own: Tensor | None = None) -> Tensor:
    """Shift each source by (class mean - mean of its own class): [N, F], [K, F], classes [N] => [N, K, F].

    Less the mean over the classes where its own class is not known (negative).
    """
    start = means.mean(0).expand_as(features)
    if own is not None:
        start = torch.where(own[:, None] >= 0, means[own.clamp_min(0)], start)
    return features[:, None] + amount * (means[None] - start[:, None])


def along_head_weights(space: FeatureSpace, features: Tensor, weight: Tensor, amount: float = 2.0) -> Tensor:
    """Shift each source along the box's own last-layer weights: [N, F], weight [O, F] => [N, O, F].

    The step is the direction of steepest ascent of the output in the standardised space (w * std), `amount`
    deviations of the training features' spread along it.
    """
    directions = weight * space.std * space.live
    directions = directions / directions.norm(dim=1, keepdim=True).clamp_min(1e-12)
    spread = ((directions @ space.components.T) * space.scales).norm(dim=1, keepdim=True)
    return features[:, None] + amount * (spread * directions * space.std)[None]


SURE = 0.75
"""What the box's last layer must give an answer that a source is moved to."""


def until_answered(moved: Tensor, outputs: Sequence[int], weight: Tensor, bias: Tensor) -> Tensor:
    """Of ever larger shifts towards K answers the first that the box's last layer is sure of, or the last one.

    `moved` [A, N, K, F], `outputs` the K answers as rows of `weight` [O, F] and `bias` [O] => [N, K, F].
    """
    shares = torch.softmax(moved @ weight.T + bias, -1)  # [A, N, K, O]
    asked = torch.tensor(outputs)[None, None, :, None].expand(*moved.shape[:3], 1)
    enough = shares.gather(-1, asked)[..., 0] >= SURE
    enough[-1] = True
    first = enough.int().argmax(0)
    return moved.gather(0, first[None, ..., None].expand(1, *moved.shape[1:]))[0]


def valence_arousal_grid(levels: Sequence[float] = (-1.0, -0.5, 0.0, 0.5, 1.0)) -> Tensor:
    """The grid over valence (slow) and arousal (fast): [len(levels) ** 2, 2]."""
    values = torch.tensor(list(levels))
    return torch.cartesian_prod(values, values)


HAIR_COLOURS = frozenset({"Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair"})
"""As CelebA writes them."""


def is_hair_colour(name: str) -> bool:
    """Whether an attribute is one of them, in upper or lower case, with spaces or without."""
    return name.lower().replace(" ", "_") in {colour.lower() for colour in HAIR_COLOURS}


def attribute_flips(attributes: Tensor, names: Sequence[str]) -> Tensor:
    """Each attribute flipped in turn, one hair colour at a time: 0/1 [N, A] => [N, A, A]."""
    hair = [index for index, name in enumerate(names) if is_hair_colour(name)]
    flipped = attributes[:, None].repeat(1, len(names), 1)
    for index, name in enumerate(names):
        if is_hair_colour(name):
            flipped[:, index, hair] = 0
            flipped[:, index, index] = 1
        else:
            flipped[:, index, index] = 1 - attributes[:, index]
    return flipped

"""Directions in feature space: target conditions that change one property at a time.

The space is fitted once on the training features: standardization, then principal component analysis (PCA). Every
direction starts from the unmodified source features, so that one sweep never affects the next.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from featgan.features.space import FeatureSpace


def set_component(space: FeatureSpace, features: Tensor, component: int, value: Tensor | float) -> Tensor:
    """Set one whitened component of source features [N, F] to `value` (a number or [N]); nothing else changes."""
    current = space.project(features)[:, component]
    change = (value - current) * space.scales[component]
    return features + change[:, None] * (space.components[component] * space.std)


def quantile_sweep(
    space: FeatureSpace, features: Tensor, component: int, levels: Sequence[float] = (0.1, 0.5, 0.9)
) -> Tensor:
    """Set a component to its training quantiles, others as in the source: [N, F] => [N, len(levels), F]."""
    values = [float(space.quantile(level)[component]) for level in levels]
    return torch.stack([set_component(space, features, component, value) for value in values], 1)


def component_sweep(space: FeatureSpace, features: Tensor, component: int, values: Sequence[float]) -> Tensor:
    """Set a component to the given whitened values: [N, F] => [N, len(values), F]."""
    return torch.stack([set_component(space, features, component, value) for value in values], 1)


def leading_component_projections(space: FeatureSpace, features: Tensor, counts: Sequence[int]) -> Tensor:
    """Keep the first i components of the source and set the others to their mean (0), for each i in `counts`.

    [N, F] => [N, len(counts), F].
    """
    whitened = space.project(features)
    truncated = [whitened * (torch.arange(space.num_components) < count) for count in counts]
    return torch.stack([space.reconstruct(component_values) for component_values in truncated], 1)


def interpolate_features(source: Tensor, target: Tensor, num_steps: int) -> Tensor:
    """Interpolate linearly between two feature vectors, both ends included: two [N, F] => [N, num_steps, F]."""
    weights = torch.linspace(0, 1, num_steps)[None, :, None]
    return torch.lerp(source[:, None], target[:, None], weights)


def class_means(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Compute the mean training features of every class [num_classes, F]; without images, the overall mean."""
    means = features.mean(0).repeat(num_classes, 1)
    for label in labels[labels >= 0].unique().tolist():
        means[label] = features[labels == label].mean(0)
    return means


def shift_toward_class_means(
    features: Tensor, means: Tensor, amount: float = 1.0, source_classes: Tensor | None = None
) -> Tensor:
    """Shift each source by (class mean - mean of the source class): [N, F], [K, F], classes [N] => [N, K, F].

    If the source class is unknown (negative), the mean over all classes is subtracted instead.
    """
    source_means = means.mean(0).expand_as(features)
    if source_classes is not None:
        source_means = torch.where(source_classes[:, None] >= 0, means[source_classes.clamp_min(0)], source_means)
    return features[:, None] + amount * (means[None] - source_means[:, None])


def shift_along_head_weights(space: FeatureSpace, features: Tensor, weight: Tensor, amount: float = 2.0) -> Tensor:
    """Shift each source along the weights of the classifier's last layer: [N, F], weight [O, F] => [N, O, F].

    The direction is the steepest ascent of the output in the standardized space (w * std). The step is `amount`
    standard deviations of the training features along it.
    """
    directions = weight * space.std * space.live
    directions = directions / directions.norm(dim=1, keepdim=True).clamp_min(1e-12)
    spread = ((directions @ space.components.T) * space.scales).norm(dim=1, keepdim=True)
    return features[:, None] + amount * (spread * directions * space.std)[None]


MIN_CONFIDENCE = 0.75
"""Minimum probability of the target class after a shift."""


def smallest_confident_shift(shifted: Tensor, outputs: Sequence[int], weight: Tensor, bias: Tensor) -> Tensor:
    """Select the smallest shift with a probability of at least MIN_CONFIDENCE for its target class, else the largest.

    `shifted` [A, N, K, F] are A shifts of increasing size toward K classes; `outputs` are the rows of these classes in
    `weight` [O, F] and `bias` [O] of the classifier's last layer => [N, K, F].
    """
    probabilities = torch.softmax(shifted @ weight.T + bias, -1)  # [A, N, K, O]
    target_outputs = torch.tensor(outputs)[None, None, :, None].expand(*shifted.shape[:3], 1)
    is_confident = probabilities.gather(-1, target_outputs)[..., 0] >= MIN_CONFIDENCE
    is_confident[-1] = True
    first = is_confident.int().argmax(0)
    return shifted.gather(0, first[None, ..., None].expand(1, *shifted.shape[1:]))[0]


def valence_arousal_grid(levels: Sequence[float] = (-1.0, -0.5, 0.0, 0.5, 1.0)) -> Tensor:
    """Create a grid over valence (outer) and arousal (inner): [len(levels) ** 2, 2]."""
    values = torch.tensor(list(levels))
    return torch.cartesian_prod(values, values)


HAIR_COLORS = frozenset({"Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair"})
"""Hair color attributes of CelebA, of which one is true."""


def is_hair_color(name: str) -> bool:
    """Whether an attribute is a hair color; case, spaces and underscores do not matter."""
    return name.lower().replace(" ", "_") in {color.lower() for color in HAIR_COLORS}


def attribute_flips(attributes: Tensor, names: Sequence[str]) -> Tensor:
    """Flip each attribute in turn; setting a hair color clears the others: 0/1 [N, A] => [N, A, A]."""
    hair = [index for index, name in enumerate(names) if is_hair_color(name)]
    flipped = attributes[:, None].repeat(1, len(names), 1)
    for index, name in enumerate(names):
        if is_hair_color(name):
            flipped[:, index, hair] = 0
            flipped[:, index, index] = 1
        else:
            flipped[:, index, index] = 1 - attributes[:, index]
    return flipped

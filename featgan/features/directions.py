"""Directions in the condition's space: what to ask of the generator so that one property changes at a time.

The space is fitted once on the training features: standardise, then principal component analysis. Every direction
is computed from the source's own, untouched features, so that sweeping one component never carries over to the next.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from featgan.features.space import FeatureSpace


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

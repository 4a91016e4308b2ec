"""Conditions: what c is for each kind, and where its values come from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from featgan.config.schema import ConditionConfig, DatasetConfig
from featgan.data.feature_cache.cache import FeatureCache
from featgan.data.shards.shard_set import ShardSet, Split
from featgan.errors import UserError
from featgan.features.space import FeatureSpace

Rows = np.ndarray
Values = Callable[[Rows, np.ndarray], np.ndarray]
"""(rows [n], mirrored [n]) => float32 [n, width]."""


@dataclass(frozen=True)
class Condition:
    """One data set's condition: C numbers of each image and how an estimate of them is scored."""

    config: ConditionConfig
    names: tuple[str, ...]
    rows: Rows  # rows of the split that have a value
    values: Values
    outputs: Values | None = None
    output_dim: int = 0
    output_kind: str = "other"
    space: FeatureSpace | None = None
    cache: FeatureCache | None = None

    @property
    def blackbox(self) -> dict[str, str]:
        """The box that the features are of; empty for labels."""
        return dict(self.cache.blackbox) if self.cache else {}

    @property
    def dim(self) -> int:
        return len(self.names)

    @property
    def is_batch_statistic(self) -> bool:
        """Whether L is concordance: a statistic of the whole batch, not a mean over its images."""
        return self.config.kind in ("features", "valence_arousal") and self.config.regression == "ccc"


@dataclass(frozen=True)
class LabelValues:
    """A row of numbers an image, whichever way it is mirrored."""

    table: np.ndarray  # float32 [N, C]

    def __call__(self, rows: Rows, mirrored: np.ndarray) -> np.ndarray:
        return np.asarray(self.table[rows])


@dataclass(frozen=True)
class FeatureValues:
    """Encoded features of an image or of its mirror image."""

    cache: FeatureCache
    split: str
    space: FeatureSpace
    encoding: str

    def __call__(self, rows: Rows, mirrored: np.ndarray) -> np.ndarray:
        features = torch.from_numpy(self.cache.features(self.split, rows, mirrored))
        return np.asarray(self.space.encode(features, self.encoding), dtype=np.float32)


@dataclass(frozen=True)
class OutputValues:
    """The box's outputs for an image or its mirror image."""

    cache: FeatureCache
    split: str

    def __call__(self, rows: Rows, mirrored: np.ndarray) -> np.ndarray:
        return self.cache.outputs(self.split, rows, mirrored)


def build_condition(dataset: DatasetConfig, shards: ShardSet, split_name: str) -> Condition:
    """The condition of a split; UserError when the shards hold no such labels or the cache does not fit."""
    split = shards.split(split_name)
    builders = {
        "features": features_condition,
        "expression": expression_condition,
        "valence_arousal": valence_arousal_condition,
        "attributes": attributes_condition,
    }
    condition = builders[dataset.condition.kind](dataset, shards, split)
    if not len(condition.rows):
        kind = dataset.condition.kind
        raise UserError(f"{shards.path}: no image of split {split_name!r} has the labels of condition.kind {kind!r}")
    return condition


def expression_condition(dataset: DatasetConfig, shards: ShardSet, split: Split) -> Condition:
    """One-hot classes."""
    table = np.zeros((len(split), len(shards.classes)), np.float32)
    present = np.flatnonzero(split.expression >= 0)
    table[present, split.expression[present]] = 1
    return Condition(dataset.condition, tuple(shards.classes), present, LabelValues(table))


def valence_arousal_condition(dataset: DatasetConfig, shards: ShardSet, split: Split) -> Condition:
    """Two numbers in [-1, 1]."""
    table = np.stack([split.valence, split.arousal], 1).astype(np.float32)
    present = np.flatnonzero(np.isfinite(table).all(1))
    return Condition(dataset.condition, ("valence", "arousal"), present, LabelValues(table))


def attributes_condition(dataset: DatasetConfig, shards: ShardSet, split: Split) -> Condition:
    """Selected attributes as 0 or 1."""
    names = dataset.condition.attributes
    unknown = [name for name in names if name not in shards.attribute_names]
    if unknown:
        known = ", ".join(shards.attribute_names) or "none"
        raise UserError(f"{shards.path}: no attribute {unknown[0]!r} (condition.attributes); the shards hold {known}")
    table = split.attributes[:, [list(shards.attribute_names).index(name) for name in names]]
    present = np.flatnonzero((table >= 0).all(1))
    return Condition(dataset.condition, names, present, LabelValues(table.astype(np.float32)))


def features_condition(dataset: DatasetConfig, shards: ShardSet, split: Split) -> Condition:
    """Encoded features of the black box; a mirrored image has the mirrored image's features."""
    config = dataset.condition
    cache = FeatureCache.open(shards, dataset.features)
    if config.encoding == "components" and cache.num_components is None:
        raise UserError(
            f"{cache.path}: condition.encoding 'components' needs a cache made with `featgan extract --components K`"
        )
    space = cache.space
    width = space.condition_dim(config.encoding)
    wants_outputs = config.objective != "actv"
    return Condition(
        config,
        tuple(f"{config.encoding} {index + 1}" for index in range(width)),
        np.arange(len(split)),
        FeatureValues(cache, split.name, space, config.encoding),
        OutputValues(cache, split.name) if wants_outputs else None,
        cache.output_dim if wants_outputs else 0,
        cache.output_kind,
        space,
        cache,
    )


@dataclass(frozen=True)
class ConditionLayout:
    """Where each data set's numbers lie in the vector G takes: [c] for one, [c_1, c_2, mask] for two (StarGAN)."""

    dims: tuple[int, ...]

    @property
    def generator_dim(self) -> int:
        """Width of what G takes."""
        return sum(self.dims) + (len(self.dims) if len(self.dims) > 1 else 0)

    @property
    def estimate_dim(self) -> int:
        """Width of what D estimates."""
        return sum(self.dims)

    def part(self, dataset: int) -> slice:
        """The columns of a data set in D's estimate."""
        start = sum(self.dims[:dataset])
        return slice(start, start + self.dims[dataset])

    def embed(self, condition: Tensor, dataset: int) -> Tensor:
        """A data set's condition [..., C_i] => what G takes; the unknown part is zero, the mask one-hot."""
        if len(self.dims) == 1:
            return condition
        whole = condition.new_zeros(*condition.shape[:-1], self.generator_dim)
        whole[..., self.part(dataset)] = condition
        whole[..., self.estimate_dim + dataset] = 1
        return whole


def phrase(request: str, wanted: Tensor, own: Tensor | None) -> Tensor:
    """What G takes [..., C or 2 C], from the condition that is wanted and the image's own, both [..., C].

    Under `change` the difference of the two is told as well, so that G need not find out what an image shows in order
    to leave it alone (after the difference vectors of Liu et al. 2019, STGAN, which are told alone).
    """
    if request == "target":
        return wanted
    assert own is not None, "the configuration lets only features be asked for as changes"
    return torch.cat([wanted, wanted - own], -1)


def phrase_dim(request: str, dim: int) -> int:
    """Width of what G takes, for a condition of `dim` numbers."""
    return 2 * dim if request == "change" else dim


def describe(conditions: Sequence[Condition]) -> str:
    """A few words for the terminal: kinds and widths."""
    return " + ".join(f"{condition.config.kind} ({condition.dim})" for condition in conditions)

"""Conditions: the values of each condition kind, and how they become the condition input of the generator."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from featgan.config.schema import ConditionConfig, DatasetConfig
from featgan.data.feature_cache.cache import FeatureCache
from featgan.data.row_selection import AllRows, RowSelection, select_rows
from featgan.data.shards.shard_set import ShardSet
from featgan.data.shards.split import Split
from featgan.errors import UserError
from featgan.features.space import FeatureSpace

RowIndices = np.ndarray
ValueLookup = Callable[[RowIndices, np.ndarray], np.ndarray]
"""A function (rows [n], flipped [n]) => float32 [n, width]."""


@dataclass(frozen=True)
class Condition:
    """The condition of one data set: C values per image, and the black box's outputs if the loss uses them."""

    config: ConditionConfig
    names: tuple[str, ...]
    rows: RowSelection  # rows of the split whose labels are known
    values: ValueLookup
    outputs: ValueLookup | None = None
    output_dim: int = 0
    task: str = "other"
    space: FeatureSpace | None = None
    cache: FeatureCache | None = None

    @property
    def blackbox(self) -> dict[str, str]:
        """Identity of the black box (`spec`, `layer`, `sha256`); empty for label conditions."""
        return dict(self.cache.blackbox) if self.cache else {}

    @property
    def dim(self) -> int:
        """Number of values C."""
        return len(self.names)

    @property
    def is_batch_statistic(self) -> bool:
        """Whether the condition loss is the CCC, a statistic of the complete batch instead of a mean over images."""
        return self.config.kind in ("features", "valence_arousal") and self.config.regression_loss == "ccc"


@dataclass(frozen=True)
class OneHotValues:
    """One-hot classes, the same for an image and its horizontal flip; zeros for an image without a class."""

    labels: np.ndarray  # int16 [N], -1 if unknown
    num_classes: int

    def __call__(self, rows: RowIndices, flipped: np.ndarray) -> np.ndarray:
        labels = self.labels[rows]
        return (labels[:, None] == np.arange(self.num_classes)).astype(np.float32)


@dataclass(frozen=True)
class ColumnValues:
    """Label values, one column each; the same for an image and its horizontal flip."""

    columns: tuple[np.ndarray, ...]  # [N] each

    def __call__(self, rows: RowIndices, flipped: np.ndarray) -> np.ndarray:
        return np.stack([column[rows] for column in self.columns], 1).astype(np.float32)


@dataclass(frozen=True)
class FeatureValues:
    """Encoded features of an image or of its horizontal flip."""

    cache: FeatureCache
    split: str
    space: FeatureSpace
    encoding: str

    def __call__(self, rows: RowIndices, flipped: np.ndarray) -> np.ndarray:
        features = torch.from_numpy(self.cache.features(self.split, rows, flipped))
        return np.asarray(self.space.encode(features, self.encoding), dtype=np.float32)


@dataclass(frozen=True)
class OutputValues:
    """The black box's outputs for an image or for its horizontal flip."""

    cache: FeatureCache
    split: str

    def __call__(self, rows: RowIndices, flipped: np.ndarray) -> np.ndarray:
        return self.cache.outputs(self.split, rows, flipped)


def build_condition(dataset: DatasetConfig, shards: ShardSet, split_name: str) -> Condition:
    """Return the condition of a split.

    Raises UserError if the shards contain no such labels, or if the feature cache is missing or does not match.
    """
    split = shards.get_split(split_name)
    builders = {
        "features": features_condition,
        "expression": expression_condition,
        "valence_arousal": valence_arousal_condition,
        "attributes": attributes_condition,
    }
    condition = builders[dataset.condition.kind](dataset, shards, split)
    if not len(condition.rows):
        kind = dataset.condition.kind
        raise UserError(
            f"{shards.location}: no image of split {split_name!r} has the labels that condition.kind {kind!r} "
            "requires; choose another kind, or pack images with labels"
        )
    return condition


def expression_condition(dataset: DatasetConfig, shards: ShardSet, split: Split) -> Condition:
    """Return the one-hot class [C]; images without a class are left out."""
    labels = split.expression
    rows = select_rows(len(split), lambda chunk: labels[chunk] >= 0)
    return Condition(dataset.condition, tuple(shards.classes), rows, OneHotValues(labels, len(shards.classes)))


def valence_arousal_condition(dataset: DatasetConfig, shards: ShardSet, split: Split) -> Condition:
    """Return valence and arousal, each in [-1, 1]; images that lack one of them are left out."""
    columns = (split.valence, split.arousal)
    rows = select_rows(len(split), lambda chunk: np.isfinite([column[chunk] for column in columns]).all(0))
    return Condition(dataset.condition, ("valence", "arousal"), rows, ColumnValues(columns))


def attributes_condition(dataset: DatasetConfig, shards: ShardSet, split: Split) -> Condition:
    """Return the selected attributes, each 0 or 1; images that lack one of them are left out.

    Raises UserError if the shards do not contain an attribute.
    """
    names = dataset.condition.attributes
    unknown = [name for name in names if name not in shards.attribute_names]
    if unknown:
        available = ", ".join(shards.attribute_names) or "none"
        raise UserError(
            f"{shards.location}: no attribute {unknown[0]!r}; set condition.attributes to some of {available}"
        )
    columns = tuple(split.attributes[:, list(shards.attribute_names).index(name)] for name in names)
    rows = select_rows(len(split), lambda chunk: (np.stack([column[chunk] for column in columns]) >= 0).all(0))
    return Condition(dataset.condition, names, rows, ColumnValues(columns))


def features_condition(dataset: DatasetConfig, shards: ShardSet, split: Split) -> Condition:
    """Return the encoded features of the black box; a flipped image has the features of the flipped image.

    Raises UserError if the feature cache cannot be opened, or has no principal components and the encoding needs them.
    """
    config = dataset.condition
    cache = FeatureCache.open(shards, dataset.feature_cache)
    if config.encoding == "components" and cache.num_components is None:
        raise UserError(
            f"{cache.location}: condition.encoding 'components' requires principal components; "
            "run `featgan extract --num-components K`"
        )
    space = cache.space
    dim = space.condition_dim(config.encoding)
    uses_outputs = config.loss_on != "features"
    return Condition(
        config,
        tuple(f"{config.encoding} {index + 1}" for index in range(dim)),
        AllRows(len(split)),
        FeatureValues(cache, split.name, space, config.encoding),
        OutputValues(cache, split.name) if uses_outputs else None,
        cache.output_dim if uses_outputs else 0,
        cache.task,
        space,
        cache,
    )


@dataclass(frozen=True)
class ConditionLayout:
    """Layout of the embedded condition: [c] for one data set, [c_1, c_2, mask] for two.

    It has E values: the conditions of all data sets and, if there are two, the mask of StarGAN (Choi et al. 2018).
    """

    dims: tuple[int, ...]

    @property
    def embedded_dim(self) -> int:
        """E, the width of the condition of all data sets, with the mask."""
        return sum(self.dims) + (len(self.dims) if len(self.dims) > 1 else 0)

    @property
    def estimate_dim(self) -> int:
        """Width of the condition of all data sets, without the mask: D estimates it."""
        return sum(self.dims)

    def estimate_columns(self, dataset: int) -> slice:
        """Return the columns of a data set in D's estimate."""
        start = sum(self.dims[:dataset])
        return slice(start, start + self.dims[dataset])

    def embed(self, condition: Tensor, dataset: int) -> Tensor:
        """Embed the condition of one data set, [..., C] => [..., E].

        The values of other data sets are 0, and the mask is one-hot.
        """
        if len(self.dims) == 1:
            return condition
        embedded = condition.new_zeros(*condition.shape[:-1], self.embedded_dim)
        embedded[..., self.estimate_columns(dataset)] = condition
        embedded[..., self.estimate_dim + dataset] = 1
        return embedded


def build_condition_input(mode: str, target: Tensor, source: Tensor | None) -> Tensor:
    """Return the condition input of G from embedded conditions: `target` and `source` [..., E] => [..., P].

    `mode` is `generator.condition_input`. With `target`, G receives the target only, and P = E. With
    `target_and_difference`, it receives target and target - source, so that it need not infer from the image which
    values change, and P = 2 E. The difference vector is from STGAN (Liu et al. 2019), which uses it alone.
    """
    if mode == "target":
        return target
    assert source is not None, "condition_input target_and_difference requires the source condition"
    return torch.cat([target, target - source], -1)


def condition_input_dim(mode: str, embedded_dim: int) -> int:
    """Return P, the width of the condition input of G, for embedded conditions of E values."""
    return embedded_dim if mode == "target" else 2 * embedded_dim


def describe_conditions(conditions: Sequence[Condition]) -> str:
    """Return the kind and width of each condition as one line of text."""
    return " + ".join(f"{condition.config.kind} ({condition.dim})" for condition in conditions)

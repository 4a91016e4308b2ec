"""Reopen the data and the classifier that a run was trained on, as far as they still exist."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from featgan.blackbox.class_names import match_names
from featgan.blackbox.loading import BlackBox, load_blackbox
from featgan.config.schema import DatasetConfig
from featgan.config.trusted_callables import NO_CALLABLES, TrustedCallables, check_stored_spec
from featgan.data.conditions import ConditionLayout
from featgan.data.feature_cache.cache import FeatureCache
from featgan.data.feature_cache.summary import (
    LABEL_MEANS,
    MAX_BLOCK_VALUES,
    PREDICTION_COUNTS,
    PREDICTION_MEANS,
    count_classes,
    mean_of_labels,
    select_class_rows,
)
from featgan.data.shards.shard_set import ShardSet
from featgan.data.shards.split import Split
from featgan.errors import UserError
from featgan.inference.model import EditingModel, open_cache, open_dataset, open_shards

logger = logging.getLogger(__name__)

MIN_IMAGES_PER_PREDICTION = 5
"""Minimum number of training images for the mean of a predicted class, so that it does not show one person."""


@dataclass(frozen=True)
class TrainingData:
    """The data that a run was trained on; None if missing. Only feature-conditioned runs have a cache."""

    shards: ShardSet | None
    cache: FeatureCache | None

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the classifier's outputs."""
        return () if self.cache is None else output_names(self.cache)


def output_names(owner: FeatureCache | BlackBox) -> tuple[str, ...]:
    """Return the output names of a classifier or a feature cache, or numbered names if it has none."""
    if owner.task == "valence_arousal":
        return ("valence", "arousal")
    numbered = tuple(f"output {index + 1}" for index in range(owner.output_dim))
    return owner.class_names if len(owner.class_names) == owner.output_dim else numbered


def open_training_data(model: EditingModel, is_required: bool) -> TrainingData:
    """Open the shards and the cache.

    If they cannot be opened and are not required, log what will be missing and return empty data.
    Raises UserError if they are required and cannot be opened.
    """
    try:
        shards = open_shards(model)
        return TrainingData(shards, open_cache(model, shards) if model.metadata.dataset["features"] else None)
    except UserError as error:
        if is_required:
            raise
        logger.warning(f"without class directions from the training data: {error}")
        return TrainingData(None, None)


def rows_with_condition(model: EditingModel, shards: ShardSet, split: Split) -> np.ndarray:
    """Return the rows whose source condition is known."""
    if model.metadata.condition_kind == "expression":
        return np.flatnonzero(split.expression >= 0)
    if model.metadata.condition_kind == "valence_arousal":
        return np.flatnonzero(np.isfinite(split.valence) & np.isfinite(split.arousal))
    if model.metadata.condition_kind == "attributes":
        return np.flatnonzero((split.attributes[:, attribute_columns(model, shards)] >= 0).all(1))
    return np.arange(len(split))


def predicts_label_classes(cache: FeatureCache, shards: ShardSet) -> bool:
    """Whether the classifier predicts at least two classes of the shards' labels, by name and synonym."""
    return int((match_label_classes(cache, shards) >= 0).sum()) >= 2


def match_label_classes(cache: FeatureCache, shards: ShardSet) -> np.ndarray:
    """Return the class of the labels that each output predicts [O], by name and synonym; -1 if there is none."""
    class_of_output = np.full(cache.output_dim, -1, np.int64)
    if cache.task == "expression":
        matches = match_names(output_names(cache), shards.classes)
        class_of_output[list(matches)] = list(matches.values())
    return class_of_output


def untrained_classes(shards: ShardSet) -> tuple[str, ...]:
    """Return the classes of the shards without training images; empty if no training image has a class."""
    counts = count_classes(shards.get_split("train").expression, len(shards.classes))
    return tuple(name for name, count in zip(shards.classes, counts, strict=True) if not count) if counts.any() else ()


def find_untrained_in(dataset: DatasetConfig) -> tuple[str, ...]:
    """Return the classes without training images of a second data set; empty if its shards cannot be opened."""
    try:
        return untrained_classes(open_dataset(dataset))
    except UserError as error:
        logger.warning(f"{error}; edits toward classes without training images are not excluded")
        return ()


def untrained_outputs(training_data: TrainingData) -> tuple[str, ...]:
    """Return the classes of the classifier that no training image has, neither as its prediction nor as its label."""
    cache, shards = training_data.cache, training_data.shards
    if cache is None or shards is None or cache.task != "expression":
        return ()
    split = shards.get_split("train")
    is_present = count_predictions(cache, len(split)) > 0
    labels = np.flatnonzero(count_classes(split.expression, len(shards.classes)))
    is_present |= np.isin(match_label_classes(cache, shards), labels)
    return tuple(name for name, present in zip(output_names(cache), is_present, strict=True) if not present)


def count_predictions(cache: FeatureCache, num_images: int) -> np.ndarray:
    """Return the number of training images for which each output is the largest, int64 [O]."""
    if PREDICTION_COUNTS in cache.summary:
        return cache.summary[PREDICTION_COUNTS].numpy()
    return count_classes(predict_rows(cache, "train", range(num_images)), cache.output_dim)


def predict_rows(cache: FeatureCache, split: str, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the largest output of rows [n] of a split, int32 [n]; the outputs are read in blocks."""
    predicted, block = np.empty(len(rows), np.int32), max(1, MAX_BLOCK_VALUES // cache.output_dim)
    for start in range(0, len(rows), block):
        predicted[start : start + block] = cache.outputs(split, rows[start : start + block]).argmax(1)
    return predicted


def report_untrained_classes(location: object, names: Sequence[str]) -> None:
    """Log why classes have no edits."""
    if names:
        logger.warning(f"{location}: no edits toward {', '.join(names)}: no training image has this class")


def correctly_classified_rows(training_data: TrainingData, split: Split) -> np.ndarray:
    """Return the rows whose predicted class is their label; edits of these images explain more.

    Empty if the classifier does not predict the classes of the labels.
    """
    cache, shards = training_data.cache, training_data.shards
    if cache is None or shards is None or not predicts_label_classes(cache, shards):
        return np.zeros(0, np.int64)
    rows = np.flatnonzero(split.expression >= 0)
    predicted = match_label_classes(cache, shards)[predict_rows(cache, split.name, rows)]
    return rows[predicted == split.expression[rows]]


def attribute_columns(model: EditingModel, shards: ShardSet) -> list[int]:
    """Return the columns of the model's attributes in the shards; raises UserError if one is missing."""
    missing = [name for name in model.metadata.attribute_names if name not in shards.attribute_names]
    if missing:
        raise UserError(
            f"{shards.location}: no attribute {missing[0]!r}, which the run was trained on; pack the shards again"
        )
    return [shards.attribute_names.index(name) for name in model.metadata.attribute_names]


def source_conditions(model: EditingModel, training_data: TrainingData, split: Split, rows: np.ndarray) -> Tensor:
    """Return the source values of validation images: features [n, F] or label conditions [n, C]."""
    if model.metadata.condition_kind == "features":
        assert training_data.cache is not None
        return torch.from_numpy(np.array(training_data.cache.features("validation", rows, False)))
    if model.metadata.condition_kind == "expression":
        return torch.eye(len(model.metadata.class_names))[torch.from_numpy(split.expression[rows].astype(np.int64))]
    if model.metadata.condition_kind == "valence_arousal":
        return torch.from_numpy(np.stack([split.valence[rows], split.arousal[rows]], 1).astype(np.float32))
    assert training_data.shards is not None
    columns = attribute_columns(model, training_data.shards)
    return torch.from_numpy(split.attributes[rows][:, columns].astype(np.float32))


def label_layout(model: EditingModel) -> ConditionLayout:
    """Return the layout of the embedded condition, for the labels of one or two data sets."""
    kind_dims = {
        "expression": len(model.metadata.class_names),
        "attributes": len(model.metadata.attribute_names),
        "valence_arousal": 2,
    }
    first = kind_dims[model.metadata.condition_kind]
    return ConditionLayout(
        (first,) if first == model.metadata.condition_dim else (first, model.metadata.condition_dim - first - 2)
    )


def encode_values(model: EditingModel, values: Tensor, source: Tensor | None) -> Tensor:
    """Build the condition input of G [N, P] from target features or labels and, if known, the source features."""
    if model.metadata.condition_kind == "features":
        return model.condition_input(model.encode(values), None if source is None else model.encode(source))
    return label_layout(model).embed(values, 0)


def training_class_means(training_data: TrainingData, num_classes: int) -> Tensor | None:
    """Compute the mean training features of each label [num_classes, F] from up to MAX_IMAGES_PER_CLASS images.

    None without labels.
    """
    if training_data.cache is None or training_data.shards is None:
        return None
    stored_means = training_data.cache.summary.get(LABEL_MEANS)
    if stored_means is not None and len(stored_means) == num_classes:
        return stored_means
    labels = training_data.shards.get_split("train").expression
    if not count_classes(labels, num_classes).any():
        return None
    return mean_of_labels(training_data.cache.arrays["train", "features"], labels, num_classes)


def mean_features_by_prediction(training_data: TrainingData) -> dict[str, Tensor]:
    """Compute, for each predicted class, the mean features [F] of up to MAX_IMAGES_PER_CLASS training images.

    A class predicted for fewer than MIN_IMAGES_PER_PREDICTION images is left out. Empty if the classifier does not
    predict classes.
    """
    cache, shards = training_data.cache, training_data.shards
    if cache is None or shards is None or cache.task != "expression":
        return {}
    if PREDICTION_MEANS in cache.summary:
        stored_means, counts = cache.summary[PREDICTION_MEANS], cache.summary[PREDICTION_COUNTS]
        names = enumerate(training_data.output_names)
        return {name: stored_means[output] for output, name in names if counts[output] >= MIN_IMAGES_PER_PREDICTION}
    predicted = predict_rows(cache, "train", range(len(shards.get_split("train"))))
    return {
        training_data.output_names[output]: torch.from_numpy(np.array(cache.features("train", rows, False))).mean(0)
        for output, rows in select_class_rows(predicted, cache.output_dim)
        if len(rows) >= MIN_IMAGES_PER_PREDICTION
    }


def check_stored_blackbox(model: EditingModel, trusted: TrustedCallables) -> None:
    """Raise UntrustedCallableError if model.json names Python code that is not trusted as the classifier."""
    if model.metadata.blackbox:
        source = f"model.json of step {model.metadata.step}"
        check_stored_spec(model.metadata.blackbox["spec"], trusted, source, "--blackbox")


def open_blackbox(model: EditingModel, spec: str | None = None, trusted: TrustedCallables = NO_CALLABLES) -> BlackBox:
    """Open the classifier that the features were extracted with, from its stored SPEC or from `spec`.

    Raises UserError if its weights differ from those used for the extraction, and UntrustedCallableError if the SPEC
    names Python code that is not trusted.
    """
    identity = model.metadata.blackbox or {}
    if spec is None:
        check_stored_blackbox(model, trusted)
    classifier = load_blackbox(spec or identity["spec"], identity.get("layer"), model.device, trusted=trusted)
    if classifier.sha256 != identity["sha256"]:
        raise UserError(
            f"{spec or identity['spec']}: not the classifier that the features were extracted with (its weights "
            "differ); give the SPEC of the original one, or extract the features and train again"
        )
    return classifier

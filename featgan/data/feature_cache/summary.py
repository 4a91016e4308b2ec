"""The summary of a feature cache: what an evaluation or a report needs to know of all training images.

Without it, they read the predictions for all training images, and the features of up to MAX_IMAGES_PER_CLASS images of
each class, at every start.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from featgan.data.feature_cache.storage import ShardArrays
from featgan.system.progress import progress_bar

MAX_IMAGES_PER_CLASS = 2000
"""Maximum number of training images for the mean features of a class."""

MAX_SUMMARY_VALUES = 1 << 25
"""Maximum number of values in the mean features of all classes; larger ones are not stored."""

MAX_BLOCK_VALUES = 1 << 22
"""Number of outputs that are read at once."""

PREDICTION_COUNTS = "prediction_counts"
"""Number of training images for which each output is the largest, int64 [O]."""

PREDICTION_MEANS = "prediction_means"
"""Mean features of up to MAX_IMAGES_PER_CLASS of these images, float32 [O, F]; 0 for an output without images."""

LABEL_MEANS = "label_means"
"""Mean features of the training images of each label, float32 [K, F], as `mean_of_labels` returns them."""


def summarize_cache(
    features: ShardArrays, outputs: ShardArrays, task: str, labels: np.ndarray, num_labels: int
) -> dict[str, Tensor]:
    """Return the summary of the training images; empty without labels and predicted classes.

    `labels` [N] are the classes of the images, negative if unknown.
    """
    summary: dict[str, Tensor] = {}
    if task == "expression":
        predicted = predict_classes(outputs)
        summary[PREDICTION_COUNTS] = torch.from_numpy(np.bincount(predicted, minlength=outputs.width))
        if outputs.width * features.width <= MAX_SUMMARY_VALUES:
            summary[PREDICTION_MEANS] = mean_of_classes(features, predicted, outputs.width)
    if (labels >= 0).any() and num_labels * features.width <= MAX_SUMMARY_VALUES:
        summary[LABEL_MEANS] = mean_of_labels(features, labels, num_labels)
    return summary


def is_valid_summary(summary: Mapping[str, Tensor], num_outputs: int, num_features: int) -> bool:
    """Return whether the tensors of a summary fit a classifier with O outputs and F features."""
    types = {PREDICTION_COUNTS: torch.int64, PREDICTION_MEANS: torch.float32, LABEL_MEANS: torch.float32}
    shapes = {PREDICTION_COUNTS: [num_outputs], PREDICTION_MEANS: [num_outputs, num_features]}
    if PREDICTION_MEANS in summary and PREDICTION_COUNTS not in summary:
        return False
    return all(
        tensor.dtype == types.get(name) and list(tensor.shape) == shapes.get(name, [*tensor.shape[:1], num_features])
        for name, tensor in summary.items()
    )


def predict_classes(outputs: ShardArrays) -> np.ndarray:
    """Return the largest output of each image, int64 [N]."""
    num_images, block = len(outputs), max(1, MAX_BLOCK_VALUES // outputs.width)
    predicted = np.empty(num_images, np.int64)
    with progress_bar("reading predictions", num_images, "images") as bar:
        start = 0
        for values in outputs.read_in_order(np.arange(num_images), block, with_flips=False):
            predicted[start : start + len(values)] = values.argmax(1)
            start += len(values)
            bar.advance(len(values))
    return predicted


def mean_of_classes(features: ShardArrays, classes: np.ndarray, num_classes: int) -> Tensor:
    """Return the mean features of up to MAX_IMAGES_PER_CLASS images of each class: float32 [K, F], 0 without images."""
    means = torch.zeros(num_classes, features.width)
    for number, rows in select_class_rows(classes, num_classes):
        means[number] = torch.from_numpy(features.gather_rows(rows, False)).mean(0)
    return means


def mean_of_labels(features: ShardArrays, labels: np.ndarray, num_labels: int) -> Tensor:
    """Return the mean features of each label [K, F] as `class_means` does: without images, the mean of the others."""
    means = mean_of_classes(features, labels, num_labels)
    counts = torch.zeros(num_labels, dtype=torch.float64)
    for number, rows in select_class_rows(labels, num_labels):
        counts[number] = len(rows)
    overall = (means.double() * counts[:, None]).sum(0) / counts.sum()
    means[counts == 0] = overall.float()
    return means


def select_class_rows(classes: np.ndarray, num_classes: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each class that has images, with up to MAX_IMAGES_PER_CLASS of its rows, evenly spaced and ascending."""
    order = np.argsort(classes, kind="stable")
    borders = np.searchsorted(classes[order], np.arange(num_classes + 1))
    for number in range(num_classes):
        rows = order[borders[number] : borders[number + 1]]
        if len(rows):
            yield number, evenly_spaced_rows(rows, MAX_IMAGES_PER_CLASS)


def evenly_spaced_rows(rows: np.ndarray, max_rows: int) -> np.ndarray:
    """Select up to `max_rows` evenly spaced rows."""
    return rows[np.linspace(0, len(rows) - 1, min(max_rows, len(rows))).round().astype(np.int64)]

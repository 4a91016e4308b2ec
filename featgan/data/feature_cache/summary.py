"""The summary of a feature cache: what an evaluation or a report needs to know of all training images.

Without it, they read the predictions for all training images, and the features of up to MAX_IMAGES_PER_CLASS images of
each class, at every start.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from featgan.data.feature_cache.storage import ShardArrays
from featgan.data.row_selection import CHUNK_ROWS, AllRows, RowSelection
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
        summary[PREDICTION_COUNTS] = torch.from_numpy(count_classes(predicted, outputs.width))
        if outputs.width * features.width <= MAX_SUMMARY_VALUES:
            summary[PREDICTION_MEANS] = mean_of_classes(features, predicted, outputs.width)
    if count_classes(labels, num_labels).any() and num_labels * features.width <= MAX_SUMMARY_VALUES:
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
    """Return the largest output of each image, int32 [N]."""
    num_images, block = len(outputs), max(1, MAX_BLOCK_VALUES // outputs.width)
    predicted = np.empty(num_images, np.int32)
    with progress_bar("reading predictions", num_images, "images") as bar:
        start = 0
        for values in outputs.read_in_order(AllRows(num_images), block, with_flips=False):
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
    counts = torch.from_numpy(np.minimum(count_classes(labels, num_labels), MAX_IMAGES_PER_CLASS)).double()
    overall = (means.double() * counts[:, None]).sum(0) / counts.sum()
    means[counts == 0] = overall.float()
    return means


def count_classes(classes: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the number of images of each class, int64 [K]; other numbers, such as -1, are left out."""
    counts = np.zeros(num_classes, np.int64)
    for start in range(0, len(classes), CHUNK_ROWS):
        chunk = classes[start : start + CHUNK_ROWS]
        counts += np.bincount(chunk[(chunk >= 0) & (chunk < num_classes)], minlength=num_classes)
    return counts


def select_class_rows(classes: np.ndarray, num_classes: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each class that has images, with up to MAX_IMAGES_PER_CLASS of its rows, evenly spaced and ascending."""
    counts = count_classes(classes, num_classes).tolist()
    ranks = {number: evenly_spaced(count, MAX_IMAGES_PER_CLASS) for number, count in enumerate(counts) if count}
    rows: dict[int, list[np.ndarray]] = {number: [] for number in ranks}
    num_seen = np.zeros(num_classes, np.int64)
    for start in range(0, len(classes), CHUNK_ROWS):
        chunk = classes[start : start + CHUNK_ROWS]
        order = np.argsort(chunk, kind="stable")
        borders = np.searchsorted(chunk[order], np.arange(num_classes + 1))
        for number in np.flatnonzero(np.diff(borders)).tolist():
            in_chunk = ranks[number] - num_seen[number]
            in_chunk = in_chunk[(in_chunk >= 0) & (in_chunk < borders[number + 1] - borders[number])]
            rows[number].append(start + order[borders[number] + in_chunk])
        num_seen += np.diff(borders)
    for number, parts in rows.items():
        yield number, np.concatenate(parts)


def evenly_spaced_rows(rows: np.ndarray | RowSelection, max_rows: int) -> np.ndarray:
    """Select up to `max_rows` evenly spaced rows."""
    return np.asarray(rows[evenly_spaced(len(rows), max_rows)])


def evenly_spaced(count: int, max_count: int) -> np.ndarray:
    """Return up to `max_count` evenly spaced numbers below `count`, ascending."""
    return np.linspace(0, count - 1, min(max_count, count)).round().astype(np.int64)

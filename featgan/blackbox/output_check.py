"""Compare a classifier's predictions with the labels of the shards.

If they agree, the outputs can be named after the classes of the shards. `featgan extract` reports the agreement.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from featgan.blackbox.agreement import (
    MAX_COMPARED_IMAGES,
    MIN_COMPARED_IMAGES,
    Floats,
    Integers,
    confirm_class_names,
    measure_agreement,
    suggest_class_order,
)
from featgan.blackbox.class_names import format_class_names, match_names
from featgan.data.feature_cache.cache import FeatureCache
from featgan.data.row_selection import select_rows
from featgan.data.shards.shard_set import ShardSet
from featgan.data.shards.split import Split

logger = logging.getLogger(__name__)

LOW_CORRELATION = 0.3
"""Below this correlation with the labels, a warning is logged."""

LOW_AGREEMENT_REMEDY = "check the preprocessing (range, mean, std, channels) and the order of the classes"

ReadOutputs = Callable[[str, np.ndarray], np.ndarray]
"""Name of a split and rows [n] => outputs [n, O]."""


@dataclass(frozen=True)
class LabeledOutputs:
    """Outputs [n, O] for images of one split with known classes [n]."""

    split: str
    outputs: Floats
    labels: Integers


def read_labeled_outputs(
    shards: ShardSet, read_outputs: ReadOutputs, max_images: int = MAX_COMPARED_IMAGES
) -> LabeledOutputs | None:
    """Return the outputs for labeled images, of the validation split if it has enough; None with too few labels."""
    for name in sorted(shards.split_names, key=lambda name: name != "validation"):
        split = shards.get_split(name)
        rows = select_labeled_rows(split, has_class, max_images)
        if len(rows) >= MIN_COMPARED_IMAGES:
            outputs = np.asarray(read_outputs(name, rows), np.float64)
            return LabeledOutputs(name, outputs, split.expression[rows].astype(np.int64))
    return None


def has_class(split: Split, rows: slice) -> np.ndarray:
    """Return which of these rows have a class [n]."""
    return np.asarray(split.expression[rows] >= 0)


def has_values(split: Split, rows: slice) -> np.ndarray:
    """Return which of these rows have valence and arousal [n]."""
    return np.asarray(np.isfinite(split.valence[rows]) & np.isfinite(split.arousal[rows]))


def has_attributes(split: Split, rows: slice) -> np.ndarray:
    """Return which of these rows have all attributes [n]."""
    return np.asarray((split.attributes[rows] >= 0).all(1))


def select_labeled_rows(
    split: Split, is_labeled: Callable[[Split, slice], np.ndarray], max_images: int = MAX_COMPARED_IMAGES
) -> np.ndarray:
    """Return up to `max_images` evenly spaced rows of those that have a label."""
    rows = select_rows(len(split), lambda chunk: is_labeled(split, chunk))
    count = min(len(rows), max_images)
    return rows[np.unique(np.linspace(0, len(rows) - 1, count).astype(np.int64))]


def name_outputs_by_labels(
    location: str,
    shards: ShardSet,
    output_dim: int,
    read_outputs: ReadOutputs,
    max_images: int = MAX_COMPARED_IMAGES,
) -> tuple[str, ...]:
    """Return the classes of the shards if the labels show that the outputs are these classes in this order; else ().

    Logs what was decided. `location` names the classifier.
    """
    labeled = read_labeled_outputs(shards, read_outputs, max_images)
    if labeled is None:
        problem = "the shards have too few labels to name them"
    elif output_dim != len(shards.classes):
        problem = f"the shards have {len(shards.classes)} classes, the classifier has {output_dim} outputs"
    else:
        names = confirm_class_names(labeled.outputs, labeled.labels, shards.classes)
        if names:
            logger.info(
                f"{location}: the outputs are named after the shards' classes, because the predictions agree with the"
                " labels"
            )
            return names
        problem = "the predictions do not agree with the labels of the shards"
        suggested = suggest_class_order(labeled.outputs, labeled.labels, shards.classes)
        if suggested:
            problem += f"; they suggest classes={format_class_names(suggested)}"
    logger.warning(f"{location}: the outputs have numbers instead of names: {problem}; name them: SPEC?classes=...")
    return ()


def report_agreement(cache: FeatureCache, shards: ShardSet) -> None:
    """Log how well the predictions agree with the labels, if the shards have labels of this task.

    Logs a warning if the agreement is low: the most frequent reason is a wrong preprocessing.
    """
    location = cache.blackbox["spec"].partition("?")[0]
    if cache.task in ("expression", "other"):
        report_class_agreement(location, cache, shards)
    elif cache.task == "valence_arousal":
        report_value_agreement(location, cache, shards)
    elif cache.task == "attributes":
        report_attribute_agreement(location, cache, shards)


def report_class_agreement(location: str, cache: FeatureCache, shards: ShardSet) -> None:
    """Log the accuracy on the classes that the classifier and the labels share."""
    names = cache.class_names
    if not names and cache.output_dim == len(shards.classes):
        names = tuple(shards.classes)  # the comparison shows whether this is right
    matches = match_names(names, shards.classes)
    labeled = read_labeled_outputs(shards, cache.outputs) if len(matches) >= 2 else None
    if labeled is None:
        return
    class_of_output = np.full(cache.output_dim, -1, np.int64)
    class_of_output[list(matches)] = list(matches.values())
    is_shared = np.isin(labeled.labels, list(matches.values()))
    if is_shared.sum() < MIN_COMPARED_IMAGES:
        return
    # An output without a class counts as a wrong prediction, in an additional class.
    predicted = class_of_output[labeled.outputs.argmax(1)] % (len(shards.classes) + 1)
    agreement = measure_agreement(predicted[is_shared], labeled.labels[is_shared], len(shards.classes) + 1)
    synonyms = [
        f"{names[index]} = {shards.classes[match]}"
        for index, match in matches.items()
        if names[index] != shards.classes[match]
    ]
    note = f"; same classes under other names: {', '.join(synonyms)}" if synonyms else ""
    if not cache.class_names:
        note += "; assuming that the outputs are the shards' classes in the same order"
    line = f"{location}: the predicted class is the label for {agreement} of split {labeled.split}"
    if not agreement.is_low:
        logger.info(line + note)
        return
    suggested = suggest_class_order(labeled.outputs, labeled.labels, shards.classes)
    hint = f"; the labels suggest SPEC?classes={format_class_names(suggested)}" if suggested else ""
    logger.warning(f"{line}, which is low; {LOW_AGREEMENT_REMEDY}{hint}{note}")


def report_value_agreement(location: str, cache: FeatureCache, shards: ShardSet) -> None:
    """Log the correlation of valence and arousal with the labels."""
    for name, split in iterate_splits(shards):
        rows = select_labeled_rows(split, has_values)
        if len(rows) < MIN_COMPARED_IMAGES:
            continue
        labels = np.stack([split.valence[rows], split.arousal[rows]], 1)
        outputs = np.asarray(cache.outputs(name, rows), np.float64)
        values = [correlate(outputs[:, axis], labels[:, axis]) for axis in range(2)]
        log_level(
            f"{location}: correlation with the labels of {len(rows):,} images of split {name}: "
            f"valence {values[0]:.2f}, arousal {values[1]:.2f}",
            min(values) < LOW_CORRELATION,
        )
        return


def report_attribute_agreement(location: str, cache: FeatureCache, shards: ShardSet) -> None:
    """Log the mean correlation of the attributes that the classifier and the labels share."""
    matches = match_names(cache.class_names, shards.attribute_names)
    for name, split in iterate_splits(shards):
        rows = select_labeled_rows(split, has_attributes) if matches else np.zeros(0, np.int64)
        if len(rows) < MIN_COMPARED_IMAGES:
            continue
        outputs = np.asarray(cache.outputs(name, rows), np.float64)
        labels = split.attributes[rows]
        values = [correlate(outputs[:, index] > 0, labels[:, column]) for index, column in matches.items()]
        mean = float(np.mean(values))
        log_level(
            f"{location}: mean correlation of {len(matches)} attributes with the labels of {len(rows):,} images of "
            f"split {name}: {mean:.2f}",
            mean < LOW_CORRELATION,
        )
        return


def iterate_splits(shards: ShardSet) -> list[tuple[str, Split]]:
    """List the splits, validation first."""
    names = sorted(shards.split_names, key=lambda name: name != "validation")
    return [(name, shards.get_split(name)) for name in names]


def correlate(first: np.ndarray, second: np.ndarray) -> float:
    """Compute Pearson's correlation of two [n]; 0 if one of them is constant."""
    x, y = (np.asarray(values, np.float64) for values in (first, second))
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def log_level(line: str, is_low: bool) -> None:
    """Log a line, as a warning with its remedy if the agreement is low."""
    if is_low:
        logger.warning(f"{line}, which is low; {LOW_AGREEMENT_REMEDY}")
    else:
        logger.info(line)

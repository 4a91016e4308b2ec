"""Scores of a classifier on held-out images, and the tables that show them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    r2_score,
    recall_score,
    root_mean_squared_error,
)
from torch import Tensor

from featgan.errors import UserError
from featgan.system.console import PlainConsole
from featgan.system.statistics import concordance_correlation

TABLE_WIDTH = 80
"""Maximum width of a table in characters."""

MAX_MATRIX_CLASSES = 300
"""Number of classes up to which the confusion matrix is stored; classifier.json has a limited number of values."""

MAX_STORED_CONFUSIONS = 20_000
"""Number of pairs of a class and a wrong prediction that are stored without the matrix, the most frequent first."""

MAX_LISTED_CONFUSIONS = 3
"""Number of wrong predictions that are listed for each class if the confusion matrix is too wide."""


def compute_scores(outputs: Tensor, targets: Tensor, task: str, names: Sequence[str]) -> dict[str, Any]:
    """Compare outputs [N, O] with class codes [N] or values [N, O]; return plain values for classifier.json."""
    score_function = {
        "expression": score_classes,
        "valence_arousal": score_valence_arousal,
        "attributes": score_attributes,
        "factors": score_factors,
    }[task]
    return {"count": len(targets), **score_function(outputs, targets, names)}


def score_classes(logits: Tensor, codes: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Compute accuracy, balanced accuracy, macro F1, the confusion matrix, and count and recall of each class."""
    return score_codes(codes, logits.argmax(1), names)


def score_codes(codes: Tensor, predictions: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Compute the scores of `score_classes` from class codes [N] and predicted codes [N]."""
    true_codes, predicted_codes = codes.numpy(), predictions.numpy()
    present = np.unique(true_codes)
    labels = list(range(len(names)))
    recall = recall_score(true_codes, predicted_codes, labels=labels, average=None, zero_division=0)
    counts = np.bincount(true_codes, minlength=len(names)).tolist()
    return {
        "accuracy": round_score(accuracy_score(true_codes, predicted_codes)),
        # The mean recall over present classes, without scikit-learn's warning about predicted classes that are absent.
        "balanced_accuracy": round_score(recall[present].mean()),
        "macro_f1": round_score(
            f1_score(true_codes, predicted_codes, labels=present, average="macro", zero_division=0)
        ),
        "classes": {
            name: {
                "count": counts[code],
                "recall": round_score(recall[code]) if code in present else None,
            }
            for code, name in enumerate(names)
        },
        **count_confusions(true_codes, predicted_codes, len(names)),
    }


def count_confusions(true_codes: np.ndarray, predicted_codes: np.ndarray, num_classes: int) -> dict[str, Any]:
    """Return the confusion matrix, or for many classes the wrong predictions as [class, prediction, images]."""
    if num_classes <= MAX_MATRIX_CLASSES:
        return {"confusion": confusion_matrix(true_codes, predicted_codes, labels=list(range(num_classes))).tolist()}
    is_wrong = true_codes != predicted_codes
    pairs = np.stack([true_codes[is_wrong], predicted_codes[is_wrong]], 1)
    unique_pairs, counts = np.unique(pairs, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:MAX_STORED_CONFUSIONS]
    return {"wrong_predictions": np.column_stack([unique_pairs[order], counts[order]]).tolist()}


def score_valence_arousal(outputs: Tensor, targets: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Compute CCC and RMSE of each dimension, and the mean CCC."""
    coefficients = concordance_correlation(outputs.double(), targets.double()).numpy()
    errors = root_mean_squared_error(targets.numpy(), outputs.numpy(), multioutput="raw_values")
    per_dimension = {
        name: {"ccc": round_score(coefficients[index]), "rmse": round_score(errors[index])}
        for index, name in enumerate(names)
    }
    return {"ccc": round_score(coefficients.mean()), **per_dimension}


def score_factors(outputs: Tensor, targets: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Compute R2 of each factor, and the mean R2."""
    r2_values = r2_score(targets.numpy(), outputs.numpy(), multioutput="raw_values")
    per_factor = {name: round_score(value) for name, value in zip(names, r2_values, strict=True)}
    return {"r2": round_score(r2_values.mean()), "factors": per_factor}


def score_attributes(logits: Tensor, targets: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Compute accuracy and F1 of each attribute, and their means; a logit above 0 predicts that it is present."""
    actual, predicted = targets.numpy() > 0.5, logits.numpy() > 0
    per_attribute = {
        name: {
            "accuracy": round_score(accuracy_score(actual[:, index], predicted[:, index])),
            "f1": round_score(f1_score(actual[:, index], predicted[:, index], zero_division=0)),
        }
        for index, name in enumerate(names)
    }
    means = {
        name: round_score(float(np.mean([attribute_scores[name] for attribute_scores in per_attribute.values()])))
        for name in ("accuracy", "f1")
    }
    return {**means, **per_attribute}


def round_score(value: float) -> float:
    """Round to four digits."""
    return round(float(value), 4)


@contextmanager
def user_friendly_score_errors() -> Iterator[None]:
    """Convert an error about the structure of the scores, which come from a file, to a UserError."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise UserError(
            f"classifier.json: the scores are damaged ({problem}); remove the folder and train the classifier again"
        ) from error


def format_headline_scores(scores: dict[str, Any]) -> str:
    """Format the overall scores in one line. Raises UserError if they are damaged."""
    numbers = {name: value for name, value in scores.items() if isinstance(value, float)}
    formatted = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in numbers.items())
    with user_friendly_score_errors():
        return f"{formatted} on {scores['count']} images of {scores['split']}"


@user_friendly_score_errors()
def build_scores_table(scores: dict[str, Any]) -> Table:
    """Build the table of scores: one row per class with its confusions, or one row per dimension or factor.

    Raises UserError if the scores are damaged.
    """
    if "confusion" in scores or "wrong_predictions" in scores:
        return build_confusion_table(scores)
    score_groups = scores.get("factors") or {name: group for name, group in scores.items() if isinstance(group, dict)}
    rows = {name: part if isinstance(part, dict) else {"r2": part} for name, part in score_groups.items()}
    columns = next(iter(rows.values()), {})
    table = Table("output", *(column.upper() if len(column) < 5 else column for column in columns))
    table.title = format_headline_scores(scores)
    for name, values in rows.items():
        table.add_row(name, *(f"{value:.3f}" for value in values.values()))
    return table


def build_confusion_table(scores: dict[str, Any]) -> Table:
    """Build the confusion matrix: true classes as rows, predicted classes as columns, in images.

    If it is wider than TABLE_WIDTH, the table lists the most frequent wrong predictions of each class instead.
    """
    names = list(scores["classes"])
    # Short names and narrow columns, so that eight classes fit.
    matrix = build_class_table(scores, [name[:4] for name in names] if "confusion" in scores else [])
    if "confusion" in scores:
        for (name, class_scores), row in zip(scores["classes"].items(), scores["confusion"], strict=True):
            matrix.add_row(*class_cells(name, class_scores), *(str(count) if count else "." for count in row))
        if PlainConsole(width=10 * TABLE_WIDTH).measure(matrix).maximum <= TABLE_WIDTH:
            return matrix
    table = build_class_table(scores, [])
    table.add_column("most frequent wrong predictions")
    wrong = list_wrong_predictions(scores, len(names))
    for code, (name, class_scores) in enumerate(scores["classes"].items()):
        listed = ", ".join(f"{names[other]} {count}" for count, other in wrong[code][:MAX_LISTED_CONFUSIONS])
        table.add_row(*class_cells(name, class_scores), listed)
    return table


def list_wrong_predictions(scores: dict[str, Any], num_classes: int) -> list[list[tuple[int, int]]]:
    """Return the wrong predictions of each class as (images, predicted class), the most frequent first."""
    names = list(scores["classes"])
    wrong: list[list[tuple[int, int]]] = [[] for _ in range(num_classes)]
    if "confusion" in scores:
        triples = [(code, other, n) for code, row in enumerate(scores["confusion"]) for other, n in enumerate(row)]
    else:
        triples = scores["wrong_predictions"]
    for code, other, count in triples:
        if count and other != code:
            wrong[code].append((count, other))
    return [sorted(items, key=lambda item: (-item[0], names[item[1]])) for items in wrong]


def build_class_table(scores: dict[str, Any], headings: Sequence[str]) -> Table:
    """Build an empty table with the columns of a class, followed by right-aligned columns with the given headings."""
    table = Table(title=format_headline_scores(scores), box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("true class", overflow="fold")
    for heading in ("images", "recall", *headings):
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def class_cells(name: str, class_scores: dict[str, Any]) -> tuple[str, str, str]:
    """Return the name of a class, its number of images, and its recall."""
    recall = "" if class_scores["recall"] is None else f"{class_scores['recall']:.3f}"
    return name, str(class_scores["count"]), recall

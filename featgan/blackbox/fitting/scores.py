"""How well a fitted box does on images it has not seen."""

from collections.abc import Sequence
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

from featgan.system.statistics import concordance


def compute_scores(outputs: Tensor, targets: Tensor, target: str, names: Sequence[str]) -> dict[str, Any]:
    """Outputs [N, O] against class codes [N] or numbers [N, O]; plain values for box.json."""
    score = {
        "expression": score_classes,
        "valence_arousal": score_affect,
        "attributes": score_attributes,
        "factors": score_factors,
    }[target]
    return {"count": len(targets), **score(outputs, targets, names)}


def score_classes(logits: Tensor, codes: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Accuracy, its mean over the classes that occur, macro F1, and for each class its count, recall and confusions."""
    truth, found = codes.numpy(), logits.argmax(1).numpy()
    present = np.unique(truth)
    labels = list(range(len(names)))
    recall = recall_score(truth, found, labels=labels, average=None, zero_division=0)
    confusion = confusion_matrix(truth, found, labels=labels)
    return {
        "accuracy": rounded(accuracy_score(truth, found)),
        # The mean recall over present classes, without scikit-learn's warning about predicted classes that are absent.
        "balanced_accuracy": rounded(recall[present].mean()),
        "macro_f1": rounded(f1_score(truth, found, labels=present, average="macro", zero_division=0)),
        "classes": {
            name: {"count": int((truth == code).sum()), "recall": rounded(recall[code]) if code in present else None}
            for code, name in enumerate(names)
        },
        "confusion": confusion.tolist(),
    }


def score_affect(outputs: Tensor, targets: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """CCC and RMSE of each dimension, and the mean CCC."""
    coefficients = concordance(outputs.double(), targets.double()).numpy()
    errors = root_mean_squared_error(targets.numpy(), outputs.numpy(), multioutput="raw_values")
    each = {
        name: {"ccc": rounded(coefficients[index]), "rmse": rounded(errors[index])} for index, name in enumerate(names)
    }
    return {"ccc": rounded(coefficients.mean()), **each}


def score_factors(outputs: Tensor, targets: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """R2 of each factor, and their mean."""
    found = r2_score(targets.numpy(), outputs.numpy(), multioutput="raw_values")
    each = {name: rounded(value) for name, value in zip(names, found, strict=True)}
    return {"r2": rounded(found.mean()), "factors": each}


def score_attributes(logits: Tensor, targets: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Accuracy and F1 of each attribute (0 or 1; present where the logit is above 0), and their means."""
    truth, found = targets.numpy() > 0.5, logits.numpy() > 0
    each = {
        name: {
            "accuracy": rounded(accuracy_score(truth[:, index], found[:, index])),
            "f1": rounded(f1_score(truth[:, index], found[:, index], zero_division=0)),
        }
        for index, name in enumerate(names)
    }
    means = {name: rounded(float(np.mean([part[name] for part in each.values()]))) for name in ("accuracy", "f1")}
    return {**means, **each}


def rounded(value: float) -> float:
    return round(float(value), 4)


def headline(scores: dict[str, Any]) -> str:
    """The scores' single numbers in one line."""
    numbers = {name: value for name, value in scores.items() if isinstance(value, float)}
    figures = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in numbers.items())
    return f"{figures} on {scores['count']} images of {scores['split']}"


def scores_table(scores: dict[str, Any]) -> Table:
    """The scores' parts: a row a class with its confusions, or a row a dimension or factor."""
    if "confusion" in scores:
        return confusion_table(scores)
    parts = scores.get("factors") or {name: part for name, part in scores.items() if isinstance(part, dict)}
    rows = {name: part if isinstance(part, dict) else {"r2": part} for name, part in parts.items()}
    columns = next(iter(rows.values()))
    table = Table("output", *(column.upper() if len(column) < 5 else column for column in columns))
    table.title = headline(scores)
    for name, values in rows.items():
        table.add_row(name, *(f"{value:.3f}" for value in values.values()))
    return table


def confusion_table(scores: dict[str, Any]) -> Table:
    """True classes as rows, the box's answers as columns, in images."""
    names = list(scores["classes"])
    # Short and close together, so that eight classes fit into 80 columns.
    table = Table(title=headline(scores), box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("true class", "images", "recall", *(name[:4] for name in names)):
        table.add_column(heading, justify="left" if heading == "true class" else "right", no_wrap=True)
    for (name, part), row in zip(scores["classes"].items(), scores["confusion"], strict=True):
        recall = "" if part["recall"] is None else f"{part['recall']:.3f}"
        table.add_row(name, str(part["count"]), recall, *(str(count) if count else "." for count in row))
    return table

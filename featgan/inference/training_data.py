"""The data a run was trained on, as far as it is still there, in the terms of its generator."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from featgan.blackbox.loading import BlackBox, load_blackbox
from featgan.data.conditions import ConditionLayout
from featgan.data.feature_cache.cache import FeatureCache
from featgan.data.shards.shard_set import ShardSet, Split
from featgan.errors import UserError
from featgan.features.directions import class_means
from featgan.inference.model import Model, open_cache, open_shards
from featgan.system.progress import console

FEWEST_ANSWERED = 5
"""Training images from which an answer has a mean: one alone shows itself."""
MOST_PER_CLASS = 2000
"""Training images whose features make a class's mean."""


@dataclass(frozen=True)
class Material:
    """The data the run was trained on, as far as it is still there; the cache where the condition is features."""

    shards: ShardSet | None
    cache: FeatureCache | None

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the black box's outputs."""
        return () if self.cache is None else name_outputs(self.cache)


def name_outputs(owner: FeatureCache | BlackBox) -> tuple[str, ...]:
    """Names of the outputs of a box, or of those in a cache; numbers where they have none."""
    if owner.output_kind == "valence_arousal":
        return ("valence", "arousal")
    numbered = tuple(f"output {index + 1}" for index in range(owner.output_dim))
    return owner.class_names if len(owner.class_names) == owner.output_dim else numbered


def open_material(model: Model, needed: bool) -> Material:
    """The shards and the cache; where they are not needed and cannot be opened, a remark says what is left out."""
    try:
        shards = open_shards(model)
        return Material(shards, open_cache(model, shards) if model.dataset["features"] else None)
    except UserError as error:
        if needed:
            raise
        console.print(f"without the training data's class directions: {error}", markup=False)
        return Material(None, None)


def usable_rows(model: Model, shards: ShardSet, split: Split) -> np.ndarray:
    """Rows whose own condition is known."""
    if model.condition_kind == "expression":
        return np.flatnonzero(split.expression >= 0)
    if model.condition_kind == "valence_arousal":
        return np.flatnonzero(np.isfinite(split.valence) & np.isfinite(split.arousal))
    if model.condition_kind == "attributes":
        return np.flatnonzero((split.attributes[:, attribute_columns(model, shards)] >= 0).all(1))
    return np.arange(len(split))


def tells_classes(cache: FeatureCache, shards: ShardSet) -> bool:
    """Whether the box's outputs are the classes of the shards' labels."""
    return cache.output_kind == "expression" and name_outputs(cache) == tuple(shards.classes)


def rightly_told(material: Material, split: Split) -> np.ndarray:
    """Rows that the box gives their label: a picture that it misreads shows less of what it looks at.

    None where it does not tell the labels' classes.
    """
    cache, shards = material.cache, material.shards
    if cache is None or shards is None or not tells_classes(cache, shards):
        return np.zeros(0, np.int64)
    rows = np.flatnonzero(split.expression >= 0)
    return rows[cache.outputs(split.name, rows).argmax(1) == split.expression[rows]]


def attribute_columns(model: Model, shards: ShardSet) -> list[int]:
    """Where the model's attributes stand in the shards; UserError when one is missing."""
    missing = [name for name in model.attribute_names if name not in shards.attribute_names]
    if missing:
        raise UserError(f"{shards.path}: no attribute {missing[0]!r}, which the run was trained on; pack them again")
    return [shards.attribute_names.index(name) for name in model.attribute_names]


def source_values(model: Model, material: Material, split: Split, rows: np.ndarray) -> Tensor:
    """The untouched values of validation images: features [n, F] or label conditions [n, C]."""
    if model.condition_kind == "features":
        assert material.cache is not None
        return torch.from_numpy(np.array(material.cache.features("validation", rows, False)))
    if model.condition_kind == "expression":
        return torch.eye(len(model.class_names))[torch.from_numpy(split.expression[rows].astype(np.int64))]
    if model.condition_kind == "valence_arousal":
        return torch.from_numpy(np.stack([split.valence[rows], split.arousal[rows]], 1).astype(np.float32))
    assert material.shards is not None
    columns = attribute_columns(model, material.shards)
    return torch.from_numpy(split.attributes[rows][:, columns].astype(np.float32))


def label_layout(model: Model) -> ConditionLayout:
    """Where the label conditions of one or two data sets lie in what G takes."""
    kind_dims = {"expression": len(model.class_names), "attributes": len(model.attribute_names), "valence_arousal": 2}
    first = kind_dims[model.condition_kind]
    return ConditionLayout((first,) if first == model.condition_dim else (first, model.condition_dim - first - 2))


def encode_values(model: Model, values: Tensor, own: Tensor | None) -> Tensor:
    """Wanted features or labels of the (first) data set [M, ...], and the images' own where known => what G takes."""
    if model.condition_kind == "features":
        return model.ask(model.encode(values), None if own is None else model.encode(own))
    return label_layout(model).embed(values, 0)


def training_class_means(material: Material, num_classes: int) -> Tensor | None:
    """Mean training features by label [num_classes, F], of up to MOST_PER_CLASS images each; None without labels."""
    if material.cache is None or material.shards is None:
        return None
    labels = material.shards.split("train").expression
    rows = [spread(np.flatnonzero(labels == label), MOST_PER_CLASS) for label in range(num_classes)]
    chosen = np.sort(np.concatenate([*rows, np.empty(0, np.int64)])).astype(np.int64)
    if not len(chosen):
        return None
    features = torch.from_numpy(np.array(material.cache.features("train", chosen, False)))
    return class_means(features, torch.from_numpy(labels[chosen].astype(np.int64)), num_classes)


def training_answers(material: Material) -> dict[str, Tensor]:
    """Answer of a box that tells classes => mean features [F] of up to MOST_PER_CLASS training images that it gives it.

    Answers given to fewer than FEWEST_ANSWERED images are left out; empty for other boxes.
    """
    cache, shards = material.cache, material.shards
    if cache is None or shards is None or cache.output_kind != "expression":
        return {}
    answers = np.asarray(cache.outputs("train", np.arange(len(shards.split("train"))))).argmax(1)
    found = {}
    for output, name in enumerate(material.output_names):
        rows = spread(np.flatnonzero(answers == output), MOST_PER_CLASS)
        if len(rows) >= FEWEST_ANSWERED:
            found[name] = torch.from_numpy(np.array(cache.features("train", rows, False))).mean(0)
    return found


def spread(rows: np.ndarray, most: int) -> np.ndarray:
    """Up to `most` rows, evenly spread."""
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(np.int64)]


def open_blackbox(model: Model, spec: str | None) -> BlackBox:
    """The box that made the features; UserError when other weights are found under its name."""
    known = model.blackbox or {}
    box = load_blackbox(spec or known["spec"], known.get("layer"), model.device)
    if box.sha256 != known["sha256"]:
        raise UserError(
            f"{spec or known['spec']}: not the box that the features were made with (its weights differ); "
            "name that one with --blackbox, or extract and train anew"
        )
    return box

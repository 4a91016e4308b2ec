"""The evaluator of label-conditioned models: an evaluation classifier, trained on the same labels, predicts them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from featgan.blackbox.class_names import match_names
from featgan.blackbox.loading import BlackBox
from featgan.data.conditions import Condition, ConditionLayout
from featgan.data.row_selection import select_rows
from featgan.data.shards.shard_set import ShardSet
from featgan.data.shards.split import Split
from featgan.errors import UserError
from featgan.evaluation.evaluator import MAX_SHARED_TARGETS, EvaluationPairs
from featgan.inference.editor import ImageEditor, predict
from featgan.inference.training_data import report_untrained_classes, untrained_classes
from featgan.metrics import decisions
from featgan.metrics.bootstrap import Booleans, Floats, to_float64
from featgan.metrics.predictions import Predictions, standardize_by_real
from featgan.metrics.subgroups import Subgroup, SubgroupScore, class_subgroups, octant_subgroups


@dataclass
class LabelEvaluator:
    """A label-conditioned model with one of its data sets and an optional classifier; implements `Evaluator`."""

    editor: ImageEditor
    split: Split
    condition: Condition
    layout: ConditionLayout
    dataset: int
    """Index of the data set among those that the model was trained on."""
    classifier: BlackBox | None
    max_pairs: int

    @cached_property
    def pairs(self) -> EvaluationPairs:
        return EvaluationPairs.sample_rows(np.asarray(self.condition.rows), self.max_pairs)

    @property
    def task(self) -> str:
        return self.condition.config.kind

    @property
    def class_names(self) -> Sequence[str]:
        return self.condition.names

    @cached_property
    def source_images(self) -> Tensor:
        return self.split.decode(self.pairs.source_rows)

    @cached_property
    def source_conditions(self) -> Tensor:
        rows = self.pairs.source_rows
        return torch.from_numpy(self.condition.values(rows, np.zeros(len(rows), bool)))

    @property
    def source_labels(self) -> Predictions:
        """The labels of the source images, in the form of predictions."""
        labels = to_float64(self.source_conditions)
        return Predictions(labels, labels)

    @cached_property
    def source_predictions(self) -> Predictions:
        return self.source_labels if self.classifier is None else self.predict(self.source_images)

    @property
    def target_predictions(self) -> Predictions:
        return self.source_labels.select_rows(self.pairs.target_indices)

    @property
    def target_differs(self) -> Booleans | None:
        return decisions.decision_differs(self.task, self.source_labels, self.target_predictions)

    def edit(self, images: Tensor, target: Tensor, source: Tensor) -> Tensor:
        return self.editor.edit_uint8(images, self.layout.embed(target, self.dataset))

    def predict(self, images: Tensor) -> Predictions:
        """Return the predictions of the evaluation classifier, with outputs in the order of the condition's names."""
        assert self.classifier is not None
        predictions = predict(self.classifier, images, self.editor.group)
        assert predictions.outputs is not None
        column_of_name = match_names(self.condition.names, self.classifier.class_names)
        columns = [column_of_name[index] for index in range(len(self.condition.names))]
        return Predictions(predictions.features, predictions.outputs[:, columns])

    def real_images(self) -> dict[str, Tensor]:
        return {"target_real": self.source_images[self.pairs.target_indices]}

    def real_reconstructions(self) -> dict[str, Tensor]:
        return {}

    def predict_columns(self, images: Mapping[str, Tensor]) -> dict[str, Predictions]:
        if self.classifier is None:
            return {}
        return {
            "generator": self.predict(images["generator"]),
            "copy_source": self.source_predictions,
            "shuffled_target": self.predict(images["shuffled_target"]),
            # The errors of the classifier on real images with the target label are an upper bound for the generator.
            "target_real": self.source_predictions.select_rows(self.pairs.target_indices),
        }

    def standardize(self, predictions: Predictions) -> Floats:
        return standardize_by_real(self.source_predictions.features, predictions.features)

    def shared_targets(self) -> Tensor:
        return torch.unique(self.source_conditions, dim=0)[:MAX_SHARED_TARGETS]

    def target_subgroups(self) -> list[Subgroup]:
        """Split by target class, or by octant of the target valence and arousal."""
        labels = self.target_predictions.features
        if self.task == "expression":
            return class_subgroups(labels.argmax(1), self.class_names)
        return octant_subgroups(labels) if self.task == "valence_arousal" else []

    def progress_scores(self, predictions: Predictions) -> dict[str, SubgroupScore]:
        return {}


def assign_evaluation_classifiers(
    classifiers: Sequence[BlackBox], conditions: Sequence[Condition]
) -> list[BlackBox | None]:
    """Return the classifier of each data set: the one that predicts its labels.

    Raises UserError if a classifier fits none of the remaining data sets.
    """
    assigned: list[BlackBox | None] = [None] * len(conditions)
    for classifier in classifiers:
        unassigned = (index for index in range(len(conditions)) if assigned[index] is None)
        matches = [index for index in unassigned if classifier_fits(classifier, conditions[index])]
        if not matches:
            labels = "; ".join(f"{condition.config.kind} ({', '.join(condition.names)})" for condition in conditions)
            raise UserError(
                f"--classifier {classifier.spec}: predicts {classifier.task} "
                f"({', '.join(classifier.class_names)}), but the labels of this run are {labels}; "
                "train an evaluation classifier with `featgan blackbox fit`"
            )
        assigned[matches[0]] = classifier
    return assigned


def classifier_fits(classifier: BlackBox, condition: Condition) -> bool:
    """Return whether a classifier predicts the labels of a condition: it has an output for each of their names.

    The outputs can have another order, further names, and synonyms such as happiness for happy.
    """
    if classifier.task != condition.config.kind:
        return False
    return len(match_names(condition.names, classifier.class_names)) == len(condition.names)


def exclude_untrained_classes(condition: Condition, shards: ShardSet) -> Condition:
    """Return the condition without the validation images whose class has no training images, and log the classes.

    The model has never seen such a target.
    """
    if condition.config.kind != "expression":
        return condition
    untrained = untrained_classes(shards)
    labels = shards.get_split("validation").expression
    is_trained = ~np.isin(labels, [shards.classes.index(name) for name in untrained])
    is_known = np.zeros(len(labels), bool)
    is_known[np.asarray(condition.rows)] = True
    rows = select_rows(len(labels), lambda chunk: is_known[chunk] & is_trained[chunk])
    if len(rows) < len(condition.rows):
        report_untrained_classes(shards.location, untrained)
    return replace(condition, rows=rows)

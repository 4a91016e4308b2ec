"""Metrics of a second classifier that was not used in training: does it respond to the edits, too?"""

from collections.abc import Sequence
from dataclasses import dataclass

from featgan.blackbox.class_names import translate_names
from featgan.config.metric_specs import SECOND_CLASSIFIER_PREFIX
from featgan.evaluation.edit_metrics import diversity_by_column
from featgan.evaluation.evaluator import EditResults, MetricsByColumn, MetricTable, SameTargetEdits, prefix_names
from featgan.evaluation.feature_evaluator import FeatureEvaluator
from featgan.evaluation.optional_models import SecondClassifier
from featgan.metrics import realism
from featgan.metrics.bootstrap import Floats, bootstrap_mean
from featgan.metrics.decisions import decision_metrics
from featgan.metrics.diversity import pairwise_distance
from featgan.metrics.faithfulness import centered_cosine, target_progress_metrics
from featgan.metrics.model_agreement import BeforeAfter, classifier_agreement_metrics, second_classifier_correct
from featgan.metrics.predictions import Predictions, standardize_by_real

EDITED_COLUMNS = {"generator": "edits", "shuffled_target": "shuffled"}
"""Columns with edited images => their description in the progress bar. All other columns have real images."""


@dataclass(frozen=True)
class SecondPredictions:
    """The second classifier, and its predictions for the sources, for every column and for the reconstructions."""

    classifier: SecondClassifier
    source: Predictions
    by_column: dict[str, Predictions]
    reconstructed: Predictions

    @property
    def task(self) -> str:
        return self.classifier.classifier.task

    def names_like(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the names of its outputs; those that match one of `names`, also as a synonym, are that name.

        Empty if its outputs have no names.
        """
        return translate_names(self.classifier.class_names, names)

    def standardize(self, predictions: Predictions) -> Floats:
        """Return features in standard deviations of the sources' features."""
        return standardize_by_real(self.source.features, predictions.features)


def predict_second_classifier(
    evaluator: FeatureEvaluator, edits: EditResults, classifier: SecondClassifier
) -> SecondPredictions:
    """Run the second classifier once on every set of images; a feature cache may replace the real images."""
    source = classifier.predict_real("validation", evaluator.pairs.source_rows)
    edited = {
        column: classifier.predict(edits.images[column], description) for column, description in EDITED_COLUMNS.items()
    }
    by_column = {
        "generator": edited["generator"],
        "copy_source": source,
        "shuffled_target": edited["shuffled_target"],
        "nearest_real": classifier.predict_real("train", evaluator.training_rows[evaluator.nearest_to_target]),
        "target_real": source.select_rows(evaluator.pairs.target_indices),
    }
    return SecondPredictions(classifier, source, by_column, classifier.predict(edits.reconstructed, "reconstructed"))


def measure_second_classifier_agreement(
    evaluator: FeatureEvaluator, edits: EditResults, second: SecondPredictions
) -> MetricsByColumn:
    """Measure how often the second classifier predicts the target, and the progress toward the target's features."""
    source, target = second.standardize(second.source), second.standardize(second.by_column["target_real"])
    metrics: MetricsByColumn = {}
    for column, predictions in second.by_column.items():
        progress = target_progress_metrics(source, target, second.standardize(predictions))
        metrics[column] = second_classifier_decisions(evaluator, edits, second, column)
        metrics[column]["second_classifier_target_progress_pooled"] = progress["target_progress_pooled"]
    return metrics


def second_classifier_decisions(
    evaluator: FeatureEvaluator, edits: EditResults, second: SecondPredictions, column: str
) -> MetricTable:
    """Return the agreement of both classifiers if both predict classes, else decision metrics if their outputs match.

    Empty if the outputs of the two classifiers cannot be compared.
    """
    kind, names, target = evaluator.task, evaluator.class_names, evaluator.target_predictions
    second_names = second.names_like(names)
    first_edited, second_edited = edits.predictions.get(column, target), second.by_column[column]
    first_source_outputs, first_edited_outputs = evaluator.source_predictions.outputs, first_edited.outputs
    second_source_outputs, second_edited_outputs = second.source.outputs, second_edited.outputs
    if (
        first_source_outputs is None
        or first_edited_outputs is None
        or target.outputs is None
        or second_source_outputs is None
        or second_edited_outputs is None
    ):
        return {}
    if kind == second.task == "expression":
        if not names or not second_names:
            return {}
        assert evaluator.target_differs is not None
        before_after = BeforeAfter(first_source_outputs, first_edited_outputs, names)
        second_before_after = BeforeAfter(second_source_outputs, second_edited_outputs, second_names)
        return classifier_agreement_metrics(before_after, second_before_after, target.outputs, evaluator.target_differs)
    if kind == second.task and tuple(names) == second_names:
        table = decision_metrics(kind, second.source, target, second_edited, names)
        return prefix_names({column: table}, SECOND_CLASSIFIER_PREFIX)[column]
    return {}


def measure_second_classifier_realism(second: SecondPredictions) -> MetricsByColumn:
    """Measure distances of edited images to real images in the second classifier's features."""
    half = realism.second_half(len(second.source))
    features_by_column = {
        column: second.standardize(predictions)[half] for column, predictions in second.by_column.items()
    }
    metrics = realism.realism_metrics(second.standardize(second.source), features_by_column)
    return prefix_names(metrics, SECOND_CLASSIFIER_PREFIX)


def measure_feature_similarity(second: SecondPredictions) -> MetricsByColumn:
    """Measure the cosine of the second classifier's features before and after reconstruction and edit."""
    source = second.standardize(second.source)
    reconstructed = centered_cosine(source, second.standardize(second.reconstructed))
    metrics: MetricsByColumn = {"generator": {"reconstruction_cosine": bootstrap_mean(reconstructed)}}
    for column, predictions in second.by_column.items():
        cosines = centered_cosine(source, second.standardize(predictions))
        metrics.setdefault(column, {})["edit_cosine"] = bootstrap_mean(cosines)
    return prefix_names(metrics, SECOND_CLASSIFIER_PREFIX)


def measure_second_classifier_diversity(
    same_target_edits: SameTargetEdits, second: SecondPredictions
) -> MetricsByColumn:
    """Measure in the second classifier's features whether edits to the same target stay different."""
    source = second.standardize(second.source)[: len(same_target_edits.sources)]
    edited = [
        pairwise_distance(second.standardize(second.classifier.predict(images, "same target")))
        for images in same_target_edits.edited
    ]
    return prefix_names(diversity_by_column(pairwise_distance(source), edited), SECOND_CLASSIFIER_PREFIX)


def second_classifier_agrees(evaluator: FeatureEvaluator, second: SecondPredictions) -> dict[str, Floats]:
    """Return for each column and pair [N]: 1 if the second classifier predicts the target class, else 0.

    Empty if one of the classifiers does not predict classes.
    """
    target_differs, target_outputs = evaluator.target_differs, evaluator.target_predictions.outputs
    second_names = second.names_like(evaluator.class_names)
    if not evaluator.task == second.task == "expression" or target_differs is None:
        return {}
    if not evaluator.class_names or not second_names:
        return {}
    assert target_outputs is not None
    return {
        column: second_classifier_correct(
            BeforeAfter(predictions.outputs, predictions.outputs, second_names),
            evaluator.class_names,
            target_outputs,
            target_differs,
        )
        for column, predictions in second.by_column.items()
        if predictions.outputs is not None
    }

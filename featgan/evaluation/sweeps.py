"""Metrics of feature-conditioned models from other targets than pairs: sweeps, projections, and few components."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from featgan.blackbox.loading import BlackBox
from featgan.distributed.work_group import SINGLE_PROCESS, WorkGroup
from featgan.evaluation.evaluator import MetricsByColumn
from featgan.evaluation.feature_evaluator import FeatureEvaluator
from featgan.features.directions import component_sweep, leading_component_projections
from featgan.inference.editor import predict
from featgan.metrics import decisions, traversal
from featgan.metrics.bootstrap import Floats, Integers, to_float64
from featgan.metrics.predictions import project_features

SWEEP_LEVELS = (-2.0, -1.0, 0.0, 1.0, 2.0)
"""Whitened values of a swept component, in standard deviations of the training features."""

SWEEP_VALUES = to_float64(SWEEP_LEVELS)

SUFFICIENCY_COUNTS = (1, 2, 5, 10)
"""Numbers of leading components that are set to the target alone."""


@dataclass(frozen=True)
class SweepResults:
    """The first K components, each swept over the S values of `SWEEP_LEVELS` on N images; K components are measured."""

    rows: Integers  # [N]
    images: Tensor  # uint8 [N, 3, S, S]
    nearest_indices: Integers  # [N, K, S], index in `training_rows` of the training image nearest to each target
    measured: Floats  # whitened [N, K, S, K]
    factors: Floats | None  # [N, K, S, number of the probe's outputs]; None without a factor probe

    @cached_property
    def crosstalk(self) -> Floats:
        """Mean change of each measured component per unit of target change of each component [K, K]."""
        return traversal.crosstalk_matrix(SWEEP_VALUES, self.measured)


def sweep_components(
    evaluator: FeatureEvaluator, rows: Integers, num_components: int, factor_probe: BlackBox | None
) -> SweepResults:
    """Sweep each of the first components; all other components keep the value of the source."""
    images, features = evaluator.validation_images(rows), torch.from_numpy(evaluator.cache.features("validation", rows))
    shape = (len(rows), len(SWEEP_LEVELS), -1)
    nearest_indices, measured, factors = [], [], []
    with evaluator.editor.show_progress("sweeping components", num_components * len(SWEEP_LEVELS) * len(rows)):
        for component in range(num_components):
            target = component_sweep(evaluator.space, features, component, SWEEP_LEVELS).flatten(0, 1)
            repeated_images, source = (values.repeat_interleave(len(SWEEP_LEVELS), 0) for values in (images, features))
            edited = evaluator.edit_to_features(repeated_images, target, source)
            nearest_indices.append(evaluator.nearest_training_indices(to_float64(target)).reshape(shape[:2]))
            components = project_features(evaluator.space, evaluator.predict(edited).features)
            measured.append(components[:, :num_components].reshape(shape))
            if factor_probe is not None:
                factors.append(predict_outputs(factor_probe, edited, evaluator.editor.group).reshape(shape))
    return SweepResults(
        rows,
        images,
        np.stack(nearest_indices, 1),
        np.stack(measured, 1),
        np.stack(factors, 1) if factor_probe is not None else None,
    )


def predict_outputs(classifier: BlackBox, images: Tensor, group: WorkGroup = SINGLE_PROCESS) -> Floats:
    """Return the outputs [N, O] of a classifier."""
    outputs = predict(classifier, images, group).outputs
    assert outputs is not None
    return outputs


def measure_traversal(evaluator: FeatureEvaluator, sweeps: SweepResults) -> MetricsByColumn:
    """Measure whether a swept component follows its target values, and whether the others stay unchanged."""
    num_components = sweeps.measured.shape[-1]
    source = evaluator.cached_predictions("validation", sweeps.rows).features
    source_components = project_features(evaluator.space, source)[:, None, None, :num_components]
    training_components = project_features(evaluator.space, evaluator.training_predictions.features)
    measured_by_column = {
        "generator": sweeps.measured,
        "copy_source": np.broadcast_to(source_components, sweeps.measured.shape),
        "nearest_real": training_components[:, :num_components][sweeps.nearest_indices],
    }
    return {
        column: traversal.traversal_metrics(SWEEP_VALUES, measured) for column, measured in measured_by_column.items()
    }


def measure_projections(evaluator: FeatureEvaluator, rows: Integers) -> MetricsByColumn:
    """Measure reconstructions from the first 0, 1, 2, 4, ... components; all other components are set to their mean."""
    images, predictions = evaluator.validation_images(rows), evaluator.cached_predictions("validation", rows)
    counts = [0, *(2**power for power in range(evaluator.space.num_components.bit_length()))]
    features = torch.from_numpy(predictions.features).float()
    targets = {count: leading_component_projections(evaluator.space, features, [count])[:, 0] for count in counts}
    with evaluator.editor.show_progress("projecting", len(counts) * len(rows)):
        edited = {
            count: evaluator.predict(evaluator.edit_to_features(images, target, features))
            for count, target in targets.items()
        }
    nearest = {
        count: evaluator.training_predictions.select_rows(evaluator.nearest_training_indices(to_float64(target)))
        for count, target in targets.items()
    }
    standardized_targets = {
        count: evaluator.standardize_features(to_float64(target)) for count, target in targets.items()
    }
    predictions_by_column = {
        "generator": edited,
        "copy_source": dict.fromkeys(counts, predictions),
        "nearest_real": nearest,
    }
    return {
        column: traversal.projection_metrics(
            standardized_targets,
            {count: evaluator.standardize(count_predictions) for count, count_predictions in by_count.items()},
        )
        for column, by_count in predictions_by_column.items()
    }


def measure_sufficiency(evaluator: FeatureEvaluator) -> MetricsByColumn:
    """Measure how often setting only the first components to the target changes the prediction to the target class.

    Empty if the classifier does not predict classes.
    """
    if evaluator.task != "expression":
        return {}
    source_outputs, target_outputs = evaluator.source_predictions.outputs, evaluator.target_predictions.outputs
    training_outputs = evaluator.training_predictions.outputs
    assert source_outputs is not None and target_outputs is not None and training_outputs is not None
    space = evaluator.space
    source, target = (
        torch.from_numpy(item.features).float() for item in (evaluator.source_predictions, evaluator.target_predictions)
    )
    source_labels, target_labels = source_outputs.argmax(1), target_outputs.argmax(1)
    counts = [count for count in SUFFICIENCY_COUNTS if count <= space.num_components]
    predicted: dict[str, dict[int, Integers]] = {"generator": {}, "copy_source": {}, "nearest_real": {}}
    with evaluator.editor.show_progress("setting components", len(counts) * len(source)):
        for count in counts:
            # The difference of the components is added, so that the part of the source outside them is kept.
            mixed = (
                source
                + leading_component_projections(space, target, [count])[:, 0]
                - leading_component_projections(space, source, [count])[:, 0]
            )
            outputs = evaluator.predict(evaluator.edit_to_features(evaluator.source_images, mixed, source)).outputs
            assert outputs is not None
            predicted["generator"][count] = outputs.argmax(1)
            predicted["copy_source"][count] = source_labels
            nearest_indices = evaluator.nearest_training_indices(to_float64(mixed))
            predicted["nearest_real"][count] = training_outputs[nearest_indices].argmax(1)
    return {
        column: decisions.sufficiency_metrics(source_labels, target_labels, labels)
        for column, labels in predicted.items()
    }

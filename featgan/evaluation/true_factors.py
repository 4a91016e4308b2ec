"""Metrics on synthetic faces: a factor probe estimates their true factors in the edited images."""

from dataclasses import dataclass

from featgan.blackbox.loading import BlackBox
from featgan.data.shards.shard_set import ShardSet
from featgan.data.synthetic.dataset import EXPRESSION_FACTORS, NUISANCE_FACTORS
from featgan.errors import UserError
from featgan.evaluation.evaluator import MetricsByColumn
from featgan.evaluation.feature_evaluator import FeatureEvaluator
from featgan.evaluation.sweeps import SWEEP_VALUES, SweepResults, predict_outputs
from featgan.metrics.bootstrap import Floats, to_float64
from featgan.metrics.factors import FactorNames, factor_metrics, mean_factor_slopes


@dataclass(frozen=True)
class SharedFactors:
    """The factors that both the shards and the probe have, with their columns; expression factors come first."""

    names: FactorNames
    shard_columns: list[int]
    probe_columns: list[int]


def find_shared_factors(shards: ShardSet, factor_probe: BlackBox) -> SharedFactors:
    """Return the shared factors. Raises UserError if there are no shared expression factors or nuisance factors."""
    shard_names, probe_names = list(shards.factor_names), list(factor_probe.class_names)
    expression = [name for name in EXPRESSION_FACTORS if name in shard_names and name in probe_names]
    nuisance = [name for name in NUISANCE_FACTORS if name in shard_names and name in probe_names]
    if not expression or not nuisance:
        raise UserError(
            f"--factor-probe {factor_probe.spec}: predicts none of the true factors in {shards.location}; "
            "train a probe on shards of synthetic faces with `featgan blackbox fit --task factors`"
        )
    names = FactorNames(expression, nuisance)
    return SharedFactors(
        names,
        [shard_names.index(name) for name in names.all_names],
        [probe_names.index(name) for name in names.all_names],
    )


def measure_factors(
    evaluator: FeatureEvaluator, factor_probe: BlackBox, shared: SharedFactors, sweeps: SweepResults
) -> MetricsByColumn:
    """Measure how much each component changes the true factors.

    The baseline `nearest_real` has the true factors of the training images nearest to each target.
    """
    assert sweeps.factors is not None
    training = training_factors(evaluator, shared)
    true = to_float64(evaluator.split.factors[sweeps.rows][:, shared.shard_columns])
    stds = training.std(0)
    features = evaluator.cache.features("validation", sweeps.rows)
    with evaluator.editor.show_progress("reconstructing", len(sweeps.rows)):
        reconstructed_images = evaluator.edit_to_features(sweeps.images, features, features)
    probed, probed_reconstructions = (
        predict_outputs(factor_probe, images)[:, shared.probe_columns]
        for images in (sweeps.images, reconstructed_images)
    )
    probed_sweeps = sweeps.factors[..., shared.probe_columns]
    candidates = training[evaluator.training_rows]
    nearest_reconstructions = candidates[evaluator.nearest_training_indices(to_float64(features))]
    nearest_sweeps = candidates[sweeps.nearest_indices]
    return {
        "generator": factor_metrics(
            shared.names, true, probed, probed_reconstructions, SWEEP_VALUES, probed_sweeps, stds
        ),
        "nearest_real": factor_metrics(
            shared.names, true, true, nearest_reconstructions, SWEEP_VALUES, nearest_sweeps, stds
        ),
    }


def factor_response(evaluator: FeatureEvaluator, shared: SharedFactors, sweeps: SweepResults) -> Floats:
    """Return the change of each factor per unit of each component, in standard deviations [K, F]."""
    assert sweeps.factors is not None
    stds = training_factors(evaluator, shared).std(0)
    return mean_factor_slopes(SWEEP_VALUES, sweeps.factors[..., shared.probe_columns], stds)


def training_factors(evaluator: FeatureEvaluator, shared: SharedFactors) -> Floats:
    """Return the true factors of the training images."""
    return to_float64(evaluator.shards.get_split("train").factors[:, shared.shard_columns])

"""Evaluate a checkpoint: load the models, run the measurements, and write the document and the scalars."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from featgan.blackbox.loading import load_blackbox
from featgan.config.metric_specs import SECOND_DATASET_PREFIX, Family
from featgan.config.schema import Config
from featgan.config.trusted_callables import NO_CALLABLES, TrustedCallables
from featgan.data.conditions import ConditionLayout, build_condition
from featgan.data.shards.shard_set import ShardSet
from featgan.distributed.work_group import SINGLE_PROCESS, WorkGroup
from featgan.errors import UserError
from featgan.evaluation.document_builder import build_document
from featgan.evaluation.edit_metrics import (
    measure_decisions,
    measure_diversity,
    measure_inception,
    measure_preservation,
    measure_realism,
)
from featgan.evaluation.evaluator import (
    EditResults,
    Evaluator,
    MetricsByColumn,
    SameTargetEdits,
    edit_pairs,
    edit_to_same_target,
)
from featgan.evaluation.feature_evaluator import FeatureEvaluator, measure_feature_agreement
from featgan.evaluation.label_evaluator import (
    LabelEvaluator,
    assign_evaluation_classifiers,
    exclude_untrained_classes,
)
from featgan.evaluation.optional_models import OptionalModels, describe_weights, load_optional_models
from featgan.evaluation.results import EvaluationResults
from featgan.evaluation.second_classifier import (
    SecondPredictions,
    measure_feature_similarity,
    measure_second_classifier_agreement,
    measure_second_classifier_diversity,
    measure_second_classifier_realism,
    predict_second_classifier,
    second_classifier_agrees,
)
from featgan.evaluation.subgroups import measure_component_subgroups, measure_subgroups
from featgan.evaluation.sweeps import (
    SweepResults,
    measure_projections,
    measure_sufficiency,
    measure_traversal,
    sweep_components,
)
from featgan.evaluation.true_factors import SharedFactors, factor_response, find_shared_factors, measure_factors
from featgan.inference.editor import ImageEditor
from featgan.inference.model import EditingModel, load_model, open_cache, open_dataset, open_shards
from featgan.inference.training_data import check_stored_blackbox, open_blackbox
from featgan.run.checkpoint import newest_step
from featgan.run.evaluation_claims import claim_checkpoint
from featgan.run.evaluation_document import EvaluationDocument, read_evaluation, write_evaluation
from featgan.run.evaluation_options import EvaluationOptions
from featgan.run.evaluation_schedule import with_default_classifiers
from featgan.run.metrics_log import EVALUATION_TAG, append_metrics_line, defer_writer_errors
from featgan.run.paths import evaluation_path, load_run_config

UNLIMITED = 1 << 30

SUITE_SIZES = {"quick": (2_000, 128), "standard": (10_000, 256), "full": (UNLIMITED, 1024)}
"""Suite => maximum number of pairs, and of images whose components are swept."""

PAIRS_PER_SWEPT_IMAGE = 8
"""Number of pairs per swept image if `max_pairs` limits the pairs."""

Measurement = tuple[Family, Callable[[], MetricsByColumn]]
"""A family of metrics, and a function that measures some of its metrics."""


def evaluate_run(
    run_dir: Path,
    step: int | None = None,
    suite: str = "standard",
    classifiers: Sequence[str] = (),
    factor_probe: str | None = None,
    num_components: int = 10,
    second_classifier: str | None = None,
    inception: Path | None = None,
    lpips: Path | None = None,
    max_pairs: int | None = None,
    trusted: TrustedCallables = NO_CALLABLES,
    group: WorkGroup = SINGLE_PROCESS,
) -> EvaluationDocument:
    """Evaluate a checkpoint (the newest by default), write RUN/evaluations/step-XXXXXXXX-SUITE.json and return it.

    `classifiers` has at most one SPEC for a feature-conditioned run; it replaces the SPEC of the extraction, and its
    weights must be equal. For a label-conditioned run it has the evaluation classifiers, at most one per data set.
    `factor_probe` is the SPEC of a classifier of the true factors of synthetic faces, and `second_classifier` that of
    a classifier that was not used in training. `inception` and `lpips` are files of weights. `max_pairs` limits the
    pairs below the suite's number. `trusted` are the callables that may be imported as classifiers. The processes of
    `group` divide the batches of images; the document is the same for any number of them, and rank 0 writes it.
    Raises UserError if the data or a model is missing.
    """
    device = group.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(run_dir, step, device)
    options = {
        "classifier": classifiers,
        "factor-probe": factor_probe,
        "second-classifier": second_classifier,
        "inception": inception,
        "lpips": lpips,
    }
    arguments = to_cli_arguments({"suite": suite, **options, "max-pairs": max_pairs, "num-components": num_components})
    num_pairs, num_swept = suite_size(suite, max_pairs)
    if not classifiers:
        check_stored_blackbox(model, trusted)
    shards = open_shards(model)
    if second_classifier is not None and model.metadata.condition_kind != "features":
        raise UserError(
            "--second-classifier: only for feature-conditioned runs; "
            "a label-conditioned run has an evaluation classifier that was not used in training: give --classifier"
        )
    run_cache = model.metadata.dataset.get("features")
    models = load_optional_models(
        shards, device, factor_probe, second_classifier, inception, lpips, trusted, run_cache, group
    )
    if model.metadata.condition_kind == "features":
        if len(classifiers) > 1:
            raise UserError(
                "--classifier: a feature-conditioned run has one classifier; give another one as --second-classifier"
            )
        spec = classifiers[0] if classifiers else None
        results = evaluate_feature_model(
            model, shards, num_pairs, num_swept, spec, models, num_components, trusted, group
        )
    else:
        config = load_run_config(run_dir)
        results = evaluate_label_model(model, shards, config, num_pairs, classifiers, models, trusted, group)
    path = result_path(run_dir, model.metadata.step, suite, max_pairs)
    document = build_document(
        results,
        step=model.metadata.step,
        suite=suite,
        blackbox=model.metadata.blackbox,
        second_classifier=models.second_classifier.to_metadata() if models.second_classifier else None,
        weights=describe_weights(inception, lpips),
        arguments=arguments,
        path=path,
    )
    if group.is_main:
        write_evaluation(path, document)
        log_metrics(run_dir, results, model.metadata.step)
    return document


def evaluate_with_defaults(
    run_dir: Path, step: int | None, suite: str, options: EvaluationOptions, group: WorkGroup = SINGLE_PROCESS
) -> EvaluationDocument:
    """Evaluate a checkpoint; classifiers that are not given are taken from the configuration of the run."""
    options = with_default_classifiers(run_dir, options)
    return evaluate_run(
        run_dir,
        step,
        suite,
        classifiers=options.classifiers,
        factor_probe=options.factor_probe,
        num_components=options.num_components,
        second_classifier=options.second_classifier,
        inception=options.inception,
        lpips=options.lpips,
        max_pairs=options.max_pairs,
        trusted=options.trusted,
        group=group,
    )


def evaluate_in_group(
    run_dir: Path, step: int | None, suite: str, options: EvaluationOptions, group: WorkGroup
) -> EvaluationDocument:
    """Claim a checkpoint in the process of rank 0, and evaluate it in all processes of the group.

    If one process fails, the others raise PeerError.
    """
    claimed_step: int | None = None
    with ExitStack() as stack:
        with group.joined():
            if group.is_main:
                chosen_step = newest_step(run_dir) if step is None else step
                claimed_step = stack.enter_context(claim_checkpoint(run_dir, chosen_step, suite))
        text = group.exchange("" if claimed_step is None else str(claimed_step))[0]
        with group.joined(), group.silenced():
            return evaluate_with_defaults(run_dir, int(text) if text else None, suite, options, group)


def to_cli_arguments(options: Mapping[str, Any]) -> list[str]:
    """Return options as arguments of `featgan evaluate`, without those that are None."""
    arguments: list[str] = []
    for name, value in options.items():
        for item in value if isinstance(value, list | tuple) else [value]:
            arguments += [f"--{name}", str(item)] if item is not None else []
    return arguments


def suite_size(suite: str, max_pairs: int | None) -> tuple[int, int]:
    """Return the maximum number of pairs, and of images whose components are swept."""
    num_pairs, num_swept = SUITE_SIZES[suite]
    if max_pairs is None:
        return num_pairs, num_swept
    return min(num_pairs, max_pairs), min(num_swept, max(1, max_pairs // PAIRS_PER_SWEPT_IMAGE))


def result_path(run_dir: Path, step: int, suite: str, max_pairs: int | None) -> Path:
    """Return the path of an evaluation; a `max_pairs` that limits nothing has the path of the complete suite."""
    is_limited = max_pairs is not None and max_pairs < SUITE_SIZES[suite][0]
    return evaluation_path(run_dir, step, suite, max_pairs if is_limited else None)


def find_evaluation(run_dir: Path, step: int, suite: str, max_pairs: int | None = None) -> EvaluationDocument | None:
    """Return the evaluation of a step, if it exists."""
    return read_evaluation(result_path(run_dir, step, suite, max_pairs))


def evaluate_feature_model(
    model: EditingModel,
    shards: ShardSet,
    num_pairs: int,
    num_swept: int,
    blackbox_spec: str | None,
    models: OptionalModels,
    num_components: int,
    trusted: TrustedCallables,
    group: WorkGroup,
) -> EvaluationResults:
    """Measure all families of a feature-conditioned model.

    This and `evaluate_label_model` are two functions, because only a feature-conditioned model has sweeps, true factors
    and a second classifier, and only a label-conditioned model has an evaluator for each data set. The measurements of
    the edits are the same (`shared_measurements`).
    """
    probe, second_classifier = models.factor_probe, models.second_classifier
    # Check the probe first, before anything is measured.
    shared_factors = find_shared_factors(shards, probe) if probe else None
    cache = open_cache(model, shards)
    evaluator = FeatureEvaluator(model, open_blackbox(model, blackbox_spec, trusted), shards, cache, num_pairs, group)
    if second_classifier and second_classifier.classifier.sha256 == evaluator.classifier.sha256:
        raise UserError(
            f"--second-classifier {second_classifier.classifier.spec}: is the classifier of the run; give another one"
        )
    num_components = min(num_components, evaluator.space.num_components)
    rows = evaluator.pairs.source_rows[:num_swept]
    edits, same_target_edits = edit_pairs(evaluator), edit_to_same_target(evaluator)
    second = predict_second_classifier(evaluator, edits, second_classifier) if second_classifier else None
    sweeps = sweep_components(evaluator, rows, num_components, probe)

    results = EvaluationResults(num_pairs=len(evaluator.pairs.source_rows), num_swept_images=len(rows))
    add_measurements(
        results,
        [
            ("faithfulness", partial(measure_feature_agreement, evaluator, edits)),
            *shared_measurements(evaluator, edits, same_target_edits, models),
            ("sufficiency", partial(measure_sufficiency, evaluator)),
            *second_classifier_measurements(evaluator, edits, same_target_edits, second),
            ("traversal", partial(measure_traversal, evaluator, sweeps)),
            ("traversal", partial(measure_projections, evaluator, rows)),
            *factor_measurements(evaluator, models, shared_factors, sweeps),
        ],
    )
    second_agrees = second_classifier_agrees(evaluator, second) if second else {}
    results.subgroups = [
        *measure_subgroups(evaluator, edits, second_agrees),
        *measure_component_subgroups(evaluator, edits, num_components),
    ]
    results.crosstalk = sweeps.crosstalk.tolist()
    if shared_factors is not None:
        results.factor_names = list(shared_factors.names.all_names)
        results.factor_response = factor_response(evaluator, shared_factors, sweeps).tolist()
    return results


def evaluate_label_model(
    model: EditingModel,
    shards: ShardSet,
    config: Config,
    num_pairs: int,
    classifier_specs: Sequence[str],
    models: OptionalModels,
    trusted: TrustedCallables,
    group: WorkGroup,
) -> EvaluationResults:
    """Measure a label-conditioned model: preservation, diversity, and realism in Inception features if they are given.

    With a classifier of the labels, faithfulness and realism in its features are measured, too.

    Metrics of a second data set have the prefix `second_dataset_`; subgroups are those of the first data set
    whose targets have any.
    """
    datasets = [dataset for dataset in (config.dataset, config.second_dataset) if dataset]
    all_shards = [shards, *(open_dataset(dataset) for dataset in datasets[1:])]
    for other_shards in all_shards[1:]:
        other_shards.verify()
    conditions = [
        exclude_untrained_classes(build_condition(dataset, shard_set, "validation"), shard_set)
        for dataset, shard_set in zip(datasets, all_shards, strict=True)
    ]
    layout = ConditionLayout(tuple(condition.dim for condition in conditions))
    classifiers = assign_evaluation_classifiers(
        [load_blackbox(spec, device=model.device, trusted=trusted) for spec in classifier_specs], conditions
    )
    results, editor = EvaluationResults(), ImageEditor(model, group)
    for index, (shard_set, condition) in enumerate(zip(all_shards, conditions, strict=True)):
        split = shard_set.get_split("validation")
        evaluator = LabelEvaluator(editor, split, condition, layout, index, classifiers[index], num_pairs)
        edits, same_target_edits = edit_pairs(evaluator), edit_to_same_target(evaluator)
        measurements = shared_measurements(evaluator, edits, same_target_edits, models)
        add_measurements(results, measurements, prefix=SECOND_DATASET_PREFIX if index else "")
        results.subgroups = results.subgroups or measure_subgroups(evaluator, edits)
        results.num_pairs = results.num_pairs or len(evaluator.pairs.source_rows)
    return results


def shared_measurements(
    evaluator: Evaluator, edits: EditResults, same_target_edits: SameTargetEdits, models: OptionalModels
) -> list[Measurement]:
    """Return the measurements of every model."""
    return [
        ("faithfulness", partial(measure_decisions, evaluator, edits)),
        ("preservation", partial(measure_preservation, evaluator, edits, models.lpips)),
        ("realism", partial(measure_realism, evaluator, edits)),
        ("realism", partial(measure_inception, models.inception, edits)),
        ("diversity", partial(measure_diversity, same_target_edits)),
    ]


def second_classifier_measurements(
    evaluator: FeatureEvaluator,
    edits: EditResults,
    same_target_edits: SameTargetEdits,
    second: SecondPredictions | None,
) -> list[Measurement]:
    """Return the measurements of a second classifier, if there is one."""
    if second is None:
        return []
    return [
        ("second_classifier", partial(measure_second_classifier_agreement, evaluator, edits, second)),
        ("second_classifier", partial(measure_second_classifier_realism, second)),
        ("preservation", partial(measure_feature_similarity, second)),
        ("diversity", partial(measure_second_classifier_diversity, same_target_edits, second)),
    ]


def factor_measurements(
    evaluator: FeatureEvaluator, models: OptionalModels, shared_factors: SharedFactors | None, sweeps: SweepResults
) -> list[Measurement]:
    """Return the measurement of true factors, if there is a factor probe."""
    if models.factor_probe is None or shared_factors is None:
        return []
    return [("factors", partial(measure_factors, evaluator, models.factor_probe, shared_factors, sweeps))]


def add_measurements(results: EvaluationResults, measurements: Sequence[Measurement], prefix: str = "") -> None:
    """Run the measurements in order and add their metrics."""
    for family, measure in measurements:
        results.add_metrics(family, measure(), prefix)


def log_metrics(run_dir: Path, results: EvaluationResults, step: int) -> None:
    """Write the generator's finite metrics as one line of metrics.jsonl and to TensorBoard."""
    scalars = {
        f"{EVALUATION_TAG}/{name}": estimate.value
        for name, estimate in results.generator_metrics.items()
        if math.isfinite(estimate.value)
    }
    append_metrics_line(run_dir, step, scalars)
    with defer_writer_errors(), SummaryWriter(str(run_dir / "tensorboard" / EVALUATION_TAG)) as writer:
        for name, value in scalars.items():
            writer.add_scalar(name, value, step)

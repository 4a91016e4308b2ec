"""Render a checkpoint: labeled grids, animations and the report, for validation images or images given by the user."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from featgan.blackbox.loading import BlackBox
from featgan.config.trusted_callables import NO_CALLABLES, TrustedCallables, UntrustedCallableError
from featgan.data.feature_cache.cache import FeatureCache
from featgan.data.feature_cache.summary import evenly_spaced_rows
from featgan.data.row_selection import AllRows
from featgan.data.shards.shard_set import ShardSet
from featgan.errors import UserError
from featgan.inference.editor import ImageEditor, predict
from featgan.inference.model import EditingModel, load_model
from featgan.inference.training_data import (
    TrainingData,
    check_stored_blackbox,
    correctly_classified_rows,
    encode_values,
    find_untrained_in,
    label_layout,
    match_label_classes,
    mean_features_by_prediction,
    open_blackbox,
    open_training_data,
    output_names,
    predicts_label_classes,
    report_untrained_classes,
    rows_with_condition,
    source_conditions,
    training_class_means,
    untrained_classes,
    untrained_outputs,
)
from featgan.metrics.bootstrap import to_float64
from featgan.report.analysis.component_facts import ComponentFacts
from featgan.report.analysis.component_ranking import rank_components
from featgan.report.analysis.predictions import OutputSpec
from featgan.report.component_names import ComponentNames, merge_component_names, save_component_names
from featgan.report.edits.registry import build_sweeps
from featgan.report.edits.rendering import (
    PredictFunction,
    RenderedSweep,
    difference_scale,
    render_sweep,
    split_frame_predictions,
)
from featgan.report.edits.sources import SourceImages, label_names, read_image_folder, sample_rows
from featgan.report.edits.sweeps import Sweep, SweepInputs
from featgan.report.figures.animation import check_animation_kinds
from featgan.report.html.page import Report
from featgan.report.html.provenance import collect_run_facts, hash_artifacts, list_reproduction_commands
from featgan.report.html.writing import WRITE_ERROR_REMEDY, write_page, write_renders
from featgan.report.run_files import read_config_text, read_metric_series
from featgan.run.evaluation_document import EvaluationDocument, best_evaluation
from featgan.run.paths import load_run_config
from featgan.system.files import check_writable
from featgan.system.plain_text import format_one_line
from featgan.system.progress import track_progress

logger = logging.getLogger(__name__)

MAX_STATISTICS_IMAGES = 5000
"""Number of images from which the variance of the outputs and the accuracy are estimated."""
DEFAULT_VIDEO_KINDS = ("gif", "webp")
VALIDATION_ORIGIN = "validation images"
CORRECTLY_CLASSIFIED_ORIGIN = "validation images, correctly classified ones first"


@dataclass(frozen=True)
class RenderOptions:
    """The options of `featgan render`."""

    run: Path
    step: int | None = None
    images: Path | None = None
    directions: tuple[str, ...] = ()
    num_images: int = 6
    num_components: int = 10
    seed: int = 0
    names: tuple[str, ...] = ()  # NUMBER=NAME
    video: tuple[str, ...] = DEFAULT_VIDEO_KINDS
    blackbox: str | None = None
    """SPEC of the classifier, instead of the one in model.json."""
    trusted: TrustedCallables = NO_CALLABLES

    @property
    def suffix(self) -> str:
        """Suffix of the output names: a report of user images is named after their folder."""
        if self.images is None:
            return ""
        return "-" + (re.sub(r"[^A-Za-z0-9_-]+", "_", self.images.resolve().name).strip("_") or "images")


@dataclass(frozen=True)
class RenderInputs:
    """The run that is rendered: its generator, data, classifier and component names."""

    options: RenderOptions
    model: EditingModel
    training_data: TrainingData
    blackbox: BlackBox | None
    names: ComponentNames

    @property
    def head(self) -> tuple[Tensor, Tensor] | None:
        """The classifier's last layer, weight [O, F] and bias [O]; None if it is not linear."""
        heads = [classifier.head for classifier in (self.training_data.cache, self.blackbox) if classifier is not None]
        linear_head = next((head for head in heads if head is not None), None)
        return None if linear_head is None else (linear_head[0].float().cpu(), linear_head[1].float().cpu())

    @property
    def head_weight(self) -> Tensor | None:
        return None if self.head is None else self.head[0]

    @property
    def head_bias(self) -> Tensor | None:
        """The bias [O]; None if the classifier does not predict one of O classes."""
        classifier = self.training_data.cache or self.blackbox
        is_single_label = classifier is not None and classifier.task == "expression"
        return self.head[1] if is_single_label and self.head is not None else None

    @property
    def predict_fn(self) -> PredictFunction | None:
        return None if self.blackbox is None else partial(predict, self.blackbox)


def render_run(
    run_dir: Path,
    step: int | None = None,
    images: Path | None = None,
    directions: Sequence[str] = (),
    num_images: int = 6,
    num_components: int = 10,
    seed: int = 0,
    component_names: Sequence[str] = (),
    video: Sequence[str] = DEFAULT_VIDEO_KINDS,
    blackbox: str | None = None,
    trusted: TrustedCallables = NO_CALLABLES,
) -> Path:
    """Render a checkpoint, the newest by default, to RUN/renders/step-XXXXXXXX and RUN/report.html; return the latter.

    `images` is a folder of images to edit instead of the run's validation images; the outputs are then named
    RUN/renders/step-XXXXXXXX-NAME and RUN/report-NAME.html. `directions` are names of directions, all by default.
    `component_names` are NUMBER=NAME and are stored in the run. `video` lists the kinds of animations.
    `blackbox` is the SPEC of the classifier if it is not the one in model.json; its weights must be equal.
    `trusted` are the callables that may be imported.
    Raises UserError if the run, the images, a direction, a name or a kind of animation is invalid.
    """
    assert num_images >= 1 and num_components >= 1
    options = RenderOptions(
        run_dir,
        step,
        images,
        tuple(directions),
        num_images,
        num_components,
        seed,
        tuple(component_names),
        check_animation_kinds(video),
        blackbox,
        trusted,
    )
    inputs = open_render_inputs(options)
    check_writable(run_dir / "renders", WRITE_ERROR_REMEDY)
    model, predict_fn, edit_fn = inputs.model, inputs.predict_fn, ImageEditor(inputs.model).edit_uint8
    sources = choose_sources(inputs)
    sweep_inputs = build_sweep_inputs(inputs, sources)
    sweeps = build_sweeps(sweep_inputs, directions) + build_second_dataset_sweeps(options, model, sources)
    reconstruction = reconstruct_sources(model, sources)
    renderings = [
        render_sweep(edit_fn, sources, sweep, reconstruction, predict_fn)
        for sweep in track_progress(sweeps, "editing", unit="directions")
    ]
    report = build_report(inputs, sources, renderings)
    save_component_names(run_dir, inputs.names)
    write_renders(run_dir / "renders" / f"step-{model.metadata.step:08d}{options.suffix}", report, options.video)
    page_path = run_dir / f"report{options.suffix}.html"
    write_page(page_path, report)
    return page_path


def open_render_inputs(options: RenderOptions) -> RenderInputs:
    """Open all inputs before anything is computed; user images require the classifier, others require the shards."""
    model = load_model(options.run, options.step, "cuda" if torch.cuda.is_available() else "cpu")
    names = resolve_component_names(options, model)
    has_user_images = options.images is not None
    if options.blackbox is None:
        check_stored_blackbox(model, options.trusted)
    return RenderInputs(
        options,
        model,
        open_training_data(model, not has_user_images),
        open_optional_blackbox(model, options, has_user_images),
        names,
    )


def resolve_component_names(options: RenderOptions, model: EditingModel) -> ComponentNames:
    """Return the component names of the user and of earlier reports. Raises UserError for a missing component."""
    if model.metadata.condition_kind != "features" or model.space is None:
        if options.names:
            raise UserError("--component-name: this run is label-conditioned and has no components; remove the option")
        return {}
    return merge_component_names(options.run, options.names, model.space.num_components)


def open_optional_blackbox(model: EditingModel, options: RenderOptions, is_required: bool) -> BlackBox | None:
    """Open the black box of a feature-conditioned run; return None for a label-conditioned run.

    If the black box cannot be opened and is not required, log what the report will lack and return None.
    Raises UserError if it is required or given by the user and cannot be opened, or is code that is not trusted.
    """
    if model.metadata.condition_kind != "features":
        if options.blackbox is not None:
            raise UserError("--blackbox: this run was trained on labels and has no classifier; remove the option")
        return None
    try:
        return open_blackbox(model, options.blackbox, options.trusted)
    except UserError as error:
        if is_required or options.blackbox is not None or isinstance(error, UntrustedCallableError):
            raise
        logger.warning(f"{error}; the report will have no predictions for the edited images")
        return None


def choose_sources(inputs: RenderInputs) -> SourceImages:
    """Return the user's images, or a fixed sample of the validation images, with their source values."""
    options, model, training_data = inputs.options, inputs.model, inputs.training_data
    if options.images is not None:
        images, names = read_image_folder(options.images, model.metadata.image_size, options.num_images)
        values = None if inputs.predict_fn is None else torch.from_numpy(inputs.predict_fn(images).features).float()
        origin = f"images of {format_one_line(str(options.images))}"
        return SourceImages(images, names, values, origin, is_user_provided=True)
    assert training_data.shards is not None
    split = training_data.shards.get_split("validation")
    usable_indices, correct_indices = (
        rows_with_condition(model, training_data.shards, split),
        correctly_classified_rows(training_data, split),
    )
    rows = sample_rows(split.expression, usable_indices, options.num_images, options.seed, correct_indices)
    if not len(rows):
        raise UserError(
            f"{training_data.shards.location}: no validation image has the labels of this run; use --images"
        )
    labels = label_names(split.expression, rows, training_data.shards.classes)
    names = tuple(
        f"{key} ({label})" if label else str(key) for key, label in zip(split.keys_of(rows), labels, strict=True)
    )
    values = source_conditions(model, training_data, split, rows)
    return SourceImages(
        split.decode(rows),
        names,
        values,
        CORRECTLY_CLASSIFIED_ORIGIN if len(correct_indices) else VALIDATION_ORIGIN,
    )


def build_sweep_inputs(inputs: RenderInputs, sources: SourceImages) -> SweepInputs:
    """Gather what the sweeps are computed from."""
    model, training_data = inputs.model, inputs.training_data
    means_by_prediction = (
        mean_features_by_prediction(training_data) if model.metadata.condition_kind == "features" else {}
    )
    label_means = training_class_means(training_data, len(model.metadata.class_names))
    means_by_label = {} if label_means is None else dict(zip(model.metadata.class_names, label_means, strict=True))
    untrained = find_untrained_names(model, training_data, bool(means_by_prediction))
    report_untrained_classes(inputs.options.run, untrained)
    return SweepInputs(
        kind=model.metadata.condition_kind,
        values=sources.values,
        images=sources.images,
        encode=lambda target, source: encode_values(model, target, source),
        space=model.space,
        num_components=inputs.options.num_components,
        class_names=model.metadata.class_names,
        untrained=frozenset(untrained),
        class_means=means_by_prediction or means_by_label,
        source_classes=predict_source_classes(inputs, sources) if means_by_prediction else (),
        head_weight=inputs.head_weight,
        head_bias=inputs.head_bias,
        output_names=classifier_output_names(inputs),
        attribute_names=model.metadata.attribute_names,
        component_names=inputs.names,
    )


def find_untrained_names(model: EditingModel, training_data: TrainingData, uses_predictions: bool) -> tuple[str, ...]:
    """Return the classes and outputs that get no edits, because no training image has them."""
    if training_data.shards is None:
        return ()
    outputs = untrained_outputs(training_data)
    if model.metadata.condition_kind not in ("features", "expression") or uses_predictions:
        return outputs
    return tuple(dict.fromkeys([*untrained_classes(training_data.shards), *outputs]))


def predict_source_classes(inputs: RenderInputs, sources: SourceImages) -> tuple[str, ...]:
    """Return the predicted class of each source; empty strings if the classifier is missing and has no linear head."""
    names, outputs = classifier_output_names(inputs), None
    if inputs.head is not None and sources.values is not None:
        weight, bias = inputs.head
        outputs = to_float64(sources.values @ weight.T + bias)
    elif inputs.predict_fn is not None:
        outputs = inputs.predict_fn(sources.images).outputs
    return ("",) * len(sources) if outputs is None else tuple(names[class_index] for class_index in outputs.argmax(1))


def build_second_dataset_sweeps(options: RenderOptions, model: EditingModel, sources: SourceImages) -> list[Sweep]:
    """Return the sweeps over the labels of the second data set, for a run that was trained on two."""
    if model.metadata.condition_kind == "features" or len(label_layout(model).dims) == 1:
        return []
    second_dataset = load_run_config(options.run).second_dataset
    if second_dataset is None or second_dataset.condition.kind not in ("expression", "valence_arousal"):
        return []
    layout = label_layout(model)
    sweep_inputs = SweepInputs(
        kind=second_dataset.condition.kind,
        values=None,
        images=sources.images,
        encode=lambda target, source: layout.embed(target, 1),
        class_names=model.metadata.names[layout.dims[0] :],
        untrained=frozenset(find_untrained_in(second_dataset) if second_dataset.condition.kind == "expression" else ()),
    )
    return build_sweeps(sweep_inputs, prefix="second-")


def reconstruct_sources(model: EditingModel, sources: SourceImages) -> Tensor | None:
    """Edit the sources toward their own condition, uint8 [N, 3, S, S]; None if that is not known."""
    if sources.values is None:
        return None
    conditions = encode_values(model, sources.values, sources.values)
    sweep = Sweep("reconstruction", "", "", ("",), conditions[:, None])
    return render_sweep(ImageEditor(model).edit_uint8, sources, sweep, None).frames[:, 0]


def classifier_output_names(inputs: RenderInputs) -> tuple[str, ...]:
    """Return the names of the classifier's outputs; empty for a run without a classifier."""
    classifier = inputs.training_data.cache or inputs.blackbox
    return () if classifier is None else output_names(classifier)


def build_output_spec(inputs: RenderInputs) -> OutputSpec | None:
    """Return how the classifier's outputs are interpreted and how they vary; None for a run without a classifier."""
    cache, shards = inputs.training_data.cache, inputs.training_data.shards
    classifier = cache or inputs.blackbox
    if classifier is None:
        return None
    output_spec = OutputSpec(classifier.task, output_names(classifier))
    if cache is None or shards is None:
        return output_spec
    rows = evenly_spaced_rows(AllRows(len(shards.get_split("train"))), MAX_STATISTICS_IMAGES)
    stds = output_spec.center_outputs(to_float64(cache.outputs("train", rows))).std(0)
    return replace(output_spec, stds=stds, recalls=compute_class_recalls(output_spec, cache, shards))


def compute_class_recalls(
    output_spec: OutputSpec, cache: FeatureCache, shards: ShardSet
) -> dict[str, tuple[float, int]]:
    """Return, by class, the share of labeled validation images classified correctly, and their number.

    Empty if the classifier does not predict the classes of the labels.
    """
    if not shards.has_validation:
        return {}
    labels = shards.get_split("validation").expression
    rows = evenly_spaced_rows(np.flatnonzero(labels >= 0), MAX_STATISTICS_IMAGES)
    if not predicts_label_classes(cache, shards) or not len(rows):
        return {}
    class_of_output = match_label_classes(cache, shards)
    labels, predicted = labels[rows], class_of_output[cache.outputs("validation", rows).argmax(1)]
    return {
        output_spec.names[output]: (float((predicted[labels == label] == label).mean()), int((labels == label).sum()))
        for output, label in enumerate(class_of_output.tolist())
        if label >= 0 and (labels == label).any()
    }


def build_report(inputs: RenderInputs, sources: SourceImages, renderings: Sequence[RenderedSweep]) -> Report:
    """Gather what the page shows."""
    options, model, predict_fn = inputs.options, inputs.model, inputs.predict_fn
    evaluation, output_spec = best_evaluation(options.run, model.metadata.step), build_output_spec(inputs)
    render_arguments = ["--images", str(options.images)] if options.images else []
    render_arguments += ["--directions", ",".join(options.directions)] if options.directions else []
    render_arguments += ["--num-images", str(options.num_images), "--num-components", str(options.num_components)]
    render_arguments += [
        argument for index, name in inputs.names.items() for argument in ("--component-name", f"{index + 1}={name}")
    ]
    return Report(
        run=options.run.resolve().name,
        kind=model.metadata.condition_kind,
        step=model.metadata.step,
        facts=collect_run_facts(options.run, model, sources),
        sources=sources,
        renderings=renderings,
        scale=difference_scale(renderings),
        ranking=rank_components(renderings, build_component_facts(inputs, evaluation), output_spec),
        output_spec=output_spec,
        source_predictions=None
        if predict_fn is None
        else split_frame_predictions(predict_fn(sources.images), len(sources)),
        num_features=None if model.space is None else model.space.feature_dim,
        num_components=None if model.space is None else model.space.num_components,
        evaluation=evaluation,
        metrics=read_metric_series(options.run),
        config=read_config_text(options.run),
        commands=list_reproduction_commands(options.run, model, evaluation, render_arguments),
        hashes=hash_artifacts(options.run, model, inputs.training_data.shards),
    )


def build_component_facts(inputs: RenderInputs, evaluation: EvaluationDocument | None) -> ComponentFacts:
    """Gather what is known about the components besides the images; an evaluation of another step does not count."""
    current_evaluation = (
        evaluation if evaluation is not None and evaluation.step == inputs.model.metadata.step else None
    )
    return ComponentFacts(
        space=inputs.model.space,
        head_weight=inputs.head_weight,
        output_names=classifier_output_names(inputs),
        evaluated_metrics=current_evaluation.components_by_index if current_evaluation else {},
        num_evaluated_images=current_evaluation.num_sweep_images if current_evaluation else None,
        names=inputs.names,
    )

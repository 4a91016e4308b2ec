"""A run loaded for the page: generator, classifier, training data and directions, and the edits made with them."""

from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from featgan.blackbox.loading import BlackBox, load_blackbox
from featgan.config.trusted_callables import NO_CALLABLES, TrustedCallables, UntrustedCallableError
from featgan.errors import UserError
from featgan.explore.edit_request import ClassStep, EditRequest
from featgan.explore.image_store import StoredImage
from featgan.explore.label_space import LabelSpace, load_label_spaces
from featgan.features.directions import set_component, shift_along_head_weights, shift_toward_class_means
from featgan.inference.model import EditingModel, load_model
from featgan.inference.training_data import (
    TrainingData,
    check_stored_blackbox,
    encode_values,
    open_blackbox,
    open_training_data,
    output_names,
    rows_with_condition,
    source_conditions,
    training_class_means,
    untrained_classes,
    untrained_outputs,
)
from featgan.metrics.faithfulness import target_progress_and_drift
from featgan.metrics.predictions import Predictions, standardize_features
from featgan.report.analysis.predictions import OutputSpec
from featgan.report.component_names import ComponentNames, read_component_names
from featgan.system.images import to_float, to_uint8

MAX_PREPARED_IMAGES = 64
"""Number of source images whose features, prediction and reconstruction are cached."""
MIN_TARGET_DISTANCE = 0.1
"""Distance from source to target, in standard deviations, below which target progress is not meaningful."""


@dataclass(frozen=True)
class PreparedImage:
    """A source image with its condition, prediction and reconstruction."""

    image: Tensor  # float [1, 3, S, S]
    values: Tensor | None  # features [1, F] or labels [1, C]; None if unknown
    reconstruction: Tensor | None  # uint8 [3, S, S], generated with the source's condition
    features: Tensor | None = None  # [1, F], extracted by the classifier
    outputs: Tensor | None = None  # [O]


@dataclass(frozen=True)
class EditResult:
    """The result of an edit and the classifier's prediction for it."""

    image: Tensor  # uint8 [3, S, S]
    unedited_image: Tensor  # uint8 [3, S, S], the reconstruction if available, otherwise the source
    target_values: Tensor  # features [1, F] or labels [1, C]
    source_values: Tensor | None  # features [1, F] or labels [1, C]
    features: Tensor | None = None  # [1, F], extracted from the edited image
    outputs: Tensor | None = None  # [O], for the edited image
    source_outputs: Tensor | None = None  # [O]


class LoadedRun:
    """One run of the page.

    `blackbox` and the fields of `training_data` are None if they could not be loaded; `notices` contains the reasons.
    """

    def __init__(
        self,
        path: Path,
        model: EditingModel,
        training_data: TrainingData,
        blackbox: BlackBox | None,
        notices: list[str],
    ) -> None:
        self.path = path
        self.name = path.resolve().name
        self.model = model
        self.training_data = training_data
        self.blackbox = blackbox
        self.notices = notices
        self.prepared_images: OrderedDict[str, PreparedImage] = OrderedDict()

    @property
    def is_feature_conditioned(self) -> bool:
        """Whether the condition is the classifier's features, not labels."""
        return self.model.metadata.condition_kind == "features"

    @property
    def accepts_uploads(self) -> bool:
        """Whether uploaded images can be edited; a feature-conditioned run needs the classifier to encode them."""
        return self.blackbox is not None or not self.is_feature_conditioned

    @cached_property
    def validation_rows(self) -> np.ndarray:
        """Rows of the validation split with a known condition; empty if the shards are not available."""
        shards = self.training_data.shards
        if shards is None or not shards.has_validation:
            return np.empty(0, np.int64)
        return rows_with_condition(self.model, shards, shards.get_split("validation"))

    @cached_property
    def label_spaces(self) -> tuple[LabelSpace, ...]:
        """The label space of each data set; empty for a feature-conditioned run."""
        return (
            () if self.is_feature_conditioned else load_label_spaces(self.path, self.model, self.training_data.shards)
        )

    @cached_property
    def class_means(self) -> Tensor | None:
        """Mean training features of each class [num_classes, F]; None if not available."""
        return (
            training_class_means(self.training_data, len(self.model.metadata.class_names))
            if self.is_feature_conditioned
            else None
        )

    @cached_property
    def untrained_names(self) -> dict[str, tuple[str, ...]]:
        """Classes and outputs without training images, by kind of direction; no edit leads toward them."""
        shards = self.training_data.shards
        return {
            "class": untrained_classes(shards) if shards is not None else (),
            "head": untrained_outputs(self.training_data),
        }

    @cached_property
    def head_weight(self) -> Tensor | None:
        """Weights [O, F] of the classifier's last linear layer; None if not available."""
        heads = [
            owner.head
            for owner in (self.training_data.cache, self.blackbox)
            if owner is not None and self.is_feature_conditioned
        ]
        return next((head[0].float().cpu() for head in heads if head is not None), None)

    @cached_property
    def component_names(self) -> ComponentNames:
        """Component names from the run's names.yaml."""
        return read_component_names(self.path) if self.is_feature_conditioned else {}

    @cached_property
    def output_spec(self) -> OutputSpec:
        """Kind and names of the classifier's outputs."""
        if self.blackbox is None:
            return OutputSpec("other", self.training_data.output_names)
        return OutputSpec(self.blackbox.task, output_names(self.blackbox))

    def prepare_image(self, stored_image: StoredImage) -> PreparedImage:
        """Compute, or take from the cache, the condition, prediction and reconstruction of a source image.

        Raises UserError if its features are unknown.
        """
        if stored_image.id in self.prepared_images:
            self.prepared_images.move_to_end(stored_image.id)
            return self.prepared_images[stored_image.id]
        image = to_float(stored_image.images_by_size[self.model.metadata.image_size][None])
        features, outputs = self.predict(image)
        prepared = PreparedImage(image, self.read_source_values(stored_image, features), None, features, outputs)
        if prepared.values is not None:
            condition = encode_values(self.model, prepared.values, prepared.values)
            prepared = replace(prepared, reconstruction=to_uint8(self.model.edit_images(image, condition))[0])
        while len(self.prepared_images) >= MAX_PREPARED_IMAGES:
            self.prepared_images.popitem(last=False)
        self.prepared_images[stored_image.id] = prepared
        return prepared

    def read_source_values(self, stored_image: StoredImage, features: Tensor | None) -> Tensor | None:
        """Return the features of a source image, or its labels if known.

        A validation image uses the values in the training data; an uploaded image uses the extracted `features`.
        """
        shards = self.training_data.shards
        if (
            shards is not None
            and stored_image.shards_fingerprint == shards.fingerprint
            and stored_image.row in self.validation_rows
        ):
            split = shards.get_split("validation")
            return source_conditions(self.model, self.training_data, split, np.array([stored_image.row]))
        if not self.is_feature_conditioned:
            return None
        if features is None:
            raise UserError(
                f"{self.name}: the classifier is not available, so only the run's validation images can be edited; "
                "pass --classifier SPEC"
            )
        return features

    def predict(self, images: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the classifier's features [1, F] and outputs [O] for float [1, 3, S, S]; None without a classifier."""
        if self.blackbox is None:
            return None, None
        features, outputs = self.blackbox(images)
        return features.float().cpu(), outputs[0].float().cpu()

    def source_values(self, edit_request: EditRequest, source: PreparedImage) -> Tensor:
        """Return the source's features or labels, or the data set's default labels if they are unknown."""
        if source.values is not None and (self.is_feature_conditioned or edit_request.dataset == 0):
            return source.values
        return self.label_spaces[edit_request.dataset].default_values()

    def target_values(
        self, edit_request: EditRequest, source: PreparedImage, target_image: PreparedImage | None
    ) -> Tensor:
        """Return the target features [1, F] or labels [1, C] of an edit.

        Raises UserError if this run does not have the direction.
        """
        source_values = self.source_values(edit_request, source)
        if not self.is_feature_conditioned:
            return (
                source_values
                if edit_request.labels is None
                else self.label_spaces[edit_request.dataset].validate_labels(edit_request.labels)
            )
        space = self.model.space
        assert space is not None
        values = source_values
        if target_image is not None and target_image.values is not None:
            values = torch.lerp(values, target_image.values, edit_request.amount)
        if edit_request.class_step is not None:
            values = self.apply_class_step(values, edit_request.class_step)
        for component, value in edit_request.component_values.items():
            if component < space.num_components:
                values = set_component(space, values, component, value)
        return values

    def apply_class_step(self, values: Tensor, class_step: ClassStep) -> Tensor:
        """Shift features [1, F] along the direction of a class or output.

        Raises UserError if this run does not have the direction.
        """
        space, directions = self.model.space, self.class_means if class_step.kind == "class" else self.head_weight
        assert space is not None
        if directions is None or class_step.index >= len(directions):
            owner = "class" if class_step.kind == "class" else "output"
            raise UserError(f"{self.name}: no direction for {owner} {class_step.index + 1}")
        names = self.model.metadata.class_names if class_step.kind == "class" else self.output_spec.names
        if class_step.index < len(names) and names[class_step.index] in self.untrained_names[class_step.kind]:
            name = names[class_step.index]
            raise UserError(f"{self.name}: no edits toward {name}, because no training image has this class")
        if class_step.kind == "class":
            return shift_toward_class_means(values, directions, class_step.amount)[:, class_step.index]
        return shift_along_head_weights(
            space, values, directions[class_step.index : class_step.index + 1], class_step.amount
        )[:, 0]

    def condition_input(self, edit_request: EditRequest, values: Tensor, source: PreparedImage) -> Tensor:
        """Return the generator's condition input for target values [N, F or C]."""
        if not self.is_feature_conditioned:
            return self.label_spaces[edit_request.dataset].embed(values)
        return encode_values(self.model, values, source.values)

    def apply_edit(
        self, edit_request: EditRequest, source_image: StoredImage, target_image: StoredImage | None
    ) -> EditResult:
        """Edit an image and predict for the edit after rounding to uint8, as it is displayed and saved."""
        source = self.prepare_image(source_image)
        values = self.target_values(edit_request, source, self.prepare_image(target_image) if target_image else None)
        image = to_uint8(self.model.edit_images(source.image, self.condition_input(edit_request, values, source)))
        features, outputs = self.predict(to_float(image))
        unedited_image = (
            source.reconstruction
            if source.reconstruction is not None
            else source_image.images_by_size[self.model.metadata.image_size]
        )
        return EditResult(image[0], unedited_image, values, source.values, features, outputs, source.outputs)

    def interpolation_frames(
        self, edit_request: EditRequest, source_image: StoredImage, target_image: StoredImage | None, num_frames: int
    ) -> Tensor:
        """Return edits uint8 [T, 3, S, S] on the straight line from the source values to the target values."""
        source = self.prepare_image(source_image)
        endpoints = (
            self.source_values(edit_request, source),
            self.target_values(edit_request, source, self.prepare_image(target_image) if target_image else None),
        )
        weights = torch.linspace(0, 1, num_frames)[:, None]
        conditions = self.condition_input(edit_request, torch.lerp(*endpoints, weights), source)
        return to_uint8(self.model.edit_images(source.image.expand(num_frames, -1, -1, -1), conditions))

    def measure_target_progress(self, edit_result: EditResult) -> float | None:
        """Return the target progress of an edit: 0 if the features stay at the source, 1 if they reach the target.

        None without a classifier, and if the target is closer to the source than MIN_TARGET_DISTANCE.
        """
        space = self.model.space
        if (
            not self.is_feature_conditioned
            or edit_result.features is None
            or edit_result.source_values is None
            or space is None
        ):
            return None
        feature_vectors = [
            Predictions.from_values(values).features
            for values in (edit_result.source_values, edit_result.target_values, edit_result.features)
        ]
        source, target, measured = (standardize_features(space, features) for features in feature_vectors)
        if np.linalg.norm(target - source) < MIN_TARGET_DISTANCE:
            return None
        return float(target_progress_and_drift(source, target, measured)[0][0])


def load_run(
    path: Path, step: int | None = None, spec: str | None = None, trusted: TrustedCallables = NO_CALLABLES
) -> LoadedRun:
    """Load a checkpoint of a run (the newest by default) with its training data and classifier, if available.

    `spec` is the classifier's SPEC if it has moved, or the evaluation classifier of a label-conditioned run. Raises
    UserError if the checkpoint or `spec` cannot be loaded, or if neither images nor a classifier are available.
    """
    model = load_model(path, step, "cuda" if torch.cuda.is_available() else "cpu")
    if spec is None:
        check_stored_blackbox(model, trusted)
    notices: list[str] = []
    try:
        training_data = open_training_data(model, is_required=True)
    except UserError as error:
        training_data = TrainingData(None, None)
        notices.append(f"Validation images and class directions are not available: {error}")
    run = LoadedRun(path, model, training_data, load_run_blackbox(model, spec, notices, trusted), notices)
    if not len(run.validation_rows) and not run.accepts_uploads:
        raise UserError(f"{path}: neither validation images nor the classifier can be loaded: {' '.join(notices)}")
    return run


def load_run_blackbox(
    model: EditingModel, spec: str | None, notices: list[str], trusted: TrustedCallables
) -> BlackBox | None:
    """Load the classifier of a run, or the evaluation classifier of a label-conditioned run.

    Returns None and adds a notice if the run's classifier cannot be loaded. Raises UserError if `spec` cannot be.
    """
    if model.metadata.condition_kind != "features":
        if spec is None:
            notices.append(
                "This run was trained on labels, so it has no classifier. "
                "To show predictions, pass an evaluation classifier with --classifier SPEC."
            )
        return load_blackbox(spec, device=model.device, trusted=trusted) if spec else None
    try:
        return open_blackbox(model, spec, trusted)
    except UserError as error:
        if spec is not None or isinstance(error, UntrustedCallableError):
            raise
        notices.append(f"Predictions are not available, and only validation images can be edited: {error}")
        return None

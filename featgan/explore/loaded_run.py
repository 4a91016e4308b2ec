"""A run as the page works with it: the generator, the box, the directions, and what becomes of an edit."""

from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from featgan.blackbox.loading import BlackBox, load_blackbox
from featgan.errors import UserError
from featgan.explore.edit_request import Ask, Push
from featgan.explore.image_store import Picture
from featgan.explore.label_space import LabelSpace, label_spaces
from featgan.features.directions import along_head_weights, set_component, toward_class_means
from featgan.inference.model import Model, load_model
from featgan.inference.training_data import (
    Material,
    encode_values,
    name_outputs,
    open_blackbox,
    open_material,
    source_values,
    training_class_means,
    usable_rows,
)
from featgan.metrics.faithfulness import relative_shift
from featgan.metrics.predictions import Response, standardize
from featgan.report.analysis.predictions import Answer
from featgan.report.component_names import Names, read_names
from featgan.system.images import to_float, to_uint8

MOST_PREPARED = 64
"""Pictures whose own features, answer and reconstruction are remembered."""


@dataclass(frozen=True)
class Prepared:
    """A picture as a run sees it, untouched."""

    image: Tensor  # float [1, 3, S, S]
    values: Tensor | None  # features [1, F] or labels [1, C]; None where unknown
    reconstruction: Tensor | None  # uint8 [3, S, S], the source asked to keep its own condition
    features: Tensor | None = None  # [1, F], as the box sees the source
    outputs: Tensor | None = None  # [O], of the source


@dataclass(frozen=True)
class Edited:
    """What a run made of an edit, and what its box sees in it."""

    image: Tensor  # uint8 [3, S, S]
    before: Tensor  # uint8 [3, S, S], what the difference is taken from: the reconstruction, or else the source
    values: Tensor  # asked for: features [1, F] or labels [1, C]
    own: Tensor | None  # the source's
    features: Tensor | None = None  # [1, F], measured
    outputs: Tensor | None = None  # [O], measured
    source_outputs: Tensor | None = None  # [O]


class LiveRun:
    """One run of the page; `box` and the parts of `material` are None where they are gone, and `remarks` say why."""

    def __init__(self, path: Path, model: Model, material: Material, box: BlackBox | None, remarks: list[str]) -> None:
        self.path = path
        self.name = path.resolve().name
        self.model = model
        self.material = material
        self.box = box
        self.remarks = remarks
        self.prepared: OrderedDict[str, Prepared] = OrderedDict()

    @property
    def on_features(self) -> bool:
        return self.model.condition_kind == "features"

    @property
    def takes_uploads(self) -> bool:
        """Whether a picture from outside can be edited: its features must come from the box."""
        return self.box is not None or not self.on_features

    @cached_property
    def usable(self) -> np.ndarray:
        """Validation rows that have a condition of their own; empty where the shards are gone."""
        shards = self.material.shards
        return usable_rows(self.model, shards, shards.split("validation")) if shards else np.empty(0, np.int64)

    @cached_property
    def labels(self) -> tuple[LabelSpace, ...]:
        """What can be asked for by labels, one for each data set; none for a run on features."""
        return () if self.on_features else label_spaces(self.path, self.model)

    @cached_property
    def class_means(self) -> Tensor | None:
        """[num_classes, F] of the training features."""
        return training_class_means(self.material, len(self.model.class_names)) if self.on_features else None

    @cached_property
    def head_weight(self) -> Tensor | None:
        """[O, F] of the box's last layer."""
        heads = [owner.head for owner in (self.material.cache, self.box) if owner is not None and self.on_features]
        return next((head[0].float().cpu() for head in heads if head is not None), None)

    @cached_property
    def names(self) -> Names:
        """The user's names of components."""
        return read_names(self.path) if self.on_features else {}

    @cached_property
    def answer(self) -> Answer:
        """How the box's outputs are read."""
        if self.box is None:
            return Answer("other", self.material.output_names)
        return Answer(self.box.output_kind, name_outputs(self.box))

    def prepare(self, picture: Picture) -> Prepared:
        """The picture as this run sees it; UserError where its features cannot be known."""
        if picture.id in self.prepared:
            self.prepared.move_to_end(picture.id)
            return self.prepared[picture.id]
        image = to_float(picture.images[self.model.image_size][None])
        features, outputs = self.ask_box(image)
        found = Prepared(image, self.own_values(picture, features), None, features, outputs)
        if found.values is not None:
            condition = encode_values(self.model, found.values, found.values)
            found = replace(found, reconstruction=to_uint8(self.model.edit(image, condition))[0])
        while len(self.prepared) >= MOST_PREPARED:
            self.prepared.popitem(last=False)
        self.prepared[picture.id] = found
        return found

    def own_values(self, picture: Picture, features: Tensor | None) -> Tensor | None:
        """The picture's untouched features, or its labels where they are known."""
        shards = self.material.shards
        if shards is not None and picture.origin == shards.fingerprint and picture.row in self.usable:
            split = shards.split("validation")
            return source_values(self.model, self.material, split, np.array([picture.row]))
        if not self.on_features:
            return None
        if features is None:
            raise UserError(f"{self.name}: without its black box only its own validation images can be edited")
        return features

    def ask_box(self, images: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """float [1, 3, S, S] => the box's features [1, F] and outputs [O]; two times None without a box."""
        if self.box is None:
            return None, None
        features, outputs = self.box(images)
        return features.float().cpu(), outputs[0].float().cpu()

    def start(self, ask: Ask, source: Prepared) -> Tensor:
        """Where an edit starts from: the picture's own values, or the data set's plain ones where it has none."""
        if source.values is not None and (self.on_features or ask.dataset == 0):
            return source.values
        return self.labels[ask.dataset].plain()

    def target(self, ask: Ask, source: Prepared, second: Prepared | None) -> Tensor:
        """What an edit asks for: features [1, F] or labels [1, C]. UserError when this run has no such direction."""
        start = self.start(ask, source)
        if not self.on_features:
            return start if ask.labels is None else self.labels[ask.dataset].check(ask.labels)
        space = self.model.space
        assert space is not None
        values = start
        if second is not None and second.values is not None:
            values = torch.lerp(values, second.values, ask.amount)
        if ask.push is not None:
            values = self.push(values, ask.push)
        for component, value in ask.pins.items():
            if component < space.num_components:
                values = set_component(space, values, component, value)
        return values

    def push(self, values: Tensor, push: Push) -> Tensor:
        """Features [1, F] a step along a class's direction."""
        space, directions = self.model.space, self.class_means if push.kind == "class" else self.head_weight
        assert space is not None
        if directions is None or push.index >= len(directions):
            raise UserError(f"{self.name}: has no direction {push.kind} {push.index + 1}")
        if push.kind == "class":
            return toward_class_means(values, directions, push.amount)[:, push.index]
        return along_head_weights(space, values, directions[push.index : push.index + 1], push.amount)[:, 0]

    def condition(self, ask: Ask, values: Tensor, source: Prepared) -> Tensor:
        """Values [N, F or C] asked of a picture => what G takes."""
        if not self.on_features:
            return self.labels[ask.dataset].embed(values)
        return encode_values(self.model, values, source.values)

    def edit(self, ask: Ask, picture: Picture, second: Picture | None) -> Edited:
        """Carry an edit out and show the box its picture, as it can be saved and seen."""
        source = self.prepare(picture)
        values = self.target(ask, source, self.prepare(second) if second else None)
        image = to_uint8(self.model.edit(source.image, self.condition(ask, values, source)))
        features, outputs = self.ask_box(to_float(image))
        before = source.reconstruction if source.reconstruction is not None else picture.images[self.model.image_size]
        return Edited(image[0], before, values, source.values, features, outputs, source.outputs)

    def path_to(self, ask: Ask, picture: Picture, second: Picture | None, num_frames: int) -> Tensor:
        """Pictures uint8 [T, 3, S, S] on the straight line from where an edit starts to what it asks for."""
        source = self.prepare(picture)
        ends = self.start(ask, source), self.target(ask, source, self.prepare(second) if second else None)
        weights = torch.linspace(0, 1, num_frames)[:, None]
        conditions = self.condition(ask, torch.lerp(*ends, weights), source)
        return to_uint8(self.model.edit(source.image.expand(num_frames, -1, -1, -1), conditions))

    def shift(self, edited: Edited) -> float | None:
        """How far the box saw the edit arrive: 0 at the source, 1 where it was asked to; None where that says nothing.

        An edit that asks for less than a tenth of a deviation has no direction worth measuring.
        """
        space = self.model.space
        if not self.on_features or edited.features is None or edited.own is None or space is None:
            return None
        vectors = [Response.of(each).features for each in (edited.own, edited.values, edited.features)]
        own, asked, measured = (standardize(space, each) for each in vectors)
        if np.linalg.norm(asked - own) < 0.1:
            return None
        return float(relative_shift(own, asked, measured)[0][0])


def open_run(path: Path, step: int | None = None, spec: str | None = None) -> LiveRun:
    """Load a run's checkpoint (the newest by default) with whatever is still there of its data and its box.

    `spec` names the box where it has moved, or a judge for a run on labels. UserError for a run that cannot be loaded,
    a SPEC that is wrong, or when neither validation images nor a way to edit others are left.
    """
    model = load_model(path, step, "cuda" if torch.cuda.is_available() else "cpu")
    remarks: list[str] = []
    try:
        material = open_material(model, needed=True)
    except UserError as error:
        material = Material(None, None)
        remarks.append(f"Without validation images and class directions: {error}")
    run = LiveRun(path, model, material, open_box(model, spec, remarks), remarks)
    if not len(run.usable) and not run.takes_uploads:
        raise UserError(f"{path}: neither its images nor its black box can be opened: {' '.join(remarks)}")
    return run


def open_box(model: Model, spec: str | None, remarks: list[str]) -> BlackBox | None:
    """The run's box or judge; where it has moved, None and a remark. UserError when the user's own SPEC is wrong."""
    if model.condition_kind != "features":
        if spec is None:
            remarks.append("Trained on labels, so there is no black box to ask; name a judge with --blackbox.")
        return load_blackbox(spec, device=model.device) if spec else None
    try:
        return open_blackbox(model, spec)
    except UserError as error:
        if spec is not None:
            raise
        remarks.append(f"Without the black box's answers, and for validation images only: {error}")
        return None

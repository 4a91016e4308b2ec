"""Rendering a checkpoint: labelled grids, animations and the report, for validation images or any of the user's."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from featgan.blackbox.loading import BlackBox, load_blackbox
from featgan.config.loading import read_yaml, validate
from featgan.data.feature_cache.cache import FeatureCache
from featgan.data.shards.shard_set import ShardSet
from featgan.errors import UserError
from featgan.inference.editor import Editor, ask
from featgan.inference.model import Model, load_model
from featgan.inference.training_data import (
    Material,
    encode_values,
    label_layout,
    name_outputs,
    open_material,
    rightly_told,
    source_values,
    spread,
    tells_classes,
    training_answers,
    training_class_means,
    usable_rows,
)
from featgan.metrics.bootstrap import as_floats
from featgan.report.analysis.component_ranking import rank_components
from featgan.report.analysis.predictions import Answer
from featgan.report.component_names import Names, keep_names, merge_names
from featgan.report.edits.registry import build_sweeps
from featgan.report.edits.rendering import Look, Rendering, as_frames, difference_scale, render_sweep
from featgan.report.edits.sources import Sources, label_names, read_folder, sample_rows
from featgan.report.edits.sweeps import Subject, Sweep
from featgan.report.figures.animation import check_kinds
from featgan.report.html.cards import ComponentFacts
from featgan.report.html.page import Report
from featgan.report.html.provenance import commands, describe, hashes
from featgan.report.html.writing import write_page, write_renders
from featgan.report.run_files import Evaluation, best_evaluation, read_config, read_metrics
from featgan.system.progress import console, track

MOST_ANSWERS = 5000
"""Training images whose answers say how much these vary."""
VIDEO = ("gif", "webp")
ORIGIN = "of the validation set, rightly told where there are such"


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    run: Path
    step: int | None = None
    images: Path | None = None
    directions: tuple[str, ...] = ()
    num_images: int = 6
    num_components: int = 10
    seed: int = 0
    names: tuple[str, ...] = ()  # NUMBER=NAME
    video: tuple[str, ...] = VIDEO

    @property
    def suffix(self) -> str:
        """Part of the names of what is written: a user's images have a report of their own, named after the folder."""
        if self.images is None:
            return ""
        return "-" + (re.sub(r"[^A-Za-z0-9_-]+", "_", self.images.resolve().name).strip("_") or "images")


@dataclass(frozen=True)
class Opened:
    """The run that is rendered: its generator, its data, its box and the names of its components."""

    request: Request
    model: Model
    material: Material
    box: BlackBox | None
    names: Names

    @property
    def head(self) -> tuple[Tensor, Tensor] | None:
        """The box's last layer, weight [O, F] and bias [O], where that is linear."""
        heads = [owner.head for owner in (self.material.cache, self.box) if owner is not None]
        found = next((head for head in heads if head is not None), None)
        return None if found is None else (found[0].float().cpu(), found[1].float().cpu())

    @property
    def head_weight(self) -> Tensor | None:
        return None if self.head is None else self.head[0]

    @property
    def head_bias(self) -> Tensor | None:
        """That of a box that tells one of several classes."""
        owner = self.material.cache or self.box
        tells_one = owner is not None and owner.output_kind == "expression"
        return self.head[1] if tells_one and self.head is not None else None

    @property
    def look(self) -> Look | None:
        return None if self.box is None else partial(ask, self.box)


def render_run(
    run: Path,
    step: int | None = None,
    images: Path | None = None,
    directions: Sequence[str] = (),
    num_images: int = 6,
    num_components: int = 10,
    seed: int = 0,
    names: Sequence[str] = (),
    video: Sequence[str] = VIDEO,
) -> Path:
    """Render a checkpoint, the newest by default: RUN/renders/step-XXXXXXXX and RUN/report.html; returns the latter.

    `images` is a folder of any images, taken in place of the run's validation images; what is written then has the
    folder's name added: RUN/renders/step-XXXXXXXX-NAME and RUN/report-NAME.html. `directions` names the wanted
    ones, all by default. `names` are NUMBER=NAME of components, kept in the run; `video` the kinds of animations.
    UserError for a run, folder, direction, name or video that cannot be had.
    """
    assert num_images >= 1 and num_components >= 1
    request = Request(
        run, step, images, tuple(directions), num_images, num_components, seed, tuple(names), check_kinds(video)
    )
    opened = open_run(request)
    model, look, edit = opened.model, opened.look, Editor(opened.model).edit
    sources = choose_sources(opened)
    subject = build_subject(opened, sources)
    sweeps = build_sweeps(subject, directions) + second_sweeps(request, model, sources)
    reconstruction = reconstruct(model, sources)
    renderings = [
        render_sweep(edit, sources, sweep, reconstruction, look)
        for sweep in track(sweeps, "editing", unit="directions")
    ]
    report = build_report(opened, sources, renderings)
    keep_names(run, opened.names)
    write_renders(run / "renders" / f"step-{model.step:08d}{request.suffix}", report, request.video)
    page = run / f"report{request.suffix}.html"
    write_page(page, report)
    return page


def open_run(request: Request) -> Opened:
    """Everything that is needed, before anything is computed; a user's images need the box, others the shards."""
    model = load_model(request.run, request.step, "cuda" if torch.cuda.is_available() else "cpu")
    names = name_components(request, model)
    are_given = request.images is not None
    return Opened(request, model, open_material(model, not are_given), open_box(model, are_given), names)


def name_components(request: Request, model: Model) -> Names:
    """The user's names, those of former reports among them; UserError where there is no such component."""
    if model.condition_kind != "features" or model.space is None:
        if request.names:
            raise UserError("--name: only components of features can be named, and this run was trained on labels")
        return {}
    return merge_names(request.run, request.names, model.space.num_components)


def open_box(model: Model, needed: bool) -> BlackBox | None:
    """The black box of a run on features; where it is not needed and gone, a remark says what is left out.

    UserError where it is needed, or when it is not the box that the run was trained for.
    """
    if model.condition_kind != "features":
        return None
    known = model.blackbox or {}
    try:
        box = load_blackbox(known["spec"], known["layer"], str(model.device))
        if box.sha256 != known["sha256"]:
            raise UserError(f"{box.spec}: not the black box of this run (its weights differ); put the former one back")
    except UserError as error:
        if needed:
            raise
        console.print(f"without the classifier's answers to the pictures: {error}", markup=False)
        return None
    return box


def choose_sources(opened: Opened) -> Sources:
    """The user's images, or a fixed sample of the validation images, with their own values."""
    request, model, material = opened.request, opened.model, opened.material
    if request.images is not None:
        images, names = read_folder(request.images, model.image_size, request.num_images)
        values = None if opened.look is None else torch.from_numpy(opened.look(images).features).float()
        return Sources(images, names, values, f"images of {request.images}", are_given=True)
    assert material.shards is not None
    split = material.shards.split("validation")
    usable, right = usable_rows(model, material.shards, split), rightly_told(material, split)
    rows = sample_rows(split.expression, usable, request.num_images, request.seed, right)
    if not len(rows):
        raise UserError(f"{material.shards.path}: no validation image has the labels of this run; give --images")
    labels = label_names(split.expression, rows, material.shards.classes)
    names = tuple(
        f"{split.keys[row]} ({label})" if label else str(split.keys[row])
        for row, label in zip(rows, labels, strict=True)
    )
    values = source_values(model, material, split, rows)
    return Sources(split.decode(rows), names, values, ORIGIN if len(right) else "of the validation set")


def build_subject(opened: Opened, sources: Sources) -> Subject:
    """What the directions are computed from."""
    model, material = opened.model, opened.material
    answers = training_answers(material) if model.condition_kind == "features" else {}
    labels = training_class_means(material, len(model.class_names))
    by_label = {} if labels is None else dict(zip(model.class_names, labels, strict=True))
    return Subject(
        kind=model.condition_kind,
        values=sources.values,
        images=sources.images,
        encode=lambda values, own: encode_values(model, values, own),
        space=model.space,
        num_components=opened.request.num_components,
        class_names=model.class_names,
        class_means=answers or by_label,
        own_classes=own_answers(opened, sources) if answers else (),
        head_weight=opened.head_weight,
        head_bias=opened.head_bias,
        output_names=outputs_of(opened),
        attribute_names=model.attribute_names,
        component_names=opened.names,
    )


def own_answers(opened: Opened, sources: Sources) -> tuple[str, ...]:
    """What a box that tells classes answers to the sources; nothing where it is gone and its last layer not linear."""
    names, outputs = outputs_of(opened), None
    if opened.head is not None and sources.values is not None:
        weight, bias = opened.head
        outputs = as_floats(sources.values @ weight.T + bias)
    elif opened.look is not None:
        outputs = opened.look(sources.images).outputs
    return ("",) * len(sources) if outputs is None else tuple(names[answer] for answer in outputs.argmax(1))


def second_sweeps(request: Request, model: Model, sources: Sources) -> list[Sweep]:
    """The second data set's labels asked of the same sources, for a run that was trained on two."""
    if model.condition_kind == "features" or len(label_layout(model).dims) == 1:
        return []
    path = request.run / "config.yaml"
    second = validate(read_yaml(path), str(path)).second_dataset
    if second is None or second.condition.kind not in ("expression", "valence_arousal"):
        return []
    layout = label_layout(model)
    subject = Subject(
        kind=second.condition.kind,
        values=None,
        images=sources.images,
        encode=lambda values, own: layout.embed(values, 1),
        class_names=model.card.names[layout.dims[0] :],
    )
    return build_sweeps(subject, prefix="second-")


def reconstruct(model: Model, sources: Sources) -> Tensor | None:
    """The sources asked to keep their own condition, uint8 [N, 3, S, S]; None where that is unknown."""
    if sources.values is None:
        return None
    own = encode_values(model, sources.values, sources.values)
    sweep = Sweep("reconstruction", "", "", ("",), own[:, None])
    return render_sweep(Editor(model).edit, sources, sweep, None).frames[:, 0]


def outputs_of(opened: Opened) -> tuple[str, ...]:
    """Names of the box's outputs; none for a run without a box."""
    owner = opened.material.cache or opened.box
    return () if owner is None else name_outputs(owner)


def read_answer(opened: Opened) -> Answer | None:
    """How the box's outputs are read, and how much they vary over training images; None for a run without a box."""
    cache, shards = opened.material.cache, opened.material.shards
    owner = cache or opened.box
    if owner is None:
        return None
    answer = Answer(owner.output_kind, name_outputs(owner))
    if cache is None or shards is None:
        return answer
    rows = spread(np.arange(len(shards.split("train"))), MOST_ANSWERS)
    deviations = answer.comparable(as_floats(cache.outputs("train", rows))).std(0)
    return replace(answer, deviations=deviations, recalls=measure_recalls(answer, cache, shards))


def measure_recalls(answer: Answer, cache: FeatureCache, shards: ShardSet) -> dict[str, tuple[float, int]]:
    """By class, share and number of the labelled validation images; empty where the box tells other classes or none."""
    labels = shards.split("validation").expression
    rows = spread(np.flatnonzero(labels >= 0), MOST_ANSWERS)
    if not tells_classes(cache, shards) or not len(rows):
        return {}
    labels, decided = labels[rows], cache.outputs("validation", rows).argmax(1)
    return {
        answer.names[label]: (float((decided[labels == label] == label).mean()), int((labels == label).sum()))
        for label in np.unique(labels).tolist()
    }


def build_report(opened: Opened, sources: Sources, renderings: Sequence[Rendering]) -> Report:
    """Gather what the page shows."""
    request, model, look = opened.request, opened.model, opened.look
    evaluation, answer = best_evaluation(request.run, model.step), read_answer(opened)
    extra = ["--images", str(request.images)] if request.images else []
    extra += ["--directions", ",".join(request.directions)] if request.directions else []
    extra += ["--num-images", str(request.num_images), "--components", str(request.num_components)]
    extra += [part for index, name in opened.names.items() for part in ("--name", f"{index + 1}={name}")]
    return Report(
        run=request.run.resolve().name,
        kind=model.condition_kind,
        step=model.step,
        facts=describe(request.run, model, sources),
        sources=sources,
        renderings=renderings,
        scale=difference_scale(renderings),
        ranking=rank_components(renderings, component_facts(opened, evaluation), answer),
        answer=answer,
        source_seen=None if look is None else as_frames(look(sources.images), len(sources)),
        num_features=None if model.space is None else model.space.feature_dim,
        num_components=None if model.space is None else model.space.num_components,
        evaluation=evaluation,
        metrics=read_metrics(request.run),
        config=read_config(request.run),
        commands=commands(request.run, model, evaluation, extra),
        hashes=hashes(request.run, model, opened.material.shards),
    )


def component_facts(opened: Opened, evaluation: Evaluation | None) -> ComponentFacts:
    """What is known of the components beside the pictures; of an evaluation, only of one of this very step."""
    current = evaluation if evaluation is not None and evaluation.step == opened.model.step else None
    return ComponentFacts(
        space=opened.model.space,
        head_weight=opened.head_weight,
        output_names=outputs_of(opened),
        measured=current.components if current else {},
        measured_on=current.num_swept if current else None,
        names=opened.names,
    )

"""Rendering a checkpoint: labelled grids, animations and the report, for validation images or any of the user's."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from featgan.blackbox.load import load_blackbox
from featgan.conditions import ConditionLayout
from featgan.config import read_yaml, validate
from featgan.data.features import FeatureCache
from featgan.data.files import explain_write_errors, whole_folder, write_whole
from featgan.data.shards import ShardSet, Split
from featgan.directions import class_means
from featgan.errors import UserError
from featgan.images import to_float
from featgan.model import Model, load_model, open_cache, open_shards
from featgan.progress import console, track
from featgan.report.account import commands, describe, hashes
from featgan.report.animation import animate
from featgan.report.cards import ComponentFacts
from featgan.report.catalogue import build_sweeps
from featgan.report.grids import render_grid
from featgan.report.page import Report, build_page
from featgan.report.records import newest_evaluation, read_config, read_metrics
from featgan.report.rendering import Rendering, difference_scale, render_sweep
from featgan.report.sources import Sources, label_names, read_folder, sample_rows
from featgan.report.sweeps import Subject, Sweep

MOST_PER_CLASS = 2000
"""Training images whose features make a class's mean."""
REMEDY = "free some space or make the folder writable, and run the command again"


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


@dataclass(frozen=True)
class Material:
    """The data the run was trained on, as far as it is still there; the cache where the condition is features."""

    shards: ShardSet | None
    cache: FeatureCache | None

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the black box's outputs."""
        if self.cache is None:
            return ()
        if self.cache.output_kind == "valence_arousal":
            return ("valence", "arousal")
        names = self.cache.class_names
        known = len(names) == self.cache.output_dim
        return names if known else tuple(f"output {index + 1}" for index in range(self.cache.output_dim))


def render_run(
    run: Path,
    step: int | None = None,
    images: Path | None = None,
    directions: Sequence[str] = (),
    num_images: int = 6,
    num_components: int = 10,
    seed: int = 0,
) -> Path:
    """Render a checkpoint, the newest by default: RUN/renders/step-XXXXXXXX and RUN/report.html; returns the latter.

    `images` is a folder of any images, taken in place of the run's validation images; `directions` names the wanted
    ones, all by default. UserError for a run, folder or direction that cannot be rendered.
    """
    assert num_images >= 1 and num_components >= 1
    request = Request(run, step, images, tuple(directions), num_images, num_components, seed)
    model = load_model(run, step, "cuda" if torch.cuda.is_available() else "cpu")
    material = open_material(model, needed=images is None)
    sources = choose_sources(request, model, material)
    subject = build_subject(request, model, material, sources)
    sweeps = build_sweeps(subject, directions) + second_sweeps(request, model, sources)
    reconstruction = reconstruct(model, sources)
    renderings = [
        render_sweep(model.edit, sources, sweep, reconstruction)
        for sweep in track(sweeps, "editing", unit="directions")
    ]
    scale = difference_scale(renderings)
    write_renders(run / "renders" / f"step-{model.step:08d}", sources, renderings, scale)
    report = build_report(request, model, material, subject, sources, renderings)
    page = run / "report.html"
    with explain_write_errors(page, REMEDY):
        write_whole(page, build_page(report).encode())
    return page


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


def choose_sources(request: Request, model: Model, material: Material) -> Sources:
    """The user's images, or a fixed sample of the validation images, with their own values."""
    if request.images is not None:
        images, names = read_folder(request.images, model.image_size, request.num_images)
        values = blackbox_features(model, images) if model.condition_kind == "features" else None
        return Sources(images, names, values, f"images of {request.images}")
    assert material.shards is not None
    split = material.shards.split("validation")
    rows = sample_rows(split.expression, usable_rows(model, material.shards, split), request.num_images, request.seed)
    if not len(rows):
        raise UserError(f"{material.shards.path}: no validation image has the labels of this run; give --images")
    labels = label_names(split.expression, rows, material.shards.classes)
    names = tuple(
        f"{split.keys[row]} ({label})" if label else str(split.keys[row])
        for row, label in zip(rows, labels, strict=True)
    )
    values = source_values(model, material, split, rows)
    return Sources(split.decode(rows), names, values, "of the validation set")


def blackbox_features(model: Model, images: Tensor) -> Tensor:
    """The black box's features [N, F] of images uint8; UserError when it is not the box the run was trained for."""
    assert model.blackbox is not None
    box = load_blackbox(model.blackbox["spec"], model.blackbox["layer"], str(model.device))
    if box.sha256 != model.blackbox["sha256"]:
        raise UserError(f"{box.spec}: not the black box of this run (its weights differ); put the former one back")
    return box(to_float(images).to(model.device))[0].float().cpu()


def usable_rows(model: Model, shards: ShardSet, split: Split) -> np.ndarray:
    """Rows whose own condition is known."""
    if model.condition_kind == "expression":
        return np.flatnonzero(split.expression >= 0)
    if model.condition_kind == "valence_arousal":
        return np.flatnonzero(np.isfinite(split.valence) & np.isfinite(split.arousal))
    if model.condition_kind == "attributes":
        return np.flatnonzero((split.attributes[:, attribute_columns(model, shards)] >= 0).all(1))
    return np.arange(len(split))


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


def encode_values(model: Model, values: Tensor) -> Tensor:
    """Features or labels of the (first) data set [M, ...] => conditions [M, C]."""
    if model.condition_kind == "features":
        return model.encode(values)
    return label_layout(model).embed(values, 0)


def build_subject(request: Request, model: Model, material: Material, sources: Sources) -> Subject:
    """What the directions are computed from."""
    cache = material.cache
    return Subject(
        kind=model.condition_kind,
        values=sources.values,
        images=sources.images,
        encode=lambda values: encode_values(model, values),
        space=model.space,
        num_components=request.num_components,
        class_names=model.class_names,
        class_means=training_class_means(material, len(model.class_names)),
        head_weight=cache.head[0] if cache and cache.head else None,
        output_names=material.output_names,
        attribute_names=model.attribute_names,
    )


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


def spread(rows: np.ndarray, most: int) -> np.ndarray:
    """Up to `most` rows, evenly spread."""
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(np.int64)]


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
        encode=lambda values: layout.embed(values, 1),
        class_names=model.card.names[layout.dims[0] :],
    )
    return build_sweeps(subject, prefix="second-")


def reconstruct(model: Model, sources: Sources) -> Tensor | None:
    """The sources asked to keep their own condition, uint8 [N, 3, S, S]; None where that is unknown."""
    if sources.values is None:
        return None
    own = encode_values(model, sources.values)
    sweep = Sweep("reconstruction", "", "", ("",), own[:, None])
    return render_sweep(model.edit, sources, sweep, None).frames[:, 0]


def write_renders(out: Path, sources: Sources, renderings: Sequence[Rendering], scale: float) -> None:
    """A grid for each sweep and animations of the ordered ones; the folder appears when all are written."""
    with explain_write_errors(out, REMEDY), whole_folder(out) as folder:
        for rendering in track(renderings, "drawing", unit="directions"):
            name = rendering.sweep.name
            write_whole(folder / f"{name}.png", render_grid(sources, rendering, scale))
            if rendering.sweep.ordered:
                for kind, content in animate(rendering).items():
                    write_whole(folder / f"{name}.{kind}", content)
        if out.exists():
            shutil.rmtree(out)


def build_report(
    request: Request,
    model: Model,
    material: Material,
    subject: Subject,
    sources: Sources,
    renderings: Sequence[Rendering],
) -> Report:
    """Gather what the page shows."""
    evaluation = newest_evaluation(request.run, model.step)
    facts = ComponentFacts(
        model.space, subject.head_weight, subject.output_names, evaluation.components if evaluation else None
    )
    extra = ["--images", str(request.images)] if request.images else []
    extra += ["--directions", ",".join(request.directions)] if request.directions else []
    return Report(
        run=request.run.resolve().name,
        kind=model.condition_kind,
        step=model.step,
        facts=describe(request.run, model, sources),
        sources=sources,
        renderings=renderings,
        scale=difference_scale(renderings),
        component_facts=facts,
        evaluation=evaluation,
        metrics=read_metrics(request.run),
        config=read_config(request.run),
        commands=commands(request.run, model, evaluation, extra),
        hashes=hashes(request.run, model, material.shards),
    )

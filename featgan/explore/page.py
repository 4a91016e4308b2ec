"""The HTML page, rendered from its template: a control for every part of an edit request."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from featgan.explore.image_store import StoredImage
from featgan.explore.label_space import LabelSpace
from featgan.explore.loaded_run import LoadedRun
from featgan.explore.session import MAX_SLIDERS, ExploreSession
from featgan.features.directions import is_hair_color
from featgan.metrics.bootstrap import Floats
from featgan.report.analysis.component_facts import ComponentFacts
from featgan.report.analysis.predictions import most_affected_outputs
from featgan.report.html import page as report_page
from featgan.run.evaluation_document import best_evaluation
from featgan.system.image_files import FORMAT_NAMES, IMAGE_SUFFIXES

MARKED_QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
"""Training quantiles marked on a slider."""
NUM_IMAGES = 12
"""Number of validation images to choose from."""
NUM_OPEN_SLIDERS = 8
"""Number of sliders shown at first; the others are folded away."""
MAX_CLASSES = 24
"""Maximum number of class directions of each kind."""
MIN_SLIDER_LIMIT = 3.0
"""Minimum range of a slider, in standard deviations on each side of 0."""

EFFECT_NOTES = {
    "raised and lowered": "Higher values raise {raised} and lower {lowered}.",
    "raised": "Higher values raise {raised}.",
    "lowered": "Higher values lower {lowered}.",
    "": "",
}
"""Kinds of outputs that a component affects => its note."""

STATIC = Path(__file__).parent / "static"

STATIC_FILES = {
    "report.css": (Path(report_page.__file__).parent / "static", "text/css"),
    "explore.css": (STATIC, "text/css"),
    "explore.js": (STATIC, "text/javascript"),
    "latest_request.js": (STATIC, "text/javascript"),
    "render_result.js": (STATIC, "text/javascript"),
}
"""Folder and media type of every file that the page loads."""


@dataclass(frozen=True)
class ComponentSlider:
    """The slider of one component, in standard deviations of the training images."""

    index: int
    title: str
    limit: float  # the slider ranges from -limit to limit
    marks: tuple[tuple[str, float], ...]  # training quantiles
    note: str
    slope: float | None  # from the evaluation


@dataclass(frozen=True)
class ClassDirections:
    """Directions of the classes or outputs along which features can be shifted."""

    kind: str
    title: str
    note: str
    names: tuple[str, ...]
    amount_label: str  # with the unit
    max_amount: float
    initial_amount: float
    untrained: tuple[str, ...] = ()  # names without training images


@dataclass(frozen=True)
class LabelControls:
    """Controls for the labels of one data set."""

    label_space: LabelSpace
    exclusive: tuple[bool, ...]  # whether each label is a hair color, of which only one can be set


def build_component_sliders(run: LoadedRun) -> list[ComponentSlider]:
    """Return a slider for each of the first MAX_SLIDERS components; none for a label-conditioned run."""
    space = run.model.space
    if space is None or not run.is_feature_conditioned:
        return []
    step = run.model.metadata.step
    evaluation = best_evaluation(run.path, step)
    measured_components = evaluation.components_by_index if evaluation and evaluation.step == step else {}
    facts = ComponentFacts(space, run.head_weight, run.output_spec.names, measured_components)
    output_effects = facts.output_effects() if run.head_weight is not None else None
    sliders = []
    for index in range(min(space.num_components, MAX_SLIDERS)):
        marks = tuple(
            (f"{100 * level:.0f} %", round(float(space.quantile(level)[index]), 3)) for level in MARKED_QUANTILES
        )
        limit = math.ceil(2 * max(MIN_SLIDER_LIMIT, 1.1 * max(abs(position) for _, position in marks))) / 2
        title = run.component_names.get(index) or f"Component {index + 1}"
        note = "" if output_effects is None else describe_output_effects(output_effects[index], run.output_spec.names)
        sliders.append(ComponentSlider(index, title, limit, marks, note, facts.component_metrics(index).get("slope")))
    return sliders


def describe_output_effects(output_effects: Floats, names: Sequence[str]) -> str:
    """Describe the outputs [O] that increase and decrease most, through the last layer, as a component increases."""
    raised, lowered = most_affected_outputs(output_effects[: len(names)], names, 1)
    outputs = {"raised": ", ".join(raised), "lowered": ", ".join(lowered)}
    return EFFECT_NOTES[" and ".join(kind for kind, names in outputs.items() if names)].format(**outputs)


def build_class_directions(run: LoadedRun) -> list[ClassDirections]:
    """Return the class directions that the run has."""
    class_directions = []
    if run.class_means is not None:
        note = "Adds a multiple of the difference between the class's mean features and the mean over all classes."
        class_names = run.model.metadata.class_names[:MAX_CLASSES]
        class_directions.append(
            ClassDirections(
                "class", "Toward the mean of a class", note, class_names, "Factor", 3, 1, run.untrained_names["class"]
            )
        )
    if run.head_weight is not None:
        note = "Moves the features along the weights of the classifier's last layer, in standard deviations."
        names = run.output_spec.names[: min(MAX_CLASSES, len(run.head_weight))]
        class_directions.append(
            ClassDirections(
                "head", "Along the weights of an output", note, names, "Amount (SD)", 5, 2, run.untrained_names["head"]
            )
        )
    return class_directions


def build_label_controls(run: LoadedRun) -> list[LabelControls]:
    """Return the label controls of each data set; none for a feature-conditioned run."""
    return [LabelControls(space, tuple(map(is_hair_color, space.names))) for space in run.label_spaces]


def create_environment() -> Environment:
    """Return the report's Jinja environment (autoescaping, strict undefined names) with the templates of this page."""
    return report_page.build_environment().overlay(loader=FileSystemLoader(Path(__file__).parent / "templates"))


def images_to_json(images: Sequence[StoredImage]) -> list[dict[str, str]]:
    """Return the id and the name of each image."""
    return [{"id": image.id, "name": image.name} for image in images]


def build_explore_page(session: ExploreSession) -> str:
    """Return the page as HTML."""
    run = session.first_run
    context: dict[str, Any] = {
        "session": session,
        "run": run,
        "sliders": build_component_sliders(run),
        "open_sliders": NUM_OPEN_SLIDERS,
        "class_directions": build_class_directions(run),
        "label_controls": build_label_controls(run),
        "images": images_to_json(session.image_store.sample(NUM_IMAGES)),
        "image_formats": FORMAT_NAMES,
        "image_suffixes": ",".join(IMAGE_SUFFIXES),
    }
    return create_environment().get_template("explore.html.j2").render(context)


def load_static_files() -> dict[str, tuple[bytes, str]]:
    """Return the content and the media type of each static file by name."""
    return {name: (folder.joinpath(name).read_bytes(), kind) for name, (folder, kind) in STATIC_FILES.items()}

"""The page itself, filled from its template: a control for everything that can be asked of the run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from featgan.explore.image_store import Picture
from featgan.explore.label_space import LabelSpace
from featgan.explore.loaded_run import LiveRun
from featgan.explore.session import MOST_SLIDERS, Session
from featgan.features.directions import is_hair_colour
from featgan.metrics.bootstrap import Floats
from featgan.report.analysis.predictions import most_pushed
from featgan.report.html import page as report_page
from featgan.report.html.cards import ComponentFacts
from featgan.report.run_files import best_evaluation

MARKED = (0.01, 0.1, 0.5, 0.9, 0.99)
"""Training quantiles marked on a slider."""
NUM_PICTURES = 12
OPEN_SLIDERS = 8
"""Sliders shown at once; the others fold away."""
MOST_CLASSES = 24
LEAST_REACH = 3.0

STATIC = Path(__file__).parent / "static"

FILES = {
    "report.css": (Path(report_page.__file__).parent / "static", "text/css"),
    "explore.css": (STATIC, "text/css"),
    "explore.js": (STATIC, "text/javascript"),
    "latest.js": (STATIC, "text/javascript"),
    "show.js": (STATIC, "text/javascript"),
}
"""What the page loads, all of it from here."""


@dataclass(frozen=True)
class Slider:
    """One component: how far it goes, in deviations, and the training quantiles on the way."""

    index: int
    title: str
    reach: float
    marks: tuple[tuple[str, float], ...]
    remark: str
    slope: float | None


@dataclass(frozen=True)
class Choice:
    """Directions of the classes that a picture can be pushed along."""

    kind: str
    title: str
    note: str
    names: tuple[str, ...]
    most: float
    start: float


@dataclass(frozen=True)
class Labels:
    """Controls for the labels of one data set."""

    space: LabelSpace
    exclusive: tuple[bool, ...]  # of the hair colours one at a time is set


def build_sliders(run: LiveRun) -> list[Slider]:
    """A slider for each of the first components."""
    space = run.model.space
    if space is None or not run.on_features:
        return []
    evaluation = best_evaluation(run.path, run.model.step)
    measured = evaluation.components if evaluation and evaluation.step == run.model.step else {}
    facts = ComponentFacts(space, run.head_weight, run.answer.names, measured)
    pushes = facts.pushes() if run.head_weight is not None else None
    sliders = []
    for index in range(min(space.num_components, MOST_SLIDERS)):
        marks = tuple((f"{100 * level:.0f} %", round(float(space.quantile(level)[index]), 3)) for level in MARKED)
        reach = math.ceil(2 * max(LEAST_REACH, 1.1 * max(abs(at) for _, at in marks))) / 2
        title = run.names.get(index) or f"Component {index + 1}"
        remark = "" if pushes is None else describe_push(pushes[index], run.answer.names)
        sliders.append(Slider(index, title, reach, marks, remark, facts.evaluated(index).get("slope")))
    return sliders


def describe_push(pushes: Floats, names: Sequence[str]) -> str:
    """The outputs that the box's last layer raises and lowers most as a component rises [O]."""
    up, down = most_pushed(pushes[: len(names)], names, 1)
    parts = [f"towards {name}" for name in up] + [f"away from {name}" for name in down]
    return f"Upwards: {', '.join(parts)}." if parts else ""


def build_choices(run: LiveRun) -> list[Choice]:
    """The class directions that the run has."""
    found = []
    if run.class_means is not None:
        note = "The picture's features are moved by the class's mean, less the mean over classes, so many times."
        found.append(Choice("class", "Towards a class", note, run.model.class_names[:MOST_CLASSES], 3, 1))
    if run.head_weight is not None:
        note = "So many deviations along the weights of the box's own last layer."
        names = run.answer.names[: min(MOST_CLASSES, len(run.head_weight))]
        found.append(Choice("head", "Along the box's own weights", note, names, 5, 2))
    return found


def build_labels(run: LiveRun) -> list[Labels]:
    return [Labels(space, tuple(map(is_hair_colour, space.names))) for space in run.labels]


def environment() -> Environment:
    """The report's, with the template of this folder: everything is escaped, a missing name is an error."""
    return report_page.environment().overlay(loader=FileSystemLoader(Path(__file__).parent / "templates"))


def list_pictures(pictures: Sequence[Picture]) -> list[dict[str, str]]:
    return [{"id": picture.id, "name": picture.name} for picture in pictures]


def build_page(session: Session) -> str:
    """The page as HTML."""
    run = session.first
    context: dict[str, Any] = {
        "session": session,
        "run": run,
        "sliders": build_sliders(run),
        "open_sliders": OPEN_SLIDERS,
        "choices": build_choices(run),
        "labels": build_labels(run),
        "pictures": list_pictures(session.pictures.sample(NUM_PICTURES)),
    }
    return environment().get_template("explore.html.j2").render(context)


def load_files() -> dict[str, tuple[bytes, str]]:
    """Style and scripts by name, with their media types."""
    return {name: (folder.joinpath(name).read_bytes(), kind) for name, (folder, kind) in FILES.items()}

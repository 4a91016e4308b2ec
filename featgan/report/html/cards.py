"""What the page shows of each rendering: films behind sliders and mosaics; and what is known of components."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from featgan.features.space import FeatureSpace
from featgan.metrics.bootstrap import Floats, as_floats
from featgan.report.analysis.predictions import Answer, most_pushed
from featgan.report.edits.rendering import Rendering
from featgan.report.edits.sources import Sources
from featgan.report.figures.data_uris import film, map_film, mosaic, thumbnail
from featgan.report.run_files import is_number

MOST_BARS = 8
"""Outputs of the box whose course a film shows."""


@dataclass(frozen=True)
class ComponentFacts:
    """What is known of the components beside the pictures."""

    space: FeatureSpace | None = None
    head_weight: Tensor | None = None  # [O, F]
    output_names: tuple[str, ...] = ()
    measured: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)  # an evaluation's `components`, by index
    measured_on: int | None = None  # pictures of that evaluation
    names: Mapping[int, str] = field(default_factory=dict)  # the user's, by index

    def pushes(self) -> Floats:
        """Change of each output of the box's last layer for one deviation along each component [K, O]."""
        assert self.space is not None and self.head_weight is not None
        steps = self.space.scales[:, None] * self.space.components * self.space.std
        return as_floats(steps @ self.head_weight.T)

    def remark(self, component: int) -> str:
        """The outputs of the box that grow and shrink most along the component, as its last layer has them."""
        if self.space is None or self.head_weight is None or not self.output_names:
            return ""
        up, down = most_pushed(self.pushes()[component, : len(self.output_names)], self.output_names, 1)
        parts = [f"towards {name}" for name in up] + [f"away from {name}" for name in down]
        return "Upwards, the box's last layer reads it " + ", ".join(parts) + "." if parts else ""

    def evaluated(self, component: int) -> dict[str, float]:
        """What the evaluation has measured of a component, as far as it has: slope, cross-talk and others."""
        entry = self.measured.get(component, {})
        found = {
            name: float(entry[name]) for name in ("slope", "monotonicity", "linearity") if is_number(entry.get(name))
        }
        if is_number(entry.get("dominance")):
            found["cross-talk"] = 1 - float(entry["dominance"])
        return found


@dataclass(frozen=True)
class FilmCard:
    """One slider: for each source a film of edits, T frames wide, one of difference maps, and the box's answers."""

    id: str
    title: str
    note: str
    group: str
    component: int | None
    headings: tuple[str, ...]
    labels: tuple[str, ...]
    start: int
    films: tuple[str, ...]  # data addresses, one a source
    maps: tuple[str, ...]  # the same, or none
    bars: tuple[int, ...]  # outputs of the box whose course is shown
    answers: list[list[list[float]]]  # [N][T][bars]

    @property
    def num_frames(self) -> int:
        return len(self.headings)


@dataclass(frozen=True)
class MosaicCard:
    """One picture of all sources and targets, with headings over its columns."""

    id: str
    title: str
    note: str
    headings: tuple[str, ...]
    pictures: tuple[str, ...]  # data addresses over the columns, or none
    row_labels: tuple[str, ...]
    num_rows: int
    picture: str
    alternative: str


def build_film(rendering: Rendering, scale: float, answer: Answer | None) -> FilmCard:
    """The card of one sweep."""
    sweep, differences = rendering.sweep, rendering.differences
    shown = None if answer is None or rendering.seen is None else answer.shown(rendering.seen.outputs)
    bars = () if shown is None else choose_bars(shown)
    return FilmCard(
        id=sweep.name,
        title=sweep.title,
        note=sweep.note,
        group=sweep.group,
        component=sweep.component,
        headings=sweep.headings,
        labels=sweep.labels,
        start=sweep.start,
        films=tuple(film(frames) for frames in rendering.frames),
        maps=() if differences is None else tuple(map_film(part, scale) for part in differences),
        bars=bars,
        answers=[] if shown is None else shown[:, :, list(bars)].round(3).tolist(),
    )


def choose_bars(shown: Floats) -> tuple[int, ...]:
    """Outputs [N, T, O] that vary most along the sweep, in the box's order."""
    spans = np.ptp(shown, axis=1).max(0)
    return tuple(sorted(np.argsort(-spans, kind="stable")[:MOST_BARS].tolist()))


def build_mosaic(sources: Sources, rendering: Rendering) -> MosaicCard:
    """The source first, the targets, the goal where there is one, the reconstruction last."""
    sweep = rendering.sweep
    rows = sweep.rows_per_source
    planes = rendering.frames.unflatten(1, (rows, -1)).flatten(0, 1)  # [N * rows, columns, 3, S, S]
    columns = [("source", sources.images.repeat_interleave(rows, 0))]
    columns += [(sweep.headings[target], planes[:, target]) for target in range(planes.shape[1])]
    if sweep.goals is not None:
        columns.append(("goal", sweep.goals))
    if rendering.reconstruction is not None:
        columns.append(("reconstruction", rendering.reconstruction.repeat_interleave(rows, 0)))
    pictures = () if sweep.heading_images is None else tuple(thumbnail(image) for image in sweep.heading_images)
    headings = tuple(heading for heading, _ in columns)
    return MosaicCard(
        id=f"grid-{sweep.name}",
        title=sweep.title,
        note=sweep.note,
        headings=headings,
        pictures=pictures and ("", *pictures, *[""] * (len(columns) - 1 - len(pictures))),
        row_labels=sweep.row_labels * len(sources),
        num_rows=rows * len(sources),
        picture=mosaic([images for _, images in columns]),
        alternative=f"Grid of {len(sources)} source images (rows) and {len(columns)} columns: {', '.join(headings)}",
    )

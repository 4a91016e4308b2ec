"""What the page shows of each rendering: films behind sliders, mosaics with headings, figures of the components."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from featgan.directions import FeatureSpace
from featgan.report.inline import film, gap_share, mosaic, thumbnail
from featgan.report.rendering import Rendering, difference_images
from featgan.report.sources import Sources


@dataclass(frozen=True)
class Figure:
    """A number with what it means; `share` in [0, 1] draws a bar beside it."""

    name: str
    value: float | None
    meaning: str
    share: float | None = None


@dataclass(frozen=True)
class FilmCard:
    """One slider: a film for each source, a line of edits over a line of difference maps, T frames wide."""

    id: str
    title: str
    note: str
    group: str
    component: int | None
    headings: tuple[str, ...]
    labels: tuple[str, ...]
    start: int
    films: tuple[str, ...]  # data addresses, one a source
    has_difference: bool
    figures: tuple[Figure, ...] = ()
    remark: str = ""
    ends: tuple[str, ...] = ()  # the first source at the first target, in between, at the last: for the overview

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
    picture: str
    alternative: str
    gap: float  # percent of the width


@dataclass(frozen=True)
class ComponentFacts:
    """What is known of the components beside the pictures."""

    space: FeatureSpace | None = None
    head_weight: Tensor | None = None  # [O, F]
    output_names: tuple[str, ...] = ()
    measured: Mapping[int, Mapping[str, Any]] | None = None  # an evaluation's `components`, by index

    def figures(self, component: int, rendering: Rendering) -> tuple[Figure, ...]:
        """Measured ones first; those that were not measured are left out."""
        entry = (self.measured or {}).get(component, {})
        found = [
            Figure(name.replace("_", " "), float(entry[name]), meaning, bounded(float(entry[name])))
            for name, meaning in MEASURES.items()
            if isinstance(entry.get(name), int | float)
        ]
        change = rendering.visible_change()
        if change is not None:
            found.append(
                Figure("visible change", change, "mean absolute change of a pixel at both ends, of a range of 2")
            )
        if self.space is not None:
            share = variance_share(self.space, component)
            found.append(Figure("share of variance", share, "of the standardised training features", bounded(share)))
        return tuple(found)

    def remark(self, component: int) -> str:
        """The outputs of the box that grow and shrink most along the component, as its last layer has them."""
        if self.space is None or self.head_weight is None or not self.output_names:
            return ""
        pushes = push(self.space, self.head_weight, component)[: len(self.output_names)]
        up, down = int(pushes.argmax()), int(pushes.argmin())
        parts = [f"towards {self.output_names[up]}"] if pushes[up] > 0 else []
        parts += [f"away from {self.output_names[down]}"] if pushes[down] < 0 else []
        return "Upwards, the box's last layer reads it " + ", ".join(parts) + "." if parts else ""


MEASURES = {
    "slope": "measured change of the component per unit requested; 1 is ideal, 0 means that nothing happened",
    "monotonicity": "rank correlation of requested and measured component; 1 is ideal",
    "dominance": "share of the measured change that lies in this component; the rest is cross-talk",
    "linearity": "R\N{SUPERSCRIPT TWO} of a straight line through the measured against the requested values",
}


def bounded(value: float) -> float:
    return min(1.0, max(0.0, value))


def variance_share(space: FeatureSpace, component: int) -> float:
    """Share of the standardised live features' variance along a component."""
    return float(space.scales[component] ** 2 / space.live.sum())


def push(space: FeatureSpace, head_weight: Tensor, component: int) -> Tensor:
    """Change of each output [O] of the box's last layer for one deviation along a component."""
    return head_weight @ (space.scales[component] * space.components[component] * space.std)


def build_film(sources: Sources, rendering: Rendering, scale: float, facts: ComponentFacts) -> FilmCard:
    """The card of one sweep."""
    sweep = rendering.sweep
    differences = rendering.differences()
    maps = None if differences is None else difference_images(differences, scale)
    films = tuple(
        film(frames[None] if maps is None else torch.stack([frames, maps[source]]))
        for source, frames in enumerate(rendering.frames)
    )
    component = sweep.component
    return FilmCard(
        id=sweep.name,
        title=sweep.title,
        note=sweep.note,
        group=sweep.group,
        component=component,
        headings=sweep.headings,
        labels=sweep.labels,
        start=sweep.start,
        films=films,
        has_difference=maps is not None,
        figures=() if component is None else facts.figures(component, rendering),
        remark="" if component is None else facts.remark(component),
        ends=() if component is None else overview_ends(rendering),
    )


def overview_ends(rendering: Rendering) -> tuple[str, ...]:
    """The first source at the lowest and highest target of the grid, the middle one between."""
    return tuple(thumbnail(rendering.frames[0, target]) for target in rendering.sweep.on_grid)


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
        picture=mosaic([images for _, images in columns]),
        alternative=f"Grid of {len(sources)} source images (rows) and {len(columns)} columns: {', '.join(headings)}",
        gap=gap_share(len(columns), sources.images.shape[-1]),
    )


def build_cards(
    sources: Sources, renderings: Sequence[Rendering], scale: float, facts: ComponentFacts
) -> tuple[list[FilmCard], list[MosaicCard]]:
    """Films of the sweeps that have one; mosaics of all but the components, whose films say it already."""
    films = [build_film(sources, rendering, scale, facts) for rendering in renderings if rendering.sweep.film]
    mosaics = [build_mosaic(sources, rendering) for rendering in renderings if rendering.sweep.component is None]
    return films, mosaics

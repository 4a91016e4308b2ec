"""The cards of the page: a filmstrip behind a slider for a sweep, or a mosaic of all sources and targets."""

from dataclasses import dataclass

import numpy as np

from featgan.metrics.bootstrap import Floats
from featgan.report.analysis.predictions import OutputSpec
from featgan.report.edits.rendering import RenderedSweep
from featgan.report.edits.sources import SourceImages
from featgan.report.figures.data_uris import (
    encode_difference_filmstrip,
    encode_filmstrip,
    encode_mosaic,
    encode_thumbnail,
)

MAX_BARS = 8
"""Maximum number of classifier outputs shown beside a film."""


@dataclass(frozen=True)
class FilmCard:
    """One slider: for each source a filmstrip of T edits, one of difference maps, and the classifier's outputs."""

    id: str
    title: str
    note: str
    group: str
    component: int | None
    headings: tuple[str, ...]
    labels: tuple[str, ...]
    start: int
    films: tuple[str, ...]  # data URIs, one for each source
    maps: tuple[str, ...]  # data URIs, one for each source, or empty
    bars: tuple[int, ...]  # classifier outputs that are shown
    outputs: list[list[list[float]]]  # [N][T][bars]

    @property
    def num_frames(self) -> int:
        return len(self.headings)


@dataclass(frozen=True)
class MosaicCard:
    """One image of all sources (rows) and targets (columns), with headings above the columns."""

    id: str
    title: str
    note: str
    headings: tuple[str, ...]
    heading_images: tuple[str, ...]  # data URIs above the columns, or empty
    row_labels: tuple[str, ...]
    num_rows: int
    image: str
    alt_text: str


def build_film_card(rendering: RenderedSweep, scale: float, output_spec: OutputSpec | None) -> FilmCard:
    """Return the card of one sweep; `scale` is the brightest change of the difference maps."""
    sweep, differences = rendering.sweep, rendering.differences
    display_outputs = (
        None
        if output_spec is None or rendering.predictions is None
        else output_spec.display_values(rendering.predictions.outputs)
    )
    bars = () if display_outputs is None else choose_bars(display_outputs)
    return FilmCard(
        id=sweep.name,
        title=sweep.title,
        note=sweep.note,
        group=sweep.group,
        component=sweep.component,
        headings=sweep.headings,
        labels=sweep.labels,
        start=sweep.start,
        films=tuple(encode_filmstrip(frames) for frames in rendering.frames),
        maps=()
        if differences is None
        else tuple(encode_difference_filmstrip(difference, scale) for difference in differences),
        bars=bars,
        outputs=[] if display_outputs is None else display_outputs[:, :, list(bars)].round(3).tolist(),
    )


def choose_bars(outputs: Floats) -> tuple[int, ...]:
    """Return the indices of the outputs [N, T, O] that vary most along the sweep, in ascending order."""
    spans = np.ptp(outputs, axis=1).max(0)
    return tuple(sorted(np.argsort(-spans, kind="stable")[:MAX_BARS].tolist()))


def build_mosaic_card(sources: SourceImages, rendering: RenderedSweep) -> MosaicCard:
    """Return the card with the source first, then the targets, the goal if present, and the reconstruction last."""
    sweep = rendering.sweep
    rows = sweep.rows_per_source
    grid_frames = rendering.frames.unflatten(1, (rows, -1)).flatten(0, 1)  # [N * rows, columns, 3, S, S]
    columns = [("source", sources.images.repeat_interleave(rows, 0))]
    columns += [(sweep.headings[target], grid_frames[:, target]) for target in range(grid_frames.shape[1])]
    if sweep.goal_images is not None:
        columns.append(("goal", sweep.goal_images))
    if rendering.reconstruction is not None:
        columns.append(("reconstruction", rendering.reconstruction.repeat_interleave(rows, 0)))
    heading_thumbnails = (
        () if sweep.heading_images is None else tuple(encode_thumbnail(image) for image in sweep.heading_images)
    )
    headings = tuple(heading for heading, _ in columns)
    return MosaicCard(
        id=f"grid-{sweep.name}",
        title=sweep.title,
        note=sweep.note,
        headings=headings,
        heading_images=heading_thumbnails
        and ("", *heading_thumbnails, *[""] * (len(columns) - 1 - len(heading_thumbnails))),
        row_labels=sweep.row_labels * len(sources),
        num_rows=rows * len(sources),
        image=encode_mosaic([images for _, images in columns]),
        alt_text=f"Grid of {len(sources)} source images (rows) and {len(columns)} columns: {', '.join(headings)}",
    )

"""Labeled grids as PNG: a row for each source image, a column for each target, headings above the columns."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from featgan.report.edits.rendering import RenderedSweep, difference_images
from featgan.report.edits.sources import SourceImages

BACKGROUND_COLOR, TEXT_COLOR, LABEL_COLOR = (255, 255, 255), (29, 31, 33), (107, 112, 117)
GAP = 4
GROUP_GAP = 18
MARGIN = 12
TITLE_SIZE, HEADING_SIZE, MIN_FONT_SIZE = 17, 14, 9
MIN_CELL_SIZE = 96
"""Smaller images are enlarged to at least this, so that the headings fit."""
MAX_GRID_SOURCES = 6
"""Maximum number of sources of a grid, so that it fits a screen; the page shows all sources."""


@dataclass(frozen=True)
class GridColumn:
    """Images uint8 [R, 3, S, S] below a heading; an image may be above the heading."""

    heading: str
    images: Tensor
    heading_image: Tensor | None = None
    starts_group: bool = False


@lru_cache(maxsize=32)
def load_font(size: int) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which matplotlib includes and which covers most alphabets."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)


def fit_text(text: str, width: int, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """Return the text and the largest font up to `size` that fit the width; shorten the text if none fits."""
    text = " ".join(text.split())[:200]
    for font_size in range(size, MIN_FONT_SIZE - 1, -1):
        if load_font(font_size).getlength(text) <= width:
            return text, load_font(font_size)
    while text and load_font(MIN_FONT_SIZE).getlength(text + "\N{HORIZONTAL ELLIPSIS}") > width:
        text = text[:-1]
    return text + "\N{HORIZONTAL ELLIPSIS}", load_font(MIN_FONT_SIZE)


def to_pil_image(image: Tensor, size: int | None = None) -> Image.Image:
    """Convert uint8 [3, H, W] to a PIL image, resized to size x size if `size` is given."""
    pil_image = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    if size is None or pil_image.size == (size, size):
        return pil_image
    return pil_image.resize((size, size), Image.Resampling.BICUBIC)


def cell_size(image_size: int) -> int:
    """Return the size of a grid cell: small images are enlarged by an integer factor."""
    return image_size * max(1, -(-MIN_CELL_SIZE // image_size))


@dataclass(frozen=True)
class GridLayout:
    """The positions of the parts of a grid, in pixels."""

    cell_size: int
    first_row_top: int
    column_lefts: tuple[int, ...]
    width: int
    height: int


def compute_layout(columns: Sequence[GridColumn], num_rows: int, image_size: int, label_width: int) -> GridLayout:
    """Compute the positions of a title, a row of images above the headings if present, the headings and the rows."""
    enlarged_size = cell_size(image_size)
    lefts, left = [], MARGIN + label_width
    for index, column in enumerate(columns):
        left += GROUP_GAP - GAP if column.starts_group and index else 0
        lefts.append(left)
        left += enlarged_size + GAP
    heading_images_height = enlarged_size + GAP if any(column.heading_image is not None for column in columns) else 0
    top = MARGIN + TITLE_SIZE + 10 + heading_images_height + HEADING_SIZE + 8
    return GridLayout(
        enlarged_size, top, tuple(lefts), left - GAP + MARGIN, top + num_rows * (enlarged_size + GAP) - GAP + MARGIN
    )


def draw_labeled_grid(title: str, columns: Sequence[GridColumn], row_labels: Sequence[str] = ()) -> Image.Image:
    """Draw a grid with its title, headings and row labels at the left."""
    num_rows, image_size = len(columns[0].images), columns[0].images.shape[-1]
    assert all(len(column.images) == num_rows for column in columns)
    label_width = int(max((load_font(HEADING_SIZE).getlength(label) for label in row_labels), default=-10)) + 10
    layout = compute_layout(columns, num_rows, image_size, min(label_width, 160))
    canvas = Image.new("RGB", (layout.width, layout.height), BACKGROUND_COLOR)
    draw = ImageDraw.Draw(canvas)
    text, face = fit_text(title, layout.width - 2 * MARGIN, TITLE_SIZE)
    draw.text((MARGIN, MARGIN), text, TEXT_COLOR, face)
    for column, left in zip(columns, layout.column_lefts, strict=True):
        draw_column(canvas, draw, column, left, layout)
    for row, label in enumerate(row_labels):
        middle = layout.first_row_top + row * (layout.cell_size + GAP) + layout.cell_size // 2
        text, face = fit_text(label, min(label_width, 160) - 10, HEADING_SIZE)
        draw.text((MARGIN, middle), text, LABEL_COLOR, face, anchor="lm")
    return canvas


def draw_column(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, column: GridColumn, left: int, layout: GridLayout
) -> None:
    """Draw the heading of a column, the image above it, and its images."""
    text, face = fit_text(column.heading, layout.cell_size, HEADING_SIZE)
    draw.text((left + layout.cell_size // 2, layout.first_row_top - 7), text, TEXT_COLOR, face, anchor="ms")
    if column.heading_image is not None:
        canvas.paste(to_pil_image(column.heading_image, layout.cell_size), (left, MARGIN + TITLE_SIZE + 10))
    for row, image in enumerate(column.images):
        canvas.paste(
            to_pil_image(image, layout.cell_size), (left, layout.first_row_top + row * (layout.cell_size + GAP))
        )


def sweep_columns(sources: SourceImages, rendering: RenderedSweep) -> list[GridColumn]:
    """Return the columns: the source first, then the targets, the goal if present, and the reconstruction last."""
    sweep = rendering.sweep
    rows = sweep.rows_per_source
    columns = [GridColumn("source", sources.images[:MAX_GRID_SOURCES].repeat_interleave(rows, 0))]
    grid_frames = rendering.frames[:MAX_GRID_SOURCES].unflatten(1, (rows, -1))  # [N, rows, columns, 3, S, S]
    for position, target in enumerate(sweep.grid_targets):
        heading_image = None if sweep.heading_images is None else sweep.heading_images[target]
        images = grid_frames[:, :, target].flatten(0, 1)
        columns.append(GridColumn(sweep.headings[target], images, heading_image, starts_group=position == 0))
    if sweep.goal_images is not None:
        columns.append(GridColumn("goal", sweep.goal_images[:MAX_GRID_SOURCES], starts_group=True))
    if rendering.reconstruction is not None:
        recovered = rendering.reconstruction[:MAX_GRID_SOURCES].repeat_interleave(rows, 0)
        columns.append(GridColumn("reconstruction", recovered, starts_group=True))
    return columns


def difference_columns(rendering: RenderedSweep, scale: float) -> list[GridColumn]:
    """Return a column with the difference maps of every target on the grid."""
    if rendering.differences is None:
        return []
    difference_maps = difference_images(
        rendering.differences[:MAX_GRID_SOURCES, list(rendering.sweep.grid_targets)], scale
    )
    return [
        GridColumn(
            f"\N{INCREMENT} {rendering.sweep.headings[target]}",
            difference_maps[:, position],
            starts_group=position == 0,
        )
        for position, target in enumerate(rendering.sweep.grid_targets)
    ]


def render_grid(sources: SourceImages, rendering: RenderedSweep, scale: float) -> bytes:
    """Return a sweep's grid as PNG; the grid of a component also has difference maps.

    The file also stores the title and the headings as text (`Title`, `Columns`, `Rows`), for programs.
    """
    columns = sweep_columns(sources, rendering)
    if rendering.sweep.component is not None:
        columns += difference_columns(rendering, scale)
    labels = rendering.sweep.row_labels * min(MAX_GRID_SOURCES, len(sources))
    canvas = draw_labeled_grid(f"{rendering.sweep.title}. {rendering.sweep.note}", columns, labels)
    info = PngInfo()
    info.add_itxt("Title", rendering.sweep.title)
    info.add_itxt("Columns", " | ".join(column.heading for column in columns))
    info.add_itxt("Rows", " | ".join(sources.names[:MAX_GRID_SOURCES]))
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", pnginfo=info, compress_level=1)
    return buffer.getvalue()

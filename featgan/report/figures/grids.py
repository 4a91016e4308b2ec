"""Labelled grids: a row for each source image, a column for each target, headings above, as one PNG."""

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

from featgan.report.edits.rendering import Rendering, difference_images
from featgan.report.edits.sources import Sources

PAPER, INK, FAINT = (255, 255, 255), (29, 31, 33), (107, 112, 117)
GAP = 4
GROUP_GAP = 18
MARGIN = 12
TITLE_SIZE, HEADING_SIZE, SMALLEST = 17, 14, 9
MIN_CELL = 96
"""Smaller images are enlarged to this, so that headings have room."""
MOST_SOURCES = 6
"""Rows of a grid, so that it stays a picture to look at; the page has all sources."""


@dataclass(frozen=True)
class Column:
    """Images uint8 [R, 3, S, S] under a heading; a picture may stand above the heading."""

    heading: str
    images: Tensor
    picture: Tensor | None = None
    starts_group: bool = False


@lru_cache(maxsize=32)
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib ships it: most of the world's alphabets, on any machine."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)


def fitting(text: str, width: int, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """The text and the largest font up to `size` that fit the width; shortened where even the smallest does not."""
    text = " ".join(text.split())[:200]
    for smaller in range(size, SMALLEST - 1, -1):
        if font(smaller).getlength(text) <= width:
            return text, font(smaller)
    while text and font(SMALLEST).getlength(text + "\N{HORIZONTAL ELLIPSIS}") > width:
        text = text[:-1]
    return text + "\N{HORIZONTAL ELLIPSIS}", font(SMALLEST)


def to_image(image: Tensor, size: int | None = None) -> Image.Image:
    """uint8 [3, H, W] => a picture, resized to size x size where one is given."""
    picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    if size is None or picture.size == (size, size):
        return picture
    return picture.resize((size, size), Image.Resampling.BICUBIC)


def cell_size(image_size: int) -> int:
    """Small images are enlarged by a whole factor."""
    return image_size * max(1, -(-MIN_CELL // image_size))


@dataclass(frozen=True)
class Frame:
    """Where the parts of a grid lie, in pixels."""

    cell: int
    top: int  # of the first row
    lefts: tuple[int, ...]  # of the columns
    width: int
    height: int


def lay_out(columns: Sequence[Column], num_rows: int, image_size: int, label_width: int) -> Frame:
    """Positions for a title, a line of headings, pictures above them where a column has one, and the rows."""
    cell = cell_size(image_size)
    lefts, left = [], MARGIN + label_width
    for index, column in enumerate(columns):
        left += GROUP_GAP - GAP if column.starts_group and index else 0
        lefts.append(left)
        left += cell + GAP
    pictures = cell + GAP if any(column.picture is not None for column in columns) else 0
    top = MARGIN + TITLE_SIZE + 10 + pictures + HEADING_SIZE + 8
    return Frame(cell, top, tuple(lefts), left - GAP + MARGIN, top + num_rows * (cell + GAP) - GAP + MARGIN)


def labelled_grid(title: str, columns: Sequence[Column], row_labels: Sequence[str] = ()) -> Image.Image:
    """The grid with its title and headings; row labels stand at the left."""
    num_rows, image_size = len(columns[0].images), columns[0].images.shape[-1]
    assert all(len(column.images) == num_rows for column in columns)
    label_width = int(max((font(HEADING_SIZE).getlength(label) for label in row_labels), default=-10)) + 10
    frame = lay_out(columns, num_rows, image_size, min(label_width, 160))
    sheet = Image.new("RGB", (frame.width, frame.height), PAPER)
    draw = ImageDraw.Draw(sheet)
    text, face = fitting(title, frame.width - 2 * MARGIN, TITLE_SIZE)
    draw.text((MARGIN, MARGIN), text, INK, face)
    for column, left in zip(columns, frame.lefts, strict=True):
        draw_column(sheet, draw, column, left, frame)
    for row, label in enumerate(row_labels):
        middle = frame.top + row * (frame.cell + GAP) + frame.cell // 2
        text, face = fitting(label, min(label_width, 160) - 10, HEADING_SIZE)
        draw.text((MARGIN, middle), text, FAINT, face, anchor="lm")
    return sheet


def draw_column(sheet: Image.Image, draw: ImageDraw.ImageDraw, column: Column, left: int, frame: Frame) -> None:
    """A column's picture, heading and images."""
    text, face = fitting(column.heading, frame.cell, HEADING_SIZE)
    draw.text((left + frame.cell // 2, frame.top - 7), text, INK, face, anchor="ms")
    if column.picture is not None:
        sheet.paste(to_image(column.picture, frame.cell), (left, MARGIN + TITLE_SIZE + 10))
    for row, image in enumerate(column.images):
        sheet.paste(to_image(image, frame.cell), (left, frame.top + row * (frame.cell + GAP)))


def sweep_columns(sources: Sources, rendering: Rendering) -> list[Column]:
    """The source first, then the targets, what is moved to, and the reconstruction last."""
    sweep = rendering.sweep
    rows = sweep.rows_per_source
    columns = [Column("source", sources.images[:MOST_SOURCES].repeat_interleave(rows, 0))]
    planes = rendering.frames[:MOST_SOURCES].unflatten(1, (rows, -1))  # [N, rows, columns, 3, S, S]
    for position, target in enumerate(sweep.on_grid):
        picture = None if sweep.heading_images is None else sweep.heading_images[target]
        images = planes[:, :, target].flatten(0, 1)
        columns.append(Column(sweep.headings[target], images, picture, starts_group=position == 0))
    if sweep.goals is not None:
        columns.append(Column("goal", sweep.goals[:MOST_SOURCES], starts_group=True))
    if rendering.reconstruction is not None:
        recovered = rendering.reconstruction[:MOST_SOURCES].repeat_interleave(rows, 0)
        columns.append(Column("reconstruction", recovered, starts_group=True))
    return columns


def difference_columns(rendering: Rendering, scale: float) -> list[Column]:
    """The difference map of every target on the grid."""
    if rendering.differences is None:
        return []
    shown = difference_images(rendering.differences[:MOST_SOURCES, list(rendering.sweep.on_grid)], scale)
    return [
        Column(f"\N{INCREMENT} {rendering.sweep.headings[target]}", shown[:, position], starts_group=position == 0)
        for position, target in enumerate(rendering.sweep.on_grid)
    ]


def render_grid(sources: Sources, rendering: Rendering, scale: float) -> bytes:
    """A sweep's PNG; component sweeps have their difference maps beside them.

    Title and headings are also kept as text in the file (`Title`, `Columns`, `Rows`), for programs and screen readers.
    """
    columns = sweep_columns(sources, rendering)
    if rendering.sweep.component is not None:
        columns += difference_columns(rendering, scale)
    labels = rendering.sweep.row_labels * min(MOST_SOURCES, len(sources))
    sheet = labelled_grid(f"{rendering.sweep.title}. {rendering.sweep.note}", columns, labels)
    info = PngInfo()
    info.add_itxt("Title", rendering.sweep.title)
    info.add_itxt("Columns", " | ".join(column.heading for column in columns))
    info.add_itxt("Rows", " | ".join(sources.names[:MOST_SOURCES]))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", pnginfo=info, compress_level=1)
    return buffer.getvalue()

"""Frames of an animation: the edits of several sources toward one target, each above the classifier's outputs."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from featgan.metrics.bootstrap import Floats
from featgan.report.analysis.predictions import OutputSpec
from featgan.report.edits.rendering import RenderedSweep
from featgan.report.figures.grids import BACKGROUND_COLOR, LABEL_COLOR, TEXT_COLOR, fit_text, to_pil_image

MAX_PANELS, PANELS_PER_ROW = 6, 3
MIN_PANEL_SIZE = 112
"""Smaller images are enlarged to at least this, so that the outputs fit below them."""
NUM_BARS, BAR_HEIGHT = 3, 19
GAP, MARGIN = 10, 12
TITLE_SIZE, LABEL_SIZE = 16, 11
BAR_COLOR, TRACK_COLOR = (29, 93, 131), (228, 231, 234)


def draw_animation_frames(rendering: RenderedSweep, output_spec: OutputSpec | None) -> list[Image.Image]:
    """Draw one sheet per target with at most MAX_PANELS sources; the title has the label of the target."""
    sweep, source_frames = rendering.sweep, rendering.frames[:MAX_PANELS]
    display_outputs = (
        None
        if output_spec is None or rendering.predictions is None
        else output_spec.display_values(rendering.predictions.outputs[:MAX_PANELS])
    )
    bars = (
        []
        if display_outputs is None
        else sorted(np.argsort(-np.ptp(display_outputs, axis=1).max(0))[:NUM_BARS].tolist())
    )
    return [
        draw_sheet(
            f"{sweep.title}: {label}",
            [
                draw_panel(
                    frames[target],
                    output_spec,
                    bars,
                    None if display_outputs is None else display_outputs[source, target],
                )
                for source, frames in enumerate(source_frames)
            ],
        )
        for target, label in enumerate(sweep.labels)
    ]


def draw_sheet(title: str, panels: Sequence[Image.Image]) -> Image.Image:
    """Arrange panels in rows of PANELS_PER_ROW below a title."""
    width, height = panels[0].size
    per_row = min(PANELS_PER_ROW, len(panels))
    num_rows = -(-len(panels) // per_row)
    top = MARGIN + TITLE_SIZE + GAP
    size = (2 * MARGIN + per_row * (width + GAP) - GAP, top + num_rows * (height + GAP) - GAP + MARGIN)
    sheet = Image.new("RGB", size, BACKGROUND_COLOR)
    text, face = fit_text(title, size[0] - 2 * MARGIN, TITLE_SIZE)
    ImageDraw.Draw(sheet).text((MARGIN, MARGIN), text, TEXT_COLOR, face)
    for index, panel in enumerate(panels):
        row, column = divmod(index, per_row)
        sheet.paste(panel, (MARGIN + column * (width + GAP), top + row * (height + GAP)))
    return sheet


def draw_panel(
    image: Tensor, output_spec: OutputSpec | None, bars: Sequence[int], values: Floats | None
) -> Image.Image:
    """Draw an image uint8 [3, S, S] above a bar for each of the outputs `bars` of `values` [O]."""
    side = image.shape[-1] * max(1, -(-MIN_PANEL_SIZE // image.shape[-1]))
    panel = Image.new("RGB", (side, side + len(bars) * BAR_HEIGHT), BACKGROUND_COLOR)
    panel.paste(to_pil_image(image, side), (0, 0))
    if output_spec is not None and values is not None:
        draw = ImageDraw.Draw(panel)
        for position, output in enumerate(bars):
            draw_bar(draw, side, side + position * BAR_HEIGHT, output_spec, output, float(values[output]))
    return panel


def draw_bar(
    draw: ImageDraw.ImageDraw, width: int, top: int, output_spec: OutputSpec, output: int, value: float
) -> None:
    """Draw an output's name and value; probabilities also have a bar."""
    text, face = fit_text(output_spec.names[output], width * 2 // 3, LABEL_SIZE)
    value_text = f"{100 * value:.0f} %" if output_spec.is_probability else f"{value:+.2f}"
    draw.text((0, top + 1), text, TEXT_COLOR, face)
    draw.text((width, top + 1), value_text, LABEL_COLOR, face, anchor="ra")
    if output_spec.is_probability:
        draw.rectangle((0, top + BAR_HEIGHT - 3, width - 1, top + BAR_HEIGHT - 2), TRACK_COLOR)
        if value >= 0.005:
            draw.rectangle((0, top + BAR_HEIGHT - 3, round(value * (width - 1)), top + BAR_HEIGHT - 2), BAR_COLOR)

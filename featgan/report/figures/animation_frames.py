"""Frames of an animation: every source edited to one target, and under each picture what the box answers."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from featgan.metrics.bootstrap import Floats
from featgan.report.analysis.predictions import Answer
from featgan.report.edits.rendering import Rendering
from featgan.report.figures.grids import FAINT, INK, PAPER, fitting, to_image

MOST_PANELS, PER_LINE = 6, 3
LEAST_SIDE = 112
"""Smaller pictures are enlarged to this, so that the answers have room."""
NUM_BARS, BAR_HEIGHT = 3, 19
GAP, MARGIN = 10, 12
TITLE_SIZE, LABEL_SIZE = 16, 11
BAR, TRACK = (29, 93, 131), (228, 231, 234)


def draw_frames(rendering: Rendering, answer: Answer | None) -> list[Image.Image]:
    """One sheet a target: up to MOST_PANELS sources in their places, the target's label as the title."""
    sweep, pictures = rendering.sweep, rendering.frames[:MOST_PANELS]
    shown = None if answer is None or rendering.seen is None else answer.shown(rendering.seen.outputs[:MOST_PANELS])
    bars = [] if shown is None else sorted(np.argsort(-np.ptp(shown, axis=1).max(0))[:NUM_BARS].tolist())
    return [
        draw_sheet(
            f"{sweep.title}: {label}",
            [
                draw_panel(frames[target], answer, bars, None if shown is None else shown[source, target])
                for source, frames in enumerate(pictures)
            ],
        )
        for target, label in enumerate(sweep.labels)
    ]


def draw_sheet(title: str, panels: Sequence[Image.Image]) -> Image.Image:
    """Panels in lines of PER_LINE under a title."""
    width, height = panels[0].size
    per_line = min(PER_LINE, len(panels))
    lines = -(-len(panels) // per_line)
    top = MARGIN + TITLE_SIZE + GAP
    size = (2 * MARGIN + per_line * (width + GAP) - GAP, top + lines * (height + GAP) - GAP + MARGIN)
    sheet = Image.new("RGB", size, PAPER)
    text, face = fitting(title, size[0] - 2 * MARGIN, TITLE_SIZE)
    ImageDraw.Draw(sheet).text((MARGIN, MARGIN), text, INK, face)
    for index, panel in enumerate(panels):
        line, place = divmod(index, per_line)
        sheet.paste(panel, (MARGIN + place * (width + GAP), top + line * (height + GAP)))
    return sheet


def draw_panel(picture: Tensor, answer: Answer | None, bars: Sequence[int], values: Floats | None) -> Image.Image:
    """A picture uint8 [3, S, S] over a bar for each of the outputs `bars` of `values` [O]."""
    side = picture.shape[-1] * max(1, -(-LEAST_SIDE // picture.shape[-1]))
    panel = Image.new("RGB", (side, side + len(bars) * BAR_HEIGHT), PAPER)
    panel.paste(to_image(picture, side), (0, 0))
    if answer is not None and values is not None:
        draw = ImageDraw.Draw(panel)
        for line, output in enumerate(bars):
            draw_bar(draw, side, side + line * BAR_HEIGHT, answer, output, float(values[output]))
    return panel


def draw_bar(draw: ImageDraw.ImageDraw, width: int, top: int, answer: Answer, output: int, value: float) -> None:
    """An output's name and value over its bar; only shares have a bar."""
    text, face = fitting(answer.names[output], width * 2 // 3, LABEL_SIZE)
    number = f"{100 * value:.0f} %" if answer.is_share else f"{value:+.2f}"
    draw.text((0, top + 1), text, INK, face)
    draw.text((width, top + 1), number, FAINT, face, anchor="ra")
    if answer.is_share:
        draw.rectangle((0, top + BAR_HEIGHT - 3, width - 1, top + BAR_HEIGHT - 2), TRACK)
        if value >= 0.005:
            draw.rectangle((0, top + BAR_HEIGHT - 3, round(value * (width - 1)), top + BAR_HEIGHT - 2), BAR)

"""Animations of a sweep, all sources side by side, going there and back, as GIF and animated WebP."""

import io
from collections.abc import Sequence

import torch
from PIL import Image

from featgan.report.grids import Column, labelled_grid
from featgan.report.rendering import Rendering

FRAME_MILLISECONDS = 110
REST_MILLISECONDS = 440
"""How long the two ends stand still."""
IMAGES_PER_LINE = 3


def animate(rendering: Rendering) -> dict[str, bytes]:
    """A sweep's animation by file ending: `gif` and `webp`."""
    frames, durations = there_and_back(animation_frames(rendering))
    return {"gif": encode_gif(frames, durations), "webp": encode_webp(frames, durations)}


def animation_frames(rendering: Rendering) -> list[Image.Image]:
    """One sheet a target: every source in its place, the target's label as the title."""
    sweep = rendering.sweep
    return [
        labelled_grid(f"{sweep.title}: {label}", columns_at(rendering, target))
        for target, label in enumerate(sweep.labels)
    ]


def columns_at(rendering: Rendering, target: int) -> list[Column]:
    """The sources, edited to one target, set in up to IMAGES_PER_LINE columns; gaps at the end stay white."""
    images = rendering.frames[:, target]
    per_line = min(IMAGES_PER_LINE, len(images))
    missing = -len(images) % per_line
    padded = [*images, *[images.new_full(images.shape[1:], 255)] * missing]
    return [Column("", torch.stack(padded[column::per_line])) for column in range(per_line)]


def there_and_back(frames: Sequence[Image.Image]) -> tuple[list[Image.Image], list[int]]:
    """Frames up and down again without repeating the ends, and how long each stands, in milliseconds."""
    order = [*range(len(frames)), *range(len(frames) - 2, 0, -1)]
    ends = {0, len(frames) - 1}
    return [frames[index] for index in order], [
        REST_MILLISECONDS if index in ends else FRAME_MILLISECONDS for index in order
    ]


def encode_gif(frames: Sequence[Image.Image], durations: Sequence[int]) -> bytes:
    """A looping GIF with one palette for all frames, so that still parts do not flicker."""
    height = sum(frame.height for frame in frames)
    stacked = Image.new("RGB", (frames[0].width, height))
    for index, frame in enumerate(frames):
        stacked.paste(frame, (0, index * frame.height))
    sample = stacked.resize((stacked.width // 3, stacked.height // 3), Image.Resampling.NEAREST)
    palette = sample.quantize(256, Image.Quantize.MEDIANCUT)
    reduced = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    return encode(reduced, durations, "GIF", optimize=False, disposal=1)


def encode_webp(frames: Sequence[Image.Image], durations: Sequence[int]) -> bytes:
    """A looping WebP: smaller than the GIF and in full colour."""
    return encode(frames, durations, "WEBP", quality=80, method=2)


def encode(frames: Sequence[Image.Image], durations: Sequence[int], kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    first, *others = frames
    first.save(buffer, kind, save_all=True, append_images=others, duration=list(durations), loop=0, **options)
    return buffer.getvalue()

"""Animations of a sweep, going there and back with the box's answers drawn on every frame: GIF, WebP or MP4."""

import importlib
import io
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from featgan.errors import UserError
from featgan.report.analysis.predictions import Answer
from featgan.report.edits.rendering import Rendering
from featgan.report.figures.animation_frames import draw_frames

KINDS = ("gif", "webp", "mp4")
FRAME_MILLISECONDS = 110
REST_MILLISECONDS = 440
"""How long the two ends stand still."""


def animate(rendering: Rendering, kinds: Sequence[str], answer: Answer | None = None) -> dict[str, bytes]:
    """A sweep's animation by file ending."""
    frames, durations = there_and_back(draw_frames(rendering, answer)) if kinds else ([], [])
    return {kind: ENCODERS[kind](frames, durations) for kind in kinds}


def there_and_back(frames: Sequence[Image.Image]) -> tuple[list[Image.Image], list[int]]:
    """Frames up and down again without repeating the ends, and how long each stands, in milliseconds."""
    order = [*range(len(frames)), *range(len(frames) - 2, 0, -1)]
    ends = {0, len(frames) - 1}
    return [frames[index] for index in order], [
        REST_MILLISECONDS if index in ends else FRAME_MILLISECONDS for index in order
    ]


def encode_gif(frames: Sequence[Image.Image], durations: Sequence[int]) -> bytes:
    """A looping GIF with one palette for all frames, so that still parts do not flicker."""
    different = list({id(frame): frame for frame in frames}.values())
    stacked = Image.new("RGB", (frames[0].width // 3, sum(frame.height // 3 for frame in different)))
    for index, frame in enumerate(different):
        small = frame.resize((frame.width // 3, frame.height // 3), Image.Resampling.NEAREST)
        stacked.paste(small, (0, index * small.height))
    palette = stacked.quantize(256, Image.Quantize.FASTOCTREE)
    reduced = {id(frame): frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in different}
    return encode([reduced[id(frame)] for frame in frames], durations, "GIF", optimize=False, disposal=1)


def encode_webp(frames: Sequence[Image.Image], durations: Sequence[int]) -> bytes:
    """A looping WebP: smaller than the GIF and in full colour."""
    return encode(frames, durations, "WEBP", quality=75, method=1)


def encode(frames: Sequence[Image.Image], durations: Sequence[int], kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    first, *others = frames
    first.save(buffer, kind, save_all=True, append_images=others, duration=list(durations), loop=0, **options)
    return buffer.getvalue()


def encode_mp4(frames: Sequence[Image.Image], durations: Sequence[int], rounds: int = 2) -> bytes:
    """An H.264 film that plays anywhere, `rounds` times there and back; a frame that rests stands for several ticks."""
    av = open_encoder()
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=1000 // FRAME_MILLISECONDS, options={"preset": "veryfast"})
        # Chroma is halved, so both sides must be even.
        stream.width, stream.height = (side + side % 2 for side in frames[0].size)
        stream.pix_fmt, stream.thread_count = "yuv420p", 1
        for frame, duration in [*zip(frames, durations, strict=True)] * rounds:
            picture = frame.crop((0, 0, stream.width, stream.height))
            for _ in range(round(duration / FRAME_MILLISECONDS)):
                container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    return buffer.getvalue()


def open_encoder() -> Any:
    """PyAV with its H.264 encoder; UserError where it is not installed."""
    try:
        av = importlib.import_module("av")
        av.Codec("libx264", "w")
    except (ImportError, ValueError):
        raise UserError("--video mp4: there is no encoder; run pip install 'featgan[video]', or take webp") from None
    return av


ENCODERS: dict[str, Callable[[Sequence[Image.Image], Sequence[int]], bytes]] = {
    "gif": encode_gif,
    "webp": encode_webp,
    "mp4": encode_mp4,
}


def check_kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    """The wanted kinds, once each; UserError before anything is computed when one cannot be made."""
    for kind in kinds:
        if kind not in ENCODERS:
            raise UserError(f"--video {kind}: one of {', '.join(KINDS)} or none")
    if "mp4" in kinds:
        open_encoder()
    return tuple(dict.fromkeys(kinds))

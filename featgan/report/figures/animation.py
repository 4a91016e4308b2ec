"""Animations of a sweep, forward and backward, with the classifier's outputs on every frame: GIF, WebP or MP4."""

import importlib
import io
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from featgan.errors import UserError
from featgan.report.analysis.predictions import OutputSpec
from featgan.report.edits.rendering import RenderedSweep
from featgan.report.figures.animation_frames import draw_animation_frames

ANIMATION_KINDS = ("gif", "webp", "mp4")
FRAME_MILLISECONDS = 110
END_FRAME_MILLISECONDS = 440
"""Duration of the first and the last frame."""


def animate_sweep(
    rendering: RenderedSweep, kinds: Sequence[str], output_spec: OutputSpec | None = None
) -> dict[str, bytes]:
    """Return the content of a sweep's animations by kind, which is the file extension."""
    frames, durations = ping_pong_frames(draw_animation_frames(rendering, output_spec)) if kinds else ([], [])
    return {kind: ANIMATION_ENCODERS[kind](frames, durations) for kind in kinds}


def ping_pong_frames(frames: Sequence[Image.Image]) -> tuple[list[Image.Image], list[int]]:
    """Return the frames forward and backward without repeating the ends, and their durations in milliseconds."""
    order = [*range(len(frames)), *range(len(frames) - 2, 0, -1)]
    ends = {0, len(frames) - 1}
    return [frames[index] for index in order], [
        END_FRAME_MILLISECONDS if index in ends else FRAME_MILLISECONDS for index in order
    ]


def encode_gif(frames: Sequence[Image.Image], durations: Sequence[int]) -> bytes:
    """Encode a looping GIF with one palette for all frames, so that constant regions do not flicker."""
    unique_frames = list({id(frame): frame for frame in frames}.values())
    stacked = Image.new("RGB", (frames[0].width // 3, sum(frame.height // 3 for frame in unique_frames)))
    for index, frame in enumerate(unique_frames):
        small = frame.resize((frame.width // 3, frame.height // 3), Image.Resampling.NEAREST)
        stacked.paste(small, (0, index * small.height))
    palette = stacked.quantize(256, Image.Quantize.FASTOCTREE)
    quantized = {id(frame): frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in unique_frames}
    return encode_with_pillow([quantized[id(frame)] for frame in frames], durations, "GIF", optimize=False, disposal=1)


def encode_webp(frames: Sequence[Image.Image], durations: Sequence[int]) -> bytes:
    """Encode a looping WebP: smaller than the GIF and in full color."""
    return encode_with_pillow(frames, durations, "WEBP", quality=75, method=1)


def encode_with_pillow(
    frames: Sequence[Image.Image], durations: Sequence[int], image_format: str, **options: object
) -> bytes:
    buffer = io.BytesIO()
    first, *remaining = frames
    first.save(
        buffer, image_format, save_all=True, append_images=remaining, duration=list(durations), loop=0, **options
    )
    return buffer.getvalue()


def encode_mp4(frames: Sequence[Image.Image], durations: Sequence[int], num_loops: int = 2) -> bytes:
    """Encode an H.264 video with `num_loops` repetitions; a longer frame is repeated at the constant frame rate."""
    av = import_pyav()
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=1000 // FRAME_MILLISECONDS, options={"preset": "veryfast"})
        # Chroma is subsampled by two, so both sides must be even.
        stream.width, stream.height = (side + side % 2 for side in frames[0].size)
        stream.pix_fmt, stream.thread_count = "yuv420p", 1
        for frame, duration in [*zip(frames, durations, strict=True)] * num_loops:
            cropped = frame.crop((0, 0, stream.width, stream.height))
            for _ in range(round(duration / FRAME_MILLISECONDS)):
                container.mux(stream.encode(av.VideoFrame.from_image(cropped)))
        container.mux(stream.encode())
    return buffer.getvalue()


def import_pyav() -> Any:
    """Return PyAV. Raises UserError if PyAV or its H.264 encoder is not installed."""
    try:
        av = importlib.import_module("av")
        av.Codec("libx264", "w")
    except (ImportError, ValueError):
        raise UserError("--video mp4: no H.264 encoder found; run pip install 'featgan[video]', or use webp") from None
    return av


ANIMATION_ENCODERS: dict[str, Callable[[Sequence[Image.Image], Sequence[int]], bytes]] = {
    "gif": encode_gif,
    "webp": encode_webp,
    "mp4": encode_mp4,
}


def check_animation_kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    """Return the kinds without duplicates. Raises UserError if a kind is unknown or has no encoder."""
    for kind in kinds:
        if kind not in ANIMATION_ENCODERS:
            raise UserError(f"--video {kind}: not a kind of animation; use one of {', '.join(ANIMATION_KINDS)} or none")
    if "mp4" in kinds:
        import_pyav()
    return tuple(dict.fromkeys(kinds))

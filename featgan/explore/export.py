"""What can be saved of an edit: a labelled sheet as PNG, and the way there and back as GIF."""

import io
from dataclasses import replace

from torch import Tensor

from featgan.explore.edit_request import Ask
from featgan.explore.image_store import Picture, resize
from featgan.explore.loaded_run import LiveRun
from featgan.explore.prediction_bars import headline, read_outputs
from featgan.explore.session import Session, choose_scale, difference
from featgan.report.edits.rendering import difference_images
from featgan.report.figures.animation import encode_gif, there_and_back
from featgan.report.figures.grids import Column, labelled_grid
from featgan.system.images import to_float

NUM_FRAMES = 11
"""Of an animation, one way."""


def save_png(session: Session, ask: Ask) -> bytes:
    """The source, each run's edit with the box's answer, and what changed, beside each other."""
    picture, second = session.find(ask)
    columns = [source_column(session, picture)]
    edits = [(run, run.edit(ask, picture, second)) for run in session.runs]
    scale = choose_scale([difference(edited) for _, edited in edits])
    for run, edited in edits:
        answer = headline(run.answer, read_outputs(run.answer, edited.outputs)) if edited.outputs is not None else ""
        columns.append(Column(column_title(session, run, answer), edited.image[None], starts_group=True))
        change = difference_images(difference(edited), scale)
        columns.append(Column(f"difference, to {100 * scale:.0f} %", change[None]))
    buffer = io.BytesIO()
    labelled_grid(session.describe(ask), same_size(columns)).save(buffer, "PNG")
    return buffer.getvalue()


def save_gif(session: Session, ask: Ask) -> bytes:
    """From where the edit starts to what it asks for and back, the box's answer over each frame."""
    picture, second = session.find(ask)
    source = source_column(session, picture)
    ways = [(run, run.path_to(ask, picture, second, NUM_FRAMES)) for run in session.runs]
    answers = [read_frames(run, frames) for run, frames in ways]
    title = session.describe(ask)
    sheets = []
    for frame in range(NUM_FRAMES):
        columns = [
            Column(column_title(session, run, texts[frame]), frames[frame][None], starts_group=True)
            for (run, frames), texts in zip(ways, answers, strict=True)
        ]
        sheets.append(labelled_grid(title, same_size([source, *columns])))
    return encode_gif(*there_and_back(sheets))


def source_column(session: Session, picture: Picture) -> Column:
    return Column("source", picture.images[session.first.model.image_size][None])


def column_title(session: Session, run: LiveRun, answer: str) -> str:
    """The box's answer; with two runs their names stand before it."""
    parts = [run.name] if len(session.runs) > 1 else []
    return ": ".join([*parts, answer]) if answer else "".join(parts) or "edited"


def read_frames(run: LiveRun, frames: Tensor) -> list[str]:
    """The box's answer to every frame uint8 [T, 3, S, S]."""
    if run.box is None:
        return [""] * len(frames)
    _, outputs = run.box(to_float(frames))
    return [headline(run.answer, read_outputs(run.answer, row)) for row in outputs.float().cpu()]


def same_size(columns: list[Column]) -> list[Column]:
    """Columns of one picture each at the largest size, as a grid wants them; runs may be of different ones."""
    size = max(column.images.shape[-1] for column in columns)
    return [replace(column, images=resize(column.images[0], size)[None]) for column in columns]

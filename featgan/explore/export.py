"""Export of an edit: a labeled PNG image, or a GIF animation from the source's condition to the target and back."""

import io
from dataclasses import replace

from torch import Tensor

from featgan.explore.edit_request import EditRequest
from featgan.explore.image_store import StoredImage, resize_image
from featgan.explore.loaded_run import LoadedRun
from featgan.explore.prediction_bars import format_prediction, to_display_values
from featgan.explore.session import ExploreSession, choose_difference_scale, difference_map
from featgan.report.edits.rendering import difference_images
from featgan.report.figures.animation import encode_gif, ping_pong_frames
from featgan.report.figures.grids import GridColumn, draw_labeled_grid
from featgan.system.images import to_float

NUM_FRAMES = 11
"""Number of frames from the source's condition to the target."""


def export_png(session: ExploreSession, edit_request: EditRequest) -> bytes:
    """Return a PNG with the source and, for each run, the edit with its prediction and the difference map."""
    source_image, target_image = session.find_images(edit_request)
    columns = [build_source_column(session, source_image)]
    results = [(run, run.apply_edit(edit_request, source_image, target_image)) for run in session.runs]
    scale = choose_difference_scale([difference_map(edit_result) for _, edit_result in results])
    for run, edit_result in results:
        prediction = (
            format_prediction(run.output_spec, to_display_values(run.output_spec, edit_result.outputs))
            if edit_result.outputs is not None
            else ""
        )
        title = format_column_title(session, run, prediction)
        columns.append(GridColumn(title, edit_result.image[None], starts_group=True))
        difference_image = difference_images(difference_map(edit_result), scale)
        columns.append(GridColumn(f"difference, up to {100 * scale:.0f} %", difference_image[None]))
    buffer = io.BytesIO()
    draw_labeled_grid(session.edit_title(edit_request), resize_to_largest(columns)).save(buffer, "PNG")
    return buffer.getvalue()


def export_gif(session: ExploreSession, edit_request: EditRequest) -> bytes:
    """Return a GIF from the source's condition to the target and back, with the prediction above each frame."""
    source_image, target_image = session.find_images(edit_request)
    source_column = build_source_column(session, source_image)
    frames_by_run = [
        (run, run.interpolation_frames(edit_request, source_image, target_image, NUM_FRAMES)) for run in session.runs
    ]
    predictions = [predict_frames(run, frames) for run, frames in frames_by_run]
    title = session.edit_title(edit_request)
    sheets = []
    for index in range(NUM_FRAMES):
        columns = [
            GridColumn(format_column_title(session, run, texts[index]), frames[index][None], starts_group=True)
            for (run, frames), texts in zip(frames_by_run, predictions, strict=True)
        ]
        sheets.append(draw_labeled_grid(title, resize_to_largest([source_column, *columns])))
    return encode_gif(*ping_pong_frames(sheets))


def build_source_column(session: ExploreSession, source_image: StoredImage) -> GridColumn:
    """Return the column of the source image, at the image size of the first run."""
    return GridColumn("source", source_image.images_by_size[session.first_run.model.metadata.image_size][None])


def format_column_title(session: ExploreSession, run: LoadedRun, prediction: str) -> str:
    """Return the title of an edit's column: the prediction, after the run's name if there are two runs."""
    title_parts = [run.name] if len(session.runs) > 1 else []
    return ": ".join([*title_parts, prediction]) if prediction else "".join(title_parts) or "edited"


def predict_frames(run: LoadedRun, frames: Tensor) -> list[str]:
    """Return the prediction for every frame as text: uint8 [T, 3, S, S] => T texts, empty without a classifier."""
    if run.blackbox is None:
        return [""] * len(frames)
    _, outputs = run.blackbox(to_float(frames))
    return [
        format_prediction(run.output_spec, to_display_values(run.output_spec, row)) for row in outputs.float().cpu()
    ]


def resize_to_largest(columns: list[GridColumn]) -> list[GridColumn]:
    """Resize columns of one image each to the largest size among them, since the runs may differ in image size."""
    size = max(column.images.shape[-1] for column in columns)
    return [replace(column, images=resize_image(column.images[0], size)[None]) for column in columns]

"""The state of the page: one run, or two runs to compare, their images, and the result of an edit as JSON."""

import base64
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featgan.config.trusted_callables import NO_CALLABLES, TrustedCallables
from featgan.errors import UserError
from featgan.explore.edit_request import DisplayNames, EditRequest, describe_edit
from featgan.explore.image_store import ImageStore, StoredImage, ValidationImages
from featgan.explore.loaded_run import EditResult, LoadedRun, load_run
from featgan.explore.prediction_bars import build_output_bars, format_prediction, to_display_values
from featgan.report.edits.rendering import difference_images
from featgan.report.figures.grids import to_pil_image

DIFFERENCE_SCALES = (0.05, 0.1, 0.2, 0.4, 1.0)
"""Differences, as fractions of the value range, that the brightest pixel of a difference map can represent."""
MAX_SLIDERS = 128
"""Maximum number of component sliders on the page."""

JsonObject = dict[str, Any]
"""Part of a response to the page."""


@dataclass(frozen=True)
class ExploreSession:
    """One run, or two runs with the same kind of condition, and the images that can be edited."""

    runs: tuple[LoadedRun, ...]
    image_store: ImageStore

    @property
    def first_run(self) -> LoadedRun:
        return self.runs[0]

    @property
    def accepts_uploads(self) -> bool:
        """Whether at least one run can edit uploaded images."""
        return any(run.accepts_uploads for run in self.runs)

    @property
    def shares_feature_space(self) -> bool:
        """Whether component k is the same direction in all runs that have it."""
        spaces = [run.model.space for run in self.runs]
        known_spaces = [space for space in spaces if space is not None]
        if len(known_spaces) < len(spaces):
            return not known_spaces
        num_shared = min(space.num_components for space in known_spaces)
        first_space = known_spaces[0]
        return all(
            first_space.feature_dim == space.feature_dim
            and torch.allclose(first_space.components[:num_shared], space.components[:num_shared], atol=0.01)
            for space in known_spaces[1:]
        )

    def find_images(self, edit_request: EditRequest) -> tuple[StoredImage, StoredImage | None]:
        """Return the source image and the target image, if the request has one."""
        source_image = self.image_store.find_image(edit_request.image)
        target_id = edit_request.target_image
        return source_image, self.image_store.find_image(target_id) if target_id else None

    def edit_with_all_runs(self, edit_request: EditRequest) -> JsonObject:
        """Apply an edit with every run and return the results as JSON.

        Raises UserError if no run can apply it.
        """
        source_image, target_image = self.find_images(edit_request)
        results: list[EditResult | UserError] = []
        for run in self.runs:
            try:
                results.append(run.apply_edit(edit_request, source_image, target_image))
            except UserError as error:
                results.append(error)
        edit_results = [result for result in results if isinstance(result, EditResult)]
        if not edit_results:
            raise UserError(str(results[0]))
        scale = (
            choose_difference_scale([difference_map(edit_result) for edit_result in edit_results])
            if edit_request.include_difference
            else None
        )
        return {
            "scale": scale,
            "runs": [result_to_json(run, result, scale) for run, result in zip(self.runs, results, strict=True)],
        }

    def edit_title(self, edit_request: EditRequest) -> str:
        """Describe an edit in words, with the names of the first run."""
        run = self.first_run
        label_names = (
            run.label_spaces[edit_request.dataset].names if edit_request.dataset < len(run.label_spaces) else ()
        )
        class_names, output_names = run.model.metadata.class_names, run.output_spec.names
        return describe_edit(edit_request, DisplayNames(class_names, output_names, label_names, run.component_names))


def load_session(
    paths: Sequence[Path],
    steps: Sequence[int | None] = (),
    specs: Sequence[str | None] = (),
    trusted: TrustedCallables = NO_CALLABLES,
) -> ExploreSession:
    """Load the runs, each with its step and its classifier's SPEC if given.

    Raises UserError if a run cannot be loaded, or if two runs cannot be compared.
    """
    run_arguments = zip(paths, [*steps, None, None], [*specs, None, None], strict=False)
    runs = tuple(load_run(*arguments, trusted) for arguments in run_arguments)
    for other_run in runs[1:]:
        check_comparable(runs[0], other_run)
    sizes = sorted({run.model.metadata.image_size for run in runs})
    shards = runs[0].training_data.shards
    has_validation = shards is not None and shards.has_validation
    validation_images = ValidationImages(shards, runs[0].validation_rows, sizes) if shards and has_validation else None
    return ExploreSession(runs, ImageStore(validation_images, sizes))


def check_comparable(run: LoadedRun, other_run: LoadedRun) -> None:
    """Raise UserError unless both runs accept the same edit requests."""
    kind, other_kind = (
        compared_run.model.metadata.condition_kind.replace("_", " ") for compared_run in (run, other_run)
    )
    if kind != other_kind:
        raise UserError(
            f"{other_run.path}: was trained on {other_kind}, but {run.path} on {kind}; "
            "compare runs with the same kind of condition"
        )
    names, other_names = ([space.names for space in compared_run.label_spaces] for compared_run in (run, other_run))
    if names != other_names:
        raise UserError(
            f"{other_run.path}: was trained on other labels than {run.path}; compare runs with the same labels"
        )


def difference_map(edit_result: EditResult) -> Tensor:
    """Return |edited - unedited|, averaged over the color channels, as a fraction of the value range: float [S, S]."""
    return (edit_result.image.float() - edit_result.unedited_image.float()).abs().mean(0) / 255


def choose_difference_scale(maps: Sequence[Tensor]) -> float:
    """Return the smallest of DIFFERENCE_SCALES that covers 98 % of every map; all runs share it."""
    peak = max(float(torch.quantile(difference, 0.98)) for difference in maps)
    return next((scale for scale in DIFFERENCE_SCALES if peak <= scale), DIFFERENCE_SCALES[-1])


def result_to_json(run: LoadedRun, result: EditResult | UserError, scale: float | None) -> JsonObject:
    """Return the response for one run: images as data URIs, values, bars and predictions, or an error."""
    if isinstance(result, UserError):
        return {"error": str(result)}
    content: JsonObject = {
        "edited": png_data_uri(result.image),
        "target_progress": run.measure_target_progress(result),
        **values_to_json(run, result),
    }
    if scale is not None:
        content["difference"] = png_data_uri(difference_images(difference_map(result), scale))
    if result.outputs is not None and result.source_outputs is not None:
        values, source_values = (
            to_display_values(run.output_spec, outputs) for outputs in (result.outputs, result.source_outputs)
        )
        content["bars"] = [asdict(bar) for bar in build_output_bars(run.output_spec, values, source_values)]
        content["prediction"] = format_prediction(run.output_spec, values)
        content["source_prediction"] = format_prediction(run.output_spec, source_values)
    return content


def values_to_json(run: LoadedRun, edit_result: EditResult) -> JsonObject:
    """Return target, source and measured component values in standard deviations, or the target labels."""
    space = run.model.space
    if not run.is_feature_conditioned or space is None:
        has_known_labels = edit_result.source_values is not None
        return {"labels": round_values(edit_result.target_values[0]), "has_known_labels": has_known_labels}
    count = min(space.num_components, MAX_SLIDERS)
    named_values = {
        "target_values": edit_result.target_values,
        "source_values": edit_result.source_values,
        "measured_values": edit_result.features,
    }
    return {
        name: round_values(space.project(values)[0, :count])
        for name, values in named_values.items()
        if values is not None
    }


def round_values(values: Tensor) -> list[float]:
    """Round values [K] for JSON."""
    return [round(value, 3) for value in values.tolist()]


def encode_png(image: Tensor) -> bytes:
    """Encode uint8 [3, H, W] as PNG, with little compression, since it is only sent within this machine."""
    buffer = io.BytesIO()
    to_pil_image(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def png_data_uri(image: Tensor) -> str:
    """Encode uint8 [3, H, W] as a lossless data URI."""
    return "data:image/png;base64," + base64.b64encode(encode_png(image)).decode("ascii")

"""All that the page works with: one run or two to compare, their pictures, and what an edit shows of each."""

import base64
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featgan.errors import UserError
from featgan.explore.edit_request import Ask, Words, describe
from featgan.explore.image_store import Gallery, Picture, Pictures
from featgan.explore.loaded_run import Edited, LiveRun, open_run
from featgan.explore.prediction_bars import build_bars, headline, read_outputs
from featgan.report.edits.rendering import difference_images
from featgan.report.figures.grids import to_image

SCALES = (0.05, 0.1, 0.2, 0.4, 1.0)
"""Shares of the range that the brightest point of a difference map can stand for."""
MOST_SLIDERS = 128
"""Components that the page has sliders for."""

Shown = dict[str, Any]
"""What is sent to the page, ready for JSON."""


@dataclass(frozen=True)
class Session:
    """One run, or two of the same kind of condition."""

    runs: tuple[LiveRun, ...]
    pictures: Pictures

    @property
    def first(self) -> LiveRun:
        return self.runs[0]

    @property
    def takes_uploads(self) -> bool:
        return any(run.takes_uploads for run in self.runs)

    @property
    def shares_space(self) -> bool:
        """Whether component k means the same in all runs that have it."""
        spaces = [run.model.space for run in self.runs]
        known = [space for space in spaces if space is not None]
        if len(known) < len(spaces):
            return not known
        both = min(space.num_components for space in known)
        first = known[0]
        return all(
            first.feature_dim == space.feature_dim
            and torch.allclose(first.components[:both], space.components[:both], atol=0.01)
            for space in known[1:]
        )

    def find(self, ask: Ask) -> tuple[Picture, Picture | None]:
        """The picture that is edited, and the one whose features it is moved to."""
        return self.pictures.find(ask.picture), self.pictures.find(ask.second) if ask.second else None

    def edit(self, ask: Ask) -> Shown:
        """Carry an edit out with every run; UserError when none of them can."""
        picture, second = self.find(ask)
        outcomes: list[Edited | UserError] = []
        for run in self.runs:
            try:
                outcomes.append(run.edit(ask, picture, second))
            except UserError as error:
                outcomes.append(error)
        done = [outcome for outcome in outcomes if isinstance(outcome, Edited)]
        if not done:
            raise UserError(str(outcomes[0]))
        scale = choose_scale([difference(edited) for edited in done]) if ask.difference else None
        return {"scale": scale, "runs": [show(*each, scale) for each in zip(self.runs, outcomes, strict=True)]}

    def describe(self, ask: Ask) -> str:
        """What an edit asks for, in words."""
        run = self.first
        labels = run.labels[ask.dataset].names if ask.dataset < len(run.labels) else ()
        return describe(ask, Words(run.model.class_names, run.answer.names, labels, run.names))


def open_session(paths: Sequence[Path], steps: Sequence[int | None] = (), specs: Sequence[str | None] = ()) -> Session:
    """Load the runs, each with its step and its box's SPEC where given; UserError when they cannot be compared."""
    given = zip(paths, [*steps, None, None], [*specs, None, None], strict=False)
    runs = tuple(open_run(*each) for each in given)
    for other in runs[1:]:
        check_comparable(runs[0], other)
    sizes = sorted({run.model.image_size for run in runs})
    shards = runs[0].material.shards
    gallery = Gallery(shards, runs[0].usable, sizes) if shards is not None else None
    return Session(runs, Pictures(gallery, sizes))


def check_comparable(run: LiveRun, other: LiveRun) -> None:
    """UserError unless what is asked of one can be asked of the other."""
    kinds = [each.model.condition_kind.replace("_", " ") for each in (run, other)]
    if kinds[0] != kinds[1]:
        raise UserError(f"{other.path}: trained on {kinds[1]}, {run.path} on {kinds[0]}; compare runs of one kind")
    names = [[space.names for space in each.labels] for each in (run, other)]
    if names[0] != names[1]:
        raise UserError(f"{other.path}: trained on other labels than {run.path}; compare runs on the same labels")


def difference(edited: Edited) -> Tensor:
    """|edit - before| averaged over colours, as a share of the whole range: float [S, S]."""
    return (edited.image.float() - edited.before.float()).abs().mean(0) / 255


def choose_scale(maps: Sequence[Tensor]) -> float:
    """The smallest of SCALES that holds nearly every point of the maps; runs side by side share it."""
    peak = max(float(torch.quantile(each, 0.98)) for each in maps)
    return next((scale for scale in SCALES if peak <= scale), SCALES[-1])


def show(run: LiveRun, outcome: Edited | UserError, scale: float | None) -> Shown:
    """What the page shows of one run."""
    if isinstance(outcome, UserError):
        return {"error": str(outcome)}
    shown: Shown = {"edited": picture_uri(outcome.image), "shift": run.shift(outcome), **show_values(run, outcome)}
    if scale is not None:
        shown["difference"] = picture_uri(difference_images(difference(outcome), scale))
    if outcome.outputs is not None and outcome.source_outputs is not None:
        values, sources = (read_outputs(run.answer, each) for each in (outcome.outputs, outcome.source_outputs))
        shown["bars"] = [asdict(bar) for bar in build_bars(run.answer, values, sources)]
        shown["headline"], shown["source"] = headline(run.answer, values), headline(run.answer, sources)
    return shown


def show_values(run: LiveRun, edited: Edited) -> Shown:
    """Components asked for, the source's own and those measured, in deviations; or the labels asked for."""
    space = run.model.space
    if not run.on_features or space is None:
        return {"labels": rounded(edited.values[0]), "known": edited.own is not None}
    count = min(space.num_components, MOST_SLIDERS)
    rows = {"asked": edited.values, "own": edited.own, "measured": edited.features}
    return {name: rounded(space.project(row)[0, :count]) for name, row in rows.items() if row is not None}


def rounded(values: Tensor) -> list[float]:
    return [round(value, 3) for value in values.tolist()]


def encode_png(image: Tensor) -> bytes:
    """uint8 [3, H, W] => a PNG; little compression, since it only crosses the loopback."""
    buffer = io.BytesIO()
    to_image(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def picture_uri(image: Tensor) -> str:
    """uint8 [3, H, W] => a data address, exact to the bit."""
    return "data:image/png;base64," + base64.b64encode(encode_png(image)).decode("ascii")

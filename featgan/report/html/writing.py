"""The files beside the page: a labelled grid of every sweep, and animations of those that lie on one line."""

from collections.abc import Sequence
from pathlib import Path

from featgan.report.analysis.predictions import Answer
from featgan.report.edits.rendering import Rendering
from featgan.report.figures.animation import animate
from featgan.report.figures.grids import render_grid
from featgan.report.figures.thread_map import in_threads
from featgan.report.html.page import Report, build_page
from featgan.system.files import explain_write_errors, whole_folder, write_whole
from featgan.system.progress import console, meter

REMEDY = "free some space or make the folder writable, and run the command again"
MOST_BYTES = 12 << 20
"""A larger page still opens, but a remark says how to make it smaller."""


def write_renders(out: Path, report: Report, kinds: Sequence[str]) -> None:
    """Grids, and animations of the wanted kinds; the folder appears when all are written."""
    with (
        explain_write_errors(out, REMEDY),
        whole_folder(out, replace=True) as folder,
        meter("drawing", len(report.renderings), "directions") as bar,
    ):

        def write(rendering: Rendering) -> None:
            for name, content in draw(report, rendering, kinds, report.answer).items():
                write_whole(folder / name, content)
            bar.advance()

        in_threads(write, report.renderings)


def draw(report: Report, rendering: Rendering, kinds: Sequence[str], answer: Answer | None) -> dict[str, bytes]:
    """A sweep's files by name."""
    name = rendering.sweep.name
    films = animate(rendering, kinds, answer) if rendering.sweep.ordered else {}
    grid = render_grid(report.sources, rendering, report.scale)
    return {f"{name}.png": grid} | {f"{name}.{kind}": content for kind, content in films.items()}


def write_page(path: Path, report: Report) -> None:
    """The page, whole."""
    content = build_page(report).encode()
    if len(content) > MOST_BYTES:
        size = f"{len(content) / (1 << 20):.0f} MiB"
        console.print(f"{path}: {size}; fewer --num-images or --components make it smaller", markup=False)
    with explain_write_errors(path, REMEDY):
        write_whole(path, content)

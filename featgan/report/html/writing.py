"""Write the page and the files beside it: a labeled grid of every sweep and animations of the ordered sweeps."""

import logging
from collections.abc import Sequence
from pathlib import Path

from featgan.report.analysis.predictions import OutputSpec
from featgan.report.edits.rendering import RenderedSweep
from featgan.report.figures.animation import animate_sweep
from featgan.report.figures.grids import render_grid
from featgan.report.figures.thread_map import map_in_threads
from featgan.report.html.page import Report, build_report_page
from featgan.system.files import atomic_folder, atomic_write, user_friendly_write_errors
from featgan.system.progress import progress_bar

logger = logging.getLogger(__name__)

WRITE_ERROR_REMEDY = "free some space, then run the command again"
MAX_PAGE_BYTES = 12 << 20
"""Size above which a message explains how to make the page smaller."""


def write_renders(folder_path: Path, report: Report, kinds: Sequence[str]) -> None:
    """Write the grids, and the animations of these kinds; the folder appears when all files are written."""
    with (
        user_friendly_write_errors(folder_path, WRITE_ERROR_REMEDY),
        atomic_folder(folder_path, replace=True) as folder,
        progress_bar("drawing", len(report.renderings), "directions") as bar,
    ):

        def write_sweep_files(rendering: RenderedSweep) -> None:
            for name, content in draw_sweep_files(report, rendering, kinds, report.output_spec).items():
                atomic_write(folder / name, content)
            bar.advance()

        map_in_threads(write_sweep_files, report.renderings)


def draw_sweep_files(
    report: Report, rendering: RenderedSweep, kinds: Sequence[str], output_spec: OutputSpec | None
) -> dict[str, bytes]:
    """Return the content of a sweep's files by name."""
    name = rendering.sweep.name
    animations = animate_sweep(rendering, kinds, output_spec) if rendering.sweep.is_ordered else {}
    grid = render_grid(report.sources, rendering, report.scale)
    return {f"{name}.png": grid} | {f"{name}.{kind}": content for kind, content in animations.items()}


def write_page(path: Path, report: Report) -> None:
    """Write the page atomically."""
    content = build_report_page(report).encode()
    if len(content) > MAX_PAGE_BYTES:
        size = f"{len(content) / (1 << 20):.0f} MiB"
        logger.info(f"{path}: the page has {size}; reduce --num-images or --num-components to make it smaller")
    with user_friendly_write_errors(path, WRITE_ERROR_REMEDY):
        atomic_write(path, content)

"""`featgan bench render`: a report with a sweep of every component, against its forward passes alone."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from featgan.bench.forward_passes import (
    UNTRAINED_CLASSIFIER,
    ForwardPassRecorder,
    make_run,
    make_shards,
    patched_functions,
    time_calls,
)
from featgan.bench.results import BenchmarkResults, BenchmarkRow, Goal, ResultTable
from featgan.bench.timing import CostSamples, time_interleaved
from featgan.config.trusted_callables import trust_given_specs
from featgan.report import render as rendering
from featgan.report.edits.sweeps import FILM_QUANTILES

STAGES = {
    "open_render_inputs": "open the model, the shards and the classifier",
    "choose_sources": "decode the sources",
    "render_sweep": "edit and classify",
    "build_report": "compute the report's contents",
    "write_renders": "draw grids and animations into renders/",
    "write_page": "encode images, write the page",
}
"""Stages of rendering, by the name of the function in featgan.report.render."""

MAX_REPEATS = 3
"""Maximum number of timed repetitions, since rendering is slow."""


def run_benchmark(image_size: int, num_images: int, num_components: int, dim: int, repeats: int) -> BenchmarkResults:
    """Measure the rendering of a generator after one training step; the content of the images does not matter."""
    with tempfile.TemporaryDirectory(prefix="featgan-bench-") as folder:
        shards = make_shards(Path(folder), max(num_images, 100), image_size)
        row, table = measure_report(
            make_run(Path(folder), shards, UNTRAINED_CLASSIFIER, dim), num_images, num_components, repeats
        )
    settings = {"image_size": image_size, "num_images": num_images, "num_components": num_components, "dim": dim}
    return BenchmarkResults("render", [row], settings, [table])


def measure_report(
    run_dir: Path, num_images: int, num_components: int, repeats: int
) -> tuple[BenchmarkRow, ResultTable]:
    """Time the stages of a report; a first report counts the forward passes."""
    render_report = partial(
        rendering.render_run,
        run_dir,
        directions=("quantiles",),
        num_images=num_images,
        num_components=num_components,
        trusted=trust_given_specs([UNTRAINED_CLASSIFIER]),
    )
    recorder, seconds = ForwardPassRecorder(), dict[str, float]()
    with recorder.record_passes():
        render_report()
    variants: dict[str, Callable[[], object]] = {
        "fast": render_report,
        "upper bound": recorder.prepare_replay(run_dir, UNTRAINED_CLASSIFIER),
    }
    replacements = {(rendering, name): time_calls(getattr(rendering, name), seconds, name) for name in STAGES}
    num_repeats = min(repeats, MAX_REPEATS)
    with patched_functions(replacements):
        samples = time_interleaved(variants, num_repeats, warmups=0)
    stage_rows = build_stage_rows(seconds, num_repeats, samples)
    row = BenchmarkRow(
        f"render: {num_images} images x {num_components} components x {len(FILM_QUANTILES)} frames",
        samples["fast"],
        upper_bound=samples["upper bound"],
        goals=(Goal("overhead", 1.3),),
        upper_bound_name=str(recorder),
        note=", ".join(f"{name} {share}" for name, _, share in stage_rows[:-2]),
    )
    return row, ResultTable("Time per stage of a report", ("stage", "seconds", "share"), stage_rows)


def build_stage_rows(
    seconds: dict[str, float], num_repeats: int, samples: dict[str, CostSamples]
) -> tuple[tuple[str, ...], ...]:
    """Return the mean time of each stage and its share of the total."""
    total_seconds = sum(samples["fast"].values)
    stages = {STAGES[name]: spent for name, spent in seconds.items()}
    stages |= {"everything else": total_seconds - sum(stages.values()), "total": total_seconds}
    rows = [
        (name, f"{spent / num_repeats:.2f}", f"{100 * spent / total_seconds:.0f} %") for name, spent in stages.items()
    ]
    pass_seconds = sum(samples["upper bound"].values)
    return (
        *rows,
        ("forward passes only", f"{pass_seconds / num_repeats:.2f}", f"{100 * pass_seconds / total_seconds:.0f} %"),
    )

"""`featgan bench explore`: one slider update of the interactive page against its forward passes alone."""

import tempfile
from functools import partial
from pathlib import Path

from featgan.bench.forward_passes import UNTRAINED_CLASSIFIER, ForwardPassRecorder, make_run, make_shards
from featgan.bench.results import BenchmarkResults, BenchmarkRow, Goal
from featgan.bench.timing import scale_samples, time_interleaved
from featgan.config.trusted_callables import trust_given_specs
from featgan.explore.edit_request import EditRequest
from featgan.explore.session import ExploreSession, load_session

NUM_SLIDER_STEPS = 5
"""Number of slider updates per repetition, each with a different value."""


def run_benchmark(image_size: int, dim: int, repeats: int) -> BenchmarkResults:
    """Measure edits of a generator after one training step; the content of the images does not matter."""
    with tempfile.TemporaryDirectory(prefix="featgan-bench-") as folder:
        path = make_run(Path(folder), make_shards(Path(folder), 100, image_size), UNTRAINED_CLASSIFIER, dim)
        row = measure_slider_step(
            load_session([path], trusted=trust_given_specs([UNTRAINED_CLASSIFIER])), path, repeats
        )
    return BenchmarkResults("explore", [row], {"image_size": image_size, "dim": dim})


def measure_slider_step(session: ExploreSession, run_dir: Path, repeats: int) -> BenchmarkRow:
    """Measure the time from a new component value to the response: image, difference map and prediction."""
    image_id = session.image_store.sample(1)[0].id
    edit_requests = [
        EditRequest(client_id="bench", image=image_id, component_values={0: float(value)}, include_difference=True)
        for value in range(NUM_SLIDER_STEPS)
    ]
    session.edit_with_all_runs(edit_requests[0])  # caches the features of the source
    recorder = ForwardPassRecorder()
    with recorder.record_passes():
        drag_slider(session, edit_requests)
    samples = time_interleaved(
        {
            "fast": partial(drag_slider, session, edit_requests),
            "upper bound": recorder.prepare_replay(run_dir, UNTRAINED_CLASSIFIER),
        },
        repeats,
    )
    return BenchmarkRow(
        "explore: one slider step",
        scale_samples(samples["fast"], 1 / NUM_SLIDER_STEPS),
        upper_bound=scale_samples(samples["upper bound"], 1 / NUM_SLIDER_STEPS),
        goals=(Goal("value", 0.2),),
        upper_bound_name=str(recorder),
    )


def drag_slider(session: ExploreSession, edit_requests: list[EditRequest]) -> None:
    """Apply edit requests one after the other, as when a slider is dragged."""
    for edit_request in edit_requests:
        session.edit_with_all_runs(edit_request)

"""Training logs: mean scalars, throughput and sample grids, for the progress bar, metrics.jsonl and TensorBoard."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torchvision.utils import make_grid

from featgan.config.loading import flatten_mapping, to_yaml
from featgan.config.metric_specs import HPARAM_METRICS
from featgan.data.loader import Batch
from featgan.errors import UserError
from featgan.run.metrics_log import MeanAccumulator, MetricsLog
from featgan.system.images import to_float, to_uint8
from featgan.system.profiling import profile_steps
from featgan.system.progress import progress_bar
from featgan.training.state import TrainState

NUM_SAMPLES = 8
"""Number of source images in a sample grid."""


class ThroughputTimer:
    """Measures images per second and the share of time spent waiting for data, since the last reset."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.start_time, self.data_wait_seconds, self.num_images = time.perf_counter(), 0.0, 0

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Count the time spent in this block as waiting for data."""
        start = time.perf_counter()
        yield
        self.data_wait_seconds += time.perf_counter() - start

    def add_images(self, num_images: int) -> None:
        self.num_images += num_images

    def pop_throughput(self) -> dict[str, float]:
        """Return the throughput since the last reset, then reset."""
        elapsed = time.perf_counter() - self.start_time
        throughput = {
            "speed/images_per_second": self.num_images / elapsed,
            "speed/data_wait_share": self.data_wait_seconds / elapsed,
        }
        self.reset()
        return throughput


class TrainingLogger:
    """Logs a training run to the progress bar, metrics.jsonl and TensorBoard; only the main process writes."""

    def __init__(
        self, state: TrainState, run_dir: Path, first_step: int, sample_batch: Batch, profile: bool = False
    ) -> None:
        self.state = state
        self.run = run_dir
        self.first_step = first_step
        self.sample_batch = sample_batch
        self.is_profiling = profile and state.context.is_main
        self.profiler_step: Callable[[], None] = lambda: None
        self.scalar_means, self.timer = MeanAccumulator(), ThroughputTimer()
        self.exit_stack = ExitStack()

    def __enter__(self) -> "TrainingLogger":
        steps, is_main = self.state.config.training.steps, self.state.context.is_main
        self.progress_bar = self.exit_stack.enter_context(
            progress_bar("train", steps, "steps", self.first_step, is_shown=is_main)
        )
        self.metrics_log = MetricsLog(self.run, self.first_step) if is_main else None
        if self.metrics_log:
            self.exit_stack.callback(self.metrics_log.close)
            self.metrics_log.add_text("configuration", to_yaml(self.state.config))
            self.metrics_log.add_hparams(flatten_mapping(self.state.config.model_dump(mode="json")), HPARAM_METRICS)
        if self.is_profiling:
            self.profiler_step = self.exit_stack.enter_context(profile_steps(self.run))
        return self

    def __exit__(self, *exception_info: object) -> None:
        self.exit_stack.close()

    def add_scalars(self, prefix: str, scalars: Mapping[str, Tensor]) -> None:
        """Add the scalars of one step to the means logged as `prefix/name`."""
        self.scalar_means.add(prefix, scalars)

    def on_step_end(self) -> None:
        """Count a completed step."""
        self.timer.add_images(self.state.config.training.batch_size)
        self.progress_bar.advance()
        self.profiler_step()

    def log_scalars(self, step: int) -> None:
        """Log the means since the last call. Raises UserError if one of them is NaN or infinite."""
        scalars = self.scalar_means.pop_means(self.state.context.all_reduce_mean) | self.timer.pop_throughput()
        check_finite(scalars, step)
        self.progress_bar.set_note(f"{scalars['speed/images_per_second']:.0f} images/s")
        if self.metrics_log:
            self.metrics_log.write_scalars(step, scalars)

    def log_samples(self, step: int) -> None:
        """Log a sample grid, made from the same source images at every step."""
        if self.metrics_log:
            self.metrics_log.add_image(
                step, "samples", sample_grid(self.state, self.sample_batch.to(self.state.context.device))
            )


def check_finite(scalars: Mapping[str, float], step: int) -> None:
    """Raise UserError if a scalar is NaN or infinite, so that no checkpoint of a diverged run is saved."""
    for name, value in scalars.items():
        if not math.isfinite(value):
            raise UserError(
                f"step {step}: {name} is {value}: training has diverged; lower optimizer.generator_lr and "
                "optimizer.discriminator_lr, or set optimizer.max_grad_norm (the last checkpoint was kept)"
            )


@torch.no_grad()
def sample_grid(state: TrainState, sample_batch: Batch) -> Tensor:
    """Return a uint8 image [3, H, W] with four rows.

    The rows are the sources x, the edits G(x, c_target), the reconstructions G(x, c_source), and the cycles
    G(G(x, c_target), c_source).
    """
    x_real = to_float(sample_batch.images[:NUM_SAMPLES])
    source = state.condition_layout.embed(sample_batch.condition[:NUM_SAMPLES], sample_batch.dataset)
    target = state.condition_layout.embed(sample_batch.condition_target[:NUM_SAMPLES], sample_batch.dataset)
    generator = state.ema.module
    x_fake = generator(x_real, state.condition_input(target, source))
    x_identity = generator(x_real, state.condition_input(source, source))
    x_cycled = generator(x_fake, state.condition_input(source, target))
    rows = torch.cat([x_real, x_fake, x_identity, x_cycled])
    return make_grid(to_uint8(rows).cpu(), nrow=len(x_real), padding=1)

"""Scalars of a run: averaged on the device, then written to metrics.jsonl and TensorBoard."""

import hashlib
import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from featgan.system.files import check_regular_mode, name_file_in_errors, open_for_append
from featgan.system.json_files import parse_line, read_lines, report_skipped

logger = logging.getLogger(__name__)

MAX_BLOCK_BYTES = 1 << 20
"""Size of a write to metrics.jsonl in bytes, except for longer lines."""

EVALUATION_TAG = "evaluation"
"""TensorBoard sub-folder of a run's evaluations, and prefix of the names of their metrics."""


class MeanAccumulator:
    """Means of scalars over the steps since the last reset, accumulated without waiting for the device."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, prefix: str, scalars: Mapping[str, Tensor]) -> None:
        """Add zero-dimensional tensors to the means named `prefix/name`."""
        for name, value in scalars.items():
            key = f"{prefix}/{name}"
            self.sums[key] = self.sums.get(key, torch.zeros_like(value, dtype=torch.float64)) + value.detach()
            self.counts[key] = self.counts.get(key, 0) + 1

    def pop_means(self, reduce_mean: Callable[[Tensor], Tensor] = torch.Tensor.cpu) -> dict[str, float]:
        """Return the means over the steps and the processes, then reset; all processes must have the same names."""
        keys = list(self.sums)
        means = [self.sums[key].cpu() / self.counts[key] for key in keys]
        self.sums, self.counts = {}, {}
        return dict(zip(keys, reduce_mean(torch.stack(means)).tolist(), strict=True)) if means else {}


class MetricsLog:
    """Writes a run's metrics.jsonl and TensorBoard files; entries after the step to resume from are dropped."""

    def __init__(self, run_dir: Path, resume_step: int) -> None:
        self.path = run_dir / "metrics.jsonl"
        self.truncate_after(resume_step)
        if not resume_step:  # otherwise TensorBoard would show the settings of an earlier start
            for old_events in (run_dir / "tensorboard").glob("events.*"):
                old_events.unlink()
        self.tensorboard_folder = run_dir / "tensorboard"
        self.deferred_errors = ExitStack()
        self.deferred_errors.enter_context(defer_writer_errors())
        with name_file_in_errors(self.tensorboard_folder):
            self.summary_writer = SummaryWriter(
                str(self.tensorboard_folder), purge_step=resume_step + 1 if resume_step else None
            )

    @contextmanager
    def open_writer(self) -> Iterator[SummaryWriter]:
        """Yield the TensorBoard writer; errors of its thread, which the next call raises, name the folder."""
        with name_file_in_errors(self.tensorboard_folder):
            yield self.summary_writer

    def restore_writer(self) -> None:
        """Start a new TensorBoard file if the folder was removed; the open file would be written without a name."""
        if not any(self.tensorboard_folder.glob("events.*")):
            logger.warning(f"{self.tensorboard_folder}: was removed; writing a new one, with the values from now on")
            self.summary_writer.close()
            self.summary_writer = SummaryWriter(str(self.tensorboard_folder))

    def truncate_after(self, step: int) -> None:
        """Keep the lines up to `step`, and drop a line that was not written completely.

        The file is renamed first. An evaluation that appends its line meanwhile detects this and appends it again.
        """
        if self.path.exists():
            check_regular_mode(self.path, self.path.stat().st_mode)
            self.path.replace(self.path.with_suffix(f".{time.time_ns()}.former"))
        backups = sorted(
            self.path.parent.glob(f"{self.path.stem}.*.former")
        )  # also those left by a process that was killed
        if backups:
            with name_file_in_errors(self.path), self.path.open("ab", buffering=0) as file:
                for lines in join_lines(select_lines(backups, self.path, step)):
                    file.write(lines)
        for former in backups:
            former.unlink()

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Append a line to metrics.jsonl, and add the value of every scalar to TensorBoard."""
        append_metrics_line(self.path.parent, step, scalars)
        self.restore_writer()
        with self.open_writer() as writer:
            for name, value in scalars.items():
                writer.add_scalar(name, value, step)

    def add_image(self, step: int, name: str, image: Tensor) -> None:
        """Write a uint8 image [3, H, W] to TensorBoard."""
        self.restore_writer()
        with self.open_writer() as writer:
            writer.add_image(name, image, step)

    def add_text(self, name: str, text: str) -> None:
        """Write a text to TensorBoard, shown verbatim."""
        with self.open_writer() as writer:
            writer.add_text(name, f"```\n{text}\n```")

    def add_hparams(self, values: Mapping[str, Any], metric_names: Sequence[str]) -> None:
        """Write the run's row of TensorBoard's hyperparameter table, with columns for metrics of later evaluations.

        `SummaryWriter.add_hparams` would require the values of the metrics now, and create a separate run for the row.
        """
        hparam_values = {
            key: value if type(value) in (int, float, str) else str(value) for key, value in values.items()
        }
        experiment, start, _ = hparams(hparam_values, dict.fromkeys(metric_names, 0.0))
        content = experiment.value[0].metadata.plugin_data
        data = HParamsPluginData.FromString(content.content)
        for column in data.experiment.metric_infos:
            column.display_name = column.name.tag
            column.name.tag, column.name.group = f"{EVALUATION_TAG}/{column.name.tag}", EVALUATION_TAG
        content.content = data.SerializeToString()
        with self.open_writer() as writer:
            for summary in (experiment, start):
                writer._get_file_writer().add_summary(summary)

    def close(self) -> None:
        try:
            with name_file_in_errors(self.tensorboard_folder):
                self.summary_writer.close()
        finally:
            self.deferred_errors.close()


@contextmanager
def defer_writer_errors() -> Iterator[None]:
    """Do not print errors of TensorBoard's writer threads, since the next write or the close raises them again."""
    previous_excepthook = threading.excepthook

    def print_other_error(failure: threading.ExceptHookArgs) -> None:
        if not type(failure.thread).__module__.startswith("tensorboard."):
            previous_excepthook(failure)

    threading.excepthook = print_other_error
    try:
        yield
    finally:
        threading.excepthook = previous_excepthook


def select_lines(paths: Sequence[Path], log_path: Path, step: int) -> Iterator[bytes]:
    """Yield the different lines of several logs up to `step`, and report the damaged lines of the log.

    Only the hash of each line is kept, since a log can have a million lines.
    """
    seen: set[bytes] = set()
    num_damaged = 0
    for line in (line.rstrip(b"\r\n") for path in paths for line in read_lines(path)):
        line_hash = hashlib.blake2b(line, digest_size=16).digest()
        if not line or line_hash in seen:
            continue
        seen.add(line_hash)
        line_step = parse_line_step(line)
        num_damaged += math.isinf(line_step)
        if line_step <= step:
            yield line + b"\n"
    if num_damaged:
        report_skipped(log_path, f"{num_damaged} damaged lines")


def join_lines(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield blocks of whole lines, since an evaluation may append a line between two writes."""
    block = bytearray()
    for line in lines:
        block += line
        if len(block) >= MAX_BLOCK_BYTES:
            yield bytes(block)
            block.clear()
    yield bytes(block)


def append_metrics_line(run_dir: Path, step: int, scalars: Mapping[str, float]) -> None:
    """Append a line to a run's metrics.jsonl in one write, since training and evaluation may write at the same time."""
    line, path = json.dumps({"step": step, **scalars}) + "\n", run_dir / "metrics.jsonl"
    is_written = False
    while not is_written:
        with open_for_append(path) as descriptor:
            os.write(descriptor, line.encode())
            # A training that starts may just have renamed this file, and may or may not have read the line.
            is_written = is_same_file(path, descriptor)


def is_same_file(path: Path, descriptor: int) -> bool:
    """Return whether an open file is still the one at `path`; opening it queries the server of a shared file system."""
    try:
        with path.open("rb") as file:
            return os.path.sameopenfile(file.fileno(), descriptor)
    except FileNotFoundError:
        return False


def parse_line_step(line: bytes) -> float:
    """Return the step of a line of metrics.jsonl; infinity if the line is damaged."""
    step = (parse_line(line) or {}).get("step")
    return float(step) if isinstance(step, int | float) and math.isfinite(step) else math.inf

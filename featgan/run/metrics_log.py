"""Scalars of a run: gathered on the device, written to metrics.jsonl and TensorBoard every so many steps."""

import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

EVALUATION = "evaluation"
"""Where TensorBoard finds a run's evaluations, as a folder below the run's own and before the names of measures."""


class Accumulator:
    """Means of scalars over the steps since the last report, without waiting for the device."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, prefix: str, scalars: Mapping[str, Tensor]) -> None:
        """Count zero-dimensional tensors under `prefix/name`."""
        for name, value in scalars.items():
            key = f"{prefix}/{name}"
            self.sums[key] = self.sums.get(key, torch.zeros_like(value, dtype=torch.float64)) + value.detach()
            self.counts[key] = self.counts.get(key, 0) + 1

    def means(self, over_processes: Callable[[Tensor], Tensor] = torch.Tensor.cpu) -> dict[str, float]:
        """The means so far, and over the processes, which have counted alike; counting starts anew."""
        keys = list(self.sums)
        means = [self.sums[key].cpu() / self.counts[key] for key in keys]
        self.sums, self.counts = {}, {}
        return dict(zip(keys, over_processes(torch.stack(means)).tolist(), strict=True)) if means else {}


class Journal:
    """A run's metrics.jsonl and TensorBoard files; what lies after the step that a run resumes at is dropped."""

    def __init__(self, run: Path, resumed_at: int) -> None:
        self.path = run / "metrics.jsonl"
        self.cut(resumed_at)
        if not resumed_at:  # the board would show the settings of the first of several beginnings
            for former in (run / "tensorboard").glob("events.*"):
                former.unlink()
        self.hook, threading.excepthook = threading.excepthook, self.leave_to_next_write
        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=resumed_at + 1 if resumed_at else None)

    def cut(self, step: int) -> None:
        """Keep the lines up to `step`; a line that a kill left half-written is dropped as well.

        The file is set aside first: an evaluation that adds its line meanwhile notices that, and adds it again.
        """
        if self.path.exists():
            os.replace(self.path, self.path.with_suffix(f".{time.time_ns()}.former"))
        formers = sorted(self.path.parent.glob(f"{self.path.stem}.*.former"))  # also of a cut that was killed
        lines = [line for former in formers for line in former.read_text().splitlines()]
        kept = [line for line in dict.fromkeys(lines) if line_step(line) <= step]
        if formers:
            with self.path.open("ab", buffering=0) as file:
                file.write("".join(line + "\n" for line in kept).encode())
        for former in formers:
            former.unlink()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """One line, and one point a scalar."""
        append_line(self.path.parent, step, scalars)
        for name, value in scalars.items():
            self.board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: Tensor) -> None:
        """A uint8 picture [3, H, W]."""
        self.board.add_image(name, image, step)

    def text(self, name: str, text: str) -> None:
        """A text, shown as it is."""
        self.board.add_text(name, f"```\n{text}\n```")

    def settings(self, values: Mapping[str, Any], measures: Sequence[str]) -> None:
        """The run's row among the hyper-parameters, with columns for measures that its evaluations will fill.

        `add_hparams` would ask for their values now, and keep the row in a run of its own.
        """
        plain = {key: value if type(value) in (int, float, str) else str(value) for key, value in values.items()}
        experiment, start, _ = hparams(plain, dict.fromkeys(measures, 0.0))
        content = experiment.value[0].metadata.plugin_data
        data = HParamsPluginData.FromString(content.content)
        for column in data.experiment.metric_infos:
            column.display_name = column.name.tag
            column.name.tag, column.name.group = f"{EVALUATION}/{column.name.tag}", EVALUATION
        content.content = data.SerializeToString()
        for summary in (experiment, start):
            self.board._get_file_writer().add_summary(summary)

    def close(self) -> None:
        try:
            self.board.close()
        finally:
            threading.excepthook = self.hook

    def leave_to_next_write(self, failure: threading.ExceptHookArgs) -> None:
        """TensorBoard writes in a thread; a full disk, say, is raised at the next write, without a traceback before."""
        if not type(failure.thread).__module__.startswith("tensorboard."):
            self.hook(failure)


def append_line(run: Path, step: int, scalars: Mapping[str, float]) -> None:
    """One more line of a run's metrics.jsonl, written at once: training and evaluation may both be at it."""
    line, path = json.dumps({"step": step, **scalars}) + "\n", run / "metrics.jsonl"
    is_kept = False
    while not is_kept:
        with path.open("ab", buffering=0) as file:
            file.write(line.encode())
            # A training that begins may just have set this file aside: whether it has seen the line is not known.
            is_kept = is_at(path, file.fileno())


def is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is still the one at a path; opening it asks the server of a shared file system."""
    try:
        with path.open("rb") as file:
            return os.path.sameopenfile(file.fileno(), descriptor)
    except FileNotFoundError:
        return False


def line_step(line: str) -> float:
    """The step of a line of metrics.jsonl; infinite where the line is damaged."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")

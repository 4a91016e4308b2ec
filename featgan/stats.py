"""Scalars of a run: gathered on the device, written to metrics.jsonl and TensorBoard every so many steps."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter


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

    def means(self) -> dict[str, float]:
        """The means so far; counting starts anew."""
        means = {key: float(total) / self.counts[key] for key, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means


class Journal:
    """A run's metrics.jsonl and TensorBoard files; lines after the step that a run resumes at are dropped."""

    def __init__(self, run: Path, resumed_at: int) -> None:
        self.path = run / "metrics.jsonl"
        self.cut(resumed_at)
        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=resumed_at + 1 if resumed_at else None)

    def cut(self, step: int) -> None:
        """Keep the lines up to `step`; a line that a kill left half-written is dropped as well."""
        if not self.path.exists():
            return
        kept = [line for line in self.path.read_text().splitlines() if line_step(line) <= step]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in kept))
        os.replace(temporary, self.path)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """One line, and one point a scalar."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **scalars}) + "\n")
        for name, value in scalars.items():
            self.board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: Tensor) -> None:
        """A uint8 picture [3, H, W]."""
        self.board.add_image(name, image, step)

    def text(self, name: str, text: str) -> None:
        """A text, shown as it is."""
        self.board.add_text(name, f"```\n{text}\n```")

    def close(self) -> None:
        self.board.close()


def line_step(line: str) -> float:
    """The step of a line of metrics.jsonl; infinite where the line is damaged."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")

"""What a run shows of itself while it trains: means of scalars, speed, grids of samples."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torchvision.utils import make_grid

from featgan.config.loading import flatten, to_yaml
from featgan.data.loader import Batch
from featgan.errors import UserError
from featgan.run.metrics_log import Accumulator, Journal
from featgan.system.images import to_float, to_uint8
from featgan.system.profiling import profiled
from featgan.system.progress import console, meter
from featgan.training.state import Game

PREVIEW = 8
"""Source images of a grid of samples."""

HEADLINES = (
    "shift_aggregate",
    "ccc",
    "label_agreement",
    "attribute_agreement",
    "monotonicity",
    "frechet_edited",
    "self_l1",
)
"""Measures of an evaluation that stand beside the settings in TensorBoard's table of runs."""


class Clock:
    """Images a second, and the share of the time spent waiting for data, since the last report."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.start, self.waited, self.images = time.perf_counter(), 0.0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent here is waiting for data."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def count(self, images: int) -> None:
        self.images += images

    def rates(self) -> dict[str, float]:
        """The figures; counting starts anew."""
        passed = time.perf_counter() - self.start
        rates = {"speed/images_per_second": self.images / passed, "speed/data_wait_share": self.waited / passed}
        self.restart()
        return rates


class Recorder:
    """What a run shows of itself while it trains: the bar, metrics.jsonl, TensorBoard; the main process writes."""

    def __init__(self, game: Game, run: Path, first_step: int, preview: Batch, profile: bool = False) -> None:
        self.game = game
        self.run = run
        self.first_step = first_step
        self.preview = preview
        self.profile = profile and game.engine.is_main
        self.after_step: Callable[[], None] = lambda: None
        self.averages, self.clock = Accumulator(), Clock()
        self.stack = ExitStack()

    def __enter__(self) -> "Recorder":
        steps, is_main = self.game.config.training.steps, self.game.engine.is_main
        self.bar = self.stack.enter_context(meter("train", steps, "steps", self.first_step, shown=is_main))
        self.journal = Journal(self.run, self.first_step) if is_main else None
        if self.journal:
            self.stack.callback(self.journal.close)
            self.journal.text("configuration", to_yaml(self.game.config))
            self.journal.settings(flatten(self.game.config.model_dump(mode="json")), HEADLINES)
        if self.profile:
            self.after_step = self.stack.enter_context(profiled(self.run, console))
        return self

    def __exit__(self, *details: object) -> None:
        self.stack.close()

    def count(self) -> None:
        """A step is done."""
        self.clock.count(self.game.config.training.batch_size)
        self.bar.advance()
        self.after_step()

    def report(self, step: int) -> None:
        """The means since the last report; UserError when one is no number."""
        scalars = self.averages.means(self.game.engine.mean) | self.clock.rates()
        check_finite(scalars, step)
        self.bar.note(f"{scalars['speed/images_per_second']:.0f} images/s")
        if self.journal:
            self.journal.write(step, scalars)

    def show(self, step: int) -> None:
        """A grid of samples of the same images at every step."""
        if self.journal:
            self.journal.picture(step, "samples", sample_grid(self.game, self.preview.to(self.game.engine.device)))


def check_finite(scalars: Mapping[str, float], step: int) -> None:
    """A loss that is no number ends the run in one line, before a checkpoint of it is saved."""
    for name, value in scalars.items():
        if not math.isfinite(value):
            raise UserError(
                f"step {step}: {name} is {value}; training has diverged: lower optimizer.generator_rate and "
                "optimizer.discriminator_rate, or set optimizer.clip_norm; the last checkpoint is kept"
            )


@torch.no_grad()
def sample_grid(game: Game, preview: Batch) -> Tensor:
    """A uint8 picture [3, H, W]: a row of sources, of edits to the batch's targets, of reconstructions."""
    images = to_float(preview.images[:PREVIEW])
    source = game.layout.embed(preview.condition[:PREVIEW], preview.dataset)
    target = game.layout.embed(preview.condition_target[:PREVIEW], preview.dataset)
    generator = game.average.network
    edited, kept = (generator(images, game.ask(wanted, source)) for wanted in (target, source))
    rows = torch.cat([images, edited, kept, generator(edited, game.ask(source, target))])
    return make_grid(to_uint8(rows).cpu(), nrow=len(images), padding=1)

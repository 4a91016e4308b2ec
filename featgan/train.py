"""Training: the loop of StarGAN with a continuous condition; it reads like the objective in docs/method.md."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torchvision.utils import make_grid

from featgan.checkpoint import newest_checkpoint
from featgan.conditions import describe
from featgan.config import Config, differences, read_yaml, to_yaml, validate
from featgan.data.files import write_whole
from featgan.data.loader import Batch, BatchStream, build_loader
from featgan.engine import learning_rate
from featgan.errors import UserError
from featgan.game import Game, build_game, restore, save
from featgan.images import to_float, to_uint8
from featgan.objective import discriminator_loss, generator_loss
from featgan.progress import console, meter
from featgan.stats import Accumulator, Journal

PREVIEW = 8
"""Source images of a grid of samples."""


def train(config: Config, resume_from: Path | None = None) -> Path:
    """Train to the configured number of steps, from the run's newest checkpoint if it has one; returns the run folder.

    `resume_from` is a checkpoint folder of any run with the same networks to start from, when this run has none.
    """
    training, optimizer = config.training, config.optimizer
    game = build_game(config)
    engine, generator, discriminator = game.engine, game.generator, game.discriminator
    run = prepare_run(config)
    first_step = restore(game, newest_checkpoint(run) or resume_from)
    if first_step >= training.steps:
        console.print(f"{run}: trained, all {training.steps} steps are done")
        return run
    batches = BatchStream(
        game.sources, training.batch_size, training.critic_steps, config.targets, training.seed,
        engine.rank, engine.world_size,
    )  # fmt: skip
    loader = build_loader(batches, first_step, training.steps, training.num_workers)
    journal = Journal(run, first_step) if engine.is_main else None
    if journal:
        journal.text("configuration", to_yaml(config))
    preview = batches[0]
    averages, clock = Accumulator(), Clock()
    console.print(f"{run}: condition {describe(game.conditions)}, from step {first_step}, on {engine.device}")

    with meter("train", training.steps, "steps", first_step) as bar:
        for step in range(first_step, training.steps):
            # --- take the batch of this step
            with clock.waiting():
                batch = next(loader).to(engine.device)
            images = to_float(batch.images)
            source = game.layout.embed(batch.condition, batch.dataset)
            target = game.layout.embed(batch.condition_target, batch.dataset)

            # --- train the discriminator: real against edited, the condition of the real, the penalty
            # G does not change before its own step, so its edited images, with their graph, serve that step too.
            trains_generator = (step + 1) % training.critic_steps == 0
            with engine.autocast(), torch.set_grad_enabled(trains_generator):
                fake = (generator.network if trains_generator else generator.bare)(images, target)
            loss, scalars = discriminator_loss(game, step, images, fake.detach(), batch, source, target)
            rate = learning_rate(optimizer.discriminator_rate, step, training.steps, optimizer.decay_steps)
            scalars |= discriminator.step(loss, rate)
            averages.add("discriminator", scalars)

            # --- train the generator, every n_critic-th step: fool, obey, and find back to the source
            if trains_generator:
                with discriminator.frozen():
                    loss, scalars = generator_loss(game, images, fake, batch, source, target)
                    rate = learning_rate(optimizer.generator_rate, step, training.steps, optimizer.decay_steps)
                    scalars |= generator.step(loss, rate)
                averages.add("generator", scalars)
                game.average.update(
                    generator.bare, (step + 1) * training.batch_size, training.batch_size * training.critic_steps
                )

            # --- report, show, save
            done = step + 1
            clock.count(len(batch.images) * engine.world_size)
            bar.advance()
            if done % training.report_every == 0 or done == training.steps:
                scalars_mean = averages.means() | clock.rates()
                check_finite(scalars_mean, done)
                bar.note(f"{scalars_mean['speed/images_per_second']:.0f} images/s")
                if journal:
                    journal.write(done, scalars_mean)
            if journal and (done % training.preview_every == 0 or done == training.steps):
                journal.picture(done, "samples", sample_grid(game, preview.to(engine.device)))
            if done % training.save_every == 0 or done == training.steps:
                save(game, run, done)

    if journal:
        journal.close()
    return run


def prepare_run(config: Config) -> Path:
    """The run's folder with its config.yaml; UserError when the folder holds a run of another configuration."""
    run, path = config.run, config.run / "config.yaml"
    if path.exists():
        changed = differences(validate(read_yaml(path), str(path)), config)
        if changed:
            raise UserError(
                f"{run}: holds a run of another configuration ({'; '.join(changed[:3])}); "
                "choose another folder with run=..., or remove this one"
            )
    elif run.exists() and any(run.iterdir()):
        raise UserError(f"{run}: not empty and no run of featgan; choose another folder with run=...")
    run.mkdir(parents=True, exist_ok=True)
    write_whole(path, to_yaml(config).encode())
    return run


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
    edited = generator(images, target)
    rows = torch.cat([images, edited, generator(images, source), generator(edited, source)])
    return make_grid(to_uint8(rows).cpu(), nrow=len(images), padding=1)

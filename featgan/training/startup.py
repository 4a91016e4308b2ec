"""How a run begins, or goes on: alone in its folder, from its newest checkpoint or from one of another run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import torch

from featgan.config.loading import to_yaml
from featgan.config.schema import Config
from featgan.data.conditions import describe
from featgan.data.image_cache import DecodedImages
from featgan.data.loader import BatchStream
from featgan.distributed.context import Engine
from featgan.errors import UserError
from featgan.networks.winograd import Conv3x3
from featgan.run.checkpoint import checked, newest_checkpoint
from featgan.run.paths import LOCK, step_folder
from featgan.system.file_lease import Hold, Holder
from featgan.system.files import write_whole
from featgan.training.checkpointing import restore
from featgan.training.state import Game

ENDING = 120
"""Seconds in which the last processes of an ended job are waited for."""


@contextmanager
def sole_trainer(run: Path, engine: Engine) -> Iterator[None]:
    """While entered, no other training of the run begins; UserError in every process when one is at it.

    Makes the run's folder, and removes it when nothing has come of it.
    """
    hold, trainer = Hold(run / LOCK), Holder.here()
    engine.on_main(lambda: take_run(run, hold, trainer), f"{run}: is trained by others; the main process says by whom")
    try:
        with hold.kept() if engine.is_main else nullcontext():
            yield
    finally:
        if engine.is_main:
            hold.give_back(trainer.token)
            with suppress(OSError):
                run.rmdir()


def take_run(run: Path, hold: Hold, trainer: Holder) -> None:
    """The right to train; UserError names who has it."""
    run.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + ENDING
    while not hold.take(trainer):
        other = hold.living()
        if other is not None and not (other.is_ending() and time.monotonic() < deadline):
            raise UserError(f"{run}: {other} trains it already; wait until it is done, or end it first")
        time.sleep(1)


def begin(game: Game, resume_from: Path | None, fresh_optimizer: bool) -> int:
    """Restore the game and write the run's config.yaml; returns the step to go on from, or 0.

    UserError when `resume_from`, which is looked at only where the run has no checkpoint of its own, is damaged or not
    before the run's last step. Its moments are left out under `fresh_optimizer`; the run's own never are, so that a
    run that is started again goes on exactly.
    """
    run, steps = game.config.run, game.config.training.steps
    own = find_own(game)
    first_step = restore(game, own or checked(resume_from), fresh_optimizer and own is None)
    if own is None and first_step >= steps:
        raise UserError(f"{resume_from}: is at step {first_step}; raise training.steps above that to go on")
    if game.engine.is_main:
        write_whole(run / "config.yaml", to_yaml(game.config).encode())
    game.engine.wait()
    if first_step >= steps:
        game.engine.announce(f"{run}: trained, all {steps} steps are done")
    return first_step


def find_own(game: Game) -> Path | None:
    """The run's newest whole checkpoint: the main process looks, since file systems show folders late elsewhere."""
    own = newest_checkpoint(game.config.run) if game.engine.is_main else None
    step = game.engine.as_main(-1 if own is None else int(own.name.removeprefix("step-")))
    if step < 0:
        return None
    folder = step_folder(game.config.run, step)
    for _ in range(60):
        if folder.is_dir():
            break
        time.sleep(1)
    return folder


def check_wishes(config: Config, resume_from: Path | None, fresh_optimizer: bool) -> None:
    """UserError for a wish that would come to nothing."""
    if fresh_optimizer and resume_from is None:
        raise UserError(
            f"{config.run}: --fresh-optimizer is for the checkpoint that --resume-from names; to leave out this run's "
            "own moments, begin another run from its checkpoint: run=... --resume-from CHECKPOINT --fresh-optimizer"
        )


def announce(game: Game, first_step: int, batches: BatchStream) -> None:
    """Tell what is trained, from where, and in which ways."""
    ways = [game.engine.describe()]
    if computes_by_tiles(game):
        ways.append("residual blocks by tiles")
    if game.config.distribution.accumulation > 1:
        ways.append(f"batches in {game.config.distribution.accumulation} parts")
    if game.config.distribution.recompute:
        ways.append("G's activations made again")
    if any(isinstance(images, DecodedImages) for images in batches.images):
        ways.append("images kept decoded")
    about = f"condition {describe(game.conditions)}, from step {first_step}, on {'; '.join(ways)}"
    game.engine.announce(f"{game.config.run}: {about}")


def computes_by_tiles(game: Game) -> bool:
    """Whether G's residual blocks go the way of featgan.networks.winograd."""
    block = next(module for module in game.generator.bare.modules() if isinstance(module, Conv3x3))
    count, side = game.config.training.batch_size // game.engine.world_size, game.image_size // 4
    count //= game.config.distribution.accumulation
    with game.engine.autocast():
        return block.saves(torch.empty(count, block.in_channels, side, side, device=game.engine.device))

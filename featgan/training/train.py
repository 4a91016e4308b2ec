"""Training: the loop of StarGAN with a continuous condition; it reads like the objective in docs/method.md."""

import signal
from pathlib import Path
from typing import NoReturn

from featgan.config.schema import Config
from featgan.data.loader import BatchStream, open_loader
from featgan.errors import Stopped
from featgan.run.paths import check_folder
from featgan.system.signals import StopRequest, Watchdog
from featgan.training.checkpointing import save
from featgan.training.logger import Recorder
from featgan.training.lr_schedule import learning_rate
from featgan.training.objective import discriminator_losses, edit, generator_losses, reading_losses, split
from featgan.training.startup import announce, begin, check_wishes, sole_trainer
from featgan.training.state import Game, build_game


def train(
    config: Config,
    resume_from: Path | None = None,
    request: StopRequest | None = None,
    fresh_optimizer: bool = False,
    profile: bool = False,
) -> Path:
    """Train to the configured number of steps, from the run's newest checkpoint if it has one; returns the run folder.

    `resume_from` is a checkpoint folder of another run with the same networks and data to go on from, when this run
    has none; `fresh_optimizer` takes its weights without moments. `request` is looked at after every step.
    With `profile` a trace of some steps is written into the run's folder, and a table of operations is printed.
    UserError when another trains the run, or the checkpoint is damaged or not before the run's last step; Stopped when
    the request was made, and the step is finished and saved.
    """
    check_wishes(config, resume_from, fresh_optimizer)
    with Watchdog(config.distribution.hang_timeout) as watchdog:
        game = build_game(config)
        check_folder(config)
        with sole_trainer(config.run, game.engine):
            first_step = begin(game, resume_from, fresh_optimizer)
            if first_step < config.training.steps:
                run_steps(game, first_step, request or StopRequest(), watchdog, profile)
    return config.run


def run_steps(game: Game, first_step: int, request: StopRequest, watchdog: Watchdog, profile: bool) -> None:
    """The loop, from a step on to the last one."""
    config, engine, generator, discriminator = game.config, game.engine, game.generator, game.discriminator
    run, training, optimizer = config.run, config.training, config.optimizer
    batches = build_stream(game)

    loading = open_loader(batches, first_step, training.steps, training.num_workers)
    with loading as loader, Recorder(game, run, first_step, batches[0], profile) as recorder:
        announce(game, first_step, batches)
        watchdog.finished()
        for step in range(first_step, training.steps):
            # --- take the batch of this step
            with recorder.clock.waiting():
                batch = next(loader).to(engine.device)
            parts = split(game, batch)

            # --- train the discriminator: real against edited, the condition of the real, the penalty
            # G does not change before its own step, so its edited images, with their graph, serve that step too.
            ahead = step < training.head_start
            if step == training.head_start:
                discriminator.forget()
            trains_generator = not ahead and (step + 1) % training.critic_steps == 0
            if trains_generator and len(parts) == 1:
                parts[0].fake = edit(game, parts[0])
            terms = reading_losses(game, parts) if ahead else discriminator_losses(game, step, parts)
            rate = learning_rate(optimizer.discriminator_rate, step, training.steps, optimizer.decay_steps)
            recorder.averages.add("discriminator", discriminator.step(terms, rate))

            # --- train the generator, every n_critic-th step: fool, obey, and find back to the source
            if trains_generator:
                with discriminator.frozen():
                    rate = learning_rate(optimizer.generator_rate, step, training.steps, optimizer.decay_steps)
                    recorder.averages.add("generator", generator.step(generator_losses(game, parts), rate))
                seen = (step + 1 - training.head_start) * training.batch_size
                game.average.update(generator.bare, seen, training.batch_size * training.critic_steps)

            # --- report, show, save
            recorder.count()
            watchdog.finished()
            if is_due(step + 1, training.report_every, training.steps):
                recorder.report(step + 1)
            if is_due(step + 1, training.preview_every, training.steps):
                recorder.show(step + 1)
            stopping = step % engine.vote_every == 0 and engine.any_process(request.signal is not None)
            if stopping or is_due(step + 1, training.save_every, training.steps) or is_scheduled(config, step + 1):
                save(game, run, step + 1)
            if stopping and step + 1 < training.steps:
                leave(game, step + 1, request)
    engine.wait()  # the others must not be gone while the main process still writes


def is_scheduled(config: Config, step: int) -> bool:
    """Whether the schedule of evaluation names the step."""
    return config.evaluation.every > 0 and step % config.evaluation.every == 0


def leave(game: Game, step: int, request: StopRequest) -> NoReturn:
    """End a run that was asked to stop, by a signal to this process or to another, and has saved itself."""
    game.engine.wait()  # until the main process has written
    raise Stopped(
        f"{game.config.run}: saved at step {step} of {game.config.training.steps} and stopped; "
        "the same command goes on from there",
        request.signal or signal.SIGTERM,
    )


def is_due(step: int, every: int, steps: int) -> bool:
    """Every so many steps, and after the last one."""
    return step % every == 0 or step == steps


def build_stream(game: Game) -> BatchStream:
    """This process's rows of every step's batch."""
    config, engine = game.config, game.engine
    training = config.training
    return BatchStream(
        game.sources, training.batch_size, training.critic_steps, training.seed,
        engine.rank, engine.world_size,
    )  # fmt: skip

"""Training: the loop of StarGAN with a continuous condition; it reads like the objective in docs/method.md."""

import signal
import time
from pathlib import Path
from typing import NoReturn

from featgan.checkpoint import checked, newest_checkpoint
from featgan.conditions import describe
from featgan.config import Config, to_yaml
from featgan.data.files import write_whole
from featgan.data.loader import BatchStream, open_loader
from featgan.engine import Engine, learning_rate
from featgan.errors import Stopped, UserError
from featgan.game import Game, build_game, restore, save
from featgan.interruption import StopRequest
from featgan.objective import discriminator_losses, edit, generator_losses, split
from featgan.record import Recorder
from featgan.schedule import check_folder, step_folder


def train(
    config: Config,
    resume_from: Path | None = None,
    request: StopRequest | None = None,
    fresh_optimizer: bool = False,
) -> Path:
    """Train to the configured number of steps, from the run's newest checkpoint if it has one; returns the run folder.

    `resume_from` is a checkpoint folder of another run with the same networks and data to go on from, when this run
    has none; `fresh_optimizer` takes weights without moments. `request` is looked at after every step.
    UserError when the checkpoint is damaged, or not before the run's last step; Stopped when the request was made, and
    the step is finished and saved.
    """
    training, optimizer = config.training, config.optimizer
    game = build_game(config)
    engine, generator, discriminator = game.engine, game.generator, game.discriminator
    run = config.run
    check_folder(config)
    own = find_own(game)
    first_step = restore(game, own or checked(resume_from), fresh_optimizer)
    if own is None and first_step >= training.steps:
        raise UserError(f"{resume_from}: is at step {first_step}; raise training.steps above that to go on")
    engine.wait()  # before the main process makes the folder that the others have just looked at
    make_folder(config, engine)
    if first_step >= training.steps:
        engine.announce(f"{run}: trained, all {training.steps} steps are done")
        return run
    batches = build_stream(game)
    engine.announce(f"{run}: condition {describe(game.conditions)}, from step {first_step}, on {engine.device}")

    request = request or StopRequest()
    loading = open_loader(batches, first_step, training.steps, training.num_workers)
    with loading as loader, Recorder(game, run, first_step, batches[0]) as recorder, engine.watch():
        for step in range(first_step, training.steps):
            # --- take the batch of this step
            with recorder.clock.waiting():
                batch = next(loader).to(engine.device)
            parts = split(game, batch)

            # --- train the discriminator: real against edited, the condition of the real, the penalty
            # G does not change before its own step, so its edited images, with their graph, serve that step too.
            trains_generator = (step + 1) % training.critic_steps == 0
            if trains_generator and len(parts) == 1:
                parts[0].fake = edit(game, parts[0])
            rate = learning_rate(optimizer.discriminator_rate, step, training.steps, optimizer.decay_steps)
            recorder.averages.add("discriminator", discriminator.step(discriminator_losses(game, step, parts), rate))

            # --- train the generator, every n_critic-th step: fool, obey, and find back to the source
            if trains_generator:
                with discriminator.frozen():
                    rate = learning_rate(optimizer.generator_rate, step, training.steps, optimizer.decay_steps)
                    recorder.averages.add("generator", generator.step(generator_losses(game, parts), rate))
                game.average.update(
                    generator.bare, (step + 1) * training.batch_size, training.batch_size * training.critic_steps
                )

            # --- report, show, save
            recorder.count()
            engine.alive()
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
    return run


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
        game.sources, training.batch_size, training.critic_steps, config.targets, training.seed,
        engine.rank, engine.world_size,
    )  # fmt: skip


def make_folder(config: Config, engine: Engine) -> None:
    """The run's folder with its config.yaml; the main process makes it, the others wait."""
    if engine.is_main:
        config.run.mkdir(parents=True, exist_ok=True)
        write_whole(config.run / "config.yaml", to_yaml(config).encode())
    engine.wait()

"""The training loop: StarGAN with a continuous condition (see docs/method.md for the objective)."""

import signal
from pathlib import Path
from typing import NoReturn

from featgan.config.schema import Config
from featgan.data.loader import BatchDataset, load_batch, open_loader
from featgan.errors import TrainingInterrupted
from featgan.run.paths import check_run_folder
from featgan.system.signals import StopSignal, Watchdog
from featgan.training.checkpointing import save_train_state
from featgan.training.logger import TrainingLogger
from featgan.training.lr_schedule import lr_at_step
from featgan.training.objective import (
    d_loss_closures,
    d_warmup_loss_closures,
    g_loss_closures,
    generate_fake,
    split_microbatches,
)
from featgan.training.startup import RunLock, announce_training, check_options, exclusive_run, resume_or_start
from featgan.training.state import TrainState, build_train_state


def train(
    config: Config,
    init_from: Path | None = None,
    stop_signal: StopSignal | None = None,
    reset_optimizer: bool = False,
    profile: bool = False,
) -> Path:
    """Train until the configured number of steps and return the run folder.

    A run that has a checkpoint resumes from the newest one. A new run starts from random weights, or from
    `init_from`, a checkpoint folder of another run with the same networks and data. The step count then continues
    from that checkpoint, and `reset_optimizer` loads the weights only. `stop_signal` is checked after each step.
    `profile` writes a trace of some steps to the run folder and prints a table of the most expensive operations.

    Raises UserError if another process trains this run, or if `init_from` is corrupted or already at the last step.
    Raises TrainingInterrupted after a stop signal, once the current step is complete and saved.
    """
    check_options(config, init_from, reset_optimizer)
    stop_signal = stop_signal or StopSignal()
    with Watchdog(config.distributed.hang_timeout) as watchdog:
        state = build_train_state(config)
        check_run_folder(config)
        with exclusive_run(config, state.context, stop_signal) as run_lock:
            first_step = resume_or_start(state, init_from, reset_optimizer)
            if first_step < config.training.steps:
                run_steps(state, first_step, stop_signal, watchdog, run_lock, profile)
    return config.run_dir


def run_steps(
    state: TrainState,
    first_step: int,
    stop_signal: StopSignal,
    watchdog: Watchdog,
    run_lock: RunLock,
    profile: bool,
) -> None:
    """Train from `first_step` until the last step."""
    config, context = state.config, state.context
    generator, discriminator, ema = state.generator, state.discriminator, state.ema
    run, training, optimizer_config = config.run_dir, config.training, config.optimizer
    batch_dataset = build_batch_dataset(state)

    with (
        open_loader(batch_dataset, first_step, training.steps, training.num_workers, watchdog.reset) as loader,
        TrainingLogger(
            state, run, first_step, load_batch(batch_dataset, 0, training.num_workers, watchdog.reset), profile
        ) as training_logger,
    ):
        announce_training(state, first_step, batch_dataset)
        watchdog.reset()
        stop_signal.mark_ready()
        for step in range(first_step, training.steps):
            # --- load the batch
            with training_logger.timer.waiting_for_data():
                batch = next(loader).to(context.device)
            microbatches = split_microbatches(state, batch)

            is_warmup = step < training.discriminator_warmup_steps
            update_generator = not is_warmup and (step + 1) % training.n_critic == 0
            # D's update does not change G. So one forward pass of G, with its graph, serves both updates.
            x_fake = generate_fake(state, microbatches[0]) if update_generator and len(microbatches) == 1 else None

            # --- train the discriminator: real against generated images, condition of the real images, penalty
            if step == training.discriminator_warmup_steps:
                discriminator.reset_optimizer_state()
            if is_warmup:
                d_losses = d_warmup_loss_closures(state, microbatches)
            else:
                d_losses = d_loss_closures(state, step, microbatches, x_fake)
            d_lr = lr_at_step(optimizer_config.discriminator_lr, step, training.steps, optimizer_config.lr_decay_steps)
            training_logger.add_scalars("discriminator", discriminator.step(d_losses, d_lr))

            # --- train the generator every n_critic steps: adversarial, condition, cycle and identity losses
            if update_generator:
                g_lr = lr_at_step(optimizer_config.generator_lr, step, training.steps, optimizer_config.lr_decay_steps)
                with discriminator.frozen():
                    g_losses = g_loss_closures(state, microbatches, x_fake)
                    training_logger.add_scalars("generator", generator.step(g_losses, g_lr))
                images_seen = (step + 1 - training.discriminator_warmup_steps) * training.batch_size
                ema.update(generator.module, images_seen, training.batch_size * training.n_critic)

            # --- log, draw samples, save a checkpoint
            training_logger.on_step_end()
            watchdog.reset()
            if is_due(step + 1, training.log_every, training.steps):
                run_lock.restore_folder()
                training_logger.log_scalars(step + 1)
            if is_due(step + 1, training.sample_every, training.steps):
                training_logger.log_samples(step + 1)
            check_stop = step % context.stop_check_every == 0
            should_stop = check_stop and context.any_rank(stop_signal.received_signal is not None)
            is_checkpoint_step = is_due(step + 1, training.checkpoint_every, training.steps)
            if should_stop or is_checkpoint_step or is_evaluation_step(config, step + 1):
                run_lock.restore_folder()
                save_train_state(state, run, step + 1)
            if should_stop and step + 1 < training.steps:
                raise_interrupted(state, step + 1, stop_signal)
    context.barrier()  # the other processes must not exit while the main process still writes


def is_evaluation_step(config: Config, step: int) -> bool:
    """Return whether the evaluation schedule requires a checkpoint of this step."""
    return config.evaluation.every > 0 and step % config.evaluation.every == 0


def raise_interrupted(state: TrainState, step: int, stop_signal: StopSignal) -> NoReturn:
    """Raise TrainingInterrupted after the checkpoint of `step` is saved; any process may have received the signal."""
    state.context.barrier()  # wait until the main process has written the checkpoint
    raise TrainingInterrupted(
        f"{state.config.run_dir}: saved at step {step} of {state.config.training.steps} and stopped; "
        "run the same command again to resume",
        stop_signal.received_signal or signal.SIGTERM,
    )


def is_due(step: int, every: int, steps: int) -> bool:
    """Return whether `step` is a multiple of `every` or the last step."""
    return step % every == 0 or step == steps


def build_batch_dataset(state: TrainState) -> BatchDataset:
    """Build the data set of this process's rows of each batch."""
    config, context = state.config, state.context
    training = config.training
    return BatchDataset(
        state.training_sets, training.batch_size, training.n_critic, training.seed,
        context.rank, context.world_size,
    )  # fmt: skip

"""Start or resume a run: lock its folder, choose the checkpoint, and log the first line."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from featgan.config.loading import to_yaml
from featgan.config.schema import Config
from featgan.data.conditions import describe_conditions
from featgan.data.image_cache import DecodedImageCache
from featgan.data.loader import BatchDataset
from featgan.distributed.context import DistributedContext
from featgan.errors import TrainingInterrupted, UserError
from featgan.networks.winograd import Conv3x3
from featgan.run.checkpoint import newest_checkpoint, remove_old_checkpoints, require_valid_checkpoint
from featgan.run.evaluation_schedule import protected_steps
from featgan.run.paths import TRAINING_LOCK, step_folder
from featgan.system.file_lease import FileLease, LeaseOwner
from featgan.system.files import atomic_write
from featgan.system.signals import StopSignal
from featgan.training.checkpointing import restore_train_state
from featgan.training.state import TrainState

logger = logging.getLogger(__name__)

JOB_END_TIMEOUT = 120
"""Seconds to wait for the last processes of a completing job, or for the content of a lock file in creation."""


@dataclass(frozen=True)
class RunLock:
    """The training lock of this process on its run folder."""

    config: Config
    lease: FileLease
    owner: LeaseOwner
    is_main: bool

    def restore_folder(self) -> None:
        """Create the run folder again, with its lock and config.yaml, if it was removed during training.

        Only the main process does. Raises UserError if another process or job trains the run by now.
        """
        if not self.is_main or self.lease.read_owner() == self.owner:
            return
        run = self.config.run_dir
        run.mkdir(parents=True, exist_ok=True)
        if not self.lease.acquire(self.owner):
            raise UserError(
                f"{run}: was removed during training and is now trained by {self.lease.live_owner()}; "
                "this process stops"
            )
        atomic_write(run / "config.yaml", to_yaml(self.config).encode())
        logger.warning(f"{run}: files were removed during training; training continues and writes new ones")


@contextmanager
def exclusive_run(config: Config, context: DistributedContext, stop_signal: StopSignal) -> Iterator[RunLock]:
    """Create the run folder and lock it against other training processes; remove it on exit if it is empty.

    Raises UserError in every process if the run is already being trained. Raises TrainingInterrupted if a stop signal
    arrives while the main process waits for the lock.
    """
    run_dir = config.run_dir
    lease, owner = FileLease(run_dir / TRAINING_LOCK), LeaseOwner.current_process()
    context.run_on_main(
        lambda: acquire_run_lock(run_dir, lease, owner, stop_signal),
        f"{run_dir}: cannot be trained; see the message of the main process",
    )
    try:
        with lease.keep_alive() if context.is_main else nullcontext():
            yield RunLock(config, lease, owner, context.is_main)
    finally:
        if context.is_main:
            with suppress(OSError):  # the file system may have become read-only
                lease.release(owner.token)
            with suppress(OSError):
                run_dir.rmdir()


def acquire_run_lock(run_dir: Path, lease: FileLease, owner: LeaseOwner, stop_signal: StopSignal) -> None:
    """Acquire the training lock of a run.

    Waits if a job that held it is completing, or if its file has no content yet. Raises UserError if another process or
    job holds it, or if it still cannot be read after JOB_END_TIMEOUT. Raises TrainingInterrupted after a stop signal.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    deadline, has_announced = time.monotonic() + JOB_END_TIMEOUT, False
    while not lease.acquire(owner):
        if stop_signal.received_signal is not None:
            raise TrainingInterrupted(
                f"{run_dir}: stopped before the first step; run the same command again", stop_signal.received_signal
            )
        current_owner = lease.live_owner()
        is_waiting = time.monotonic() < deadline
        if current_owner is not None and not (current_owner.is_completing() and is_waiting):
            raise UserError(
                f"{run_dir}: is already being trained by {current_owner}; wait for it to finish, or stop it first"
            )
        if current_owner is None and not has_announced:
            logger.info(f"{lease.path}: names no owner yet; waiting at most {JOB_END_TIMEOUT} seconds for it")
            has_announced = True
        if not is_waiting:
            raise UserError(f"{lease.path}: names no owner; remove it if no process or job trains this run")
        time.sleep(1)


def resume_or_start(state: TrainState, init_from: Path | None, reset_optimizer: bool) -> int:
    """Restore the newest checkpoint of the run, write config.yaml, and return the first step to train.

    If the run has no checkpoint, `init_from` is restored instead. The step count continues from that checkpoint, and
    `reset_optimizer` leaves out its optimizer state. The optimizer state of the run's own checkpoint is always
    restored, so that resuming is exact. Raises UserError if `init_from` is corrupted or already at the last step.
    """
    run, steps = state.config.run_dir, state.config.training.steps
    run_checkpoint = find_run_checkpoint(state)
    first_step = restore_train_state(
        state, run_checkpoint or require_valid_checkpoint(init_from), reset_optimizer and run_checkpoint is None
    )
    if run_checkpoint is None and first_step >= steps:
        raise UserError(f"{init_from}: is at step {first_step}; set training.steps to a larger number to resume")
    if state.context.is_main:
        atomic_write(run / "config.yaml", to_yaml(state.config).encode())
        # The process that saved this checkpoint may have been killed before it removed the old ones.
        if run_checkpoint is not None:
            protected = protected_steps(run, state.config.evaluation)
            remove_old_checkpoints(run, first_step, state.config.training.max_checkpoints, protected)
    state.context.barrier()
    if first_step >= steps:
        state.context.log_on_main(f"{run}: training is complete ({steps} steps)")
    return first_step


def find_run_checkpoint(state: TrainState) -> Path | None:
    """Return the newest valid checkpoint of the run, or None.

    The main process chooses it. On a network file system, the folder may appear late on other machines.
    """
    newest = newest_checkpoint(state.config.run_dir) if state.context.is_main else None
    step = state.context.broadcast_int(-1 if newest is None else int(newest.name.removeprefix("step-")))
    if step < 0:
        return None
    folder = step_folder(state.config.run_dir, step)
    for _ in range(60):
        if folder.is_dir():
            break
        time.sleep(1)
    return folder


def check_options(config: Config, init_from: Path | None, reset_optimizer: bool) -> None:
    """Raise UserError for options that would have no effect."""
    if reset_optimizer and init_from is None:
        raise UserError(
            f"{config.run_dir}: --reset-optimizer requires --init-from; to reset the optimizer of this run, start a "
            "new run from its checkpoint: run_dir=... --init-from CHECKPOINT --reset-optimizer"
        )


def announce_training(state: TrainState, first_step: int, batch_dataset: BatchDataset) -> None:
    """Log the condition, the first step, the device, and the optimizations in use."""
    details = [state.context.describe_device()]
    if uses_winograd(state):
        details.append("Winograd convolutions")
    if state.config.distributed.gradient_accumulation_steps > 1:
        details.append(f"{state.config.distributed.gradient_accumulation_steps} gradient accumulation steps")
    if state.config.distributed.activation_checkpointing:
        details.append("activation checkpointing")
    if any(isinstance(images, DecodedImageCache) for images in batch_dataset.images):
        details.append("decoded images cached in memory")
    summary = f"condition {describe_conditions(state.conditions)}, from step {first_step}, on {'; '.join(details)}"
    state.context.log_on_main(f"{state.config.run_dir}: {summary}")


def uses_winograd(state: TrainState) -> bool:
    """Return whether G's residual blocks use the Winograd convolution of featgan.networks.winograd."""
    conv = next(module for module in state.generator.module.modules() if isinstance(module, Conv3x3))
    num_images, map_size = state.config.training.batch_size // state.context.world_size, state.image_size // 4
    num_images //= state.config.distributed.gradient_accumulation_steps
    with state.context.autocast():
        return conv.is_winograd_faster(
            torch.empty(num_images, conv.in_channels, map_size, map_size, device=state.context.device)
        )

"""The work of each kind of job; it ends with an exit code that the batch script understands."""

import logging
import os
import signal
import sys
import time
import traceback
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from featgan.config.trusted_callables import NO_CALLABLES, TrustedCallables, trust_given_specs
from featgan.run.evaluation_options import EvaluationOptions
from featgan.system.locations import Location
from launch.attempts import EXIT_FAILURE, EXIT_REQUEUE, EXIT_USER_ERROR, record_exit, record_start

logger = logging.getLogger(__name__)

POLL_SECONDS = 10.0
"""Seconds between two checks whether another process has completed an evaluation."""


class Job(ABC):
    """The work of a job, called in every process of the job. The fields are its arguments."""

    def __call__(self) -> None:
        for signal_number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(signal_number, exit_after_signal)

        from featgan.cli.log_handler import install_log_handler
        from featgan.errors import LostPeerError, PeerError, TrainingInterrupted, UserError
        from featgan.system.os_errors import user_error_message

        install_log_handler()
        if count_processes() == 1:
            record_start(job_folder(), restart_count())
        try:
            self.execute()
        except TrainingInterrupted as interruption:
            if not is_rank_zero():
                sys.exit(0)  # srun kills the others after the first failure, before rank 0 has written its exit code
            logger.info(str(interruption))
            exit_with_code(EXIT_REQUEUE)
        except PeerError:
            sys.exit(0)  # the other process records whether the job may be restarted
        except UserError as error:
            logger.error(str(error))
            exit_with_code(EXIT_FAILURE if isinstance(error, LostPeerError) else EXIT_USER_ERROR)
        except Exception as error:
            # Exit here: submitit would write a result file, which marks a job as successful.
            message = user_error_message(error)
            logger.error(message) if message else traceback.print_exc()
            exit_with_code(EXIT_FAILURE)

    @abstractmethod
    def execute(self) -> None:
        """Do the work of the job."""

    def files_to_write(self) -> dict[str, str]:
        """Return files (name => text) for the job folder.

        They are for reading only; the job uses its pickled copy.
        """
        return {}

    def checkpoint(self) -> Any:
        """Submit the same job again; submitit calls this if a signal arrives before `__call__`.

        The name is submitit's; it saves no checkpoint.
        """
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def exit_after_signal(signal_number: int, frame: FrameType | None) -> NoReturn:
    """Exit so that the job is restarted from the beginning: by default there is nothing to save."""
    if signal_number == signal.SIGTERM and count_processes() > 1:
        # If one of several processes crashes, srun sends SIGTERM to the others, and returns the exit code of the crash.
        sys.exit(EXIT_REQUEUE)
    exit_with_code(EXIT_REQUEUE)


def exit_with_code(code: int) -> NoReturn:
    """Record the exit code of this attempt in the job folder for `launch.requeue`, and exit with it."""
    record_exit(job_folder(), restart_count(), code)
    sys.exit(code)


def job_folder() -> Path:
    """Return the folder of the job of this process."""
    return Path(os.environ["SUBMITIT_FOLDER"])


def restart_count() -> str:
    """Return how often SLURM has restarted the job of this process; 0 for a job on this machine."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") if "SLURM_JOB_ID" in os.environ else "0"


def count_processes() -> int:
    """Return the number of processes of this job."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SUBMITIT_LOCAL_NTASKS") or "1")


def is_rank_zero() -> bool:
    """Return whether this is the process of rank 0."""
    return all(os.environ.get(name, "0") == "0" for name in ("SLURM_PROCID", "SUBMITIT_LOCAL_GLOBALID"))


@dataclass(frozen=True)
class TrainJob(Job):
    """`featgan train` with a resolved configuration; after a signal it saves a checkpoint and exits."""

    config: dict[str, Any]
    init_from: str | None = None
    reset_optimizer: bool = False

    def execute(self) -> None:
        from launch.job_signals import JobStopSignal

        with JobStopSignal(job_folder(), restart_count()) as stop_signal:
            from featgan.config.loading import parse_config
            from featgan.training.train import train

            checkpoint = Path(self.init_from) if self.init_from else None
            train(parse_config(self.config, "the job's configuration"), checkpoint, stop_signal, self.reset_optimizer)

    def files_to_write(self) -> dict[str, str]:
        from featgan.config.loading import parse_config, to_yaml

        return {"config.yaml": to_yaml(parse_config(self.config, "the job's configuration"))}


@dataclass(frozen=True)
class EvaluateJob(Job):
    """`featgan evaluate`.

    With a token, the checkpoint was claimed at submission: by the watch (`scheduled`), or by a user.
    """

    run_dir: str
    step: int | None = None
    suite: str = "standard"
    options: EvaluationOptions = field(default_factory=EvaluationOptions)
    token: str = ""
    scheduled: bool = False

    def execute(self) -> None:
        from featgan.run.evaluation_claims import EvaluationClaim
        from launch.claimed_evaluation import evaluate_claimed

        run_dir = Path(self.run_dir)
        if self.token:
            assert self.step is not None
            claim = EvaluationClaim(run_dir, self.step, self.suite, self.token)
            try:
                evaluate_claimed(claim, self.options, self.scheduled)
            except Exception:
                if not self.scheduled:
                    raise
                traceback.print_exc()
                exit_with_code(EXIT_USER_ERROR)  # the watch retries the checkpoint, so the scheduler must not
        else:
            self.evaluate_or_wait(run_dir)

    def evaluate_or_wait(self, run_dir: Path) -> None:
        """Evaluate the checkpoint, or wait for a watch that is evaluating it, so that dependent jobs can start."""
        from featgan.evaluation.evaluate import evaluate_with_defaults, find_evaluation
        from featgan.run.checkpoint import newest_step
        from featgan.run.evaluation_claims import AlreadyEvaluatingError, claim_checkpoint

        has_waited = False
        while True:
            try:
                chosen_step = newest_step(run_dir) if self.step is None else self.step
                with claim_checkpoint(run_dir, chosen_step, self.suite) as step:
                    is_done = (
                        has_waited
                        and step is not None
                        and find_evaluation(run_dir, step, self.suite, self.options.max_pairs) is not None
                    )
                    if not is_done:
                        evaluate_with_defaults(run_dir, step, self.suite, self.options)
                return
            except AlreadyEvaluatingError as error:
                if not has_waited:
                    logger.info(str(error))
                has_waited = True
                time.sleep(POLL_SECONDS)


@dataclass(frozen=True)
class RenderJob(Job):
    """`featgan render`."""

    run_dir: str
    step: int | None = None
    images: str | None = None
    directions: tuple[str, ...] = ()
    num_images: int = 6
    num_components: int = 10
    component_names: tuple[str, ...] = ()
    video: tuple[str, ...] = ()
    blackbox: str | None = None
    trusted: TrustedCallables = NO_CALLABLES

    def execute(self) -> None:
        from featgan.report.render import DEFAULT_VIDEO_KINDS, render_run

        images = Path(self.images) if self.images else None
        video_formats = [kind for kind in self.video or DEFAULT_VIDEO_KINDS if kind != "none"]
        render_run(
            Path(self.run_dir),
            self.step,
            images,
            list(self.directions),
            num_images=self.num_images,
            num_components=self.num_components,
            component_names=self.component_names,
            video=video_formats,
            blackbox=self.blackbox,
            trusted=self.trusted,
        )


@dataclass(frozen=True)
class ExtractJob(Job):
    """`featgan extract`, in one or several processes; a restarted job resumes with the remaining images."""

    shards: str
    blackbox: str
    cache_name: str = "blackbox"
    layer: str | None = None
    num_components: int | None = None
    task: str | None = None
    batch_size: int = 64

    def execute(self) -> None:
        from featgan.blackbox.extraction import extract_features
        from featgan.distributed.work_group import open_work_group

        with open_work_group() as group:
            if group.is_main:
                record_start(job_folder(), restart_count())
            extract_features(
                Location.parse(self.shards),
                self.blackbox,
                self.cache_name,
                layer=self.layer,
                num_components=self.num_components,
                batch_size=self.batch_size,
                trusted=trust_given_specs([self.blackbox]),
                task=self.task,
                group=group,
            )

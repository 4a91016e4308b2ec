"""Evaluation claims: leases that allow one evaluator at a time for a checkpoint and suite, and detect crashes."""

import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from featgan.errors import UserError
from featgan.run.evaluation_document import has_result
from featgan.run.evaluation_schedule import MAX_ATTEMPTS, count_failures, describe_given_up, read_failures
from featgan.run.paths import checkpoint_steps, evaluation_path
from featgan.system.file_lease import FileLease, LeaseOwner
from featgan.system.files import write_text

logger = logging.getLogger(__name__)


def has_started(owner: LeaseOwner) -> bool:
    """Return whether the owner is a process; a job becomes one when it takes over its claim."""
    return owner.pid != 0


@dataclass(frozen=True)
class EvaluationClaim:
    """A lease on evaluating a step of a run with a suite; the token identifies its owner."""

    run: Path
    step: int
    suite: str
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def result_path(self) -> Path:
        return evaluation_path(self.run, self.step, self.suite)

    @property
    def lease(self) -> FileLease:
        return FileLease(self.result_path.with_suffix(".claim"))

    @property
    def failures_path(self) -> Path:
        return self.result_path.with_suffix(".failed")

    def acquire(self, force: bool = False) -> bool:
        """Acquire the claim for this process and return whether that succeeded.

        It fails if a live owner has the claim. Unless `force` is set, it also fails if the evaluation is complete, or
        has failed MAX_ATTEMPTS times.
        """
        if self.lease.path.exists() and not self.release_if_dead():
            return False
        if not force and (has_result(self.result_path) or self.num_failures() >= MAX_ATTEMPTS):
            return False
        self.result_path.parent.mkdir(exist_ok=True)
        if not self.lease.acquire(LeaseOwner.current_process(self.token)):
            return False
        if not force and has_result(self.result_path):  # completed between the first check and the claim
            self.release()
            return False
        return True

    def is_free(self) -> bool:
        """Return whether nobody has the claim, after dead claims were released, and the evaluation may be tried."""
        return not self.lease.path.exists() and self.num_failures() < MAX_ATTEMPTS

    def release_if_dead(self, has_failed: Callable[[LeaseOwner], bool] = has_started) -> bool:
        """Release the claim if its owner has ended, and return whether it was released.

        An owner that `has_failed`, by default one that has started, counts as a failure if there is no result. A job
        that was canceled while it was pending has not started.
        """
        owner = self.lease.read_owner()
        if not self.lease.remove_if_stale():
            return False
        if not has_result(self.result_path) and (owner is None or has_failed(owner)):
            self.record_failure("the process or job ended without a result")
        return True

    def take_over(self) -> bool:
        """Make this process the owner, in place of the process that acquired the claim; False if the claim was lost."""
        return self.lease.transfer_to(LeaseOwner.current_process(self.token))

    def transfer_to_job(self, job: str) -> None:
        """Make a SLURM job the owner, unless the claim has been released already."""
        self.lease.transfer_to(LeaseOwner.for_job(job, self.token))

    def transfer_to_process(self, pid: int) -> None:
        """Make a process of this machine the owner, unless the claim has been released already."""
        self.lease.transfer_to(LeaseOwner.for_process(pid, self.token))

    def release(self) -> None:
        self.lease.release(self.token)

    def num_failures(self) -> int:
        """Return the number of failed evaluations of this step and suite."""
        return count_failures(self.run, self.step, self.suite)

    def record_failure(self, reason: str) -> None:
        """Append a failure, with its time and reason, to the `.failed` file."""
        previous_failures = read_failures(self.failures_path)
        self.failures_path.parent.mkdir(exist_ok=True)
        temporary_path = self.failures_path.with_suffix(f".{self.token}")
        failures = [*previous_failures, {"time": time.time(), "reason": reason}]
        write_text(temporary_path, json.dumps({"failures": failures}, indent=1))
        temporary_path.replace(self.failures_path)
        if self.num_failures() >= MAX_ATTEMPTS:
            logger.warning(f"{self.run}: {describe_given_up(self.run, self.step, self.suite)}")


class AlreadyEvaluatingError(UserError):
    """Another process or job is evaluating the checkpoint."""


@contextmanager
def claim_checkpoint(run_dir: Path, step: int | None, suite: str) -> Iterator[int | None]:
    """Claim a checkpoint for an evaluation started by the user, and yield its step.

    The claim keeps `launch watch` from evaluating the checkpoint, and keeps the checkpoint from being removed. A step
    without a checkpoint is not claimed; reading it raises the error. Raises AlreadyEvaluatingError if the checkpoint is
    being evaluated.
    """
    if step not in checkpoint_steps(run_dir):
        yield step
        return
    claim = claim_interactively(run_dir, step, suite)
    try:
        with claim.lease.keep_alive():
            yield step
        claim.failures_path.unlink(missing_ok=True)
    finally:
        claim.release()


def claim_interactively(run_dir: Path, step: int, suite: str) -> EvaluationClaim:
    """Claim an evaluation even if it is complete or has failed too often.

    Raises AlreadyEvaluatingError if another process or job is evaluating the checkpoint.
    """
    claim = EvaluationClaim(run_dir, step, suite)
    if not claim.acquire(force=True):
        current_owner = claim.lease.live_owner() or "another process"
        raise AlreadyEvaluatingError(
            f"{run_dir}: step {step} ({suite}) is already being evaluated by {current_owner}; wait until it is complete"
        )
    return claim

"""The watch: check all runs, claim and evaluate the checkpoints that are due, and write the leaderboard."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from featgan.config.choices import SUITES
from featgan.config.schema import Config
from featgan.errors import UserError
from featgan.run.evaluation_claims import EvaluationClaim, has_started
from featgan.run.evaluation_schedule import due_evaluations
from featgan.run.paths import list_result_steps, load_run_config
from featgan.system.file_lease import FileLease, LeaseOwner
from featgan.system.slurm import queue_snapshot
from launch.attempts import VERDICT_FILE, was_interrupted
from launch.leaderboard import describe_failure, write_leaderboard
from launch.watch_trust import find_untrusted, trust_own_run

logger = logging.getLogger(__name__)

StartEvaluation = Callable[[EvaluationClaim], None]
"""Evaluates a claimed checkpoint, or submits a job that does."""


def find_runs(folder: Path) -> Iterator[tuple[Path, Config]]:
    """Yield the runs in a folder, or the folder itself, with their configurations; invalid runs are skipped."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a run folder or a folder of runs")
    for path in [folder, *sorted(folder.iterdir())]:
        try:
            if (path / "config.yaml").is_file() and (path / "checkpoints").is_dir():
                yield path, load_run_config(path)
        except (UserError, OSError) as error:
            logger.warning(f"skipped: {describe_failure(error)}")


def poll_once(
    folder: Path, start_evaluation: StartEvaluation, max_evaluations: int = 100, trusts_all: bool = False
) -> int:
    """Check every run once and return the number of claimed checkpoints, which is at most `max_evaluations`.

    `trusts_all` also evaluates with Python code that a file of a run names, if the run belongs to this user.
    """
    runs, checked_runs = list(find_runs(folder)), []
    with queue_snapshot(find_claiming_jobs(run for run, _ in runs)):
        for run, config in runs:
            with skip_after_failure(run):
                release_dead_claims(run)
                checked_runs.append((run, config))
    num_claimed = 0
    for run, config in checked_runs:
        with skip_after_failure(run):
            for step, suite in due_evaluations(run, config.evaluation):
                claim = EvaluationClaim(run, step, suite)
                if num_claimed >= max_evaluations:
                    break
                if not claim.is_free():
                    continue
                if reason := find_untrusted(run, step, trust_own_run(run, step, config, trusts_all)):
                    logger.warning(f"step {step} skipped: {reason}")
                    continue
                num_claimed += try_claim(claim, start_evaluation)
    try:
        write_leaderboard(folder, runs)
    except OSError as error:
        logger.warning(f"the leaderboard cannot be written: {describe_failure(error)}")
    evaluations = "evaluation" if num_claimed == 1 else "evaluations"
    logger.info(f"{folder}: {num_claimed} {evaluations} started")
    return num_claimed


@contextmanager
def skip_after_failure(run_dir: Path) -> Iterator[None]:
    """Log an error of one run as a warning, so that the other runs are evaluated."""
    try:
        yield
    except Exception as error:
        logger.warning(f"{run_dir}: skipped: {describe_failure(error)}")


def find_claiming_jobs(run_dirs: Iterable[Path]) -> set[str]:
    """Return the IDs of the SLURM jobs that own claims."""
    paths = (path for run_dir in run_dirs for path in (run_dir / "evaluations").glob("*.claim"))
    owners = [read_owner_or_none(path) for path in paths]
    return {owner.job for owner in owners if owner is not None and owner.job}


def read_owner_or_none(path: Path) -> LeaseOwner | None:
    """Return the owner of a lease; None if the file cannot be read, which is reported later."""
    try:
        return FileLease(path).read_owner()
    except (OSError, UserError):
        return None


def release_dead_claims(run_dir: Path) -> None:
    """Release the claims whose owner has died, also for suites that are never due: a claim keeps its checkpoint."""
    for suite in SUITES:
        for step in list_result_steps(run_dir, suite, "claim"):
            EvaluationClaim(run_dir, step, suite).release_if_dead(partial(has_evaluation_failed, run_dir))


def has_evaluation_failed(run_dir: Path, owner: LeaseOwner) -> bool:
    """Return whether the dead owner of a claim ran and failed by itself, in contrast to a job that was canceled.

    A job that was canceled while it was pending has no log. One that was canceled later has recorded the signal.
    """
    folder = next((path.parent for path in run_dir.glob(f"jobs/*/{owner.job}_*_log.out")), None) if owner.job else None
    if folder is None:
        return has_started(owner)
    return (folder / VERDICT_FILE).is_file() or not was_interrupted(folder, owner.restart or "0")


def try_claim(claim: EvaluationClaim, start_evaluation: StartEvaluation) -> bool:
    """Claim a checkpoint and start its evaluation. Returns False if another process has claimed it."""
    if not claim.acquire():
        return False
    logger.info(f"{claim.run}: evaluating step {claim.step} ({claim.suite})")
    try:
        start_evaluation(claim)
    except (UserError, OSError, subprocess.SubprocessError) as error:
        logger.warning(f"{claim.run}: step {claim.step}: {describe_failure(error)}")
    return True


def evaluate_in_subprocess(claim: EvaluationClaim, trusts_all: bool = False) -> None:
    """Evaluate in a separate process, so that a failure, even a crash of the interpreter, does not stop the watch."""
    arguments = [str(claim.run), str(claim.step), claim.suite, claim.token, str(os.getpid())]
    arguments += ["--trust-callables"] if trusts_all else []
    failures = claim.num_failures()
    result = subprocess.run(
        [sys.executable, "-m", "launch.claimed_evaluation", *arguments], capture_output=True, text=True, check=False
    )
    if result.returncode:
        if claim.num_failures() == failures:  # the process was killed before it could record the failure
            claim.record_failure(f"the process ended with exit code {result.returncode}: {result.stderr[-2000:]}")
        claim.release()
        last_message = (result.stderr.strip().splitlines() or ["no message"])[-1]
        logger.warning(f"{claim.run}: step {claim.step} failed: {last_message}")

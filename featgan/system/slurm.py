"""Queries to SLURM with its own commands; an unreachable controller is distinguished from an error."""

import os
import re
import shutil
import subprocess
from collections.abc import Collection, Iterator
from contextlib import contextmanager

COMMAND_TIMEOUT = 60
"""Seconds after which a command without a response counts as failed."""

UNREACHABLE_MESSAGES = ("Unable to contact", "Socket timed out", "Zero Bytes were transmitted", "Connection refused")
"""Error messages of the commands if the controller does not respond; launch/requeue.sh contains them too."""


QUEUE_COMMAND = ("squeue", "--noheader", "--all")
"""Lists the jobs of all partitions, also of hidden ones."""

QUEUE_DEFAULTS = "SQUEUE_"
"""Prefix of variables with which a user changes what squeue lists: a job that is left out would count as ended."""


def run_slurm_command(*command: str) -> "subprocess.CompletedProcess[str] | None":
    """Run squeue or scontrol and return the result, which may be an error of the command.

    Returns None if SLURM is not installed or its controller does not respond.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(QUEUE_DEFAULTS)}
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT, check=False, env=environment
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    is_unreachable = result.returncode and any(message in result.stderr for message in UNREACHABLE_MESSAGES)
    return None if is_unreachable else result


JOB_ID = re.compile(r"[0-9]+(?:[_+][0-9]+)?", re.ASCII)
"""The ID of a job, of a task of a job array (17_3), or of a part of a heterogeneous job (17+1)."""

known_states: dict[str, str | None] = {}
"""States of jobs from the query of the active `queue_snapshot`."""


@contextmanager
def queue_snapshot(jobs: Collection[str]) -> Iterator[None]:
    """Let `job_state` answer for these jobs from one query of the complete queue, made when the context is entered.

    %A is SLURM_JOB_ID; %i would be 17_3 for a task of a job array and 17+1 for a part of a heterogeneous job. The jobs
    must have been submitted before, since a job that is not in the queue has ended.
    """
    result = run_slurm_command(*QUEUE_COMMAND, "--format=%A|%T") if jobs else None
    has_queue = result is not None and not result.returncode
    rows = (line.partition("|") for line in result.stdout.splitlines()) if result is not None and has_queue else ()
    queue = {job: state.strip().lower() for job, _, state in rows}
    known_states.update({job: queue.get(job, "") if has_queue else None for job in jobs})
    try:
        yield
    finally:
        known_states.clear()


def job_state(job: str) -> str | None:
    """Return a job's state as in squeue, in lower case; empty if the job has ended, None without a response."""
    if job in known_states:
        return known_states[job]
    if not JOB_ID.fullmatch(job):  # from a damaged lock file; SLURM has no such job
        return ""
    result = run_slurm_command(*QUEUE_COMMAND, "--format=%T", "--jobs", job)
    if result is None:
        return None
    if result.returncode:
        return "" if "nvalid job id" in result.stderr else None
    return result.stdout.strip().lower()


def has_slurm() -> bool:
    """Return whether SLURM's commands are installed on this machine."""
    return shutil.which("squeue") is not None


def current_job() -> tuple[str, str]:
    """Return the ID and the restart count of the job of this process; empty strings outside a job."""
    job = os.environ.get("SLURM_JOB_ID", "")
    return job, os.environ.get("SLURM_RESTART_COUNT", "0") if job else ""

"""Queries to SLURM with its own commands; an unreachable controller is distinguished from an error."""

import os
import shutil
import subprocess

COMMAND_TIMEOUT = 60
"""Seconds after which a command without a response counts as failed."""

UNREACHABLE_MESSAGES = ("Unable to contact", "Socket timed out", "Zero Bytes were transmitted", "Connection refused")
"""Error messages of the commands if the controller does not respond; launch/requeue.sh contains them too."""


def run_slurm_command(*command: str) -> "subprocess.CompletedProcess[str] | None":
    """Run squeue or scontrol and return the result, which may be an error of the command.

    Returns None if SLURM is not installed or its controller does not respond.
    """
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    is_unreachable = result.returncode and any(message in result.stderr for message in UNREACHABLE_MESSAGES)
    return None if is_unreachable else result


def job_state(job: str) -> str | None:
    """Return a job's state as in squeue, in lower case; empty if the job has ended, None without a response."""
    result = run_slurm_command("squeue", "--noheader", "--format=%T", "--jobs", job)
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

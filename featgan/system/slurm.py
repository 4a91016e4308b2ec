"""Questions to SLURM by its own commands; no answer is told apart from a refusal."""

import os
import shutil
import subprocess
import time
from collections.abc import Sequence

SECONDS = 60
"""An answer that has not come by then is none."""

AWAY = ("Unable to contact", "Socket timed out", "Zero Bytes were transmitted", "Connection refused")
"""What the commands say when the controller does not answer."""


def ask_slurm(*command: str, pauses: Sequence[float] = ()) -> "subprocess.CompletedProcess[str] | None":
    """What squeue or scontrol says, also where it refuses; None without SLURM, or without its controller's answer.

    It is asked again after each of the pauses (in seconds).
    """
    for pause in (*pauses, None):
        try:
            found = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        except OSError:
            return None
        except subprocess.TimeoutExpired:
            found = None
        if found is not None and not (found.returncode and any(word in found.stderr for word in AWAY)):
            return found
        if pause is not None:
            time.sleep(pause)
    return None


def job_state(job: str) -> str | None:
    """A job's state as squeue names it, in lower case; empty where SLURM has it no more, None without an answer."""
    shown = ask_slurm("squeue", "--noheader", "--format=%T", "--jobs", job)
    if shown is None:
        return None
    if shown.returncode:
        return "" if "nvalid job id" in shown.stderr else None
    return shown.stdout.strip().lower()


def has_slurm() -> bool:
    """Whether this machine can ask at all."""
    return shutil.which("squeue") is not None


def own_job() -> tuple[str, str]:
    """The job that this process is part of, and which start of it this is; empty outside."""
    job = os.environ.get("SLURM_JOB_ID", "")
    return job, os.environ.get("SLURM_RESTART_COUNT", "0") if job else ""

"""Decide whether a SLURM job is restarted after it ended. The job script (requeue.sh) runs this and scontrol.

`python -m launch.requeue ended FOLDER CODE JOB` runs when the processes of a job have ended with an exit code other
than 0; JOB is the output of `scontrol show job`. After a signal (the job has saved a checkpoint) or a crash, the job is
requeued and resumes from its last checkpoint. After an error that a restart cannot fix, or after too many failures at
the same step, it is not restarted; FOLDER/verdict.txt says why. The decision is printed: `requeue`, `stop` or `leave`.

`python -m launch.requeue rejected FOLDER MESSAGE` writes the verdict if SLURM rejects the requeue.

`python -m launch.requeue restart FOLDER` runs when a job is restarted. Attempts that ended without the first call
(their node failed, or SLURM preempted them) are recorded. If there are too many, the verdict is written and `stop` is
printed.
"""

import logging
import os
import re
import sys
from pathlib import Path
from typing import Literal

from featgan.cli.log_handler import install_log_handler
from featgan.system.slurm import UNREACHABLE_MESSAGES
from launch.attempts import (
    VERDICT_FILE,
    append_attempt,
    find_stop_reason,
    read_attempts,
    resolve_lost_outcome,
    resolve_outcome,
    write_verdict,
)

logger = logging.getLogger("launch.requeue")  # __name__ is "__main__" in a job, which has no log handler

COMMANDS = ("ended", "rejected", "restart")

Decision = Literal["requeue", "stop", "leave"]
"""requeue: start the job again. stop: do not, and write the verdict. leave: do nothing, as the job was canceled."""


def find_job_state(job_text: str) -> str:
    """Return the state in the output of `scontrol show job`: RUNNING, CANCELLED, ...; RUNNING if there is no output.

    A job whose processes are still ending is always COMPLETING. The reason then distinguishes the time limit (returned
    as TIMEOUT) from a cancellation.
    """
    matches = {name: re.search(rf"\b{name}=(\w+)", job_text) for name in ("JobState", "Reason")}
    state, reason = (match[1] if match else "" for match in matches.values())
    return "TIMEOUT" if (state, reason) == ("COMPLETING", "TimeLimit") else state or "RUNNING"


def max_failures_from_env() -> int:
    """Return the number of failures at one step after which a job is not restarted."""
    return int(os.environ.get("FEATGAN_MAX_FAILURES", "3"))


def stop_with_verdict(folder: Path, stop_reason: str) -> None:
    """Write FOLDER/verdict.txt and log it."""
    logger.error(write_verdict(folder, os.environ["SLURM_JOB_ID"], stop_reason))


def count_lost_starts(folder: Path) -> bool:
    """Record the attempts that ended without a record, and return whether the job may continue."""
    restart_count = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    stop_reason = None
    for lost_start in range(len(read_attempts(folder)), restart_count):
        logger.warning(f"attempt {lost_start} ended without a record: its node failed, or SLURM killed the job script")
        attempts = append_attempt(folder, *resolve_lost_outcome(folder, str(lost_start)), str(lost_start))
        stop_reason = find_stop_reason(attempts, max_failures_from_env())
    if stop_reason:
        stop_with_verdict(folder, stop_reason)
    else:
        (folder / VERDICT_FILE).unlink(missing_ok=True)  # an administrator has requeued the job anyway
    return stop_reason is None


def decide_restart(folder: Path, code: int, job_text: str = "") -> Decision:
    """Record the attempt, and return whether the job is requeued. If not, FOLDER/verdict.txt or the log says why."""
    job_id, restart = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_RESTART_COUNT", "0")
    code, outcome = resolve_outcome(folder, restart, code)
    attempts = append_attempt(folder, code, outcome, restart)
    stop_reason = find_stop_reason(attempts, max_failures_from_env())
    if stop_reason:
        stop_with_verdict(folder, stop_reason)
        return "stop"
    # A job that reached its time limit before it had saved is restarted too; a canceled job is not.
    if (state := find_job_state(job_text)) not in ("RUNNING", "TIMEOUT"):
        logger.info(f"job {job_id} is {state}: it was canceled, or is already in the queue")
        return "leave"
    logger.info(f"job {job_id} ended with exit code {code} at step {attempts[-1]['step']}; it is requeued")
    return "requeue"


def record_rejection(folder: Path, message: str) -> None:
    """Write the verdict of a job that SLURM did not requeue. `message` is the output of scontrol."""
    is_unreachable = any(text in message for text in UNREACHABLE_MESSAGES)
    reason = "its controller does not respond" if is_unreachable else " ".join(message.split())
    stop_with_verdict(folder, f"SLURM cannot requeue the job ({reason})")


def stop_old_script(folder: Path, ended: bool) -> None:
    """Answer the job script of an earlier version: a restarted job may run, but is not requeued when it has ended."""
    if ended:
        stop_with_verdict(folder, "its job script is from an earlier version of featgan")


def main(arguments: list[str]) -> None:
    """Run one of the commands above."""
    if arguments[0] not in COMMANDS:
        stop_old_script(Path(arguments[0]), ended=len(arguments) > 1)
        return
    command, folder = arguments[0], Path(arguments[1])
    if command == "rejected":
        record_rejection(folder, arguments[2])
    elif command == "restart":
        print("leave" if count_lost_starts(folder) else "stop")
    else:
        print(decide_restart(folder, int(arguments[2]), arguments[3]))


if __name__ == "__main__":
    install_log_handler()
    main(sys.argv[1:])

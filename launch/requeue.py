"""Decide whether a SLURM job is restarted after it ended. The job script (requeue.sh) runs this and scontrol.

`python -m launch.requeue ended FOLDER CODE JOB` runs when the processes of a job have ended with an exit code other
than 0; JOB is the output of `scontrol show job`. After a signal (the job has saved a checkpoint) or a crash, the job is
requeued and resumes from its last checkpoint. After an error that a restart cannot fix, or after too many failures at
the same step, it is not restarted; FOLDER/verdict.txt says why. The decision is printed: `requeue`, `stop` or `leave`.

`python -m launch.requeue rejected FOLDER MESSAGE` writes the verdict if SLURM rejects the requeue.

`python -m launch.requeue restart FOLDER` runs when a job is restarted. Attempts that ended without the first call
(their node failed) are recorded as failures. If there are too many, the verdict is written and `stop` is printed.
"""

import json
import logging
import os
import re
import sys
import time
from pathlib import Path
from typing import Any, Literal

from featgan.cli.log_handler import install_log_handler
from featgan.run.paths import checkpoint_steps
from featgan.system.slurm import UNREACHABLE_MESSAGES
from launch.job_folder import ATTEMPTS_FILE, read_attempts, read_job_info
from launch.jobs import EXIT_CODE_FILE, EXIT_REQUEUE, EXIT_USER_ERROR

logger = logging.getLogger("launch.requeue")  # __name__ is "__main__" in a job, which has no log handler

MAX_SIGNALS_PER_FAILURE = 10
"""A signal is not a failure, but a job that ends at the same step N * `max_failures` times is not restarted."""

Decision = Literal["requeue", "stop", "leave"]
"""Requeue the job; do not restart it, and say why in the verdict; or leave it alone, because it was canceled."""

LOST_EXIT_CODE = 128 + 9
"""Exit code that is recorded for an attempt that ended without one, as after `kill -9`."""


def find_stop_reason(attempts: list[dict[str, Any]], max_failures: int) -> str | None:
    """Return why the job must not be restarted after its last attempt; None if it may be restarted."""
    last_attempt = attempts[-1]
    code, step = last_attempt["code"], last_attempt["step"]
    if code == EXIT_USER_ERROR:
        return "a restart cannot fix this error (see the last lines of the log)"
    same_step_attempts = [attempt for attempt in attempts if attempt["step"] == step]
    num_failures = sum(attempt["code"] != EXIT_REQUEUE for attempt in same_step_attempts)
    if num_failures >= max_failures:
        return f"failed {num_failures} times at step {step} (exit code {code})"
    if len(same_step_attempts) >= MAX_SIGNALS_PER_FAILURE * max_failures:
        return f"signaled {len(same_step_attempts)} times at step {step}; its run time is too short for one step"
    return None


def record_attempt(folder: Path, code: int, restart: str) -> list[dict[str, Any]]:
    """Append an attempt to FOLDER/attempts.jsonl and return all attempts."""
    # The step measures the progress of a training job. Other jobs always record step 0: a training that runs at the
    # same time would otherwise make their failures look like progress.
    step = max(checkpoint_steps(folder.parent.parent), default=0) if folder.name.endswith("-train") else 0
    attempt = {"time": time.time(), "code": code, "step": step, "restart": restart}
    with (folder / ATTEMPTS_FILE).open("a") as file:
        file.write(json.dumps(attempt) + "\n")
    return read_attempts(folder)


def find_job_state(job_text: str) -> str:
    """Return the state in the output of `scontrol show job`: RUNNING, CANCELLED, ...; RUNNING if there is no output.

    A job whose processes are still ending is COMPLETING, whatever ended it. The reason then distinguishes the time
    limit (returned as TIMEOUT) from a cancellation.
    """
    matches = {name: re.search(rf"\b{name}=(\w+)", job_text) for name in ("JobState", "Reason")}
    state, reason = (match[1] if match else "" for match in matches.values())
    return "TIMEOUT" if (state, reason) == ("COMPLETING", "TimeLimit") else state or "RUNNING"


def write_verdict(folder: Path, stop_reason: str) -> None:
    """Write FOLDER/verdict.txt and log it."""
    logs = read_job_info(folder).get("log") or f"{folder}/{os.environ['SLURM_JOB_ID']}_*_log.err"
    text = f"{folder.name}: not restarted: {stop_reason}; logs: {logs}"
    (folder / "verdict.txt").write_text(text + "\n")
    logger.error(text)


def max_failures_from_env() -> int:
    """Return the number of failures at one step after which a job is not restarted."""
    return int(os.environ.get("FEATGAN_MAX_FAILURES", "3"))


def take_exit_code(folder: Path, default: int) -> int:
    """Return the exit code that the job has stored, and remove it; `default` if there is none."""
    path = folder / EXIT_CODE_FILE
    if not path.exists():
        return default
    code = int(path.read_text() or default)
    path.unlink()
    return code


def count_lost_starts(folder: Path) -> bool:
    """Record the attempts that ended without a record, and return whether the job may continue."""
    restart_count = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    stop_reason = None
    for lost_start in range(len(read_attempts(folder)), restart_count):
        logger.warning(f"attempt {lost_start} ended without a record: its node failed, or SLURM killed the job script")
        code = take_exit_code(folder, LOST_EXIT_CODE)
        stop_reason = find_stop_reason(record_attempt(folder, code, str(lost_start)), max_failures_from_env())
    if stop_reason:
        write_verdict(folder, stop_reason)
    return stop_reason is None


def decide_restart(folder: Path, code: int, job_text: str = "") -> Decision:
    """Record the attempt, and return whether the job is requeued. If not, FOLDER/verdict.txt or the log says why."""
    job_id = os.environ["SLURM_JOB_ID"]
    code = take_exit_code(folder, code)
    attempts = record_attempt(folder, code, os.environ.get("SLURM_RESTART_COUNT", "0"))
    stop_reason = find_stop_reason(attempts, max_failures_from_env())
    if stop_reason:
        write_verdict(folder, stop_reason)
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
    write_verdict(folder, f"SLURM cannot requeue the job ({reason}); run the same command again to resume")


def main(arguments: list[str]) -> None:
    """Run one of the commands above."""
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

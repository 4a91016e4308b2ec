"""The attempts (starts) of a job: how each one ended, and whether the job may be started again.

Imports only the standard library, so that any Python interpreter of a batch shell can run it.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

EXIT_REQUEUE = 75
"""Exit code of a job that was signaled and must be restarted (EX_TEMPFAIL of sysexits.h)."""

EXIT_USER_ERROR = 2
"""Exit code of an error that a restart cannot fix."""

EXIT_FAILURE = 1
"""Exit code of any other error."""

LOST_EXIT_CODE = 128 + signal.SIGKILL
"""Exit code that is recorded for an attempt that ended without one, as after `kill -9`."""

SIGNAL_EXIT_CODES = frozenset(
    128 + number
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGCONT)
)
"""Exit codes of processes ended by a signal that a scheduler or a user sends."""

ATTEMPTS_FILE = "attempts.jsonl"
"""File in the job folder with one line for each attempt that has ended."""

VERDICT_FILE = "verdict.txt"
"""File in the job folder that says why the job is not restarted, and what to do."""

RUNNING_STATE, SIGNALED_STATE = "running", "signaled"
"""Content of an attempt's state file once every process handles signals, and after a signal, until the attempt ends."""

FAILED, INTERRUPTED = "failed", "interrupted"
"""Outcomes of an attempt without success: it failed by itself, or it was signaled or lost with its node."""

MAX_FILE_BYTES = 1 << 20
"""Part of a file that is read, in bytes; an attempt needs 120."""

MAX_INTERRUPTIONS_PER_FAILURE = 10
"""An interruption is not a failure, but a job that ends at the same step N * `max_failures` times is not restarted."""


def state_path(folder: Path, restart: str) -> Path:
    """Return the file in which the processes of an attempt record how it ends; each attempt has its own."""
    return folder / f"state-{restart}"


def read_end_of_file(path: Path) -> str:
    """Return at most the last MAX_FILE_BYTES of a text file. Raises OSError for a pipe or a device."""
    # Opening a pipe waits for a writer without O_NONBLOCK.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path}: not a regular file")
        file.seek(max(0, status.st_size - MAX_FILE_BYTES))
        return file.read(MAX_FILE_BYTES).decode("utf-8", "replace")


def read_state(folder: Path, restart: str) -> str:
    """Return RUNNING_STATE or the exit code of an attempt; empty if nothing was recorded."""
    try:
        return read_end_of_file(state_path(folder, restart)).strip()
    except OSError:
        return ""


def record_start(folder: Path, restart: str) -> None:
    """Record that all processes of an attempt handle signals from now on."""
    if not read_state(folder, restart):
        write_state(folder, restart, RUNNING_STATE)


def record_signal(folder: Path, restart: str) -> None:
    """Record that the scheduler or a user has signaled an attempt, which now saves and exits."""
    if not read_state(folder, restart).isdecimal():
        write_state(folder, restart, SIGNALED_STATE)


def record_exit(folder: Path, restart: str, code: int) -> None:
    """Record the exit code of a process. srun kills the processes that end later, and then returns their exit code.

    The error of one process is not replaced by the exit codes of those that are signaled because of it. After a signal,
    an error may be caused by another process that has ended already, so it is not recorded.
    """
    state = read_state(folder, restart)
    if state == SIGNALED_STATE and code == EXIT_FAILURE:
        return
    if state not in (str(EXIT_USER_ERROR), str(EXIT_FAILURE)):
        write_state(folder, restart, str(code))


def write_state(folder: Path, restart: str, state: str) -> None:
    """Write the state file of an attempt; readers see the old or the new content."""
    path = state_path(folder, restart)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(state + "\n")
    partial.replace(path)


def resolve_outcome(folder: Path, restart: str, code: int) -> tuple[int, str]:
    """Return the exit code and the outcome (FAILED or INTERRUPTED) of an attempt whose script ended with `code`.

    The recorded exit code has precedence over that of srun. Without one, the attempt has failed by itself, unless it
    was signaled or ended by a signal before all processes handled signals. Afterwards, a process that is ended by a
    signal is one that srun has ended because another one crashed.
    """
    state = read_state(folder, restart)
    if state.isdecimal():
        code = int(state)
    elif state == SIGNALED_STATE or (code in SIGNAL_EXIT_CODES and state != RUNNING_STATE):
        return code, INTERRUPTED
    return code, INTERRUPTED if code == EXIT_REQUEUE else FAILED


def resolve_lost_outcome(folder: Path, restart: str) -> tuple[int, str]:
    """Return the exit code and the outcome of an attempt whose script did not end: its node failed, for example."""
    if read_state(folder, restart).isdecimal():
        return resolve_outcome(folder, restart, LOST_EXIT_CODE)
    return LOST_EXIT_CODE, INTERRUPTED


def was_interrupted(folder: Path, restart: str) -> bool:
    """Return whether a signal has ended an attempt."""
    return read_state(folder, restart) in (SIGNALED_STATE, str(EXIT_REQUEUE))


def append_attempt(folder: Path, code: int, outcome: str, restart: str) -> list[dict[str, Any]]:
    """Append an attempt to FOLDER/attempts.jsonl and return all attempts."""
    attempt = {"time": time.time(), "code": code, "outcome": outcome, "step": progress_step(folder), "restart": restart}
    with (folder / ATTEMPTS_FILE).open("a") as file:
        file.write(json.dumps(attempt) + "\n")
    return read_attempts(folder)


def progress_step(folder: Path) -> int:
    """Return the newest step with a checkpoint, which measures the progress of a training job.

    Other jobs always have step 0: a training that runs at the same time would make their failures look like progress.
    """
    if not folder.name.endswith("-train"):
        return 0
    manifests = (folder.parent.parent / "checkpoints").glob("step-*/manifest.json")
    numbers = [path.parent.name[len("step-") :] for path in manifests]
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


def read_attempts(folder: Path) -> list[dict[str, Any]]:
    """Return the attempts of a job that have ended, skipping damaged lines."""
    try:
        lines = read_end_of_file(folder / ATTEMPTS_FILE).splitlines()
    except OSError:
        return []
    attempts = []
    for line in lines:
        with suppress(ValueError, RecursionError):
            attempt = json.loads(line)
            if isinstance(attempt, dict) and all(isinstance(attempt.get(name), int) for name in ("code", "step")):
                attempts.append(attempt)
    return attempts


def is_failure(attempt: dict[str, Any]) -> bool:
    """Return whether an attempt ran and failed by itself; without a recorded outcome, the exit code shows it."""
    return bool(attempt.get("outcome", FAILED if attempt["code"] != EXIT_REQUEUE else INTERRUPTED) == FAILED)


def find_stop_reason(attempts: list[dict[str, Any]], max_failures: int) -> str | None:
    """Return why the job must not be restarted after its last attempt; None if it may be restarted."""
    code, step = attempts[-1]["code"], attempts[-1]["step"]
    if code == EXIT_USER_ERROR:
        return "a restart cannot fix this error (see the last lines of the log)"
    same_step_attempts = [attempt for attempt in attempts if attempt["step"] == step]
    num_failures = sum(map(is_failure, same_step_attempts))
    if num_failures >= max_failures:
        return f"failed {num_failures} times at step {step} (exit code {code})"
    if len(same_step_attempts) >= MAX_INTERRUPTIONS_PER_FAILURE * max_failures:
        return (
            f"interrupted {len(same_step_attempts)} times at step {step}; its run time is too short for one step"
            " (raise --time, or lower --signal-delay), or a process crashes at the start (read the logs)"
        )
    return None


def write_verdict(folder: Path, job_id: str, stop_reason: str) -> str:
    """Write FOLDER/verdict.txt: the reason, the logs, and the command that resumes the run. Return the text."""
    job_info = read_job_file(folder)
    logs = job_info.get("log") or f"{folder}/{job_id}_*_log.err"
    text = f"{folder.name}: not restarted: {stop_reason}; logs: {logs}; {describe_remedy(job_info)}"
    (folder / VERDICT_FILE).write_text(text + "\n")
    return text


def read_job_file(folder: Path) -> dict[str, Any]:
    """Return the content of job.json; empty if it is missing or damaged."""
    with suppress(OSError, ValueError, RecursionError):
        job_info = json.loads(read_end_of_file(folder / "job.json"))
        if isinstance(job_info, dict):
            return job_info
    return {}


def describe_remedy(job_info: dict[str, Any]) -> str:
    """Return the command that starts the job again after its cause was fixed, as part of a sentence."""
    command = submit_command(job_info)
    if command is None:
        return "fix the cause, then submit the job again with the same command to resume"
    return f"fix the cause, then resume with `{command}`"


def submit_command(job_info: dict[str, Any]) -> str | None:
    """Return the command that submitted a job, with the folder it was typed in; None if it was not recorded."""
    recorded = job_info.get("command")
    if not isinstance(recorded, list) or len(recorded) < 2:
        return None
    program, *arguments = map(str, recorded)
    is_batch_script = Path(program).name.startswith("sbatch_entry")
    words = ["sbatch", "slurm/train.sbatch"] if is_batch_script else ["python", "-m", "launch"]
    command = " ".join(map(shlex.quote, [*words, *arguments]))
    working_folder = job_info.get("cwd")
    return f"cd {shlex.quote(str(working_folder))} && {command}" if working_folder else command

"""`python -m launch.requeue FOLDER CODE`: what follows when a job's processes ended with a code that is not 0.

Saved at a signal, or broken down: the same job is queued again and goes on from its last checkpoint. A mistake that
starting again cannot mend, or the same step reached too often, ends it with a verdict.

`python -m launch.requeue FOLDER`, when a job starts again: starts that ended without coming here (their node died) are
counted as failures; when these are too many, the verdict is written and the exit code is not 0.
"""

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from featgan.run.paths import committed_steps
from featgan.system.slurm import ask_slurm
from launch.jobs import AGAIN, ENDED, MISTAKE
from launch.snapshot import ATTEMPTS, read_attempts, read_card

PATIENCE = 10
"""A signal without progress is no failure, but a job that gets no further in so many times the failures is stopped."""


PAUSES = (2, 5, 10, 20)
"""Seconds between questions to a controller that does not answer: it may be moving to another machine."""


LOST = 128 + 9
"""The code of a start that ended without a word, as `kill -9` would have it."""


def decide(attempts: list[dict[str, Any]], most: int) -> str | None:
    """Why the job must not start again, given all its attempts with the one that has just ended; None: it may."""
    last = attempts[-1]
    if last["code"] == MISTAKE:
        return "a mistake that starting again cannot mend (the log's last lines say which)"
    here = [attempt for attempt in attempts if attempt["step"] == last["step"]]
    failures = sum(attempt["code"] != AGAIN for attempt in here)
    if failures >= most:
        return f"failed {failures} times at step {last['step']} (code {last['code']})"
    if len(here) >= PATIENCE * most:
        return f"stopped by signals {len(here)} times at step {last['step']}: the time limit is too short for a step"
    return None


def record(folder: Path, code: int, restart: str) -> list[dict[str, Any]]:
    """Add an attempt to FOLDER/attempts.jsonl; returns all of them."""
    # Steps are a training's progress; another job's failures are not apart because a training goes on beside it.
    step = max(committed_steps(folder.parent.parent), default=0) if folder.name.endswith("-train") else 0
    attempt = {"time": time.time(), "code": code, "step": step, "restart": restart}
    with (folder / ATTEMPTS).open("a") as file:
        file.write(json.dumps(attempt) + "\n")
    return read_attempts(folder)


def state_of(job: str) -> str:
    """What SLURM says of a job: RUNNING, CANCELLED, ...; RUNNING as well without its answer.

    While a job that SLURM ends still has processes, its state is COMPLETING; only the reason then tells the end of its
    time from a cancellation.
    """
    shown = ask_slurm("scontrol", "show", "job", job, "--oneliner", pauses=PAUSES)
    if shown is None:
        return "RUNNING"
    found = {name: re.search(rf"\b{name}=(\w+)", shown.stdout) for name in ("JobState", "Reason")}
    state, reason = (match[1] if match else "" for match in found.values())
    return "TIMEOUT" if (state, reason) == ("COMPLETING", "TimeLimit") else state or "RUNNING"


def give_up(folder: Path, verdict: str) -> None:
    """Write FOLDER/verdict.txt, and say it in the job's log."""
    logs = read_card(folder).get("log") or f"{folder}/{os.environ['SLURM_JOB_ID']}_*_log.err"
    text = f"{folder.name}: given up: {verdict}; logs: {logs}"
    (folder / "verdict.txt").write_text(text + "\n")
    print(f"launch: {text}", file=sys.stderr)


def most_failures() -> int:
    return int(os.environ.get("FEATGAN_MAX_FAILURES", "3"))


def start_again(folder: Path) -> bool:
    """Count starts of the job that nobody has counted; whether it may start once more."""
    restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    verdict = None
    for lost in range(len(read_attempts(folder)), restart):
        print(f"launch: start {lost} ended without a word: its node died, or SLURM ended it in haste", file=sys.stderr)
        verdict = decide(record(folder, LOST, str(lost)), most_failures())
    if verdict:
        give_up(folder, verdict)
    return verdict is None


def main(folder: Path, code: int) -> None:
    """Queue the job again, or write FOLDER/verdict.txt; both are said in the job's log."""
    job, ended = os.environ["SLURM_JOB_ID"], folder / ENDED
    if ended.exists():
        code = int(ended.read_text() or code)
        ended.unlink()
    attempts = record(folder, code, os.environ.get("SLURM_RESTART_COUNT", "0"))
    verdict = decide(attempts, most_failures())
    # A job that was not ready at the end of its time goes on from its last checkpoint; a cancelled one stays so.
    if verdict is None and (state := state_of(job)) not in ("RUNNING", "TIMEOUT"):
        print(f"launch: job {job} is {state.lower()}: cancelled, or queued already", file=sys.stderr)
        return
    if verdict is None:
        print(f"launch: code {code} at step {attempts[-1]['step']}: job {job} is queued again", file=sys.stderr)
        asked = ask_slurm("scontrol", "requeue", job, pauses=PAUSES)
        if asked is None or asked.returncode:
            reason = "its controller does not answer" if asked is None else asked.stderr.strip()
            verdict = f"SLURM does not queue it again ({reason}); the same command goes on"
    if verdict:
        give_up(folder, verdict)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        sys.exit(0 if start_again(Path(sys.argv[1])) else MISTAKE)
    main(Path(sys.argv[1]), int(sys.argv[2]))

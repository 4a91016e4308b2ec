"""`python -m launch.after FOLDER CODE`: what follows when a job's processes ended with a code that is not 0.

Saved at a signal, or broken down: the same job is queued again and goes on from its last checkpoint. A mistake that
starting again cannot mend, or the same step reached too often, ends it with a verdict.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from featgan.schedule import committed_steps
from launch.jobs import AGAIN, ENDED, MISTAKE

PATIENCE = 10
"""A signal without progress is no failure, but a job that gets no further in so many times the failures is stopped."""


PAUSES = (2, 5, 10, 20)
"""Seconds between questions to a controller that does not answer: it may be moving to another machine."""


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


def record(folder: Path, code: int) -> list[dict[str, Any]]:
    """Add this attempt to FOLDER/attempts.jsonl; returns all of them."""
    path = folder / "attempts.jsonl"
    # Steps are a training's progress; another job's failures are not apart because a training goes on beside it.
    step = max(committed_steps(folder.parent.parent), default=0) if folder.name.endswith("-train") else 0
    attempt = {"time": time.time(), "code": code, "step": step, "restart": os.environ.get("SLURM_RESTART_COUNT", "0")}
    with path.open("a") as file:
        file.write(json.dumps(attempt) + "\n")
    return [json.loads(line) for line in path.read_text().splitlines()]


def is_running(job: str) -> bool:
    """Whether SLURM still takes the job for running: neither cancelled nor requeued by itself."""
    shown = scontrol("show", "job", job, "--oneliner")
    return shown.returncode != 0 or "JobState=RUNNING" in shown.stdout


def scontrol(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """SLURM's answer, asked for again while there is none."""
    for pause in (*PAUSES, 0):
        found = subprocess.run(["scontrol", *arguments], capture_output=True, text=True, timeout=60)
        if found.returncode == 0 or "Unable to contact" not in found.stderr:
            break
        time.sleep(pause)
    return found


def main(folder: Path, code: int) -> None:
    """Queue the job again, or write FOLDER/verdict.txt; both are said in the job's log."""
    job, ended = os.environ["SLURM_JOB_ID"], folder / ENDED
    if ended.exists():
        code = int(ended.read_text() or code)
        ended.unlink()
    attempts = record(folder, code)
    verdict = decide(attempts, int(os.environ.get("FEATGAN_MAX_FAILURES", "3")))
    if verdict is None and not is_running(job):
        print(f"launch: job {job} was cancelled or is queued already", file=sys.stderr)
        return
    if verdict is None:
        print(f"launch: code {code} at step {attempts[-1]['step']}: job {job} is queued again", file=sys.stderr)
        asked = scontrol("requeue", job)
        if asked.returncode:
            verdict = f"SLURM does not queue it again ({asked.stderr.strip()}); the same command goes on"
    if verdict:
        text = f"{folder.name}: given up: {verdict}; logs: {folder}/{job}_*_log.err"
        (folder / "verdict.txt").write_text(text + "\n")
        print(f"launch: {text}", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

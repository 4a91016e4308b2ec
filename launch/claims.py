"""Claims: one evaluator at a time for a checkpoint, however many look; a crashed one is noticed and tried again."""

import json
import os
import shutil
import socket
import subprocess
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featgan.schedule import MOST_ATTEMPTS, evaluation_path, failures


@dataclass(frozen=True)
class Claim:
    """The right to evaluate a step of a run with a suite."""

    run: Path
    step: int
    suite: str

    @property
    def result(self) -> Path:
        return evaluation_path(self.run, self.step, self.suite)

    @property
    def path(self) -> Path:
        return self.result.with_suffix(".claim")

    @property
    def failures(self) -> Path:
        return self.result.with_suffix(".failed")

    def take(self, job: str | None = None) -> bool:
        """Claim for this process, or for a job; False where another has it, it is done, or it failed too often."""
        if self.path.exists() and not self.clear_stale():
            return False
        if self.result.exists() or self.attempts() >= MOST_ATTEMPTS:
            return False
        self.path.parent.mkdir(exist_ok=True)
        # A link appears whole and only where there is none, on shared file systems as well: of two, one gets it.
        written = self.path.with_suffix(f".{socket.gethostname()}.{os.getpid()}")
        written.write_text(json.dumps(owner(job)))
        try:
            os.link(written, self.path)
        except FileExistsError:
            return False
        finally:
            written.unlink()
        if self.result.exists():  # finished between the first look and the claim
            self.give_back()
            return False
        return True

    def pass_to(self, job: str | None) -> None:
        """From now on the claim is a job's, or this process's."""
        temporary = self.path.with_suffix(f".passing.{socket.gethostname()}.{os.getpid()}")
        temporary.write_text(json.dumps(owner(job)))
        os.replace(temporary, self.path)

    def give_back(self) -> None:
        self.path.unlink(missing_ok=True)

    def clear_stale(self) -> bool:
        """Remove a claim whose owner is gone and count it as a failure; whether it was removed by us."""
        holder = read(self.path)
        if holder is not None and is_alive(holder):
            return False
        # Of two that find it stale, one may have taken it over already: then what is moved is the new claim.
        grave = self.path.with_suffix(f".stale.{socket.gethostname()}.{os.getpid()}")
        try:
            os.rename(self.path, grave)
        except FileNotFoundError:
            return False
        is_new = read(grave) != holder
        if is_new:
            with suppress(FileExistsError):  # a third one has claimed it since
                os.link(grave, self.path)
        grave.unlink()
        if is_new:
            return False
        if not self.result.exists():
            self.count_failure("its process or job ended without a result")
        return True

    def attempts(self) -> int:
        """Evaluations that broke."""
        return failures(self.run, self.step, self.suite)

    def count_failure(self, reason: str) -> None:
        """Note what broke."""
        failures = (read(self.failures) or {}).get("failures", [])
        self.failures.parent.mkdir(exist_ok=True)
        temporary = self.failures.with_suffix(".counting")
        temporary.write_text(json.dumps({"failures": [*failures, {"time": time.time(), "reason": reason}]}, indent=1))
        os.replace(temporary, self.failures)


def owner(job: str | None) -> dict[str, Any]:
    """Who holds a claim."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "job": job, "time": time.time()}


def read(path: Path) -> dict[str, Any] | None:
    """A small JSON file; None where it is gone or half-written."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def is_alive(holder: dict[str, Any]) -> bool:
    """Whether the job, or the process on this machine, still runs; a process elsewhere is believed for a day."""
    if holder.get("job"):
        return job_is_alive(str(holder["job"]))
    if holder.get("host") != socket.gethostname():
        return time.time() - float(holder.get("time", 0)) < 86_400
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def job_is_alive(job: str) -> bool:
    """Whether SLURM knows the job as waiting or running; without an answer of SLURM, it is believed."""
    if shutil.which("squeue") is None:
        return True
    try:
        shown = subprocess.run(["squeue", "--noheader", "--jobs", job], capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return True
    # A controller that is away ends squeue as an unknown job does; only the latter is gone.
    unanswered = shown.returncode != 0 and "nvalid job id" not in shown.stderr
    return unanswered or bool(shown.stdout.strip())


def evaluate_claimed(claim: Claim, blackboxes: Sequence[str] = (), probe: str | None = None) -> None:
    """Evaluate what was claimed and give the claim back; what breaks is counted and raised.

    A job that a signal ends keeps its claim: it is queued again.
    """
    from featgan.evaluate import evaluate_run

    claim.pass_to(os.environ.get("SLURM_JOB_ID"))  # whoever claimed it for this process may end before it
    try:
        evaluate_run(claim.run, claim.step, claim.suite, blackboxes, probe)
    except Exception:
        claim.count_failure(traceback.format_exc(limit=-3))
        claim.give_back()
        raise
    claim.failures.unlink(missing_ok=True)
    claim.give_back()

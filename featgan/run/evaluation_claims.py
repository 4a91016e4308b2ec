"""Claims: one evaluator at a time for a checkpoint and a suite, however many look; a crashed one is noticed."""

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featgan.errors import UserError
from featgan.run.paths import committed_steps, evaluation_path
from featgan.run.schedule import MOST_ATTEMPTS, failures
from featgan.system.file_lease import Hold, Holder


@dataclass(frozen=True)
class Claim:
    """The right to evaluate a step of a run with a suite; whoever knows the token of the one that took it has it."""

    run: Path
    step: int
    suite: str
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def result(self) -> Path:
        return evaluation_path(self.run, self.step, self.suite)

    @property
    def hold(self) -> Hold:
        return Hold(self.result.with_suffix(".claim"))

    @property
    def failures(self) -> Path:
        return self.result.with_suffix(".failed")

    def take(self, anew: bool = False) -> bool:
        """Claim for this process; False where a living one has it and, unless `anew`, where it is done or given up."""
        if self.hold.path.exists():
            if not self.hold.clear():
                return False
            if not self.result.exists():
                self.count_failure("its process or job ended without a result")
        if not anew and (self.result.exists() or self.attempts() >= MOST_ATTEMPTS):
            return False
        self.result.parent.mkdir(exist_ok=True)
        if not self.hold.take(Holder.here(self.token)):
            return False
        if not anew and self.result.exists():  # finished between the first look and the claim
            self.give_back()
            return False
        return True

    def adopt(self) -> bool:
        """This process has it from now on, in the place of who claimed it; False where another has it by now."""
        return self.hold.pass_to(Holder.here(self.token))

    def pass_to_job(self, job: str) -> None:
        """A SLURM job has it from now on, unless that has given it back already."""
        self.hold.pass_to(Holder.of_job(job, self.token))

    def pass_to_process(self, pid: int) -> None:
        """The same with a process of this machine."""
        self.hold.pass_to(Holder.of_process(pid, self.token))

    def give_back(self) -> None:
        self.hold.give_back(self.token)

    def attempts(self) -> int:
        """Evaluations that broke."""
        return failures(self.run, self.step, self.suite)

    def count_failure(self, reason: str) -> None:
        """Note what broke."""
        found = (read(self.failures) or {}).get("failures", [])
        self.failures.parent.mkdir(exist_ok=True)
        temporary = self.failures.with_suffix(f".{self.token}")
        temporary.write_text(json.dumps({"failures": [*found, {"time": time.time(), "reason": reason}]}, indent=1))
        temporary.replace(self.failures)


def read(path: Path) -> dict[str, Any] | None:
    """A small JSON file; None where it is gone or half-written."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


class BusyError(UserError):
    """Another evaluates the checkpoint."""


@contextmanager
def claimed(run: Path, step: int | None, suite: str) -> Iterator[int | None]:
    """While a person evaluates a checkpoint, no watch does, and it is kept; gives its step.

    BusyError when it is being evaluated already. A step without a checkpoint, or none, is left to its reader.
    """
    if step not in committed_steps(run):
        yield step
        return
    claim = take_by_hand(run, step, suite)
    try:
        with claim.hold.kept():
            yield step
        claim.failures.unlink(missing_ok=True)
    finally:
        claim.give_back()


def take_by_hand(run: Path, step: int, suite: str) -> Claim:
    """A claim to evaluate even what is done or given up; BusyError where another is at it."""
    claim = Claim(run, step, suite)
    if not claim.take(anew=True):
        other = claim.hold.living() or "another"
        raise BusyError(f"{run}: {other} evaluates step {step} ({suite}) already; wait until that is done")
    return claim

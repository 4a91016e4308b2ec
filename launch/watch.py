"""One look at all runs: what is due is claimed and evaluated here, or submitted; then the leaderboard is written."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from featgan.config.loading import read_yaml, validate
from featgan.config.schema import Config
from featgan.errors import UserError
from featgan.run.evaluation_claims import Claim
from featgan.run.paths import SUITES, steps_with
from featgan.run.schedule import due_evaluations
from featgan.system.progress import console
from launch.leaderboard import write_leaderboard

Start = Callable[[Claim], None]
"""Has a claimed checkpoint evaluated."""


def find_runs(folder: Path) -> Iterator[tuple[Path, Config]]:
    """Runs in a folder, or the folder itself, with their configurations; broken ones are named and passed over."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of runs")
    for path in [folder, *sorted(folder.iterdir())]:
        try:
            if (path / "config.yaml").is_file() and (path / "checkpoints").is_dir():
                yield path, validate(read_yaml(path / "config.yaml"), str(path / "config.yaml"))
        except (UserError, OSError) as error:
            complain(f"passed over: {error}")


def complain(text: str) -> None:
    console.print(text, style="yellow", markup=False)


def tick(folder: Path, start: Start, most: int = 100) -> int:
    """Look once at every run; returns the number of checkpoints that were claimed, at most `most`."""
    claimed = 0
    for run, config in find_runs(folder):
        try:
            clear_claims(run)
            for step, suite in due_evaluations(run, config.evaluation):
                claimed += claimed < most and look(Claim(run, step, suite), start)
        except OSError as error:
            complain(f"{run}: passed over: {error}")
    write_leaderboard(folder, list(find_runs(folder)))
    console.print(f"{folder / 'leaderboard.html'}: {claimed} begun now", markup=False)
    return claimed


def clear_claims(run: Path) -> None:
    """Give back what nobody holds any more of suites that may never be due: a claim keeps its checkpoint."""
    for suite in SUITES:
        for step in steps_with(run, suite, "claim"):
            claim = Claim(run, step, suite)
            if claim.hold.clear() and not claim.result.exists():
                claim.count_failure("its process or job ended without a result")


def look(claim: Claim, start: Start) -> bool:
    """Have what is due evaluated, unless it is in other hands; whether it was claimed."""
    if not claim.take():
        return False
    console.print(f"{claim.run}: evaluating step {claim.step} ({claim.suite})", markup=False)
    try:
        start(claim)
    except (UserError, OSError, subprocess.SubprocessError) as error:
        complain(f"{claim.run}: step {claim.step}: {error}")
    return True


def evaluate_here(claim: Claim) -> None:
    """In a process of its own: what breaks it, also a crash of the interpreter, leaves the watch alone."""
    named = (str(claim.run), str(claim.step), claim.suite, claim.token)
    failures = claim.attempts()
    ended = subprocess.run([sys.executable, "-m", "launch.claimed_evaluation", *named], capture_output=True, text=True)
    if ended.returncode:
        if claim.attempts() == failures:  # it had no time to note its own end
            claim.count_failure(f"the process ended with code {ended.returncode}: {ended.stderr[-2000:]}")
        claim.give_back()
        last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        complain(f"{claim.run}: step {claim.step} failed: {last}")

"""One look at all runs: what is due is claimed and evaluated here, or submitted; then the leaderboard is written."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from featgan.config import Config, read_yaml, validate
from featgan.errors import UserError
from featgan.progress import console
from featgan.schedule import due_steps
from launch.claims import Claim
from launch.leaderboard import write_leaderboard

Start = Callable[[Claim], None]
"""Has a claimed checkpoint evaluated."""


def find_runs(folder: Path) -> Iterator[tuple[Path, Config]]:
    """Runs in a folder, or the folder itself, with their configurations; broken ones are named and passed over."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of runs")
    for path in [folder, *sorted(folder.iterdir())]:
        if not (path / "config.yaml").is_file() or not (path / "checkpoints").is_dir():
            continue
        try:
            yield path, validate(read_yaml(path / "config.yaml"), str(path / "config.yaml"))
        except UserError as error:
            console.print(f"passed over: {error}", style="yellow", markup=False)


def tick(folder: Path, start: Start, most: int = 100) -> int:
    """Look once at every run; returns the number of checkpoints that were claimed, at most `most`."""
    claimed = 0
    for run, config in find_runs(folder):
        for step in reversed(due_steps(run, config.evaluation)):
            claim = Claim(run, step, config.evaluation.suite)
            if claimed >= most or not claim.take():
                continue
            claimed += 1
            console.print(f"{run}: evaluating step {step} ({claim.suite})", markup=False)
            try:
                start(claim)
            except (UserError, OSError, subprocess.SubprocessError) as error:
                console.print(f"{run}: step {step}: {error}", style="yellow", markup=False)
    write_leaderboard(folder, list(find_runs(folder)))
    return claimed


def evaluate_here(claim: Claim) -> None:
    """In a process of its own: what breaks it, also a crash of the interpreter, leaves the watch alone."""
    code = (
        "import sys; from pathlib import Path; from launch.claims import Claim, evaluate_claimed; "
        "evaluate_claimed(Claim(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))"
    )
    arguments = [sys.executable, "-c", code, str(claim.run), str(claim.step), claim.suite]
    failures = claim.attempts()
    ended = subprocess.run(arguments, capture_output=True, text=True)
    if ended.returncode:
        if claim.attempts() == failures:  # it had no time to note its own end
            claim.count_failure(f"the process ended with code {ended.returncode}: {ended.stderr[-2000:]}")
        claim.give_back()
        last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        console.print(f"{claim.run}: step {claim.step} failed: {last}", style="yellow", markup=False)

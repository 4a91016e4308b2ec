"""What the jobs of a run are doing, from the run's own files and, where there is one, SLURM's queue."""

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from featgan.config import read_yaml
from featgan.errors import UserError
from featgan.schedule import committed_steps, evaluated_steps
from launch.jobs import ENDED
from launch.snapshot import read_card

TAIL = 16_384
"""Bytes looked at from the end of metrics.jsonl."""


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    step: int | None
    steps: int | None
    images_per_second: float | None
    batch_size: int | None

    @property
    def seconds_left(self) -> float | None:
        """Until the last step at the present speed."""
        if self.step is None or not self.steps or not self.images_per_second or not self.batch_size:
            return None
        return (self.steps - self.step) * self.batch_size / self.images_per_second


def read_progress(run: Path) -> Progress:
    """From config.yaml and the last whole line of metrics.jsonl."""
    training: dict[str, Any] = {}
    if (run / "config.yaml").is_file():
        training = read_yaml(run / "config.yaml").get("training", {})
    last = last_line(run / "metrics.jsonl")
    speed = last.get("speed/images_per_second")
    return Progress(last.get("step"), training.get("steps"), speed, training.get("batch_size"))


def last_line(path: Path) -> dict[str, Any]:
    """The last line that is whole JSON; empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - TAIL, 0))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    return {}


def queue(jobs: Sequence[str]) -> dict[str, tuple[str, str]] | None:
    """State and node, or reason to wait, of each job that SLURM still knows; None where SLURM does not answer."""
    if shutil.which("squeue") is None:
        return None
    # squeue refuses a whole list for one unknown job, so it is asked for all of them.
    shown = subprocess.run(["squeue", "--noheader", "--format=%i|%T|%R"], capture_output=True, text=True, timeout=60)
    if shown.returncode:
        return None
    rows = (line.split("|", 2) for line in shown.stdout.splitlines())
    return {row[0]: (row[1].lower(), row[2]) for row in rows if len(row) == 3 and row[0] in jobs}


def settled_state(folder: Path, card: dict[str, Any], answered: bool) -> str:
    """What became of a job that the queue does not hold, by the files that it left; `answered`: there is a queue."""
    if (folder / "verdict.txt").is_file():
        return "given up"
    # submitit's result is written after success only: a failed process of ours leaves by its exit code.
    if (folder / f"{card.get('id')}_0_result.pkl").is_file():
        return "done"
    if (folder / "attempts.jsonl").is_file():
        return "failed or cancelled"
    if (folder / ENDED).is_file():
        return "cancelled"  # it saved itself at a signal, and its script was not left to look at that
    answered = answered and card.get("cluster", {}).get("executor") == "slurm"
    if any(folder.glob("*_log.out")):
        return "cancelled or lost" if answered else "running or lost"
    return "cancelled" if answered else "not started"


def status_table(run: Path) -> Table:
    """A row a job of a run; UserError where there are none."""
    folders = sorted(path for path in (run / "jobs").glob("*-*") if (path / "job.json").is_file())
    if not folders:
        raise UserError(f"{run}: no jobs; `python -m launch train CONFIG run={run}` submits one")
    cards = {folder: read_card(folder) for folder in folders}
    known = queue([str(card.get("id")) for card in cards.values()])
    progress = read_progress(run)
    table = Table(title=str(run), title_justify="left")
    for heading in ("job", "id", "state", "node", "step", "images/s", "left"):
        table.add_column(heading, overflow="fold")
    for folder, card in cards.items():
        settled = settled_state(folder, card, known is not None)
        state, node = (known or {}).get(str(card.get("id")), (settled, ""))
        figures = training_figures(progress) if card.get("kind") == "train" else ("", "", "")
        table.add_row(folder.name, str(card.get("id")), state, node, *figures)
    steps, suites = committed_steps(run), {suite: evaluated_steps(run, suite) for suite in ("quick", "standard")}
    said = [f"last checkpoint: {max(steps)}" if steps else "no checkpoint yet"]
    said += [f"last {suite} evaluation: {max(done)}" for suite, done in suites.items() if done]
    said += [path.read_text().strip() for folder in folders for path in folder.glob("verdict.txt")]
    said.append(f"newest log: {newest_log(folders)}")
    table.caption, table.caption_justify = "\n".join(said), "left"
    return table


def training_figures(progress: Progress) -> tuple[str, str, str]:
    """Step, speed and time left, as shown."""
    if progress.step is None:
        return "-", "-", "-"
    left = progress.seconds_left
    hours = "-" if left is None else f"{int(left) // 3600}:{int(left) % 3600 // 60:02d} h"
    speed = "-" if progress.images_per_second is None else f"{progress.images_per_second:.0f}"
    return f"{progress.step} of {progress.steps}", speed, hours


def newest_log(folders: Sequence[Path]) -> str:
    """The log that was written to last."""
    logs = [log for folder in folders for log in folder.glob("*_log.err")]
    return str(max(logs, key=lambda path: path.stat().st_mtime)) if logs else "none yet"

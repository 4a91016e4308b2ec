"""What the jobs of a run are doing, from the run's own files and, where there is one, SLURM's queue."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from featgan.config.loading import read_yaml
from featgan.errors import UserError
from featgan.run.paths import SUITES, committed_steps, evaluated_steps
from featgan.system.slurm import ask_slurm
from launch.jobs import AGAIN, ENDED
from launch.snapshot import ATTEMPTS, DONE, read_attempts, read_card

TAIL = 1 << 18
"""Bytes looked at from the end of metrics.jsonl."""


SPEED = "speed/images_per_second"


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
    """From config.yaml and the last line of metrics.jsonl that tells the speed; evaluations write lines as well."""
    training: dict[str, Any] = {}
    if (run / "config.yaml").is_file():
        training = read_yaml(run / "config.yaml").get("training", {})
    last = last_line(run / "metrics.jsonl", SPEED)
    speed = last.get(SPEED)
    return Progress(last.get("step"), training.get("steps"), speed, training.get("batch_size"))


def last_line(path: Path, key: str) -> dict[str, Any]:
    """The last line that is whole JSON and has the key; empty where there is none."""
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
        if isinstance(found, dict) and key in found:
            return found
    return {}


@dataclass(frozen=True)
class Place:
    """What SLURM's queue says of a job: its state, its node or why it waits, the time limit's left."""

    state: str
    node: str
    left: str


def queue(jobs: Sequence[str]) -> dict[str, Place] | None:
    """Each job that SLURM still knows; None where SLURM does not answer."""
    # squeue refuses a whole list for one unknown job, so it is asked for all of them.
    shown = ask_slurm("squeue", "--noheader", "--format=%i|%T|%L|%R")
    if shown is None or shown.returncode:
        return None
    rows = (line.split("|", 3) for line in shown.stdout.splitlines())
    return {row[0]: Place(row[1].lower(), row[3], row[2]) for row in rows if len(row) == 4 and row[0] in jobs}


def settled_state(folder: Path, card: dict[str, Any], answered: bool) -> str:
    """What became of a job that the queue does not hold, by the files that it left; `answered`: there is a queue."""
    if (folder / "verdict.txt").is_file():
        return "given up"
    # submitit's result is written after success only: a failed process of ours leaves by its exit code.
    if (folder / f"{card.get('id')}_0_result.pkl").is_file() or (folder / DONE).is_file():
        return "done"
    if (folder / ATTEMPTS).is_file():
        return "failed or cancelled"
    if (folder / ENDED).is_file():
        # Its script was not left to look at that, or there is none: it saved itself at a signal, or it failed.
        return "cancelled" if (folder / ENDED).read_text().strip() == str(AGAIN) else "failed"
    on_slurm = card.get("cluster", {}).get("executor") == "slurm"
    if not on_slurm and not is_alive(card.get("id")):
        return "failed or lost"
    answered = answered and on_slurm
    if any(folder.glob("*_log.out")):
        return "cancelled, out of time or lost" if answered else "running or lost"
    return "cancelled" if answered else "not started"


def is_alive(number: object) -> bool:
    """Whether a process of this machine has the number."""
    try:
        os.kill(int(str(number)), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except PermissionError:
        pass
    return True


def status_table(run: Path) -> Table:
    """A row a job of a run; UserError where there are none."""
    folders = sorted(path for path in (run / "jobs").glob("*-*") if (path / "job.json").is_file())
    if not folders:
        raise UserError(f"{run}: no jobs; `python -m launch train CONFIG run={run}` submits one")
    cards = {folder: read_card(folder) for folder in folders}
    known = queue([str(card.get("id")) for card in cards.values()])
    trainings = [folder for folder, card in cards.items() if card.get("kind") == "train"]
    table = Table(title=str(run), title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for heading in ("job", "id", "state", "node", "limit", "step", "images/s", "left", "log"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("job", "id", "step"))
    for folder, card in cards.items():
        settled = Place(settled_state(folder, card, known is not None), "", "")
        place = (known or {}).get(str(card.get("id")), settled)
        figures = ("", "", "")
        if folder in trainings:  # what the run shows of itself is of the newest one
            figures = training_figures(read_progress(run)) if folder == trainings[-1] else former_figures(folder)
        table.add_row(folder.name, str(card.get("id")), place.state, place.node, place.left, *figures, log_of(folder))
    steps, suites = committed_steps(run), {suite: evaluated_steps(run, suite) for suite in SUITES}
    said = [f"last checkpoint: {max(steps)}" if steps else "no checkpoint yet"]
    said += [f"last {suite} evaluation: {max(done)}" for suite, done in suites.items() if done]
    said += [path.read_text().strip() for folder in folders for path in folder.glob("verdict.txt")]
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


def former_figures(folder: Path) -> tuple[str, str, str]:
    """The step that a training which is not the newest had saved when it ended last."""
    attempts = read_attempts(folder)
    return (str(attempts[-1].get("step", "-")) if attempts else "-"), "", ""


def log_of(folder: Path) -> str:
    """The log of a job that was written to last, below the run's folder, or where a job by hand writes."""
    logs = sorted(folder.glob("*_log.err"), key=lambda path: path.stat().st_mtime)
    return str(logs[-1].relative_to(folder.parent.parent)) if logs else str(read_card(folder).get("log", "-"))

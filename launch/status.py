"""Report the state of a run's jobs, from the files of the run and, if available, the SLURM queue."""

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from featgan.config.choices import SUITES
from featgan.errors import UserError
from featgan.run.evaluation_document import to_finite_number, to_integer
from featgan.run.evaluation_schedule import describe_given_up, given_up_steps
from featgan.run.paths import checkpoint_steps, evaluated_steps
from featgan.system.console import PlainConsole
from featgan.system.files import read_side_text
from featgan.system.json_files import parse_line, read_lines
from featgan.system.limits import MAX_LINE_BYTES
from featgan.system.plain_text import format_one_line, print_line
from featgan.system.slurm import QUEUE_COMMAND, has_slurm, run_slurm_command
from featgan.system.yaml_files import read_yaml_mapping
from launch.attempts import ATTEMPTS_FILE, EXIT_REQUEUE, VERDICT_FILE, read_attempts, read_state
from launch.job_folder import DONE_FILE, read_job_info

logger = logging.getLogger(__name__)

TAIL_BYTES = 1 << 18
"""Bytes that are read from the end of metrics.jsonl."""

SPEED_KEY = "speed/images_per_second"

COLUMN_WIDTHS = {
    "job": None,
    "id": None,
    "state": 10,
    "node": None,
    "time left": 10,
    "step": 7,
    "images/s": 8,
    "ETA": 7,
}
"""Columns of the table, with minimum widths that keep words on one line; together they fit 80 characters."""


@dataclass(frozen=True)
class RunProgress:
    """Training progress of a run; None where it is unknown."""

    step: int | None
    steps: int | None
    images_per_second: float | None
    batch_size: int | None

    @property
    def seconds_left(self) -> float | None:
        """Estimated time to the last step at the current speed, in seconds."""
        if self.step is None or not self.steps or not self.images_per_second or not self.batch_size:
            return None
        return (self.steps - self.step) * self.batch_size / self.images_per_second


def read_progress(run_dir: Path) -> RunProgress:
    """Read config.yaml and the last line of metrics.jsonl that holds the speed; evaluations write lines as well."""
    training: Any = None
    if (run_dir / "config.yaml").is_file():
        try:
            training = read_yaml_mapping(run_dir / "config.yaml").get("training")
        except (UserError, OSError) as error:
            logger.warning(f"skipped: {error}")
    training = training if isinstance(training, dict) else {}
    last_entry = last_entry_with_key(run_dir / "metrics.jsonl", SPEED_KEY)
    step, steps, batch_size = (
        to_integer(value) for value in (last_entry.get("step"), training.get("steps"), training.get("batch_size"))
    )
    return RunProgress(step, steps, to_finite_number(last_entry.get(SPEED_KEY)), batch_size)


def last_entry_with_key(path: Path, key: str) -> dict[str, Any]:
    """Return the last line that is complete JSON and has the key; empty if there is none."""
    try:
        lines = list(read_lines(path, TAIL_BYTES))
    except (OSError, UserError):
        return {}
    entries = map(parse_line, reversed(lines))
    return next((entry for entry in entries if entry is not None and key in entry), {})


@dataclass(frozen=True)
class QueueEntry:
    """A job in the SLURM queue: its state, its nodes or the reason why it is pending, and its remaining time."""

    state: str
    node: str
    time_left: str


Queue = Mapping[str, QueueEntry]
"""The jobs in the SLURM queue by ID."""


def query_queue() -> Queue | None:
    """Return all jobs that are in the SLURM queue; None if SLURM does not respond."""
    # squeue rejects a list of IDs if one of them is unknown, so the complete queue is requested.
    result = run_slurm_command(*QUEUE_COMMAND, "--format=%A|%T|%L|%R")
    if result is None or result.returncode:
        return None
    rows = (line.split("|", 3) for line in result.stdout.splitlines())
    return {row[0]: QueueEntry(row[1].lower(), row[3], row[2]) for row in rows if len(row) == 4}


def finished_state(folder: Path, job_info: dict[str, Any], has_queue: bool) -> str:
    """Return the state of a job that is not in the queue, from the files in its folder.

    `has_queue` is whether SLURM responded.
    """
    if (folder / VERDICT_FILE).is_file():
        return "not restarted"
    # submitit writes a result after success only: a failed process exits before that.
    if (folder / f"{job_info.get('id')}_0_result.pkl").is_file() or (folder / DONE_FILE).is_file():
        return "done"
    if (folder / ATTEMPTS_FILE).is_file():
        return "failed or canceled"
    if (state := read_state(folder, "0")).isdecimal():
        # The job script, which records the attempts, was killed, or the job has none (executor: local).
        return "canceled" if state == str(EXIT_REQUEUE) else "failed"
    cluster = job_info.get("cluster")
    on_slurm = isinstance(cluster, dict) and cluster.get("executor") == "slurm"
    if not on_slurm and not is_process_alive(job_info.get("id")):
        return "failed or lost"
    has_queue = has_queue and on_slurm
    if any(folder.glob("*_log.out")):
        return "canceled, timed out or lost" if has_queue else "running or lost"
    return "canceled" if has_queue else "not started"


def read_small_text(path: Path) -> str:
    """Return the text of a file with an exit code or a verdict; empty if there is none."""
    return read_side_text(path, MAX_LINE_BYTES).strip()


def is_process_alive(process_id: object) -> bool:
    """Return whether this machine has a process with the ID."""
    try:
        os.kill(int(str(process_id)), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except PermissionError:
        pass
    return True


def find_job_folders(run_dir: Path) -> list[Path]:
    """Return the job folders of a run in the order of submission. Raises UserError if this user can read none."""
    jobs = run_dir / "jobs"
    folders: list[Path] = []
    hidden: list[Path] = []
    try:
        candidates = sorted(path for path in jobs.iterdir() if "-" in path.name)
    except PermissionError:
        candidates, hidden = [], [jobs]
    except OSError:
        candidates = []  # no job was submitted
    for folder in candidates:
        try:
            (folder / "job.json").stat()
            folders.append(folder)
        except PermissionError:
            hidden.append(folder)
        except OSError:
            pass  # being created, or not a job folder
    if hidden and not folders:
        raise UserError(f"{hidden[0]}: belongs to another user, and job folders are private; use `squeue` instead")
    if not folders:
        raise UserError(f"{run_dir}: no jobs; submit one with `python -m launch train CONFIG run_dir={run_dir}`")
    return folders


def print_status(run_dirs: Sequence[Path]) -> None:
    """Print the jobs of all runs. A run that cannot be shown is an error, or, if there are several runs, a warning.

    One query to SLURM answers for all of them.
    """
    queue, console = query_queue(), PlainConsole()
    if queue is None and has_slurm():
        logger.warning("squeue fails or does not respond; the states are those in the files of the jobs")
    for run_dir in run_dirs:
        try:
            table, lines = status_table(run_dir, queue), status_lines(run_dir)
        except Exception as error:
            if len(run_dirs) == 1:
                raise
            logger.warning(f"{run_dir}: skipped: {format_one_line(str(error)) or type(error).__name__}")
            continue
        console.print(table)
        for line in lines:
            print_line(line)


def status_table(run_dir: Path, queue: Queue | None) -> Table:
    """Return a table with one row per job of a run. `queue` is None if SLURM does not respond."""
    job_infos = {folder: read_job_info(folder) for folder in find_job_folders(run_dir)}
    trainings = [folder for folder, job_info in job_infos.items() if job_info.get("kind") == "train"]
    table = Table(title=str(run_dir), title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=(0, 0))
    for heading, min_width in COLUMN_WIDTHS.items():
        table.add_column(heading, overflow="fold", no_wrap=heading in ("job", "id"), min_width=min_width)
    for folder, job_info in job_infos.items():
        entry = (queue or {}).get(str(job_info.get("id")))
        if entry is None:
            entry = QueueEntry(finished_state(folder, job_info, queue is not None), "", "")
        progress_cells = ("", "", "")
        if folder in trainings:  # metrics.jsonl describes the latest training job only
            progress_cells = (
                format_progress(read_progress(run_dir)) if folder == trainings[-1] else format_last_attempt(folder)
            )
        table.add_row(folder.name, str(job_info.get("id")), entry.state, entry.node, entry.time_left, *progress_cells)
    return table


def status_lines(run_dir: Path) -> list[str]:
    """Return lines to print below the table: last checkpoint, last evaluations, verdicts and logs."""
    folders, steps = find_job_folders(run_dir), checkpoint_steps(run_dir)
    evaluations = {suite: evaluated_steps(run_dir, suite) for suite in SUITES}
    lines = [f"last checkpoint: {max(steps)}" if steps else "no checkpoint yet"]
    lines += [f"last {suite} evaluation: {max(done)}" for suite, done in evaluations.items() if done]
    lines += [verdict for folder in folders if (verdict := read_small_text(folder / VERDICT_FILE))]
    lines += [describe_given_up(run_dir, step, suite) for suite in SUITES for step in given_up_steps(run_dir, suite)]
    return lines + [f"log of {folder.name}: {log}" for folder in folders if (log := latest_log(folder))]


def format_progress(progress: RunProgress) -> tuple[str, str, str]:
    """Return the cells for step, speed and estimated time to the last step."""
    if progress.step is None:
        return "-", "-", "-"
    seconds_left = progress.seconds_left
    hours = "-" if seconds_left is None else f"{int(seconds_left) // 3600}:{int(seconds_left) % 3600 // 60:02d} h"
    speed = "-" if progress.images_per_second is None else f"{progress.images_per_second:.0f}"
    return f"{progress.step} of {progress.steps}", speed, hours


def format_last_attempt(folder: Path) -> tuple[str, str, str]:
    """Return the same cells for an earlier training job: the step at which its last attempt ended."""
    attempts = read_attempts(folder)
    return (str(attempts[-1].get("step", "-")) if attempts else "-"), "", ""


def latest_log(folder: Path) -> str:
    """Return the most recent log of a job: relative to the run folder, or the log file of sbatch; empty if none."""
    times = {}
    for path in folder.glob("*_log.err"):
        with suppress(FileNotFoundError):  # removed at this moment
            times[path] = path.stat().st_mtime
    logs = sorted(times, key=lambda path: times[path])
    return str(logs[-1].relative_to(folder.parent.parent)) if logs else str(read_job_info(folder).get("log", ""))

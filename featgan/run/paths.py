"""Where the files of a run are stored, and which folders are runs."""

import re
from pathlib import Path
from typing import get_args

from featgan.config.loading import differences, read_yaml, validate
from featgan.config.schema import Config, Suite
from featgan.errors import UserError

MANIFEST = "manifest.json"
"""The file of a checkpoint that names the others; a checkpoint without it is none."""


LOCK = "training.lock"
"""Who trains a run, in its folder."""


SUITES: tuple[str, ...] = get_args(Suite)


RESULT = re.compile(r"step-(\d{8})-([a-z]+)\.(json|claim|failed)")


MOST_NAMED = 6
"""Differences that are named."""


def check_folder(config: Config) -> None:
    """UserError when the run's folder holds a run of another configuration, or something else.

    A run without a checkpoint holds nothing that another configuration could harm.
    """
    run, path = config.run, config.run / "config.yaml"
    if not path.exists():
        if run.exists() and not (run.is_dir() and all(is_leftover(entry) for entry in run.iterdir())):
            raise UserError(f"{run}: not empty and no run of featgan; choose another folder with run=...")
    elif any((run / "checkpoints").glob("step-*")):
        changed = differences(validate(read_yaml(path), str(path)), config)
        if len(changed) > MOST_NAMED:
            changed[MOST_NAMED:] = [f"and {len(changed) - MOST_NAMED} more"]
        if changed:
            raise UserError(
                f"{run}: holds a run of another configuration ({'; '.join(changed)}); "
                "give the same settings to go on, or choose another folder with run=..."
            )


def is_leftover(path: Path) -> bool:
    """A file that a kill left half-written, or what is put there before the run begins."""
    return path.name in ("jobs", LOCK) or (path.name.startswith(".") and path.name.endswith(".partial"))


def step_folder(run: Path, step: int) -> Path:
    """Where a step's checkpoint lies."""
    return run / "checkpoints" / f"step-{step:08d}"


def committed_steps(run: Path) -> list[int]:
    """Steps with a checkpoint folder, ascending."""
    folders = (run / "checkpoints").glob("step-" + "[0-9]" * 8)
    return sorted(step_of(folder) for folder in folders if (folder / MANIFEST).is_file())


def step_of(folder: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(folder.name.removeprefix("step-"))


def evaluation_path(run: Path, step: int, suite: str, count: int | None = None) -> Path:
    """Where a step's evaluation lies; beside it `.claim` while one runs, `.failed` after one broke.

    One that `count` cut short has a name of its own, so that it does not stand for the whole one.
    """
    short = f"-{count}" if count else ""
    return run / "evaluations" / f"step-{step:08d}-{suite}{short}.json"


def evaluated_steps(run: Path, suite: str) -> list[int]:
    """Steps with a result, ascending, whether or not their checkpoint is still there."""
    return steps_with(run, suite, "json")


def steps_with(run: Path, suite: str, ending: str) -> list[int]:
    """Steps that have a result (`json`), a claim or a failure note of a suite, ascending."""
    folder = run / "evaluations"
    found = (RESULT.fullmatch(path.name) for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted(int(match[1]) for match in found if match and match[2] == suite and match[3] == ending)

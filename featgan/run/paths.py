"""The layout of a run folder, and checks that a folder is a run."""

import re
from pathlib import Path

from featgan.config.loading import config_diff, parse_config
from featgan.config.schema import Config
from featgan.errors import UserError
from featgan.run.evaluation_document import has_result
from featgan.system.yaml_files import read_yaml_mapping

CHECKPOINT_MANIFEST = "manifest.json"
"""The file of a checkpoint that lists the others; a folder without it is not a checkpoint."""

TRAINING_LOCK = "training.lock"
"""The lease file that names the process or job that trains a run."""

RESULT_PATTERN = re.compile(r"step-(\d{8})-([a-z]+)\.(json|claim|failed)")

MAX_LISTED_DIFFERENCES = 6
"""Number of changed settings listed in an error message."""


def check_run_folder(config: Config) -> None:
    """Raise UserError if the run folder contains a run with another configuration, or other files.

    A run without a checkpoint may be started again with any configuration, since nothing would be lost.
    """
    run, path = config.run_dir, config.run_dir / "config.yaml"
    if not path.exists():
        if run.exists() and not (run.is_dir() and all(is_incomplete_file(entry) for entry in run.iterdir())):
            raise UserError(f"{run}: not empty and not a run of featgan; choose another folder with run_dir=...")
    elif any((run / "checkpoints").glob("step-*")):
        changed_settings = config_diff(load_run_config(run), config)
        if len(changed_settings) > MAX_LISTED_DIFFERENCES:
            changed_settings[MAX_LISTED_DIFFERENCES:] = [f"and {len(changed_settings) - MAX_LISTED_DIFFERENCES} more"]
        if changed_settings:
            raise UserError(
                f"{run}: contains a run with another configuration ({'; '.join(changed_settings)}); "
                "use the same settings to resume it, or choose another folder with run_dir=..."
            )


def load_run_config(run_dir: Path) -> Config:
    """Read config.yaml of a run. Raises UserError if it is missing or invalid."""
    path = run_dir / "config.yaml"
    return parse_config(read_yaml_mapping(path), str(path))


def is_incomplete_file(path: Path) -> bool:
    """Return whether a file may be in the folder of a run that has not started: job files, lock, partial files."""
    return path.name in ("jobs", TRAINING_LOCK) or (path.name.startswith(".") and path.name.endswith(".partial"))


def step_folder(run_dir: Path, step: int) -> Path:
    """Return the checkpoint folder of a step."""
    return run_dir / "checkpoints" / f"step-{step:08d}"


def checkpoint_steps(run_dir: Path) -> list[int]:
    """Return the steps with a checkpoint, ascending."""
    folders = (run_dir / "checkpoints").glob("step-" + "[0-9]" * 8)
    return sorted(step_from_folder(folder) for folder in folders if (folder / CHECKPOINT_MANIFEST).is_file())


def step_from_folder(folder: Path) -> int:
    """Return the step of a checkpoint folder."""
    return int(folder.name.removeprefix("step-"))


def evaluation_path(run_dir: Path, step: int, suite: str, max_pairs: int | None = None) -> Path:
    """Return the JSON file of an evaluation. The suffix `.claim` marks a running one, `.failed` lists failures.

    An evaluation limited to `max_pairs` has another name, so that it does not replace the complete one.
    """
    suffix = f"-{max_pairs}" if max_pairs else ""
    return run_dir / "evaluations" / f"step-{step:08d}-{suite}{suffix}.json"


def evaluated_steps(run_dir: Path, suite: str) -> list[int]:
    """Return the evaluated steps, ascending, even if their checkpoints have been removed.

    A step with a damaged result is not one of them, so that it is evaluated again.
    """
    steps = list_result_steps(run_dir, suite, "json")
    return [step for step in steps if has_result(evaluation_path(run_dir, step, suite))]


def list_result_steps(run_dir: Path, suite: str, extension: str) -> list[int]:
    """Return the steps with a result (`json`), a claim (`claim`) or failures (`failed`) of a suite, ascending."""
    folder = run_dir / "evaluations"
    matches = (RESULT_PATTERN.fullmatch(path.name) for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted(int(match[1]) for match in matches if match and match[2] == suite and match[3] == extension)

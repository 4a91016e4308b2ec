"""Checkpoints of a run: written atomically, verified by hash, loaded without pickle.

    checkpoints/step-00010000/
        generator, generator_ema, discriminator, optimizer-generator, optimizer-discriminator  (.safetensors)
        state.json, manifest.json
        model.json, space.safetensors: with generator_ema, the exported generator

The random states and the position in the data are functions of the step, so they are not saved.
"""

import json
import logging
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from featgan.errors import UserError
from featgan.features.space import FeatureSpace
from featgan.run.paths import CHECKPOINT_MANIFEST, checkpoint_steps, step_folder, step_from_folder
from featgan.system import json_files
from featgan.system.files import (
    atomic_folder,
    atomic_write,
    former_path,
    remove_folder,
    sha256_of,
    user_friendly_write_errors,
)
from featgan.system.tensor_files import TensorFileError, read_finite_tensors

logger = logging.getLogger(__name__)

DISK_FULL_REMEDY = "free some space and run the command again to resume from the last checkpoint"
CORRUPTED_REMEDY = "copy the checkpoint again, or use another step"


def save_checkpoint(
    run_dir: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    documents: Mapping[str, Any],
    max_checkpoints: int,
    protected: Collection[int] = (),
) -> Path:
    """Write the checkpoint of a step (`tensors` by file and name, JSON `documents`) and return its folder.

    The files are written to a temporary folder that is renamed at the end, so an existing checkpoint folder is
    complete. Then old checkpoints are removed (see `remove_old_checkpoints`). Raises UserError if the disk is full.
    """
    checkpoint_folder = step_folder(run_dir, step)
    if checkpoint_folder.exists():
        remove_folder(checkpoint_folder)
    with user_friendly_write_errors(checkpoint_folder, DISK_FULL_REMEDY), atomic_folder(checkpoint_folder) as folder:
        for name, group in tensors.items():
            contiguous = {key: value.detach().cpu().contiguous() for key, value in group.items()}
            atomic_write(folder / f"{name}.safetensors", save(contiguous))
        for name, document in documents.items():
            atomic_write(folder / f"{name}.json", json.dumps(document, indent=1).encode())
        files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in folder.iterdir()}
        atomic_write(folder / CHECKPOINT_MANIFEST, json.dumps({"step": step, "files": files}, indent=1).encode())
    remove_old_checkpoints(run_dir, step, max_checkpoints, protected)
    return checkpoint_folder


def remove_old_checkpoints(run_dir: Path, step: int, max_checkpoints: int, protected: Collection[int] = ()) -> None:
    """Remove old checkpoints of a run at `step`, except the `max_checkpoints` newest and those of `protected` steps.

    Also remove what an interrupted removal has left.
    """
    for leftover in (run_dir / "checkpoints").glob(former_path(Path("step-*")).name):
        shutil.rmtree(leftover, ignore_errors=True)
    all_steps = checkpoint_steps(run_dir)
    old_steps = [old_step for old_step in all_steps if old_step <= step][:-max_checkpoints]
    # A later checkpoint is corrupted, or the run would have resumed from it; it is removed if so.
    corrupted_steps = [later for later in all_steps if later > step and find_corruption(step_folder(run_dir, later))]
    for removed_step in [old_step for old_step in old_steps if old_step not in protected] + corrupted_steps:
        remove_folder(step_folder(run_dir, removed_step))


def find_corruption(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint as a short text; None if all files match the manifest."""
    try:
        files = read_json(folder / CHECKPOINT_MANIFEST)["files"]
        existing = {path.name for path in folder.iterdir() if path.is_file()}
        for name, expected in files.items():
            path = folder / Path(name).name
            if path.name not in existing or path.stat().st_size != expected["bytes"]:
                return f"{name} is missing or truncated"
            if sha256_of(path) != expected["sha256"]:
                return f"{name} has changed"
    except (KeyError, TypeError, AttributeError, UserError):
        return f"{CHECKPOINT_MANIFEST} cannot be read"
    return None


def newest_checkpoint(run_dir: Path) -> Path | None:
    """Return the newest valid checkpoint of a run, or None; log a warning for each corrupted one."""
    for step in reversed(checkpoint_steps(run_dir)):
        folder = step_folder(run_dir, step)
        reason = find_corruption(folder)
        if reason is None:
            return folder
        logger.warning(f"{folder}: corrupted ({reason}); using the previous checkpoint, if any")
    return None


def newest_step(run_dir: Path) -> int | None:
    """Return the step of the newest valid checkpoint of a run, or None."""
    folder = newest_checkpoint(run_dir)
    return step_from_folder(folder) if folder else None


def require_valid_checkpoint(folder: Path | None) -> Path | None:
    """Return a checkpoint folder given by the user.

    Raises UserError if it is corrupted or not a checkpoint; the message suggests another folder.
    """
    if folder is None:
        return None
    reason = find_corruption(folder) if folder.is_dir() else "no such folder"
    if reason:
        is_checkpoint = not folder.is_dir() or (folder / CHECKPOINT_MANIFEST).is_file()
        problem = reason if is_checkpoint else f"it has no {CHECKPOINT_MANIFEST}"
        suggestion = suggest_checkpoint(folder) or f"a checkpoint folder, for example {step_folder(Path('RUN'), 1000)}"
        raise UserError(f"{folder}: not a valid checkpoint ({problem}); use {suggestion}")
    return folder


def suggest_checkpoint(folder: Path) -> Path | None:
    """Return the newest valid checkpoint of the run that contains `folder`, or None."""
    for run in (folder, *folder.absolute().parents[:2]):
        if checkpoint_steps(run):
            return newest_checkpoint(run)
    return None


def find_checkpoint(run_dir: Path, step: int | None) -> Path:
    """Return the checkpoint folder of a step, or the newest one if `step` is None.

    Raises UserError if it is missing or corrupted.
    """
    if not run_dir.is_dir():
        raise UserError(f"{run_dir}: no such run folder; create one with `featgan train CONFIG run_dir={run_dir}`")
    folder = newest_checkpoint(run_dir) if step is None else step_folder(run_dir, step)
    if folder is None:
        raise UserError(
            f"{run_dir}: no valid checkpoint yet; `featgan train` saves one every training.checkpoint_every steps"
        )
    reason = find_corruption(folder) if folder.is_dir() else "no such checkpoint"
    if reason:
        steps = ", ".join(map(str, checkpoint_steps(run_dir))) or "none"
        raise UserError(f"{folder}: {reason}; the run has checkpoints of steps: {steps}")
    return folder


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file. Raises UserError if it cannot be read."""
    try:
        return read_finite_tensors(path)
    except TensorFileError as error:
        raise UserError(f"{path}: cannot be read as safetensors ({error}); {CORRUPTED_REMEDY}") from None


def read_space(path: Path) -> FeatureSpace:
    """Read the feature space of a checkpoint. Raises UserError if it cannot be read."""
    tensors = read_tensors(path)
    try:
        return FeatureSpace.from_tensors(tensors)
    except ValueError as error:
        raise UserError(f"{path}: {error}; {CORRUPTED_REMEDY}") from None


def read_json(path: Path) -> Any:
    """Read a JSON file of a checkpoint; errors as in `featgan.system.json_files.read_json`."""
    return json_files.read_json(path, remedy=CORRUPTED_REMEDY)

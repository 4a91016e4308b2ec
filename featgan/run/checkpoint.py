"""Checkpoints of a run: whole or not there, checked by hash, loaded without pickle.

    checkpoints/step-00010000/  generator discriminator average optimizer-*  (safetensors)   state.json  manifest.json
                                model.json  space.safetensors: with `average`, the exported generator

Random states and data positions are functions of the step, so there are none to save.
"""

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from featgan.errors import UserError
from featgan.run.paths import MANIFEST, committed_steps, step_folder, step_of
from featgan.system.files import explain_write_errors, sha256_of, whole_folder, write_whole
from featgan.system.progress import console

MOST_JSON_BYTES = 16 << 20
REMEDY = "free some space and run the command again: it goes on from the last checkpoint"


def save_checkpoint(
    run: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    documents: Mapping[str, Any],
    keep: int,
    protected: Collection[int] = (),
) -> Path:
    """Write a step's checkpoint (groups of tensors, JSON documents); remove all but the `keep` newest and `protected`.

    It is complete when its folder is there: files are synced in a temporary folder that is then renamed.
    """
    out = step_folder(run, step)
    if out.exists():
        shutil.rmtree(out)
    with explain_write_errors(out, REMEDY), whole_folder(out) as folder:
        for name, group in tensors.items():
            contiguous = {key: value.detach().cpu().contiguous() for key, value in group.items()}
            write_whole(folder / f"{name}.safetensors", save(contiguous))
        for name, document in documents.items():
            write_whole(folder / f"{name}.json", json.dumps(document, indent=1).encode())
        files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in folder.iterdir()}
        write_whole(folder / MANIFEST, json.dumps({"step": step, "files": files}, indent=1).encode())
    known = committed_steps(run)
    # What lies above this step is damaged, or this step would not have been reached again.
    old = [each for each in known if each <= step][:-keep]
    for other in [
        *[each for each in old if each not in protected],
        *[later for later in known if later > step and damage(step_folder(run, later))],
    ]:
        shutil.rmtree(step_folder(run, other))
    return out


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in a few words; None when every file is as its manifest says."""
    try:
        files = read_json(folder / MANIFEST)["files"]
        for name, expected in files.items():
            path = folder / Path(name).name
            if not path.is_file() or path.stat().st_size != expected["bytes"]:
                return f"{name} is missing or cut off"
            if sha256_of(path) != expected["sha256"]:
                return f"{name} has changed"
    except (KeyError, TypeError, AttributeError, UserError):
        return f"{MANIFEST} cannot be read"
    return None


def newest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint that is whole; damaged ones are named in a warning and passed over."""
    for step in reversed(committed_steps(run)):
        folder = step_folder(run, step)
        reason = damage(folder)
        if reason is None:
            return folder
        console.print(f"{folder} is damaged ({reason}); looking for the one before", style="yellow", markup=False)
    return None


def newest_step(run: Path) -> int | None:
    """The step of the newest checkpoint that is whole."""
    folder = newest_checkpoint(run)
    return step_of(folder) if folder else None


def checked(folder: Path | None) -> Path | None:
    """A checkpoint folder that the user names; UserError when it is damaged or none, with one to name in its place."""
    if folder is None:
        return None
    reason = damage(folder) if folder.is_dir() else "no such folder"
    if reason:
        what = reason if not folder.is_dir() or (folder / MANIFEST).is_file() else "it is none itself"
        place = find_near(folder) or f"one, such as {step_folder(Path('RUN'), 1000)}"
        raise UserError(f"{folder}: no checkpoint to go on from: {what}; name {place}")
    return folder


def find_near(folder: Path) -> Path | None:
    """The newest whole checkpoint of the run that a folder is or lies in."""
    for run in (folder, *folder.absolute().parents[:2]):
        if committed_steps(run):
            return newest_checkpoint(run)
    return None


def find_checkpoint(run: Path, step: int | None) -> Path:
    """A whole checkpoint of a step, or the newest (None); UserError when there is none."""
    if not run.is_dir():
        raise UserError(f"{run}: no such run folder; `featgan train CONFIG run={run}` makes one")
    folder = newest_checkpoint(run) if step is None else step_folder(run, step)
    if folder is None:
        raise UserError(f"{run}: no checkpoint yet; `featgan train` saves one every training.save_every steps")
    reason = damage(folder) if folder.is_dir() else "there is none"
    if reason:
        steps = ", ".join(map(str, committed_steps(run))) or "none"
        raise UserError(f"{folder}: {reason}; checkpoints of this run: {steps}")
    return folder


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file; UserError when it is none."""
    try:
        return load(path.read_bytes())
    except (FileNotFoundError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as safetensors ({error})") from None


def read_json(path: Path) -> Any:
    """A JSON file of bounded size; UserError when it is none."""
    try:
        if path.stat().st_size > MOST_JSON_BYTES:
            raise UserError(f"{path}: larger than {MOST_JSON_BYTES} bytes; not a file of featgan")
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None

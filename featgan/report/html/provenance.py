"""What a report is of, and what it takes to make it again: facts, commands, versions, hashes."""

import platform
import shlex
from collections.abc import Sequence
from pathlib import Path

import torch

from featgan import __version__
from featgan.data.shards.shard_set import ShardSet
from featgan.inference.model import Model
from featgan.report.edits.sources import Sources
from featgan.report.run_files import Evaluation
from featgan.run.paths import step_folder
from featgan.system.files import sha256_of

EXPORTED = ("average.safetensors", "model.json", "space.safetensors")
"""The parts of a checkpoint that make the exported generator."""


def describe(run: Path, model: Model, sources: Sources) -> list[tuple[str, str]]:
    """The facts under the title: term and description."""
    facts = [("Run", run.resolve().name), ("Step", str(model.step))]
    if model.blackbox:
        facts += [("Black box", model.blackbox["spec"]), ("Layer", model.blackbox["layer"])]
    facts.append(("Condition", f"{model.condition_kind.replace('_', ' ')}, {model.condition_dim} numbers"))
    facts.append(("Images", f"{len(sources)} {sources.origin}, {model.image_size} px"))
    versions = f"featgan {__version__}, PyTorch {torch.__version__}, Python {platform.python_version()}"
    return [*facts, ("Made with", versions)]


def commands(run: Path, model: Model, evaluation: Evaluation | None, render_options: Sequence[str]) -> list[str]:
    """The commands that lead from the shards to the report, quoted for a shell."""
    lines = []
    if model.blackbox:
        options = {"--shards": model.dataset["shards"], "--blackbox": model.blackbox["spec"]}
        options |= {"--layer": model.blackbox["layer"], "--name": model.dataset["features"]}
        if model.encoding == "components" and model.space is not None:
            options["--components"] = str(model.space.num_components)
        parts = [part for option, value in options.items() if value for part in (option, value)]
        lines.append(shlex.join(["featgan", "extract", *parts]))
    step = ["--step", str(model.step)]
    lines.append(shlex.join(["featgan", "train", str(run / "config.yaml")]))
    if evaluation is not None:
        given = ["--step", str(evaluation.step), *evaluation.arguments]
        lines.append(shlex.join(["featgan", "evaluate", str(run), *given]))
    return [*lines, shlex.join(["featgan", "render", str(run), *step, *render_options])]


def hashes(run: Path, model: Model, shards: ShardSet | None) -> dict[str, str]:
    """sha256 of the exported generator's files, of the shards and of the black box."""
    folder = step_folder(run, model.step)
    found = {f"{folder.name}/{name}": sha256_of(folder / name) for name in EXPORTED if (folder / name).is_file()}
    if shards is not None:
        found["shards"] = shards.fingerprint
    if model.blackbox:
        found["black box"] = model.blackbox["sha256"]
    return found

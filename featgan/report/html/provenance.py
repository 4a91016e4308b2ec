"""The facts about a run, and how to reproduce its report: commands, versions and hashes."""

import platform
import shlex
from collections.abc import Sequence
from pathlib import Path

import torch

from featgan import __version__
from featgan.data.shards.shard_set import ShardSet
from featgan.inference.model import EditingModel
from featgan.report.edits.sources import SourceImages
from featgan.run.evaluation_document import EvaluationDocument
from featgan.run.paths import step_folder
from featgan.system.files import sha256_of

EXPORTED_FILES = ("generator_ema.safetensors", "model.json", "space.safetensors")
"""Files of a checkpoint that make up the exported generator."""


def collect_run_facts(run_dir: Path, model: EditingModel, sources: SourceImages) -> list[tuple[str, str]]:
    """Return the facts about the run: term and description."""
    facts = [("Run", run_dir.resolve().name), ("Step", str(model.metadata.step))]
    if model.metadata.blackbox:
        facts += [("Classifier", model.metadata.blackbox["spec"]), ("Layer", model.metadata.blackbox["layer"])]
    facts.append(
        ("Condition", f"{model.metadata.condition_kind.replace('_', ' ')}, {model.metadata.condition_dim} dimensions")
    )
    facts.append(("Images", f"{len(sources)} {sources.origin}; {model.metadata.image_size} px"))
    versions = f"featgan {__version__}, PyTorch {torch.__version__}, Python {platform.python_version()}"
    return [*facts, ("Software", versions)]


def list_reproduction_commands(
    run_dir: Path, model: EditingModel, evaluation: EvaluationDocument | None, render_options: Sequence[str]
) -> list[str]:
    """Return the commands that lead from the shards to the report, quoted for a shell."""
    command_lines = []
    if model.metadata.blackbox:
        options = {"--shards": model.metadata.dataset["shards"], "--blackbox": model.metadata.blackbox["spec"]}
        options |= {"--layer": model.metadata.blackbox["layer"], "--cache-name": model.metadata.dataset["features"]}
        if model.metadata.encoding == "components" and model.space is not None:
            options["--num-components"] = str(model.space.num_components)
        extract_arguments = [argument for option, value in options.items() if value for argument in (option, value)]
        command_lines.append(shlex.join(["featgan", "extract", *extract_arguments]))
    step_arguments = ["--step", str(model.metadata.step)]
    command_lines.append(shlex.join(["featgan", "train", str(run_dir / "config.yaml")]))
    if evaluation is not None:
        evaluate_arguments = ["--step", str(evaluation.step), *evaluation.arguments]
        command_lines.append(shlex.join(["featgan", "evaluate", str(run_dir), *evaluate_arguments]))
    return [*command_lines, shlex.join(["featgan", "render", str(run_dir), *step_arguments, *render_options])]


def hash_artifacts(run_dir: Path, model: EditingModel, shards: ShardSet | None) -> dict[str, str]:
    """Return the sha256 of the exported generator's files, of the shards and of the classifier."""
    folder = step_folder(run_dir, model.metadata.step)
    digests = {
        f"{folder.name}/{name}": sha256_of(folder / name) for name in EXPORTED_FILES if (folder / name).is_file()
    }
    if shards is not None:
        digests["shards"] = shards.fingerprint
    if model.metadata.blackbox:
        digests["classifier"] = model.metadata.blackbox["sha256"]
    return digests

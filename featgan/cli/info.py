"""`featgan info`: describe a folder or checkpoint in a small table."""

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.table import Table

from featgan.blackbox.fitting.model_folder import METADATA_FILE, WEIGHTS_FILE, read_classifier_metadata
from featgan.blackbox.fitting.scores import format_headline_scores
from featgan.data.feature_cache.cache import SPACE_FILE, FeatureCache, read_complete_manifest, verify_cache_files
from featgan.data.feature_cache.storage import (
    FEATURES_FOLDER,
    PARTIAL_MANIFEST_FILE,
    check_file_sizes,
    is_cache_manifest,
    load_space,
)
from featgan.data.shards.manifest import MANIFEST_FILE
from featgan.data.shards.shard_set import ShardSet
from featgan.data.synthetic.dataset import RECIPE_FILE
from featgan.errors import UserError
from featgan.run.checkpoint import find_corruption
from featgan.run.model_metadata import read_model_metadata
from featgan.run.paths import checkpoint_steps, load_run_config
from featgan.system.json_files import read_json_object
from featgan.system.locations import Location

Facts = dict[str, object]

MAX_LISTED_NAMES = 40
"""Names of classes or attributes that are printed; CelebA has 40 attributes."""

INTACT = "all checksums match the manifest"
"""Result of a successful integrity check."""


def describe_shards(location: Path | Location) -> tuple[str, Facts]:
    shards = ShardSet.open(location)
    facts: Facts = {"image size": f"{shards.image_size} px", "classes": list_names(shards.classes)}
    for name in shards.split_names:
        split = shards.get_split(name)
        facts[name] = f"{len(split)} images in {len(split.shard_names)} shards"
    if shards.attribute_names:
        facts["attributes"] = list_names(shards.attribute_names)
    if shards.factor_names:
        facts["true factors"] = ", ".join(shards.factor_names)
    shards.verify()
    files = [shard for split in shards.manifest.splits.values() for shard in split.shards]
    is_remote = any(shard.locate(shards.location).is_remote for shard in files)
    facts["integrity"] = "each shard is checked when it is downloaded" if is_remote else INTACT
    return "shards", facts


def list_names(names: Sequence[str]) -> str:
    """Return names as one text; of many, only the first ones and the number of the others."""
    listed = ", ".join(names[:MAX_LISTED_NAMES])
    return f"{listed} and {len(names) - MAX_LISTED_NAMES:,} more" if len(names) > MAX_LISTED_NAMES else listed


def describe_cache(path: Path) -> tuple[str, Facts]:
    manifest = read_complete_manifest(path, "featgan extract")
    if manifest.shards_location is None:
        FeatureCache.open(ShardSet.open(path.parent.parent), path.name)
    space = load_space(path / SPACE_FILE, manifest.feature_dim)
    facts: Facts = {
        "classifier": manifest.blackbox.spec,
        "layer": manifest.blackbox.layer,
        "features": f"{manifest.feature_dim}, of which {int(space.live.sum())} are not constant",
        "outputs": f"{manifest.output_dim} ({manifest.task})",
        "components": manifest.num_components or "all",
        "SD of the first components": ", ".join(f"{scale:.2f}" for scale in space.scales[:8].tolist()),
    }
    if manifest.shards_location is not None:
        facts["shards"] = manifest.shards_location
    check_file_sizes(path, manifest)
    verify_cache_files(path, manifest)
    facts["integrity"] = INTACT
    return "feature cache", facts


def is_feature_cache(path: Path) -> bool:
    return (path.parent.name == FEATURES_FOLDER and path.is_dir()) or any(
        (path / name).is_file() and is_cache_manifest(path / name) for name in (MANIFEST_FILE, PARTIAL_MANIFEST_FILE)
    )


def describe_classifier(path: Path) -> tuple[str, Facts]:
    metadata = read_classifier_metadata(path)
    epochs, seed = metadata.settings.get("epochs"), metadata.settings.get("seed")
    facts: Facts = {
        "predicts": f"{metadata.task.replace('_', ' ')}: {', '.join(metadata.class_names)}",
        "network": f"{metadata.architecture.network}, {format_file_size(path / WEIGHTS_FILE)}",
        "image size": f"{metadata.preprocessing.image_size} px",
        "training": f"{epochs} epochs, seed {seed}",
        "scores": format_headline_scores(metadata.scores),
    }
    return "classifier", facts


def format_file_size(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"


def describe_synthetic(path: Path) -> tuple[str, Facts]:
    recipe = read_json_object(path / RECIPE_FILE)
    facts: Facts = {"faces": recipe.get("count"), "image size": f"{recipe.get('image_size')} px"}
    facts |= {"seed": recipe.get("seed"), "next": f"featgan pack affectnet {path} --out SHARDS"}
    return "synthetic faces in the layout affectnet", facts


def describe_run(path: Path) -> tuple[str, Facts]:
    config = load_run_config(path)
    steps = checkpoint_steps(path)
    facts: Facts = {
        "shards": config.dataset.shards,
        "condition": config.dataset.condition.kind,
        "feature cache": config.dataset.feature_cache if config.dataset.condition.kind == "features" else "none",
        "steps": f"{steps[-1] if steps else 0} of {config.training.steps}",
        "checkpoints": ", ".join(map(str, steps)) or "none",
        "evaluations": ", ".join(evaluation.stem for evaluation in sorted(path.glob("evaluations/*.json"))) or "none",
        "report": path / "report.html" if (path / "report.html").exists() else "none",
    }
    return "run", facts


def describe_checkpoint(path: Path) -> tuple[str, Facts]:
    corruption = find_corruption(path)
    metadata = read_model_metadata(path / "model.json")
    facts: Facts = {
        "integrity": corruption or INTACT,
        "step": metadata.step,
        "image size": f"{metadata.image_size} px",
        "condition": f"{metadata.condition_kind}, {metadata.condition_dim} dimensions ({metadata.encoding})",
        "conditioning": metadata.generator.conditioning,
        "classifier": (metadata.blackbox or {}).get("spec", "none"),
        "feature cache": metadata.dataset.get("features") or "none",
        "files": ", ".join(sorted(file.name for file in path.iterdir() if not file.name.startswith("."))),
    }
    return "checkpoint", facts


PATH_KINDS: list[tuple[Callable[[Path], bool], Callable[[Path], tuple[str, Facts]]]] = [
    (lambda path: (path / "model.json").is_file(), describe_checkpoint),
    (lambda path: (path / "config.yaml").is_file(), describe_run),
    (lambda path: (path / METADATA_FILE).is_file(), describe_classifier),
    (lambda path: (path / RECIPE_FILE).is_file(), describe_synthetic),
    (is_feature_cache, describe_cache),
    (lambda path: (path / "manifest.json").is_file(), describe_shards),
]
"""Test and description of each kind of folder; the first test that succeeds decides."""


def describe_location(location: Location) -> Table:
    """Return a table that describes a folder, or shards behind a URL. Raises UserError if featgan did not write it."""
    if location.is_remote:
        return build_table(location, *describe_shards(location))
    return describe_path(location.path)


def describe_path(path: Path) -> Table:
    """Return a table that describes the path. Raises UserError if it is not a folder of featgan."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; check the path")
    for is_kind, describe_kind in PATH_KINDS:
        if is_kind(path):
            return build_table(path, *describe_kind(path))
    raise UserError(
        f"{path}: not a shard folder, feature cache, classifier, run or checkpoint of featgan; "
        "give the path of one of these folders"
    )


def build_table(location: object, title: str, facts: Facts) -> Table:
    """Return a table with one fact per row."""
    table = Table(title=f"{location}: {title}", title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")  # by default, the end of a long path would be cut off
    for name, value in facts.items():
        table.add_row(name, str(value))
    return table

"""`featgan info`: what a folder is, in a small table."""

from collections.abc import Callable
from pathlib import Path

from rich.table import Table

from featgan.blackbox.fitting.model_folder import WEIGHTS
from featgan.blackbox.fitting.model_folder import read_card as read_box_card
from featgan.blackbox.fitting.scores import headline
from featgan.config.loading import read_yaml, validate
from featgan.data.feature_cache.cache import FeatureCache
from featgan.data.shards.shard_set import ShardSet
from featgan.data.synthetic.dataset import MARKER
from featgan.errors import UserError
from featgan.run.checkpoint import damage, read_json
from featgan.run.model_card import read_card
from featgan.run.paths import committed_steps

Facts = dict[str, object]


def describe(path: Path) -> Table:
    """A table of facts; UserError when the path is nothing that featgan knows."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    for is_kind, read in KINDS:
        if is_kind(path):
            title, facts = read(path)
            table = Table(title=f"{path}: {title}", title_justify="left", show_header=False)
            for name, value in facts.items():
                table.add_row(name, str(value))
            return table
    raise UserError(f"{path}: no shard folder, feature cache, box, run or checkpoint of featgan")


def describe_shards(path: Path) -> tuple[str, Facts]:
    shards = ShardSet.open(path)
    facts: Facts = {"image size": f"{shards.image_size} px", "classes": ", ".join(shards.classes)}
    for name in shards.split_names:
        split = shards.split(name)
        facts[name] = f"{len(split)} images in {len(split.shard_names)} shards"
    if shards.attribute_names:
        facts["attributes"] = ", ".join(shards.attribute_names)
    if shards.factor_names:
        facts["true factors"] = ", ".join(shards.factor_names)
    shards.verify()
    facts["every byte"] = "is as the manifest says"
    return "shards", facts


def describe_cache(path: Path) -> tuple[str, Facts]:
    cache = FeatureCache.open(ShardSet.open(path.parent.parent), path.name)
    space = cache.space
    facts: Facts = {
        "black box": cache.blackbox["spec"],
        "layer": cache.blackbox["layer"],
        "features": f"{cache.feature_dim}, of which {int(space.live.sum())} vary",
        "outputs": f"{cache.output_dim} ({cache.output_kind})",
        "components kept": cache.num_components or "all",
        "deviations of the first": ", ".join(f"{scale:.2f}" for scale in space.scales[:8].tolist()),
    }
    cache.verify()
    facts["every byte"] = "is as the manifest says"
    return "feature cache", facts


def describe_box(path: Path) -> tuple[str, Facts]:
    card = read_box_card(path)
    epochs, seed = card.settings.get("epochs"), card.settings.get("seed")
    facts: Facts = {
        "tells": f"{card.target.replace('_', ' ')}: {', '.join(card.class_names)}",
        "network": f"{card.architecture.network}, {path_size(path / WEIGHTS)}",
        "image size": f"{card.preprocessing.image_size} px",
        "fitted": f"{epochs} epochs, seed {seed}",
        "scores": headline(card.scores),
    }
    return "black box", facts


def path_size(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"


def describe_drawn(path: Path) -> tuple[str, Facts]:
    recipe = read_json(path / MARKER)
    facts: Facts = {"faces": recipe.get("count"), "image size": f"{recipe.get('image_size')} px"}
    facts |= {"seed": recipe.get("seed"), "next": f"featgan pack affectnet {path} --out SHARDS"}
    return "drawn faces in AffectNet's layout", facts


def describe_run(path: Path) -> tuple[str, Facts]:
    config = validate(read_yaml(path / "config.yaml"), str(path / "config.yaml"))
    steps = committed_steps(path)
    facts: Facts = {
        "shards": config.dataset.shards,
        "condition": config.dataset.condition.kind,
        "steps": f"{steps[-1] if steps else 0} of {config.training.steps}",
        "checkpoints": ", ".join(map(str, steps)) or "none yet",
        "evaluations": ", ".join(found.stem for found in sorted(path.glob("evaluations/*.json"))) or "none yet",
        "report": path / "report.html" if (path / "report.html").exists() else "none yet",
    }
    return "run", facts


def describe_checkpoint(path: Path) -> tuple[str, Facts]:
    reason = damage(path)
    card = read_card(path / "model.json")
    facts: Facts = {
        "state": reason or "every byte is as the manifest says",
        "step": card.step,
        "image size": f"{card.image_size} px",
        "condition": f"{card.condition_kind}, {card.condition_dim} numbers ({card.encoding})",
        "generator": card.generator.conditioning,
        "black box": (card.blackbox or {}).get("spec", "none"),
        "files": ", ".join(sorted(read_json(path / "manifest.json")["files"])),
    }
    return "checkpoint", facts


KINDS: list[tuple[Callable[[Path], bool], Callable[[Path], tuple[str, Facts]]]] = [
    (lambda path: (path / "model.json").is_file(), describe_checkpoint),
    (lambda path: (path / "config.yaml").is_file(), describe_run),
    (lambda path: (path / "box.json").is_file(), describe_box),
    (lambda path: (path / MARKER).is_file(), describe_drawn),
    (lambda path: path.parent.name == "features" and path.is_dir(), describe_cache),
    (lambda path: (path / "manifest.json").is_file(), describe_shards),
]
"""How each kind is told, the most telling file first."""

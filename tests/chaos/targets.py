"""The files that are damaged, how, and the commands that read them."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.chaos.binaries import (
    damage_array,
    damage_image,
    damage_npz,
    damage_onnx,
    damage_safetensors,
    damage_tar,
    damage_torch_file,
)
from tests.chaos.documents import (
    Damage,
    damage_json,
    damage_json_lines,
    damage_padded_json,
    damage_table,
    damage_yaml,
)

DamageFunction = Callable[[bytes, random.Random], Damage]

INFO_SHARDS = "featgan info shards"
INFO_RUN = "featgan info runs/a"
INFO_CHECKPOINT = "featgan info runs/a/checkpoints/step-00000003"
INFO_CACHE = "featgan info shards/features/blackbox"
DRY_RUN = "featgan train config.yaml --dry-run"
TRAIN = "featgan train config.yaml training.steps=1"
TRAIN_LABELS = "featgan train label.yaml"
RESUME = "featgan train config.yaml run_dir=runs/a training.steps=4"
INIT_FROM = "featgan train config.yaml --init-from runs/a/checkpoints/step-00000003 training.steps=4"
EVALUATE = "featgan evaluate runs/a --suite quick --max-pairs 4 --num-components 1"
RENDER = "featgan render runs/a --num-images 1 --num-components 1 --video none --directions quantiles"
RENDER_IMAGES = f"{RENDER} --images images"
FIT = "featgan blackbox fit --shards shards --out new --epochs 1 --width 0.125"
FIT_WEIGHTS = (
    "featgan blackbox fit --shards shards --out new --epochs 1 --network torchvision:shufflenet_v2_x0_5"
    " --weights weights.pth"
)
EXTRACT = "featgan extract --shards shards --blackbox {} --cache-name new"
LAYERS = "featgan extract --blackbox {} --list-layers"
PACK = "featgan pack {0} {0} --out new --image-size 16 --workers 1"
STATUS = "launch status runs/a"
WATCH = "launch watch runs --once"
SUBMIT = "launch train config.yaml --cluster cluster.yaml --dry-run"
SUBMIT_EVALUATE = "launch evaluate runs/a --cluster cluster.yaml --dry-run"

RUN_FILES = ("config.yaml", "shards", "classifier", "runs")
"""Parts of the fixture that the commands of a run need."""


@dataclass(frozen=True)
class Target:
    """Files of one format, and the commands that read them."""

    name: str
    patterns: tuple[str, ...]
    """Patterns of the files, relative to the copy of the fixture."""
    damage: DamageFunction
    commands: tuple[str, ...]
    parts: tuple[str, ...]
    """Parts of the fixture to copy."""
    weight: int = 1


TORCH_WEIGHTS = "torchvision:shufflenet_v2_x0_5:weights.pth?image_size=32"

TARGETS = (
    Target(
        "images",
        ("folder/*/*.*",),
        damage_image,
        (PACK.format("folder"), PACK.format("folder") + " --fail-on-unreadable"),
        ("folder",),
        3,
    ),
    Target("images to render", ("images/*.jpg",), damage_image, (RENDER_IMAGES,), (*RUN_FILES, "images")),
    Target(
        "shards",
        ("shards/*.tar",),
        damage_tar,
        (INFO_SHARDS, DRY_RUN, TRAIN, TRAIN_LABELS, FIT, EXTRACT.format("classifier")),
        ("config.yaml", "label.yaml", "shards", "classifier"),
        3,
    ),
    Target(
        "shard manifest",
        ("shards/manifest.json",),
        damage_json,
        (INFO_SHARDS, DRY_RUN, TRAIN_LABELS, FIT, EXTRACT.format("classifier"), EVALUATE),
        (*RUN_FILES, "label.yaml"),
        3,
    ),
    Target(
        "shard index",
        ("shards/*.npz",),
        damage_npz,
        (INFO_SHARDS, DRY_RUN, TRAIN_LABELS, FIT, EVALUATE),
        (*RUN_FILES, "label.yaml"),
        3,
    ),
    Target(
        "features",
        ("shards/features/blackbox/*.npy",),
        damage_array,
        (INFO_CACHE, DRY_RUN, TRAIN, EVALUATE, RENDER),
        RUN_FILES,
        2,
    ),
    Target(
        "feature manifest",
        ("shards/features/blackbox/manifest.json",),
        damage_json,
        (INFO_CACHE, DRY_RUN, TRAIN, EVALUATE, RENDER, RESUME),
        RUN_FILES,
        3,
    ),
    Target(
        "feature space",
        ("shards/features/blackbox/*.safetensors",),
        damage_safetensors,
        (INFO_CACHE, DRY_RUN, TRAIN, EVALUATE, RENDER),
        RUN_FILES,
        1,
    ),
    Target(
        "model.json",
        ("runs/a/checkpoints/step-00000003/model.json",),
        damage_json,
        (INFO_CHECKPOINT, EVALUATE, RENDER, RESUME, INIT_FROM),
        RUN_FILES,
        3,
    ),
    Target(
        "state.json",
        ("runs/a/checkpoints/step-00000003/state.json",),
        damage_json,
        (INFO_CHECKPOINT, RESUME, INIT_FROM),
        RUN_FILES,
        2,
    ),
    Target(
        "checkpoint manifest",
        ("runs/a/checkpoints/step-0000000*/manifest.json",),
        damage_json,
        (INFO_CHECKPOINT, INFO_RUN, EVALUATE, RENDER, RESUME, INIT_FROM, STATUS, WATCH),
        RUN_FILES,
        2,
    ),
    Target(
        "checkpoint tensors",
        ("runs/a/checkpoints/step-00000003/*.safetensors",),
        damage_safetensors,
        (INFO_CHECKPOINT, EVALUATE, RENDER, RESUME, INIT_FROM),
        RUN_FILES,
        3,
    ),
    Target(
        "configuration",
        ("config.yaml", "label.yaml"),
        damage_yaml,
        (DRY_RUN, DRY_RUN, "featgan train label.yaml --dry-run", SUBMIT),
        (*RUN_FILES, "label.yaml", "cluster.yaml"),
        3,
    ),
    Target(
        "run configuration",
        ("runs/a/config.yaml",),
        damage_yaml,
        (INFO_RUN, EVALUATE, RENDER, RESUME, STATUS, WATCH, SUBMIT_EVALUATE),
        (*RUN_FILES, "cluster.yaml"),
        2,
    ),
    Target("names.yaml", ("runs/a/names.yaml",), damage_yaml, (RENDER, f"{RENDER} --component-name 2=hair"), RUN_FILES),
    Target(
        "cluster configuration",
        ("cluster.yaml",),
        damage_yaml,
        (SUBMIT, SUBMIT_EVALUATE),
        (*RUN_FILES, "cluster.yaml"),
        2,
    ),
    Target(
        "evaluation",
        ("runs/a/evaluations/*-quick.json",),
        damage_json,
        (INFO_RUN, RENDER, RESUME, STATUS, WATCH, WATCH),
        RUN_FILES,
        3,
    ),
    Target(
        "metrics.jsonl",
        ("runs/a/metrics.jsonl",),
        damage_json_lines,
        (RESUME, STATUS, WATCH, RENDER, EVALUATE),
        RUN_FILES,
        2,
    ),
    Target("job.json", ("runs/a/jobs/001-train/job.json",), damage_json, (STATUS, WATCH), RUN_FILES, 2),
    Target("attempts.jsonl", ("runs/a/jobs/001-train/attempts.jsonl",), damage_json_lines, (STATUS,), RUN_FILES),
    Target(
        "claims and locks",
        ("runs/a/evaluations/*.claim", "runs/a/training.lock"),
        damage_padded_json,
        (WATCH, RESUME, "featgan evaluate runs/a --step 1 --max-pairs 4 --num-components 1"),
        RUN_FILES,
        2,
    ),
    Target("failed evaluations", ("runs/a/evaluations/*.failed",), damage_json, (WATCH, RESUME, STATUS), RUN_FILES),
    Target("csv table", ("csv/labels.csv",), damage_table, (PACK.format("csv"),), ("csv",), 2),
    Target("CelebA lists", ("celeba/*.txt",), damage_table, (PACK.format("celeba") + " --crop 16",), ("celeba",)),
    Target(
        "AffectNet tables", ("affectnet-csv/*.csv",), damage_table, (PACK.format("affectnet-csv"),), ("affectnet-csv",)
    ),
    Target(
        "AffectNet lists",
        ("affectnet-lists/*.txt",),
        damage_table,
        (PACK.format("affectnet-lists"),),
        ("affectnet-lists",),
    ),
    Target(
        "AffectNet+ labels",
        ("affectnet-plus/train/*.json",),
        damage_json,
        (PACK.format("affectnet-plus"),),
        ("affectnet-plus",),
    ),
    Target(
        "AffectNet arrays",
        ("affectnet/*/annotations/*_[eva]*.npy",),
        damage_array,
        (PACK.format("affectnet"),),
        ("affectnet",),
    ),
    Target("factors.csv", ("affectnet/factors.csv",), damage_table, (PACK.format("affectnet"),), ("affectnet",)),
    Target(
        "synthetic.json",
        ("affectnet/synthetic.json",),
        damage_json,
        (
            "featgan info affectnet",
            "featgan synthesize affectnet --num-images 48 --image-size 32",
            PACK.format("affectnet"),
        ),
        ("affectnet",),
    ),
    Target(
        "classifier.json",
        ("classifier/classifier.json",),
        damage_json,
        (
            "featgan info classifier",
            EXTRACT.format("classifier"),
            f"{EVALUATE} --classifier classifier",
            FIT.replace("new", "classifier"),
        ),
        RUN_FILES,
        2,
    ),
    Target(
        "classifier tensors",
        ("classifier/classifier.safetensors",),
        damage_safetensors,
        (LAYERS.format("classifier"), EXTRACT.format("classifier")),
        ("shards", "classifier"),
    ),
    Target(
        "weights (.pth)",
        ("weights.pth",),
        damage_torch_file,
        (LAYERS.format(TORCH_WEIGHTS), FIT_WEIGHTS),
        ("shards", "weights.pth"),
        2,
    ),
    Target(
        "traced TorchScript",
        ("network.pt",),
        damage_torch_file,
        (LAYERS.format("network.pt"), EXTRACT.format("network.pt")),
        ("shards", "network.pt"),
    ),
    Target(
        "scripted TorchScript",
        ("scripted.pt",),
        damage_torch_file,
        (LAYERS.format("scripted.pt"), EXTRACT.format("scripted.pt")),
        ("shards", "scripted.pt"),
    ),
    Target(
        "ONNX",
        ("network.onnx",),
        damage_onnx,
        (LAYERS.format("network.onnx"), EXTRACT.format("network.onnx")),
        ("shards", "network.onnx"),
        2,
    ),
)

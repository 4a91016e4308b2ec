"""`featgan bench extract`: extraction and evaluation, against the forward passes that they consist of."""

import io
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as transforms

from featgan.bench.forward_passes import FRESH_BOX, Passes, make_run, make_shards, wait
from featgan.bench.results import Bench, Goal, Row
from featgan.bench.timing import in_turn
from featgan.blackbox.extraction import extract
from featgan.blackbox.loading import BlackBox, load_blackbox
from featgan.blackbox.weights import choose_device
from featgan.data.shards.shard_set import ShardSet
from featgan.evaluation.evaluate import evaluate_run

BATCH = 64

MOST_TURNS = 3
"""Of the evaluation, which takes long."""


def run(image_size: int, num_images: int, blackbox: str | None, dim: int, pairs: int, repeats: int) -> Bench:
    """Extraction into a new cache each turn, then evaluations of a generator that has just begun to train."""
    spec = blackbox or FRESH_BOX
    with tempfile.TemporaryDirectory(prefix="featgan-bench-") as folder:
        shards = make_shards(Path(folder), num_images, image_size)
        rows = [measure_extraction(shards, spec, repeats)]
        if pairs:
            rows.append(measure_evaluation(make_run(Path(folder), shards, spec, dim), spec, pairs, repeats))
    settings = {"image_size": image_size, "num_images": num_images, "blackbox": spec, "dim": dim, "pairs": pairs}
    return Bench("extract", rows, settings)


def measure_extraction(shards: ShardSet, spec: str, repeats: int) -> Row:
    """Everything that `featgan extract` does with the images, both sides of each."""
    box, names = load_blackbox(spec, device=choose_device(None)), count()
    splits = [shards.split(name) for name in shards.split_names]
    total = sum(len(split) for split in splits)
    batch = torch.rand(min(BATCH, total), 3, shards.image_size, shards.image_size, device=box.device) * 2 - 1
    sizes = [min(BATCH, total - start) for start in range(0, total, BATCH) for _ in range(2)]
    found = in_turn(
        {
            "plain": lambda: [extract_plainly(shards, name, box) for name in shards.split_names],
            "fast": lambda: extract(shards.path, spec, f"turn-{next(names)}"),
            "ceiling": lambda: pass_alone(box, batch, sizes),
        },
        repeats,
    )
    return Row(
        "extract: images, each with its mirror image",
        found["fast"],
        found["plain"],
        found["ceiling"],
        (Goal("share", 0.8),),
        items=total,
        ceiling_name="the box's own passes of both sides, on ready floats",
        rest="decoding, opening the box, hashing, the space of the features, writing",
    )


def extract_plainly(shards: ShardSet, split_name: str, box: BlackBox) -> Tensor:
    """Features [N, 2, F] of a split: upright images, then mirrored ones, each decoded by PIL when its turn comes."""
    split, sides = shards.split(split_name), []
    for mirrored in (False, True):
        parts = []
        for start in range(0, len(split), BATCH):
            rows = range(start, min(start + BATCH, len(split)))
            images = [Image.open(io.BytesIO(split.read_jpeg(row))).convert("RGB") for row in rows]
            batch = torch.stack([transforms.to_tensor(image) * 2 - 1 for image in images])
            parts.append(box(batch.flip(3) if mirrored else batch)[0].cpu())
        sides.append(torch.cat(parts))
    return torch.stack(sides, 1)


def pass_alone(box: BlackBox, batch: Tensor, sizes: list[int]) -> None:
    """The box's own work."""
    for size in sizes:
        box(batch[:size])
    wait(box.device)


def measure_evaluation(run: Path, spec: str, pairs: int, repeats: int) -> Row:
    """An evaluation, against its edits and looks alone; a first one counts them."""
    evaluate, passes = partial(evaluate_run, run, None, "quick", count=pairs), Passes()
    with passes.counted():
        evaluate()
    sides: dict[str, Callable[[], object]] = {"fast": evaluate, "ceiling": passes.alone(run, spec)}
    found = in_turn(sides, min(repeats, MOST_TURNS), warmups=0)
    return Row(
        f"evaluate: {pairs} pairs, their edits shown to the box and measured",
        found["fast"],
        ceiling=found["ceiling"],
        goals=(Goal("share", 0.8),),
        items=sum(passes.sizes["edit"]),
        item_name="edits",
        ceiling_name=str(passes),
        rest="measures with their intervals, JPEG round trips, decoding",
    )

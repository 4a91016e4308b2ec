"""`featgan bench data`: shards to a batch of floats, beside PIL's transforms; the wait for data."""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.io import ImageReadMode, decode_jpeg

from featgan.bench.fixtures import NAME, draw_faces, write_features, write_files, write_shards
from featgan.bench.results import Bench, Goal, Row, Table
from featgan.bench.timing import Costs, in_turn
from featgan.config.loading import validate
from featgan.config.schema import Config
from featgan.data.conditions import build_condition
from featgan.data.image_cache import MOST_SHARE, DecodedImages
from featgan.data.loader import BatchStream, Source
from featgan.data.shards.shard_set import ShardSet
from featgan.system.images import to_float
from featgan.system.memory import keep_freed_memory
from featgan.training.train import train

FEATURE_DIM = 64
DECODING = "decode (the ceiling)"

KEPT = (
    f"from the second epoch on: images out of memory, where all of them take at most {MOST_SHARE:.0%} of what is free"
)


def run(image_size: int, num_images: int, batch_size: int, training_steps: int, repeats: int) -> Bench:
    """The pipelines on one core, then a short training with one worker."""
    keep_freed_memory()  # as the process of a training, whose workers are forked from it
    with tempfile.TemporaryDirectory(prefix="featgan-bench-") as folder:
        root = Path(folder)
        jpegs, items = draw_faces(num_images, image_size)
        paths = write_files(root / "files", jpegs, items)
        shards = write_shards(root / "shards", jpegs, items, image_size)
        write_features(shards, FEATURE_DIM)
        config = build_config(root, batch_size, training_steps)
        rows, table = compare_pipelines(config, shards, paths, repeats)
        if training_steps:
            rows.append(measure_wait(config))
    settings = {"image_size": image_size, "num_images": num_images, "batch_size": batch_size}
    settings |= {"jpeg_bytes": round(float(np.mean([len(jpeg) for jpeg in jpegs]))), "training_steps": training_steps}
    return Bench("data", rows, settings, [table], [KEPT])


def build_config(root: Path, batch_size: int, steps: int) -> Config:
    """A training of the usual networks on the made-up features, with one worker."""
    tree = {
        "run": str(root / "run"),
        "dataset": {"shards": str(root / "shards"), "features": NAME},
        "training": {"steps": max(1, steps), "batch_size": batch_size, "report_every": max(1, steps), "num_workers": 1},
    }
    return validate(tree, "featgan bench data")


def compare_pipelines(config: Config, shards: ShardSet, paths: Sequence[Path], repeats: int) -> tuple[list[Row], Table]:
    """Every image once, in batches, by seconds of one core; decoded, and out of memory as from the second epoch on."""
    split, stream, plain = shards.split("train"), build_stream(config, shards), PlainImages(shards.image_size)
    num_batches = max(1, len(split) // config.training.batch_size)
    rows = [stream.global_rows(0, step)[0] for step in range(num_batches)]
    files = [[torch.frombuffer(split.read(int(row)), dtype=torch.uint8) for row in some] for some in rows]
    images, kept = stream[0].images, build_stream(config, shards)
    kept.images = [DecodedImages(split)]  # filled by the turn that does not count
    steps: dict[str, Callable[[int], object]] = {
        "plain": lambda step: plain.batch([paths[row] for row in rows[step]]),
        "fast": lambda step: to_float(stream[step].images),
        "kept": lambda step: to_float(kept[step].images),
        "ceiling": lambda step: decode_jpeg(files[step], mode=ImageReadMode.RGB),
        "reading": lambda step: [split.read_checked(int(row)) for row in rows[step]],
        "images alone": lambda step: split.decode(*stream.global_rows(0, step)),
        "floats": lambda step: to_float(images),
    }
    with one_thread():
        found = in_turn(
            {name: partial(run_steps, step, num_batches) for name, step in steps.items()},
            repeats,
            clock=time.process_time,
        )
    num_images = num_batches * config.training.batch_size
    *parts, (_, together) = part_rows(found, num_images)
    rows_of = {
        "data: shards to a ready batch, per core": (found["fast"], shares(parts, float(together))),
        "data: the same from the second epoch on": (found["kept"], "a copy and the floats"),
    }
    found_rows = [
        Row(
            what, costs, found["plain"], found["ceiling"], (Goal("ratio", 4), Goal("share", 0.8)), items=num_images,
            ceiling_name="torchvision's decode_jpeg of the same bytes", rest=rest,
        )
        for what, (costs, rest) in rows_of.items()
    ]  # fmt: skip
    table = Table("Where the time of an image goes", ("part", "microseconds"), part_rows(found, num_images))
    return found_rows, table


def shares(parts: Sequence[tuple[str, str]], together: float) -> str:
    """Parts of an image's time in words, without the ceiling."""
    return ", ".join(f"{name} {float(spent) / together:.0%}" for name, spent in parts if name != DECODING)


def run_steps(work: Callable[[int], object], count: int) -> None:
    """A batch is let go before the next one is made, as in a training."""
    for step in range(count):
        work(step)


@contextmanager
def one_thread() -> Iterator[None]:
    """As in a data worker."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def part_rows(found: Mapping[str, Costs], num_images: int) -> tuple[tuple[str, str], ...]:
    """Parts and microseconds of an image."""
    cost = {name: 1e6 * costs.median / num_images for name, costs in found.items()}
    parts = {
        "read the file, look at its header": cost["reading"],
        DECODING: cost["ceiling"],
        "pixels into place, mirrored or not": cost["images alone"] - cost["reading"] - cost["ceiling"],
        "condition, targets, order": cost["fast"] - cost["images alone"] - cost["floats"],
        "to floats": cost["floats"],
    }
    return tuple((name, f"{value:.1f}") for name, value in (parts | {"together": cost["fast"]}).items())


def build_stream(config: Config, shards: ShardSet) -> BatchStream:
    """As a training reads them."""
    condition = build_condition(config.dataset, shards, "train")
    source = Source(shards.split("train"), condition, config.dataset.mirror)
    return BatchStream([source], config.training.batch_size, 1, config.training.seed)


class PlainImages:
    """The ancestor's pipeline: PIL, one image after the other, on the CPU in float."""

    def __init__(self, image_size: int) -> None:
        self.transform = transforms.Compose(
            [
                transforms.RandomHorizontalFlip(),
                transforms.CenterCrop(image_size),
                transforms.Resize(image_size),
                transforms.ToTensor(),
                transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
            ]
        )

    def batch(self, paths: Sequence[Path]) -> Tensor:
        """float [n, 3, S, S] in [-1, 1]."""
        return torch.stack([self.transform(Image.open(path).convert("RGB")) for path in paths])


def measure_wait(config: Config) -> Row:
    """The share of a short training's time that its one data worker lets it wait, after the first half of the steps."""
    half = max(1, config.training.steps // 2)
    training = config.training.model_copy(update={"report_every": half})
    run = train(config.model_copy(update={"training": training}))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    shares = tuple(line["speed/data_wait_share"] for line in lines if "speed/data_wait_share" in line)
    return Row(
        "data: share of a training step spent waiting, 1 worker",
        # The first report counts the start of the worker.
        Costs(shares[1:] or shares),
        goals=(Goal("value", 0.02),),
        unit="%",
    )

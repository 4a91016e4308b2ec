"""`featgan bench data`: data loading from shards to float batches against PIL transforms, and the wait for data."""

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

from featgan.bench.fixtures import (
    FIXTURE_CACHE_NAME,
    make_synthetic_faces,
    write_features,
    write_image_files,
    write_shards,
)
from featgan.bench.results import BenchmarkResults, BenchmarkRow, Goal, ResultTable
from featgan.bench.timing import CostSamples, time_interleaved
from featgan.config.loading import parse_config
from featgan.config.schema import Config
from featgan.data.conditions import build_condition
from featgan.data.image_cache import MAX_MEMORY_SHARE, DecodedImageCache
from featgan.data.loader import BatchDataset, TrainingSet
from featgan.data.shards.shard_set import ShardSet
from featgan.system.images import to_float
from featgan.system.memory import keep_freed_memory
from featgan.training.train import train

FEATURE_DIM = 64
DECODE_STAGE = "decode (upper bound)"

CACHED_NOTE = (
    "cached images: from the second epoch on, images are read from memory if all of them fit into "
    f"{MAX_MEMORY_SHARE:.0%} of the free memory"
)


def run_benchmark(
    image_size: int, num_images: int, batch_size: int, training_steps: int, repeats: int
) -> BenchmarkResults:
    """Measure the pipelines on one core, and the wait for data in a short training run with one worker."""
    keep_freed_memory()  # as in training, whose data workers are forked from the training process
    with tempfile.TemporaryDirectory(prefix="featgan-bench-") as folder:
        root = Path(folder)
        jpegs, items = make_synthetic_faces(num_images, image_size)
        paths = write_image_files(root / "files", jpegs, items)
        shards = write_shards(root / "shards", jpegs, items, image_size)
        write_features(shards, FEATURE_DIM)
        config = build_config(root, batch_size, training_steps)
        rows, table = compare_pipelines(config, shards, paths, repeats)
        if training_steps:
            rows.append(measure_data_wait(config))
    settings = {"image_size": image_size, "num_images": num_images, "batch_size": batch_size}
    settings |= {"jpeg_bytes": round(float(np.mean([len(jpeg) for jpeg in jpegs]))), "training_steps": training_steps}
    return BenchmarkResults("data", rows, settings, [table], [CACHED_NOTE])


def build_config(root: Path, batch_size: int, steps: int) -> Config:
    """Return the configuration of a training run on the synthetic features, with one worker."""
    tree = {
        "run_dir": str(root / "run"),
        "dataset": {"shards": str(root / "shards"), "feature_cache": FIXTURE_CACHE_NAME},
        "training": {"steps": max(1, steps), "batch_size": batch_size, "log_every": max(1, steps), "num_workers": 1},
    }
    return parse_config(tree, "featgan bench data")


def compare_pipelines(
    config: Config, shards: ShardSet, paths: Sequence[Path], repeats: int
) -> tuple[list[BenchmarkRow], ResultTable]:
    """Measure one epoch of every pipeline in CPU seconds of one core, decoding images or reading cached ones."""
    split, stream, naive = shards.get_split("train"), build_stream(config, shards), NaivePipeline(shards.image_size)
    num_batches = max(1, len(split) // config.training.batch_size)
    rows = [stream.global_rows(0, step)[0] for step in range(num_batches)]
    files = [
        [torch.frombuffer(split.read_bytes(int(row)), dtype=torch.uint8) for row in batch_rows] for batch_rows in rows
    ]
    images, cached_stream = stream[0].images, build_stream(config, shards)
    cached_stream.images = [DecodedImageCache(split)]  # filled during the warm-up
    pipelines: dict[str, Callable[[int], object]] = {
        "naive": lambda step: naive.load_batch([paths[row] for row in rows[step]]),
        "fast": lambda step: to_float(stream[step].images),
        "cached": lambda step: to_float(cached_stream[step].images),
        "upper bound": lambda step: decode_jpeg(files[step], mode=ImageReadMode.RGB),
        "reading": lambda step: [split.read_checked_jpeg(int(row)) for row in rows[step]],
        "images only": lambda step: split.decode(*stream.global_rows(0, step)),
        "floats": lambda step: to_float(images),
    }
    with single_thread():
        samples = time_interleaved(
            {name: partial(run_batches, step, num_batches) for name, step in pipelines.items()},
            repeats,
            clock=time.process_time,
        )
    num_images = num_batches * config.training.batch_size
    *stages, (_, total) = build_image_stage_rows(samples, num_images)
    pipeline_notes = {
        "data: shards to a ready batch, per core": (samples["fast"], format_shares(stages, float(total))),
        "data: cached images (from the second epoch on)": (samples["cached"], "copy, convert to float"),
    }
    benchmark_rows = [
        BenchmarkRow(
            row_name, fast_samples, samples["naive"], samples["upper bound"],
            (Goal("speedup", 4), Goal("efficiency", 0.8)), num_items=num_images,
            upper_bound_name="torchvision's decode_jpeg of the same bytes", note=note,
        )
        for row_name, (fast_samples, note) in pipeline_notes.items()
    ]  # fmt: skip
    table = ResultTable("Time per image", ("stage", "microseconds"), build_image_stage_rows(samples, num_images))
    return benchmark_rows, table


def format_shares(stages: Sequence[tuple[str, str]], total: float) -> str:
    """Format the share of each stage except decoding."""
    return ", ".join(
        f"{name} {float(microseconds) / total:.0%}" for name, microseconds in stages if name != DECODE_STAGE
    )


def run_batches(make_batch: Callable[[int], object], count: int) -> None:
    """Make batches one after the other, each freed before the next one, as in training."""
    for step in range(count):
        make_batch(step)


@contextmanager
def single_thread() -> Iterator[None]:
    """Use a single torch thread in a block, as a data worker does."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def build_image_stage_rows(samples: Mapping[str, CostSamples], num_images: int) -> tuple[tuple[str, str], ...]:
    """Return the name of each stage and its microseconds per image."""
    microseconds = {name: 1e6 * pipeline_samples.median / num_images for name, pipeline_samples in samples.items()}
    stages = {
        "read the file and check its header": microseconds["reading"],
        DECODE_STAGE: microseconds["upper bound"],
        "copy pixels, flip horizontally": microseconds["images only"]
        - microseconds["reading"]
        - microseconds["upper bound"],
        "condition, targets, order": microseconds["fast"] - microseconds["images only"] - microseconds["floats"],
        "convert to float": microseconds["floats"],
    }
    return tuple((name, f"{value:.1f}") for name, value in (stages | {"total": microseconds["fast"]}).items())


def build_stream(config: Config, shards: ShardSet) -> BatchDataset:
    """Return the batches as training reads them."""
    condition = build_condition(config.dataset, shards, "train")
    dataset = config.dataset
    training_set = TrainingSet(shards.get_split("train"), condition, dataset.horizontal_flip, dataset.shuffle_window)
    return BatchDataset([training_set], config.training.batch_size, 1, config.training.seed)


class NaivePipeline:
    """The pipeline of the original implementation: PIL, one image at a time, in float on the CPU."""

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

    def load_batch(self, paths: Sequence[Path]) -> Tensor:
        """Load files as float [N, 3, S, S] in [-1, 1]."""
        return torch.stack([self.transform(Image.open(path).convert("RGB")) for path in paths])


def measure_data_wait(config: Config) -> BenchmarkRow:
    """Measure the share of the time that training waits for its data worker, in the second half of a short run."""
    half = max(1, config.training.steps // 2)
    training_config = config.training.model_copy(update={"log_every": half})
    run = train(config.model_copy(update={"training": training_config}))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    wait_shares = tuple(line["speed/data_wait_share"] for line in lines if "speed/data_wait_share" in line)
    return BenchmarkRow(
        "data: share of a training step spent waiting for data, 1 worker",
        # The first value includes the start of the worker.
        CostSamples(wait_shares[1:] or wait_shares),
        goals=(Goal("value", 0.02),),
        unit="%",
    )

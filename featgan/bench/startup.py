"""`featgan bench start`: time to the first batch against text files with the same content, and time of `--help`."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from featgan.bench.fixtures import FIXTURE_CACHE_NAME, make_synthetic_faces, repeat_shard, write_features, write_shards
from featgan.bench.results import BenchmarkResults, BenchmarkRow, Goal
from featgan.bench.timing import CostSamples, ResourceUsage, run_in_new_process, time_interleaved
from featgan.config.schema import DatasetConfig
from featgan.data.conditions import build_condition
from featgan.data.feature_cache.cache import FeatureCache
from featgan.data.loader import BatchDataset, TrainingSet
from featgan.data.shards.shard_set import ShardSet
from featgan.system.locations import Location

IMAGE_SIZE = 16
"""Size of the images: small, since the start reads only one batch of them."""

IMAGES_PER_SHARD = 1000
BATCH_SIZE = 16
MAX_NAIVE_REPEATS = 3
"""Maximum number of repetitions of reading the text files, which is slow."""

FILE_AGE_SECONDS = 60
"""Seconds subtracted from the modification times: files written just before a start are always hashed again."""

HELP_COMMANDS = {"featgan --help": ("-m", "featgan", "--help"), "python -m launch --help": ("-m", "launch", "--help")}


def run_benchmark(num_images: int, feature_dim: int, repeats: int) -> BenchmarkResults:
    """Measure the start of the data in new processes, the first start that hashes every file, and `--help`."""
    with tempfile.TemporaryDirectory(prefix="featgan-bench-") as folder:
        shards, cache = make_data(Path(folder), num_images, feature_dim)
        text = Path(folder) / "text"
        write_text_files(text, shards, cache)
        shard_bytes = sum(shard.bytes for shard in shards.manifest.splits["train"].shards)
        shards_path, text_bytes = str(shards.path), sum(path.stat().st_size for path in text.iterdir())
        first_start = run_in_new_process(f"{__name__}:start_fast", shards_path)
        naive, fast = alternate_starts(
            lambda: run_in_new_process(f"{__name__}:start_naive", str(text)),
            lambda: run_in_new_process(f"{__name__}:start_fast", shards_path),
            repeats,
        )
    rows = [*build_data_rows(naive, fast, first_start), *build_help_rows(repeats)]
    imports = CostSamples(tuple(usage.import_seconds for usage in fast)).median
    settings = {
        "num_images": count_training_images(shards),
        "feature_dim": feature_dim,
        "text_bytes": text_bytes,
        "tar_bytes": shard_bytes,
    }
    notes = [
        f"{settings['num_images']:,} x {feature_dim} features, {text_bytes / 1e6:,.0f} MB as text; shards of "
        f"{IMAGE_SIZE} px images, {shard_bytes / 1e6:,.0f} MB to hash at the first start",
        f"time and memory do not include the imports ({imports:.1f} s)",
    ]
    return BenchmarkResults("start", rows, settings, notes=notes)


def count_training_images(shards: ShardSet) -> int:
    """Return the number of training images."""
    return shards.manifest.splits["train"].count


def make_data(root: Path, num_images: int, feature_dim: int) -> tuple[ShardSet, FeatureCache]:
    """Make shards from one tar of small images, linked as often as needed, and a cache of distinct features."""
    num_distinct = min(num_images, IMAGES_PER_SHARD)
    jpegs, items = make_synthetic_faces(num_distinct, IMAGE_SIZE)
    shards = repeat_shard(write_shards(root / "shards", jpegs, items, IMAGE_SIZE), -(-num_images // num_distinct))
    cache = write_features(shards, feature_dim)
    for path in (root / "shards").rglob("*.*"):
        os.utime(path, (time.time() - FILE_AGE_SECONDS,) * 2)
    return shards, cache


def write_text_files(folder: Path, shards: ShardSet, cache: FeatureCache) -> None:
    """Write the same data as the original implementation's three lists: names, labels, and features with 4 digits."""
    folder.mkdir()
    split = shards.get_split("train")
    (folder / "images.txt").write_text("".join(f"{key}.jpg\n" for key in split.keys_of(range(len(split))).tolist()))
    pairs = zip(split.valence.tolist(), split.arousal.tolist(), strict=True)
    (folder / "labels.txt").write_text("".join(f"{valence:.6f} {arousal:.6f}\n" for valence, arousal in pairs))
    line = " ".join(["%.4f"] * cache.feature_dim) + "\n"
    with (folder / "predictions.txt").open("w") as file:
        for start in range(0, len(split), IMAGES_PER_SHARD):
            rows = np.arange(start, min(start + IMAGES_PER_SHARD, len(split)))
            file.writelines(line % tuple(values) for values in cache.features("train", rows).tolist())


def start_naive(folder: str) -> list[float]:
    """Start as the original implementation: parse every line into Python numbers; return the first features."""
    root = Path(folder)
    names = (root / "images.txt").read_text().split()
    labels = [[float(word) for word in line.split()] for line in read_lines(root / "labels.txt")]
    features = [[float(word) for word in line.split()] for line in read_lines(root / "predictions.txt")]
    records = list(zip(names, labels, features, strict=True))
    batch = torch.tensor([values for _, _, values in islice(records, BATCH_SIZE)])
    return batch[0].tolist()


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file."""
    with path.open() as file:
        yield from file


def start_fast(folder: str) -> list[float]:
    """Start as training: open and verify shards and cache, build the condition; return the first condition."""
    shards = ShardSet.open(folder)
    config = DatasetConfig(shards=Location("path", folder), feature_cache=FIXTURE_CACHE_NAME)
    condition = build_condition(config, shards, "train")
    shards.verify()
    if condition.cache is not None:
        condition.cache.verify()
    batches = BatchDataset([TrainingSet(shards.get_split("train"), condition, True)], BATCH_SIZE, 1, 0)
    values: list[float] = batches[0].condition[0].tolist()
    return values


def alternate_starts(
    naive: Callable[[], ResourceUsage], fast: Callable[[], ResourceUsage], repeats: int
) -> tuple[list[ResourceUsage], list[ResourceUsage]]:
    """Run both variants in turn; the reference implementation only MAX_NAIVE_REPEATS times."""
    pairs = [(naive(), fast()) for _ in range(min(repeats, MAX_NAIVE_REPEATS))]
    extra_fast = [fast() for _ in range(repeats - len(pairs))]
    return [naive_usage for naive_usage, _ in pairs], [fast_usage for _, fast_usage in pairs] + extra_fast


FIRST_START_NOTE = "once for unchanged files; the time grows with the size of the shards, and real images are larger"


def build_data_rows(
    naive: Sequence[ResourceUsage], fast: Sequence[ResourceUsage], first_start: ResourceUsage
) -> list[BenchmarkRow]:
    """Return the rows for time, memory, and time of the first start."""

    def collect_samples(usages: Sequence[ResourceUsage], name: str) -> CostSamples:
        return CostSamples(tuple(getattr(usage, name) for usage in usages))

    seconds, megabytes = "start: data, time", "start: data, memory"
    return [
        BenchmarkRow(
            seconds, collect_samples(fast, "seconds"), collect_samples(naive, "seconds"), goals=(Goal("value", 1.0),)
        ),
        BenchmarkRow(
            megabytes,
            collect_samples(fast, "megabytes"),
            collect_samples(naive, "megabytes"),
            goals=(Goal("value", 100),),
            unit="MB",
        ),
        BenchmarkRow(
            "start: first start, hashing every file",
            CostSamples((first_start.seconds,)),
            goals=(Goal("value", 1.0),),
            note=FIRST_START_NOTE,
        ),
    ]


def build_help_rows(repeats: int) -> list[BenchmarkRow]:
    """Measure the processes that print `--help`, against an interpreter that runs no code."""
    variants = {"empty interpreter": partial(run_python, "-c", "pass")} | {
        name: partial(run_python, *arguments) for name, arguments in HELP_COMMANDS.items()
    }
    samples = time_interleaved(variants, repeats)
    return [
        BenchmarkRow(
            f"start: {name}", samples[name], upper_bound=samples["empty interpreter"], goals=(Goal("value", 0.3),),
            upper_bound_name="an interpreter that runs no code",
        )
        for name in HELP_COMMANDS
    ]  # fmt: skip


def run_python(*arguments: str) -> None:
    """Run the Python interpreter in a new process."""
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)

"""`featgan bench scale`: time and memory at the start of training for indexes of up to 100 million images."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featgan import __version__
from featgan.bench.results import BenchmarkResults, BenchmarkRow, Goal, ResultTable
from featgan.bench.timing import CostSamples, ResourceUsage, read_status_memory, run_in_new_process
from featgan.config.loading import parse_config
from featgan.data.loader import BatchDataset
from featgan.data.readers.records import EXPRESSIONS
from featgan.data.shards.manifest import MANIFEST_FILE, ShardFile, ShardManifest, SplitManifest
from featgan.errors import UserError
from featgan.system.array_files import ArrayColumn, write_npz
from featgan.system.files import atomic_write, sha256_of
from featgan.training.state import open_data

IMAGE_SIZE = 64
IMAGE_BYTES = 2048
"""Size of an image in a shard, with its tar headers."""

MIN_IMAGES_PER_SHARD, MAX_SHARDS = 1000, 10_000
CHUNK_ROWS = 1 << 20
"""Rows of the index that are written at a time."""

BYTES_PER_ROW = 50
"""Size of one image in the index, rounded up."""

UNKNOWN_SHARE = 100
"""One of this number of images has no label, so that training must select rows."""

BATCH_SIZE, NUM_BATCHES = 16, 1000
GOAL_IMAGES, GOAL_SECONDS, GOAL_MEGABYTES = 10_000_000, 2.0, 300.0
FILE_AGE_SECONDS = 60
"""Files written just before a start are checked again, so they are made older."""

NOTES = (
    "the first start checks the whole index; the tars, which are empty here, are not hashed",
    f"memory: what the data adds after {NUM_BATCHES:,} batches; mapped: the parts of the index in memory, which the "
    "system can drop; batch: rows and conditions, without images",
)


def run_benchmark(image_counts: Sequence[int], repeats: int) -> BenchmarkResults:
    """Measure the start with an index of each size in new processes."""
    usages = {count: measure_starts(count, repeats) for count in image_counts}
    rows = [row for count, starts in usages.items() for row in build_rows(count, starts[1:])]
    table = ResultTable(
        "Start with an index of N images",
        ("images", "index", "first start", "next start", "memory", "mapped", "batch"),
        tuple(build_cells(count, starts) for count, starts in usages.items()),
    )
    imports = [usage for starts in usages.values() for usage in starts]
    before = max(usage.result["anonymous_before"] for usage in imports)
    notes = [*NOTES, f"before it opens the data, the process uses {before:,.0f} MB of anonymous memory for its imports"]
    return BenchmarkResults("scale", rows, {"images": list(image_counts)}, [table], notes)


def measure_starts(num_images: int, repeats: int) -> list[ResourceUsage]:
    """Return the cost of the first start, which checks the index, and of the next ones."""
    with tempfile.TemporaryDirectory(prefix="featgan-bench-") as folder:
        write_shards(Path(folder), num_images)
        return [run_in_new_process(f"{__name__}:start_training", folder) for _ in range(1 + repeats)]


def write_shards(folder: Path, num_images: int) -> None:
    """Write an index and a manifest of `num_images` images, and shards that take no space.

    Raises UserError if the disk has no room for the index.
    """
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < 2 * BYTES_PER_ROW * num_images:
        raise UserError(
            f"{folder}: {free_bytes / 1e9:.1f} GB are free, but the index of {num_images:,} images needs "
            f"{2 * BYTES_PER_ROW * num_images / 1e9:.1f} GB; choose fewer --images or another TMPDIR"
        )
    images_per_shard = min(num_images, max(MIN_IMAGES_PER_SHARD, -(-num_images // MAX_SHARDS)))
    counts = [min(images_per_shard, num_images - start) for start in range(0, num_images, images_per_shard)]
    shards = [write_empty_shard(folder, number, count) for number, count in enumerate(counts)]
    path = folder / "train.index.npz"
    write_npz(path, build_columns(num_images, images_per_shard))
    split = SplitManifest(
        count=num_images,
        classes=dict.fromkeys(EXPRESSIONS, num_images // 10),
        shards=tuple(shards),
        index_sha256=sha256_of(path),
    )
    manifest = ShardManifest(
        featgan=__version__, source="synthetic index", source_sha256="0" * 64, options={}, image_size=IMAGE_SIZE,
        classes=EXPRESSIONS, splits={"train": split}, skipped={},
    )  # fmt: skip
    atomic_write(folder / MANIFEST_FILE, manifest.to_json().encode())
    for file in folder.iterdir():
        os.utime(file, (time.time() - FILE_AGE_SECONDS,) * 2)


def write_empty_shard(folder: Path, number: int, count: int) -> ShardFile:
    """Write a shard of the right size without content; shards of one size are the same file."""
    path, size = folder / f"train-{number:05d}.tar", count * IMAGE_BYTES
    first = folder / "train-00000.tar"
    if number and first.stat().st_size == size:
        os.link(first, path)
    else:
        with path.open("wb") as file:
            file.truncate(size)
    return ShardFile(name=path.name, count=count, bytes=size, sha256="0" * 64)


def build_columns(num_images: int, images_per_shard: int) -> dict[str, ArrayColumn]:
    """Return the columns of the index, in chunks."""

    def column(dtype: str, build: Callable[[np.ndarray], np.ndarray], *shape: int) -> ArrayColumn:
        return ArrayColumn(np.dtype(dtype), (num_images, *shape), (build(rows) for rows in chunk_rows(num_images)))

    def build_expressions(rows: np.ndarray) -> np.ndarray:
        return np.where(rows % UNKNOWN_SHARE == 0, -1, rows % len(EXPRESSIONS)).astype("i2")

    offsets = column("i8", lambda rows: rows % images_per_shard * IMAGE_BYTES + 512)
    unknown = {name: column("f4", lambda rows: np.full(len(rows), np.nan, "f4")) for name in ("valence", "arousal")}
    return {
        "keys": column("S10", lambda rows: rows.astype("S10")),
        "offset": offsets,
        "size": column("i8", lambda rows: np.full(len(rows), 512)),
        "expression": column("i2", build_expressions),
        **unknown,
        "attributes": column("i1", lambda rows: np.empty((len(rows), 0), "i1"), 0),
        "factors": column("f4", lambda rows: np.empty((len(rows), 0), "f4"), 0),
    }


def chunk_rows(num_images: int) -> Iterator[np.ndarray]:
    """Yield the row numbers in chunks."""
    for start in range(0, num_images, CHUNK_ROWS):
        yield np.arange(start, min(start + CHUNK_ROWS, num_images))


def start_training(folder: str) -> dict[str, Any]:
    """Open the data as training does and compute batches without images; return seconds and memory in MB."""
    anonymous, mapped = read_memory()
    start = time.perf_counter()
    config = parse_config({"dataset": {"shards": folder, "condition": {"kind": "expression"}}}, "featgan bench scale")
    batches = BatchDataset(open_data(config)[1], BATCH_SIZE, config.training.n_critic, seed=0)
    compute_rows(batches, 0)
    seconds = time.perf_counter() - start
    for number in range(1, NUM_BATCHES):
        compute_rows(batches, number)
    anonymous_after, mapped_after = read_memory()
    return {
        "seconds": seconds,
        "batch_seconds": (time.perf_counter() - start - seconds) / (NUM_BATCHES - 1),
        "anonymous": anonymous_after - anonymous,
        "mapped": mapped_after - mapped,
        "anonymous_before": anonymous,
    }


def compute_rows(batches: BatchDataset, number: int) -> None:
    """Compute the rows of a batch, and their conditions."""
    rows, flipped = batches.global_rows(0, number)
    batches.training_sets[0].condition.values(rows, flipped)


def read_memory() -> tuple[float, float]:
    """Return the anonymous and the mapped memory of this process in MB; 0 where the system does not tell them."""
    return read_status_memory("RssAnon") or 0.0, read_status_memory("RssFile") or 0.0


def build_rows(num_images: int, starts: Sequence[ResourceUsage]) -> list[BenchmarkRow]:
    """Return the time and memory of the next starts; the goals are those of 10 million images."""
    has_goal = num_images == GOAL_IMAGES
    return [
        BenchmarkRow(
            f"scale: {num_images:,} images, {name}",
            CostSamples(values),
            goals=(Goal("value", goal),) if has_goal else (),
            unit="s" if name == "time" else "MB",
        )
        for name, values, goal in (
            ("time", tuple(usage.result["seconds"] for usage in starts), GOAL_SECONDS),
            ("anonymous memory", tuple(usage.result["anonymous"] for usage in starts), GOAL_MEGABYTES),
        )
    ]


def build_cells(num_images: int, starts: Sequence[ResourceUsage]) -> tuple[str, ...]:
    """Return the cells of the table for one size; memory is that after all batches."""
    first, following = starts[0].result, [usage.result for usage in starts[1:]]

    def median(name: str) -> float:
        return CostSamples(tuple(result[name] for result in following)).median

    return (
        f"{num_images:,}",
        f"{num_images * 36 / 1e6:,.0f} MB",
        f"{first['seconds']:.2f} s",
        f"{median('seconds'):.2f} s",
        f"{median('anonymous'):,.0f} MB",
        f"{median('mapped'):,.0f} MB",
        f"{1e3 * median('batch_seconds'):.2f} ms",
    )

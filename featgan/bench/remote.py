"""`featgan bench data --remote`: a training run over simulated object storage, and how long it waits for data."""

import json
import tempfile
from collections import Counter
from pathlib import Path
from statistics import fmean

from featgan.bench.fixtures import FIXTURE_CACHE_NAME, make_synthetic_faces, write_features, write_shards
from featgan.bench.results import BenchmarkResults, BenchmarkRow, Goal, ResultTable
from featgan.bench.throttled_server import serve_throttled
from featgan.bench.timing import CostSamples
from featgan.config.loading import parse_config
from featgan.config.schema import Config
from featgan.system.memory import keep_freed_memory
from featgan.training.train import train

FEATURE_DIM = 64
LATENCY_SECONDS = 0.05
"""Seconds before the first byte of each answer."""
BYTES_PER_SECOND = 200e6
"""Bandwidth of a node."""
NUM_SHARDS, SHUFFLE_WINDOW, NUM_WINDOWS = 64, 8, 6
"""Shards, shards per window, and windows that the run reads."""


def run_benchmark(image_size: int, num_images: int, batch_size: int) -> BenchmarkResults:
    """Train over an HTTP server with latency and limited bandwidth; the cache holds four of eight windows."""
    keep_freed_memory()
    images_per_shard = max(1, num_images // NUM_SHARDS)
    with tempfile.TemporaryDirectory(prefix="featgan-bench-") as folder:
        root = Path(folder)
        jpegs, items = make_synthetic_faces(images_per_shard * NUM_SHARDS, image_size)
        shards = write_shards(root / "shards", jpegs, items, image_size, images_per_shard)
        write_features(shards, FEATURE_DIM)
        local = read_log(train(build_config(root, "local", str(root / "shards"), images_per_shard, batch_size)))
        requests: Counter[str] = Counter()
        with serve_throttled(root / "shards", LATENCY_SECONDS, BYTES_PER_SECOND, requests) as url:
            config = build_config(root, "remote", f"{url}/manifest.json", images_per_shard, batch_size)
            remote = read_log(train(config))
    rows = [build_row("object storage", remote), build_row("local files", local, has_goal=False)]
    settings = {"image_size": image_size, "num_images": num_images, "batch_size": batch_size}
    return BenchmarkResults("data", rows, settings, [build_table(local, remote)], [describe_requests(requests)])


def build_config(root: Path, name: str, shards: str, images_per_shard: int, batch_size: int) -> Config:
    """Return the configuration of a run that reads `NUM_WINDOWS` windows, and logs once per window.

    The networks are small, so that the data must arrive fast.
    """
    window_steps = max(1, SHUFFLE_WINDOW * images_per_shard // batch_size)
    shard_bytes = max(path.stat().st_size for path in (root / "shards").glob("train-*.tar"))
    tree = {
        "run_dir": str(root / name),
        "dataset": {
            "shards": shards, "feature_cache": FIXTURE_CACHE_NAME, "shuffle_window": SHUFFLE_WINDOW,
            "cache_dir": str(root / "cache"), "cache_gb": 4 * SHUFFLE_WINDOW * shard_bytes / 1e9,
        },
        "generator": {"dim": 16, "num_blocks": 2},
        "discriminator": {"dim": 16, "num_layers": 4},
        "training": {
            "steps": NUM_WINDOWS * window_steps, "batch_size": batch_size, "log_every": window_steps, "num_workers": 1,
        },
    }  # fmt: skip
    return parse_config(tree, "featgan bench data --remote")


def read_log(run: Path) -> list[dict[str, float]]:
    """Return the lines of a run's metrics that tell how long it waited for data, one per window."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "speed/data_wait_share" in line]


def build_row(name: str, log: list[dict[str, float]], has_goal: bool = True) -> BenchmarkRow:
    """Return the share of the time that training waits for data after the first window."""
    return BenchmarkRow(
        f"data: share of training spent waiting for data after the first window, {name}",
        CostSamples((fmean(line["speed/data_wait_share"] for line in log[1:]),)),
        goals=(Goal("value", 0.02),) if has_goal else (),
        unit="%",
    )


def build_table(local: list[dict[str, float]], remote: list[dict[str, float]]) -> ResultTable:
    """Return the share of waiting for every window."""
    rows = tuple(
        (str(number), *(f"{100 * line['speed/data_wait_share']:.2f} %" for line in lines))
        for number, lines in enumerate(zip(local, remote, strict=True), 1)
    )
    return ResultTable("Share of the time spent waiting for data", ("window", "local files", "object storage"), rows)


def describe_requests(requests: Counter[str]) -> str:
    """Return how often the server sent the shards that the run read."""
    shards = {path: count for path, count in requests.items() if path.endswith(".tar")}
    return f"object storage: {sum(shards.values())} downloads of {len(shards)} shards, at most " + (
        f"{max(shards.values(), default=0)} per shard"
    )

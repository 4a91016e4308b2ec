"""`featgan bench data --peers`: featgan's loader next to WebLoader, wids and ImageFolder, on the same images.

Every library reads one epoch of the same JPEGs into uint8 batches, in a new process, with the same number of workers.
"""

import importlib
import importlib.util
import json
import os
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import torch
import webdataset
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.functional import pil_to_tensor

from featgan.bench.data_loading import single_thread
from featgan.bench.fixtures import make_synthetic_faces, write_shards
from featgan.bench.results import BenchmarkResults, BenchmarkRow, Goal, ResultTable
from featgan.bench.timing import MEGABYTE, CostSamples, run_in_new_process
from featgan.config.loading import parse_config
from featgan.data.conditions import build_condition
from featgan.data.loader import BatchDataset, TrainingSet, open_loader
from featgan.data.shards.shard_set import ShardSet

SHUFFLE_BUFFER = 1000
"""Images in the shuffle buffer of WebLoader; the other libraries shuffle all images."""

MEMORY_INTERVAL = 0.1
"""Seconds between two samples of the memory."""

TABLE_COLUMNS = ("library", "images/s/core", "featgan", "first batch", "memory")


@dataclass(frozen=True)
class PeerData:
    """The same images as shards, as an index for wids, and as one file per image."""

    root: Path
    batch_size: int
    num_workers: int
    uses_torchvision: bool
    """Whether every library decodes with torchvision's decode_jpeg, instead of its own default."""

    @property
    def shards(self) -> Path:
        return self.root / "shards"

    @property
    def files(self) -> Path:
        return self.root / "files"

    @property
    def wids_index(self) -> Path:
        return self.root / "wids.json"


BatchIterator = Iterator[Tensor]


@contextmanager
def open_featgan(data: PeerData) -> Iterator[BatchIterator]:
    """Iterate over one epoch of featgan's loader, in its global random order."""
    tree = {"dataset": {"shards": str(data.shards), "condition": {"kind": "expression"}, "horizontal_flip": False}}
    config = parse_config(tree, "featgan bench data")
    shards = ShardSet.open(data.shards)
    training_set = TrainingSet(shards.get_split("train"), build_condition(config.dataset, shards, "train"), False)
    batches = BatchDataset([training_set], data.batch_size, 1, seed=0)
    with open_loader(batches, 0, len(training_set) // data.batch_size, data.num_workers) as loader:
        yield (batch.images for batch in loader)


@contextmanager
def open_webdataset(data: PeerData) -> Iterator[BatchIterator]:
    """Iterate over one epoch of webdataset's WebLoader: random shards, then a shuffle buffer."""
    paths = [str(path) for path in sorted(data.shards.glob("train-*.tar"))]
    dataset = webdataset.WebDataset(paths, shardshuffle=len(paths), seed=0).shuffle(SHUFFLE_BUFFER)
    if not data.uses_torchvision:
        dataset = dataset.decode("torchrgb8")
    dataset = dataset.to_tuple("jpg", "json")
    if data.uses_torchvision:
        dataset = dataset.map_tuple(decode_bytes, json.loads)
    dataset = dataset.map(lambda sample: (sample[0], sample[1]["expression"])).batched(data.batch_size)
    loader = webdataset.WebLoader(dataset, batch_size=None, shuffle=False, num_workers=data.num_workers)
    yield (torch.as_tensor(images) for images, _ in loader)


@contextmanager
def open_wids(data: PeerData) -> Iterator[BatchIterator]:
    """Iterate over one epoch of wids' ShardListDataset, in the order of its own sampler."""
    wids = importlib.import_module("wids")
    shards = json.loads(data.wids_index.read_text())

    def decode(sample: Mapping[str, Any]) -> tuple[Tensor, int]:
        jpeg = sample[".jpg"].read()
        image = decode_bytes(jpeg) if data.uses_torchvision else pil_to_tensor(open_image(jpeg))
        return image, json.loads(sample[".json"].read())["expression"]

    with redirect_stderr(StringIO()):  # it prints a summary
        dataset = wids.ShardListDataset(shards, localname=str, keep=True, transformations=[decode])
    loader = DataLoader(
        dataset, data.batch_size, sampler=wids.ShardedSampler(dataset), num_workers=data.num_workers, drop_last=True
    )
    yield (images for images, _ in loader)


@contextmanager
def open_image_folder(data: PeerData) -> Iterator[BatchIterator]:
    """Iterate over one epoch of torchvision's ImageFolder, in a global random order."""
    if data.uses_torchvision:
        dataset = ImageFolder(str(data.files), loader=lambda path: decode_bytes(Path(path).read_bytes()))
    else:
        dataset = ImageFolder(str(data.files), transform=pil_to_tensor)
    loader = DataLoader(dataset, data.batch_size, shuffle=True, num_workers=data.num_workers, drop_last=True)
    yield (images for images, _ in loader)


PEERS: Mapping[str, Callable[[PeerData], Any]] = {
    "featgan": open_featgan,
    "WebLoader": open_webdataset,
    "wids": open_wids,
    "ImageFolder": open_image_folder,
}


def decode_bytes(jpeg: bytes) -> Tensor:
    """Decode a JPEG with torchvision as uint8 [3, H, W]."""
    image: Tensor = decode_jpeg(torch.frombuffer(bytearray(jpeg), dtype=torch.uint8), mode=ImageReadMode.RGB)
    return image


def open_image(jpeg: bytes) -> Image.Image:
    """Open a JPEG with PIL."""
    return Image.open(BytesIO(jpeg)).convert("RGB")


def run_benchmark(
    image_size: int, num_images: int, batch_size: int, num_workers: int, repeats: int
) -> BenchmarkResults:
    """Measure one epoch of every library in turn, with one decoder for all, and with the decoder of each."""
    names = [name for name in PEERS if name != "wids" or importlib.util.find_spec("wids")]
    with tempfile.TemporaryDirectory(prefix="featgan-bench-") as folder:
        write_peer_data(Path(folder), image_size, num_images)
        settings = (folder, batch_size, num_workers)
        rows, tables = [], []
        for uses_torchvision in (True, False):
            costs = measure_in_turn(names, (*settings, uses_torchvision), repeats)
            decoder = "the same decoder (torchvision)" if uses_torchvision else "its own decoder"
            tables.append(ResultTable(f"One epoch, each library with {decoder}", TABLE_COLUMNS, table_rows(costs)))
            if uses_torchvision:
                rows = build_rows(costs)
    notes = [
        "images/s per core: images divided by the CPU seconds of the process and its workers",
        "featgan: how many times faster featgan is; first batch: time from the start to the first batch",
        "memory: largest sum over the process and its workers (PSS), without the imports",
    ]
    if "wids" not in names:
        notes.append("wids was not measured: run `pip install wids`")
    numbers = {"image_size": image_size, "num_images": num_images, "batch_size": batch_size, "num_workers": num_workers}
    return BenchmarkResults("data", rows, numbers, tables, notes)


def write_peer_data(root: Path, image_size: int, num_images: int) -> None:
    """Write the same images as shards, as an index for wids, and as one file per image in a folder per class."""
    jpegs, items = make_synthetic_faces(num_images, image_size)
    shards = write_shards(root / "shards", jpegs, items, image_size)
    train = shards.manifest.splits["train"].shards
    index = [{"url": str(shards.path / shard.name), "nsamples": shard.count} for shard in train]
    (root / "wids.json").write_text(json.dumps(index))
    for item, jpeg in zip(items, jpegs, strict=True):
        folder = root / "files" / str(item.labels["expression"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / item.relative_path).write_bytes(jpeg)


@dataclass(frozen=True)
class PeerCosts:
    """The costs of one epoch of one library."""

    num_images: int
    cpu_seconds: CostSamples
    first_batch_seconds: CostSamples
    megabytes: float


def measure_in_turn(names: Sequence[str], settings: tuple[str, int, int, bool], repeats: int) -> dict[str, PeerCosts]:
    """Measure all libraries in turn after a warm-up, which also measures the memory."""
    warm_up = {name: run_epoch(name, settings, True) for name in names}
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(repeats):
        for name in names:
            results[name].append(run_epoch(name, settings, False))
    return {
        name: PeerCosts(
            int(warm_up[name]["num_images"]),
            CostSamples(tuple(result["cpu_seconds"] for result in results[name])),
            CostSamples(tuple(result["first_batch_seconds"] for result in results[name])),
            warm_up[name]["megabytes"],
        )
        for name in names
    }


def run_epoch(name: str, settings: tuple[str, int, int, bool], measures_memory: bool) -> dict[str, float]:
    """Read one epoch in a new process and return its costs."""
    result: dict[str, float] = run_in_new_process(
        "featgan.bench.peers:measure_epoch", name, *settings, measures_memory
    ).result
    return result


def measure_epoch(
    name: str, root: str, batch_size: int, num_workers: int, uses_torchvision: bool, measures_memory: bool
) -> dict[str, float]:
    """Read one epoch in this process and return its costs, without the imports."""
    data = PeerData(Path(root), batch_size, num_workers, uses_torchvision)
    start_cpu, start, num_images, first_batch_seconds = total_cpu_seconds(), time.perf_counter(), 0, 0.0
    with single_thread(), sample_memory(measures_memory) as megabytes, PEERS[name](data) as batches:
        for images in batches:
            assert images.dtype == torch.uint8 and images.shape[1] == 3, (name, images.dtype, images.shape)
            first_batch_seconds = first_batch_seconds or time.perf_counter() - start
            num_images += len(images)
        del batches
    return {
        "num_images": num_images,
        "cpu_seconds": total_cpu_seconds() - start_cpu,
        "first_batch_seconds": first_batch_seconds,
        "megabytes": max(megabytes) - megabytes[0],
    }


def total_cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


@contextmanager
def sample_memory(is_enabled: bool) -> Iterator[list[float]]:
    """Yield a growing list of the memory of this process and its children in MB; the first is that at the start."""
    samples, has_ended = [total_memory() if is_enabled else 0.0], threading.Event()

    def sample() -> None:
        while not has_ended.wait(MEMORY_INTERVAL):
            samples.append(total_memory())

    thread = threading.Thread(target=sample, daemon=True)
    if is_enabled:
        thread.start()
    try:
        yield samples
    finally:
        has_ended.set()
        if is_enabled:
            thread.join()


def total_memory() -> float:
    """Return the memory (PSS) of this process and its children in MB; shared pages are counted once."""
    processes = [os.getpid()]
    for path in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):
            processes += map(int, path.read_text().split())
    return sum(map(process_memory, processes))


def process_memory(process: int) -> float:
    """Return the PSS of a process in MB; 0 if it has just ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024 / MEGABYTE


def build_rows(costs: Mapping[str, PeerCosts]) -> list[BenchmarkRow]:
    """Return one row per other library: its cost as `naive`, next to that of featgan."""
    own = costs["featgan"]
    return [
        BenchmarkRow(
            f"data: next to {name}, same decoder, per core", own.cpu_seconds, peer.cpu_seconds,
            goals=(Goal("speedup", 1),), num_items=own.num_images,
        )
        for name, peer in costs.items() if name != "featgan"
    ]  # fmt: skip


def table_rows(costs: Mapping[str, PeerCosts]) -> tuple[tuple[str, ...], ...]:
    """Return the cells of one line per library."""
    own = costs["featgan"].cpu_seconds
    return tuple(
        (
            name,
            f"{peer.num_images / peer.cpu_seconds.median:,.0f}",
            f"{peer.cpu_seconds.ratio_to(own):.2f} x",
            f"{peer.first_batch_seconds.median:.2f} s",
            f"{peer.megabytes:.0f} MB",
        )
        for name, peer in costs.items()
    )

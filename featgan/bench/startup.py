"""`featgan bench start`: from nothing to the first batch's numbers, beside text files of the same content; help."""

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

from featgan.bench.fixtures import NAME, draw_faces, repeat_shard, write_features, write_shards
from featgan.bench.results import Bench, Goal, Row
from featgan.bench.timing import Costs, Spent, in_new_process, in_turn
from featgan.config.schema import DatasetConfig
from featgan.data.conditions import build_condition
from featgan.data.feature_cache.cache import FeatureCache
from featgan.data.loader import BatchStream, Source
from featgan.data.shards.shard_set import ShardSet

IMAGE_SIZE = 16
"""Of the stand-ins for images: the start reads a batch of them."""

IMAGES_PER_SHARD = 1000
BATCH = 16
PLAIN_TURNS = 3
"""Most turns of the text files, which take long."""

SETTLED = 60
"""Seconds that every file is made older, since what has just been written is hashed again at the next start."""

HELPS = {"featgan --help": ("-m", "featgan", "--help"), "python -m launch --help": ("-m", "launch", "--help")}


def run(num_images: int, feature_dim: int, repeats: int) -> Bench:
    """The data side in new processes, plain and fast in turn; the first start that hashes everything; the helps."""
    with tempfile.TemporaryDirectory(prefix="featgan-bench-") as folder:
        shards, cache = make_data(Path(folder), num_images, feature_dim)
        text = Path(folder) / "text"
        write_text(text, shards, cache)
        shard_bytes = sum(shard.bytes for shard in shards.parts.splits["train"].shards)
        here, size = str(shards.path), sum(path.stat().st_size for path in text.iterdir())
        cold = in_new_process(f"{__name__}:start_fast", here)
        plain, fast = alternate(
            lambda: in_new_process(f"{__name__}:start_plain", str(text)),
            lambda: in_new_process(f"{__name__}:start_fast", here),
            repeats,
        )
    rows = [*data_rows(plain, fast, cold), *help_rows(repeats)]
    imports = Costs(tuple(each.import_seconds for each in fast)).median
    settings = {"num_images": len_of(shards), "feature_dim": feature_dim, "text_bytes": size, "tar_bytes": shard_bytes}
    remarks = [
        f"{settings['num_images']:,} x {feature_dim} features, {size / 1e6:,.0f} MB as text; tars of "
        f"{IMAGE_SIZE} px stand-ins, {shard_bytes / 1e6:,.0f} MB to hash at the first start",
        f"time and memory are above those of a process that has imported the same modules ({imports:.1f} s)",
    ]
    return Bench("start", rows, settings, remarks=remarks)


def len_of(shards: ShardSet) -> int:
    return shards.parts.splits["train"].count


def make_data(root: Path, num_images: int, feature_dim: int) -> tuple[ShardSet, FeatureCache]:
    """One tar of small images linked as often as needed, and a cache whose numbers are all different."""
    here = min(num_images, IMAGES_PER_SHARD)
    jpegs, items = draw_faces(here, IMAGE_SIZE)
    shards = repeat_shard(write_shards(root / "shards", jpegs, items, IMAGE_SIZE), -(-num_images // here))
    cache = write_features(shards, feature_dim)
    for path in (root / "shards").rglob("*.*"):
        os.utime(path, (time.time() - SETTLED,) * 2)
    return shards, cache


def write_text(folder: Path, shards: ShardSet, cache: FeatureCache) -> None:
    """The same as the ancestor's three lists: names, valence and arousal, and the features, four digits each."""
    folder.mkdir()
    split = shards.split("train")
    (folder / "images.txt").write_text("".join(f"{key}.jpg\n" for key in split.keys.tolist()))
    pairs = zip(split.valence.tolist(), split.arousal.tolist(), strict=True)
    (folder / "labels.txt").write_text("".join(f"{valence:.6f} {arousal:.6f}\n" for valence, arousal in pairs))
    line = " ".join(["%.4f"] * cache.feature_dim) + "\n"
    with (folder / "predictions.txt").open("w") as file:
        for start in range(0, len(split), IMAGES_PER_SHARD):
            rows = np.arange(start, min(start + IMAGES_PER_SHARD, len(split)))
            file.writelines(line % tuple(values) for values in cache.features("train", rows).tolist())


def start_plain(folder: str) -> list[float]:
    """The ancestor's start: every line into lists of Python numbers, then the first batch's tensor; its sum."""
    root = Path(folder)
    names = (root / "images.txt").read_text().split()
    labels = [[float(word) for word in line.split()] for line in lines_of(root / "labels.txt")]
    features = [[float(word) for word in line.split()] for line in lines_of(root / "predictions.txt")]
    records = list(zip(names, labels, features, strict=True))
    batch = torch.tensor([values for _, _, values in islice(records, BATCH)])
    return batch[0].tolist()


def lines_of(path: Path) -> Iterator[str]:
    with path.open() as file:
        yield from file


def start_fast(folder: str) -> list[float]:
    """The data side of a training's start: shards, condition, contents compared, the first batch's numbers."""
    shards = ShardSet.open(folder)
    condition = build_condition(DatasetConfig(shards=Path(folder), features=NAME), shards, "train")
    shards.verify()
    if condition.cache is not None:
        condition.cache.verify()
    batches = BatchStream([Source(shards.split("train"), condition, True)], BATCH, 1, 0)
    values: list[float] = batches[0].condition[0].tolist()
    return values


def alternate(plain: Callable[[], Spent], fast: Callable[[], Spent], repeats: int) -> tuple[list[Spent], list[Spent]]:
    """In turn; the plain side only a few times."""
    turns = [(plain(), fast()) for _ in range(min(repeats, PLAIN_TURNS))]
    more = [fast() for _ in range(repeats - len(turns))]
    return [one for one, _ in turns], [other for _, other in turns] + more


ONCE = "once for unchanged files, by the bytes of the shards: real ones are larger than the stand-ins"


def data_rows(plain: Sequence[Spent], fast: Sequence[Spent], cold: Spent) -> list[Row]:
    """Seconds and megabytes, and the seconds of the first start."""

    def costs(spent: Sequence[Spent], name: str) -> Costs:
        return Costs(tuple(getattr(each, name) for each in spent))

    seconds, megabytes = "start: data side, time", "start: data side, memory"
    return [
        Row(seconds, costs(fast, "seconds"), costs(plain, "seconds"), goals=(Goal("value", 1.0),)),
        Row(megabytes, costs(fast, "megabytes"), costs(plain, "megabytes"), goals=(Goal("value", 100),), unit="MB"),
        Row(
            "start: the first time, hashing every file", Costs((cold.seconds,)), goals=(Goal("value", 1.0),), rest=ONCE
        ),
    ]


def help_rows(repeats: int) -> list[Row]:
    """From the start of a process to its end, beside an interpreter that does nothing."""
    sides = {"nothing": partial(call, "-c", "pass")} | {name: partial(call, *words) for name, words in HELPS.items()}
    found = in_turn(sides, repeats)
    return [
        Row(
            f"start: {name}", found[name], ceiling=found["nothing"], goals=(Goal("value", 0.3),),
            ceiling_name="an interpreter that does nothing",
        )
        for name in HELPS
    ]  # fmt: skip


def call(*words: str) -> None:
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)

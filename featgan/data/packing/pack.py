"""Any layout => WebDataset shards: cropped and resized JPEGs with their labels, the same bytes for the same input."""

import math
import multiprocessing
import os
import signal
import time
from collections import Counter, deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from featgan import __version__
from featgan.data.packing.crop import Crop, CropJob, CropOptions, crop_files
from featgan.data.packing.existing import find_packed, first_damaged, put_in_place
from featgan.data.packing.plan import Item, hash_listing, plan
from featgan.data.packing.writer import ShardWriter
from featgan.data.readers.registry import Layout, read_layout
from featgan.data.shards.manifest import MANIFEST, Manifest, SkippedFile, SplitName
from featgan.errors import UserError
from featgan.system.files import explain_write_errors, whole_folder, write_whole
from featgan.system.progress import Meter, console, meter

CHUNK = 32
"""Images of one task of a worker."""

AHEAD = 4
"""Tasks of each worker that may be under way or waiting to be written."""

MOST_UNUSABLE = 0.01
"""Share of the records whose files may be unusable."""

REMEDY = "free some space or choose another --out; nothing was left behind"
MOST_LISTED = 1000
"""Skipped files listed in the manifest."""

CENTRE_CROPS = {"celeba": 178}
"""Centre crops of layouts that are always cropped so, in pixels."""


@dataclass(frozen=True)
class PackOptions:
    """What decides the shards' content, beside the source."""

    layout: str
    image_size: int
    quality: int
    images_per_shard: int
    crop: int | None
    margin: float
    validation_fraction: float
    limit: int | None
    layout_options: dict[str, Any]

    def __post_init__(self) -> None:
        check_range("image size", self.image_size, 8, 4096)
        check_range("quality", self.quality, 1, 100)
        check_range("images per shard", self.images_per_shard, 1, 1_000_000)
        check_range("crop", math.inf if self.crop is None else self.crop, 8, math.inf)
        check_range("margin", self.margin, 0, 10)
        check_range("validation fraction", self.validation_fraction, 0, 0.9)
        check_range("limit", math.inf if self.limit is None else self.limit, 1, math.inf)

    @property
    def crops(self) -> CropOptions:
        return CropOptions(self.image_size, self.quality, self.crop, self.margin)


def check_range(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise UserError(f"{name} {value}: it must be {least} to {most}")


@dataclass(frozen=True)
class PackSummary:
    """What a folder of shards holds, and how long packing took (0 when it was there already)."""

    out: Path
    manifest: Manifest
    seconds: float = 0.0
    already: bool = False

    @property
    def kept(self) -> dict[str, int]:
        """Images by split."""
        return {name: part.count for name, part in self.manifest.splits.items()}

    @property
    def skipped(self) -> dict[str, int]:
        """Images by the reason why they were left out."""
        return self.manifest.skipped

    @property
    def classes(self) -> dict[str, dict[str, int]]:
        """Images by split and class."""
        return {name: part.classes for name, part in self.manifest.splits.items()}


def pack(
    layout: str,
    source: Path | str,
    out: Path | str,
    image_size: int = 112,
    quality: int = 95,
    images_per_shard: int = 1000,
    crop: int | None = None,
    margin: float = 0.15,
    validation_fraction: float = 0.1,
    workers: int | None = None,
    strict: bool = False,
    limit: int | None = None,
    **layout_options: Any,
) -> PackSummary:
    """Pack every usable image of `source` into `out`, which appears only when it is complete.

    Shards that are there already are left as they are; where one was damaged since, all are packed again.

    `crop` is the side of a centre crop in pixels (by default the face box with `margin` on every side, where the layout
    has one, else the largest centre square). Records without a split are divided by identity, or else by key. With
    `limit`, a fixed sample of the records. UserError: nothing to pack, more than 1 % unusable files (any, if `strict`),
    `out` in use for something else, a full disk.
    """
    started = time.monotonic()
    options = PackOptions(
        layout,
        image_size,
        quality,
        images_per_shard,
        crop or CENTRE_CROPS.get(layout),
        margin,
        validation_fraction,
        limit,
        layout_options,
    )
    source, out = Path(source), Path(out).resolve()
    found = read_layout(layout, source, **layout_options)
    items, repeated = plan(found, source, options.validation_fraction, limit)
    listing = hash_listing(items)
    former = find_packed(out, asdict(options), listing)
    damaged = first_damaged(out, former) if former else None
    if former and not damaged:
        return PackSummary(out, former, already=True)
    if damaged:
        console.print(f"{damaged}: not what was packed; packing it again", markup=False)
    fresh = out.with_name(f".{out.name}.repacked") if former else out
    with explain_write_errors(out, REMEDY), whole_folder(fresh, replace=fresh != out) as partial:
        packing = Packing(partial, found, items, options, strict)
        packing.skipped["listed twice"] += repeated
        with meter("packing", len(items), "images") as bar:
            packing.run(workers or len(os.sched_getaffinity(0)), bar)
        manifest = packing.finish(source.resolve().name, listing)
    if former:
        with explain_write_errors(out, REMEDY):
            put_in_place(fresh, out, former, manifest)
    return PackSummary(out, manifest, time.monotonic() - started)


class Packing:
    """One packing at work: images in, shards out, and what could not be used."""

    def __init__(self, folder: Path, layout: Layout, items: Sequence[Item], options: PackOptions, strict: bool) -> None:
        self.folder = folder
        self.layout = layout
        self.items = items
        self.options = options
        self.most_unusable = 0.0 if strict else MOST_UNUSABLE
        self.skipped = Counter(layout.skipped)
        self.missing = [SkippedFile(source=name, reason="missing file") for name in layout.missing_files]
        self.unusable: list[SkippedFile] = []
        splits: dict[SplitName, None] = dict.fromkeys(item.split for item in items)
        self.writers = {split: ShardWriter(folder, split, options.images_per_shard) for split in splits}

    def run(self, workers: int, bar: Meter) -> None:
        """Crop all images and write them in order."""
        self.check_unusable()
        jobs = [CropJob(item.record.path, item.record.face_box) for item in self.items]
        with closing(crop_all(jobs, self.options.crops, workers)) as crops:
            for item, crop in zip(self.items, crops, strict=True):
                self.keep(item, crop)
                bar.advance()

    def keep(self, item: Item, crop: Crop) -> None:
        """Write one image, or count why not; UserError when there are too many of those."""
        if crop.jpeg:
            self.writers[item.split].add(item, crop.jpeg)
            return
        self.skipped[crop.refusal] += 1
        self.unusable.append(SkippedFile(source=item.source, reason=crop.refusal))
        self.check_unusable()

    def check_unusable(self) -> None:
        """UserError when more files than may be are missing, by all that is listed, or damaged, by what is packed."""
        missing = len(self.missing) / (len(self.layout.records) + len(self.missing))
        if missing + len(self.unusable) / len(self.items) <= self.most_unusable:
            return
        first, *others = self.missing + self.unusable
        more = f" and {len(others):,} more of {len(self.items) + len(self.missing):,} files" if others else ""
        allowed = f"at most {MOST_UNUSABLE:.0%} may be unusable" if self.most_unusable else "--strict allows none"
        raise UserError(f"{first.source}: {first.reason}{more}; {allowed}: mend them or take them out of the source")

    def finish(self, source: str, listing: str) -> Manifest:
        """End the shards and write the manifest last."""
        names = [
            list_names(item.record.attributes for item in self.items),
            list_names(item.record.factors for item in self.items),
        ]
        parts = {split: writer.finish(self.layout.classes, *names) for split, writer in self.writers.items()}
        manifest = Manifest(
            featgan=__version__,
            source=source,
            source_sha256=listing,
            options=asdict(self.options),
            image_size=self.options.image_size,
            classes=self.layout.classes,
            attribute_names=names[0],
            factor_names=names[1],
            splits=parts,
            skipped={reason: count for reason, count in sorted(self.skipped.items()) if count},
            skipped_files=tuple((self.missing + self.unusable)[:MOST_LISTED]),
        )
        write_whole(self.folder / MANIFEST, manifest.text().encode())
        return manifest


def list_names(rows: Iterable[Mapping[str, Any] | None]) -> tuple[str, ...]:
    """The columns of all rows, in the order in which they are first seen."""
    return tuple(dict.fromkeys(name for row in rows for name in row or ()))


def crop_all(jobs: Sequence[CropJob], options: CropOptions, workers: int) -> Generator[Crop, None, None]:
    """Crops in the jobs' order, from this process or several; few are ahead of what is written."""
    chunks = [jobs[start : start + CHUNK] for start in range(0, len(jobs), CHUNK)]
    if workers <= 1 or len(chunks) <= 1:
        for chunk in chunks:
            yield from crop_files(chunk, options)
        return
    # Fresh processes: a fork would inherit the threads of whatever runs here.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(chunks)), mp_context=context, initializer=ignore_interrupts)
    waiting: deque[Future[list[Crop]]] = deque()
    try:
        for chunk in chunks:
            waiting.append(pool.submit(crop_files, chunk, options))
            if len(waiting) >= AHEAD * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UserError("a worker process was killed, perhaps for want of memory; use fewer --workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


def ignore_interrupts() -> None:
    """Ctrl-C is handled once, by the process that waits for the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def print_summary(summary: PackSummary) -> None:
    """A table of what was kept by class and split, then what was skipped and why, on standard output."""
    manifest = summary.manifest
    table = Table("class", *(name for name in manifest.splits), title=f"{summary.out}")
    for column in table.columns[1:]:
        column.justify = "right"
    for name in manifest.classes:
        table.add_row(name, *(f"{part.classes[name]:,}" for part in manifest.splits.values()))
    unlabelled = [part.count - sum(part.classes.values()) for part in manifest.splits.values()]
    if any(unlabelled):
        table.add_row("no class", *(f"{count:,}" for count in unlabelled))
    table.add_section()
    table.add_row("images", *(f"{part.count:,}" for part in manifest.splits.values()))
    console = Console()
    console.print(table)
    console.print(describe(summary), highlight=False)


def describe(summary: PackSummary) -> str:
    """Sizes, time and what was skipped, in two lines."""
    shards = [shard for part in summary.manifest.splits.values() for shard in part.shards]
    total = sum(summary.kept.values())
    size = sum(shard.bytes for shard in shards) / 1e6
    how = "there already" if summary.already else f"{summary.seconds:.1f} s, {total / summary.seconds:,.0f} images/s"
    skipped = ", ".join(f"{count:,} {reason}" for reason, count in summary.skipped.items()) or "none"
    return f"{total:,} images in {len(shards)} shards of {size:,.1f} MB together ({how})\nskipped: {skipped}"

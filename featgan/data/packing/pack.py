"""Packing of a data set into WebDataset shards of cropped JPEGs with labels; equal input gives equal bytes."""

import logging
import math
import sys
import time
from collections import Counter, deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.table import Table

from featgan import __version__
from featgan.data.packing.crop import Crop, CropJob, CropOptions, crop_files
from featgan.data.packing.existing import find_corrupt_shard, find_existing_shards, replace_shards
from featgan.data.packing.plan import SPLITS, PlannedImage, hash_planned_images, plan_packing
from featgan.data.packing.writer import ShardWriter
from featgan.data.readers.records import DatasetListing
from featgan.data.readers.registry import read_dataset
from featgan.data.shards.manifest import MANIFEST_FILE, ShardManifest, SkippedFile, ValidationOrigin
from featgan.data.webdataset.listing import LAYOUT as WEBDATASET_LAYOUT
from featgan.data.webdataset.listing import OPTIONS as WEBDATASET_OPTIONS
from featgan.data.webdataset.listing import list_webdataset
from featgan.data.webdataset.samples import ImageReader
from featgan.errors import UserError
from featgan.system.console import PlainConsole
from featgan.system.files import atomic_folder, atomic_write, user_friendly_write_errors
from featgan.system.image_sizes import explain_generator_size
from featgan.system.limits import MAX_CLASSES, MAX_IMAGE_SIZE, MAX_SHARDS
from featgan.system.locations import Location, redact_text
from featgan.system.plain_text import format_one_line
from featgan.system.progress import ProgressBar, progress_bar
from featgan.system.resources import count_workers
from featgan.system.user_paths import expand_path
from featgan.system.worker_processes import open_process_pool

logger = logging.getLogger(__name__)

IMAGES_PER_TASK = 32
"""Number of images in one task of a worker."""

MAX_TASKS_PER_WORKER = 4
"""Maximum number of tasks per worker that are running or waiting to be written."""

MAX_UNUSABLE_SHARE = 0.01
"""Maximum share of the records whose files may be unusable."""

WRITE_ERROR_REMEDY = "free some space or choose another --out; no files were left behind"
MAX_LISTED_FILES = 1000
"""Maximum number of skipped files listed in the manifest."""

SUMMARY_WIDTH = 80
"""Width of the printed summary in columns; only the path of the shards may be longer."""

CENTER_CROPS = {"celeba": 178}
"""Default center crop of a layout, in pixels."""


@dataclass(frozen=True)
class PackOptions:
    """Options that determine the content of the shards, together with the source."""

    layout: str
    image_size: int
    quality: int
    images_per_shard: int
    crop: int | None
    margin: float
    validation_fraction: float
    max_images: int | None
    layout_options: dict[str, str]

    def __post_init__(self) -> None:
        check_range("image_size", self.image_size, 8, MAX_IMAGE_SIZE)
        check_range("quality", self.quality, 1, 100)
        check_range("images_per_shard", self.images_per_shard, 1, 1_000_000)
        check_range("crop", math.inf if self.crop is None else self.crop, 8, math.inf)
        check_range("margin", self.margin, 0, 10)
        check_range("validation_fraction", self.validation_fraction, 0, 0.9)
        check_range("max_images", math.inf if self.max_images is None else self.max_images, 1, math.inf)

    @property
    def crop_options(self) -> CropOptions:
        """The options that concern one image."""
        return CropOptions(self.image_size, self.quality, self.crop, self.margin)


def check_range(name: str, value: float, min_value: float, max_value: float) -> None:
    """Raise UserError, with the name of the option, if `value` is outside [min_value, max_value]."""
    if not min_value <= value <= max_value:
        limits = f"at least {min_value}" if max_value == math.inf else f"between {min_value} and {max_value}"
        raise UserError(f"--{name.replace('_', '-')} {value}: must be {limits}")


def check_manifest_size(listing: DatasetListing, num_images: int, options: PackOptions) -> None:
    """Raise UserError for more classes or shards than a manifest can list, before hours of work."""
    if len(listing.classes) > MAX_CLASSES:
        raise UserError(f"{len(listing.classes):,} classes: at most {MAX_CLASSES:,} are possible; use fewer classes")
    num_shards = num_images // options.images_per_shard
    if num_shards > MAX_SHARDS:
        raise UserError(
            f"--images-per-shard {options.images_per_shard}: gives {num_shards:,} shards, but at most {MAX_SHARDS:,} "
            f"are possible; use at least {math.ceil(num_images / MAX_SHARDS)}"
        )


@dataclass(frozen=True)
class PackSummary:
    """Content of a shard folder and the packing time in seconds, which is 0 if the shards already existed."""

    out: Path
    manifest: ShardManifest
    seconds: float = 0.0
    already_packed: bool = False

    @property
    def num_images_by_split(self) -> dict[str, int]:
        """Number of images per split."""
        return {name: split.count for name, split in self.manifest.splits.items()}

    @property
    def skipped(self) -> dict[str, int]:
        """Number of skipped images per reason."""
        return self.manifest.skipped

    @property
    def classes(self) -> dict[str, dict[str, int]]:
        """Number of images per split and class."""
        return {name: split.classes for name, split in self.manifest.splits.items()}


def pack_shards(
    layout: str,
    source: Path | str | Sequence[str],
    out: Path | str,
    image_size: int = 112,
    quality: int = 95,
    images_per_shard: int = 1000,
    crop: int | None = None,
    margin: float = 0.15,
    validation_fraction: float = 0.1,
    workers: int | None = None,
    fail_on_unreadable: bool = False,
    max_images: int | None = None,
    layout_options: Mapping[str, str] | None = None,
) -> PackSummary:
    """Pack every usable image of `source` into the folder `out`, which is created only when it is complete.

    Existing shards that match the options are kept. If one of them is corrupted, all of them are packed again.

    `crop` is the side of a center crop in pixels. By default, images are cropped to the face bounding box with
    `margin` on each side, or to the largest center square without one. If the source has no validation split,
    `validation_fraction` of its images become one. If `max_images` is given, a fixed sample of the records is packed.
    `layout_options` are keyword arguments of the reader of the layout.

    Raises UserError if there is nothing to pack, if `out` contains something else, or if the disk is full. It is also
    raised if more than 1 % of the files are unusable; with `fail_on_unreadable`, if any file is.
    """
    started = time.monotonic()
    options = PackOptions(
        layout,
        image_size,
        quality,
        images_per_shard,
        crop or CENTER_CROPS.get(layout),
        margin,
        validation_fraction,
        max_images,
        dict(layout_options or {}),
    )
    out = Path(out).resolve()
    if problem := explain_generator_size(image_size):
        logger.warning(f"{problem}; these shards can be used for classifiers only")
    listing, source_folder, source_name = list_source(layout, source, options.layout_options)
    if len(listing.classes) == 1:
        logger.warning(f"only one class, {listing.classes[0]!r}: a model cannot learn edits from class to class")
    items, num_duplicates = plan_packing(listing, source_folder, options.validation_fraction, max_images)
    check_manifest_size(listing, len(items), options)
    source_sha256 = hash_planned_images(items)
    existing_manifest = find_existing_shards(out, asdict(options), source_sha256)
    corrupt_shard = find_corrupt_shard(out, existing_manifest) if existing_manifest else None
    if existing_manifest and not corrupt_shard:
        return PackSummary(out, existing_manifest, already_packed=True)
    if corrupt_shard:
        logger.warning(f"{corrupt_shard}: missing or corrupted; packing the shards again")
    new_folder = out.with_name(f".{out.name}.repacked") if existing_manifest else out
    with (
        user_friendly_write_errors(out, WRITE_ERROR_REMEDY),
        atomic_folder(new_folder, replace=new_folder != out) as partial,
    ):
        packer = Packer(partial, listing, items, options, fail_on_unreadable)
        packer.skipped["listed twice"] += num_duplicates
        with progress_bar("packing", len(items), "images") as bar:
            packer.pack_images(workers or count_workers(), bar)
        manifest = packer.finish(source_name, source_sha256)
    if existing_manifest:
        with user_friendly_write_errors(out, WRITE_ERROR_REMEDY):
            replace_shards(new_folder, out, existing_manifest, manifest)
    return PackSummary(out, manifest, time.monotonic() - started)


def list_source(
    layout: str, source: Path | str | Sequence[str], options: Mapping[str, str]
) -> tuple[DatasetListing, Path, str]:
    """Return the records of a source, the folder to which their paths are relative, and the name of the source."""
    if layout != WEBDATASET_LAYOUT:
        folder = Path(source if isinstance(source, str | Path) else single_source(layout, source))
        return read_dataset(layout, folder, options), folder, folder.resolve().name
    sources = [str(source)] if isinstance(source, str | Path) else list(source)
    check_webdataset_options(options)
    listing = list_webdataset(sources, **options)
    return listing, Path(), redact_text(sources[0]).rstrip("/").rpartition("/")[2]


def check_webdataset_options(options: Iterable[str]) -> None:
    """Raise UserError for an unknown option of the layout webdataset."""
    for option in options:
        if option not in WEBDATASET_OPTIONS:
            raise UserError(
                f"--layout-option {option}: not an option of layout {WEBDATASET_LAYOUT}; its options are "
                f"{', '.join(WEBDATASET_OPTIONS)}"
            )


def single_source(layout: str, sources: Sequence[str]) -> Path:
    """Return the folder of a layout that has one. Raises UserError if there are several or if it is a URL."""
    if len(sources) != 1:
        raise UserError(f"SOURCE {redact_text(sources[1])}: layout {layout} has one folder as source")
    location = Location.parse(sources[0])
    return expand_path(sources[0]) if location.scheme == "path" else location.path


class Packer:
    """Writes the shards of one data set and collects the files that could not be used."""

    def __init__(
        self,
        folder: Path,
        listing: DatasetListing,
        items: Sequence[PlannedImage],
        options: PackOptions,
        fail_on_unreadable: bool,
    ) -> None:
        self.folder = folder
        self.listing = listing
        self.items = items
        self.options = options
        self.max_unusable_share = 0.0 if fail_on_unreadable else MAX_UNUSABLE_SHARE
        self.skipped = Counter(listing.skipped)
        self.missing = [SkippedFile(source=name, reason="missing file") for name in listing.missing_files]
        self.unusable: list[SkippedFile] = []
        used = {item.split for item in items}
        splits = [split for split in SPLITS if split in used]
        self.writers = {split: ShardWriter(folder, split, options.images_per_shard) for split in splits}

    def pack_images(self, workers: int, bar: ProgressBar) -> None:
        """Crop all images and write them in order."""
        self.check_unusable()
        with closing(ImageReader()) as images, closing(self.crop_images(images, workers)) as crops:
            for item, crop in zip(self.items, crops, strict=True):
                self.write_or_skip(item, crop)
                bar.advance()

    def crop_images(self, images: ImageReader, workers: int) -> Generator[Crop, None, None]:
        """Yield the crops of all images; those in tars are read when they are needed."""
        jobs = (CropJob.from_record(item.record, images) for item in self.items)
        yield from crop_images_parallel(jobs, self.options.crop_options, workers, len(self.items))

    def write_or_skip(self, item: PlannedImage, crop: Crop) -> None:
        """Write one image, or count the reason why it is skipped. Raises UserError if too many files are unusable."""
        if crop.jpeg:
            self.writers[item.split].add_image(item, crop.jpeg)
            return
        self.skipped[crop.skip_reason] += 1
        self.unusable.append(SkippedFile(source=item.relative_path, reason=crop.skip_reason))
        self.check_unusable()

    def check_unusable(self) -> None:
        """Raise UserError if too many files are unusable.

        The share of missing files is relative to all listed files, the share of unreadable ones to all packed files.
        """
        missing = len(self.missing) / (len(self.listing.records) + len(self.missing))
        if missing + len(self.unusable) / len(self.items) <= self.max_unusable_share:
            return
        first, *other_files = self.missing + self.unusable
        others_text = (
            f" and {len(other_files):,} more of {len(self.items) + len(self.missing):,} files" if other_files else ""
        )
        allowed = (
            f"at most {MAX_UNUSABLE_SHARE:.0%} may be unusable"
            if self.max_unusable_share
            else "--fail-on-unreadable allows none"
        )
        raise UserError(f"{first.source}: {first.reason}{others_text}; {allowed}: repair or remove them")

    @property
    def validation_origin(self) -> ValidationOrigin:
        """Where the validation images come from."""
        return find_validation_origin(self.items)

    def finish(self, source: str, source_sha256: str) -> ShardManifest:
        """Close the shards, write the manifest last, and return it."""
        label_names = [
            collect_label_names(item.record.attributes for item in self.items),
            collect_label_names(item.record.factors for item in self.items),
        ]
        split_manifests = {
            split: writer.finish_split(self.listing.classes, *label_names) for split, writer in self.writers.items()
        }
        manifest = ShardManifest(
            featgan=__version__,
            source=format_one_line(source),
            source_sha256=source_sha256,
            options=asdict(self.options),
            image_size=self.options.image_size,
            classes=self.listing.classes,
            attribute_names=label_names[0],
            factor_names=label_names[1],
            splits=split_manifests,
            validation_split=self.validation_origin,
            skipped={reason: count for reason, count in sorted(self.skipped.items()) if count},
            skipped_files=tuple((self.missing + self.unusable)[:MAX_LISTED_FILES]),
        )
        atomic_write(self.folder / MANIFEST_FILE, manifest.to_json().encode())
        return manifest


def find_validation_origin(items: Sequence[PlannedImage]) -> ValidationOrigin:
    """Return where the validation images come from."""
    records = [item.record for item in items if item.split == "validation"]
    if not records:
        return "none"
    return "source" if records[0].split == "validation" else "created"


def collect_label_names(rows: Iterable[Mapping[str, Any] | None]) -> tuple[str, ...]:
    """Return the names in all rows, in the order of their first occurrence."""
    return tuple(dict.fromkeys(name for row in rows for name in row or ()))


def crop_images_parallel(
    jobs: Iterable[CropJob], options: CropOptions, workers: int, num_jobs: int = sys.maxsize
) -> Generator[Crop, None, None]:
    """Yield crops in the order of the jobs, from this process or from several.

    The number of crops that wait to be written is bounded. Raises UserError if a worker process is killed.
    """
    remaining = iter(jobs)
    chunks = iter(lambda: list(islice(remaining, IMAGES_PER_TASK)), [])
    num_chunks = -(-num_jobs // IMAGES_PER_TASK)
    if workers <= 1 or num_chunks <= 1:
        for chunk in chunks:
            yield from crop_files(chunk, options)
        return
    pool = open_process_pool(min(workers, num_chunks))
    pending: deque[Future[list[Crop]]] = deque()
    try:
        for chunk in chunks:
            pending.append(pool.submit(crop_files, chunk, options))
            if len(pending) >= MAX_TASKS_PER_WORKER * workers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    except BrokenProcessPool as error:
        raise UserError("a worker process was killed, possibly because memory ran out; use fewer --workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


def print_summary(summary: PackSummary) -> None:
    """Print a table of images per class and split, and the skipped images per reason, to standard output."""
    manifest = summary.manifest
    table = Table("class", *(name for name in manifest.splits))
    for column in table.columns[1:]:
        column.justify = "right"
    for name in manifest.classes:
        table.add_row(name, *(f"{split.classes[name]:,}" for split in manifest.splits.values()))
    unlabeled_counts = [split.count - sum(split.classes.values()) for split in manifest.splits.values()]
    if any(unlabeled_counts):
        table.add_row("no class", *(f"{count:,}" for count in unlabeled_counts))
    table.add_section()
    table.add_row("images", *(f"{split.count:,}" for split in manifest.splits.values()))
    stdout_console = PlainConsole(width=SUMMARY_WIDTH)
    stdout_console.print(str(summary.out), soft_wrap=True)
    stdout_console.print(table)
    stdout_console.print(describe_summary(summary), soft_wrap=True)


def describe_validation_split(manifest: ShardManifest) -> str:
    """Return one line on where the validation images come from."""
    if manifest.validation_split == "source":
        return "validation split: from the source"
    if manifest.validation_split == "none":
        reason = (
            "turned off" if not manifest.options["validation_fraction"] else "too few images of every class or person"
        )
        return f"validation split: none ({reason}); `featgan evaluate` needs one"
    num_train, num_validation = (manifest.splits[name].count for name in SPLITS)
    return (
        f"validation split: the source has none; held out {num_validation:,} of {num_train + num_validation:,} images, "
        "some of every class (see --validation-fraction)"
    )


def describe_summary(summary: PackSummary) -> str:
    """Return the total size, the packing time, the attributes, the validation split and the skipped images as text."""
    shards = [shard for split in summary.manifest.splits.values() for shard in split.shards]
    total = sum(summary.num_images_by_split.values())
    size = sum(shard.bytes for shard in shards) / 1e6
    timing = (
        "already packed"
        if summary.already_packed
        else f"{summary.seconds:.1f} s, {total / summary.seconds:,.0f} images/s"
    )
    skipped = ", ".join(f"{count:,} {reason}" for reason, count in summary.skipped.items()) or "none"
    lines = [
        f"{total:,} images in {len(shards)} shards, {size:,.1f} MB in total ({timing})",
        describe_validation_split(summary.manifest),
        f"skipped: {skipped}",
    ]
    if summary.manifest.attribute_names:
        lines.insert(1, f"attributes: {', '.join(summary.manifest.attribute_names)}")
    return "\n".join(lines)

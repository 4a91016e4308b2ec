"""`featgan index`: shards whose tars stay where they are; only an index and a manifest are written."""

import hashlib
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager, suppress
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from featgan import __version__
from featgan.data.packing.existing import find_existing_shards
from featgan.data.packing.pack import (
    MAX_LISTED_FILES,
    MAX_UNUSABLE_SHARE,
    WRITE_ERROR_REMEDY,
    PackSummary,
    check_range,
    check_webdataset_options,
    collect_label_names,
    find_validation_origin,
)
from featgan.data.packing.plan import SPLITS, PlannedImage, hash_planned_images, plan_packing
from featgan.data.readers.class_codes import check_names_file
from featgan.data.remote.fetching import FetchedFile
from featgan.data.shards.index import ShardEntry, build_index, serialize_index
from featgan.data.shards.manifest import (
    MANIFEST_FILE,
    ShardFile,
    ShardManifest,
    SplitManifest,
    SplitName,
    Transform,
)
from featgan.data.webdataset.labels import LabelField, parse_label_option
from featgan.data.webdataset.listing import LAYOUT, SampleCollector, TarListing
from featgan.data.webdataset.scan import TarScan, load_scan, save_scan, scan_tar, tar_stamp
from featgan.data.webdataset.sources import SourceTar, expand_sources
from featgan.errors import UserError
from featgan.system.files import atomic_folder, atomic_write, remove_folder, sha256_of, user_friendly_write_errors
from featgan.system.image_files import find_image_problem
from featgan.system.image_sizes import explain_generator_size
from featgan.system.limits import MAX_CLASSES, MAX_IMAGE_SIZE
from featgan.system.locations import Location, redact_text
from featgan.system.plain_text import format_one_line
from featgan.system.progress import track_progress
from featgan.system.resources import count_workers
from featgan.system.worker_processes import open_process_pool

logger = logging.getLogger(__name__)


def index_shards(
    sources: Sequence[str],
    out: Path,
    image_size: int = 112,
    crop: int | None = None,
    validation_fraction: float = 0.1,
    check_images: bool = False,
    workers: int | None = None,
    layout_options: Mapping[str, str] | None = None,
) -> PackSummary:
    """Write an index and a manifest for the tars of other programs to the folder `out`; the tars are not copied.

    The images are cropped to the center square of `crop` pixels, or to the largest one, and resized when they are read.
    Each tar is read once; the results of an interrupted command are used again. `check_images` decodes every image.
    Raises UserError if a tar cannot be read or more than 1 % of the images are unusable.
    """
    started = time.monotonic()
    check_range("image_size", image_size, 8, MAX_IMAGE_SIZE)
    check_range("validation_fraction", validation_fraction, 0, 0.9)
    options = dict(layout_options or {})
    check_webdataset_options(options)
    if problem := explain_generator_size(image_size):
        logger.warning(f"{problem}; these shards can be used for classifiers only")
    out = Path(out).resolve()
    fields = parse_label_option(options.get("label", ""))
    check_names_file(options.get("classes", ""))
    tars = expand_sources(sources, options.get("validation", ""))
    check_locations(tars)
    recorded: dict[str, Any] = {
        "layout": LAYOUT,
        "image_size": image_size,
        "crop": crop,
        "validation_fraction": validation_fraction,
        "check_images": check_images,
        "layout_options": options,
    }
    with user_friendly_write_errors(out, WRITE_ERROR_REMEDY), keep_scans(out) as scan_folder:
        with closing(scan_tars(tars, fields, check_images, scan_folder, workers or count_workers())) as scans:
            files, listing = build_listing(tars, scans, fields, options)
        items, _ = plan_packing(listing, Path(), validation_fraction, None)
        source_sha256 = hash_source(items, files)
        manifest = find_existing_shards(out, recorded, source_sha256)
        if manifest is not None:
            repair_indexes(out, manifest, items, files)
            return PackSummary(out, manifest, already_packed=True)
        source = format_one_line(redact_text(sources[0]).rstrip("/").rpartition("/")[2])
        with atomic_folder(out) as folder:
            manifest = ShardManifest(
                version=2,
                featgan=__version__,
                source=source,
                source_sha256=source_sha256,
                options=recorded,
                image_size=image_size,
                classes=listing.classes,
                attribute_names=collect_label_names(item.record.attributes for item in items),
                splits=write_splits(folder, items, files, listing.classes, out),
                validation_split=find_validation_origin(items),
                skipped={reason: count for reason, count in sorted(listing.skipped.items()) if count},
                skipped_files=listing.unusable[:MAX_LISTED_FILES],
                transform=Transform(crop=crop),
            )
            atomic_write(folder / MANIFEST_FILE, manifest.to_json().encode())
    return PackSummary(out, manifest, time.monotonic() - started)


def repair_indexes(
    out: Path, manifest: ShardManifest, items: Sequence[PlannedImage], files: Sequence[FetchedFile]
) -> None:
    """Write the indexes of existing shards again if one is missing or damaged."""
    paths = {out / f"{name}.index.npz": split.index_sha256 for name, split in manifest.splits.items()}
    if all(path.is_file() and sha256_of(path) == sha256 for path, sha256 in paths.items()):
        return
    splits = write_splits(out, items, files, manifest.classes, out)
    atomic_write(out / MANIFEST_FILE, manifest.model_copy(update={"splits": splits}).to_json().encode())
    logger.warning(f"{out}: an index was missing or damaged; it was written again")


def build_listing(
    tars: Sequence[SourceTar], scans: Iterable[TarScan], fields: Sequence[LabelField], options: Mapping[str, str]
) -> tuple[list[FetchedFile], TarListing]:
    """Return the hash and size of each tar, and the records of all tars.

    Raises UserError if too many images are unusable, or if no sample has the chosen labels.
    """
    collector = SampleCollector(fields)
    files = []
    for number, (tar, scan) in enumerate(zip(tars, scans, strict=True)):
        collector.add_scan(tar, number, scan)
        files.append(scan.file)
    check_usable(collector)
    listing = collector.build_listing(options)
    if len(listing.classes) > MAX_CLASSES:
        raise UserError(f"{len(listing.classes):,} classes: at most {MAX_CLASSES:,} are possible; use fewer classes")
    return files, listing


def hash_source(items: Sequence[PlannedImage], files: Sequence[FetchedFile]) -> str:
    """Return a sha256 over all images, labels and tars."""
    lines = [hash_planned_images(items), *(file.sha256 for file in files)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@contextmanager
def keep_scans(out: Path) -> Iterator[Path]:
    """Yield a folder for the results of each tar, which is removed at the end and kept after an error."""
    folder = out.with_name(f".{out.name}.scans")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    except BaseException:
        with suppress(OSError):
            folder.rmdir()  # only if it is empty
        raise
    remove_folder(folder)


def scan_tars(
    tars: Sequence[SourceTar], fields: Sequence[LabelField], check_images: bool, folder: Path, workers: int
) -> Generator[TarScan, None, None]:
    """Yield the scans of all tars in order, those of an interrupted command from `folder`.

    Several tars are read at the same time, one in each worker process. Raises UserError for the first tar, in the
    order of the source, that cannot be read.
    """
    jobs = [partial(scan_or_load, tar.location, fields, check_images, folder) for tar in tars]
    if workers <= 1 or len(jobs) <= 1:
        for job in track_progress(jobs, "indexing", unit="tars"):
            yield job()
        return
    pool = open_process_pool(min(workers, len(jobs)))
    try:
        futures = deque(pool.submit(job) for job in jobs)
        for _ in track_progress(jobs, "indexing", unit="tars"):
            yield futures.popleft().result()  # its result is not kept
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, possibly because memory ran out; use fewer --workers, and run the same "
            "command again: it continues after the last complete tar"
        ) from error
    finally:
        pool.end_workers()  # after an error, another tar may take long, or wait for its server


def scan_name(tar: Location, fields: Sequence[LabelField], check_images: bool) -> str:
    """Return the name of the file with the scan of a tar; it depends on what the scan contains."""
    text = repr((tar.raw if tar.is_remote else str(tar.path.absolute()), list(fields), check_images))
    return f"{hashlib.sha256(os.fsencode(text)).hexdigest()[:32]}.jsonl"


def scan_or_load(tar: Location, fields: Sequence[LabelField], check_images: bool, folder: Path) -> TarScan:
    """Return the scan of a tar, from a file in `folder` if an interrupted command has stored it."""
    path, stamp = folder / scan_name(tar, fields, check_images), tar_stamp(tar)
    scan = load_scan(path, stamp)
    if scan is None:
        scan = scan_tar(tar, fields, partial(find_image_problem, decodes=check_images))
        save_scan(path, scan, stamp)
    return scan


def check_locations(tars: Sequence[SourceTar]) -> None:
    """Raise UserError for a URL that must not be stored in a manifest."""
    for tar in tars:
        if tar.location.has_secret:
            raise UserError(
                f"{tar.location}: contains a password or a query, which would be stored in the manifest; use ~/.netrc "
                "or `featgan pack webdataset`, which stores neither"
            )


def check_usable(collector: SampleCollector) -> None:
    """Raise UserError if too many images are missing or unusable."""
    total = len(collector.images) + len(collector.unusable)
    if not collector.unusable or len(collector.unusable) <= MAX_UNUSABLE_SHARE * total:
        return
    first = collector.unusable[0]
    num_others = len(collector.unusable) - 1
    others = f" and {num_others:,} more of {total:,} images" if num_others else ""
    raise UserError(
        f"{first.source}: {first.reason}{others}; at most {MAX_UNUSABLE_SHARE:.0%} may be "
        "unusable: repair or remove them"
    )


def write_splits(
    folder: Path, items: Sequence[PlannedImage], files: Sequence[FetchedFile], classes: Sequence[str], out: Path
) -> dict[SplitName, SplitManifest]:
    """Write the index of each split, and return their entries in the manifest."""
    return {
        split: write_split(folder, split, rows, files, classes, out)
        for split in SPLITS
        if (rows := [item for item in items if item.split == split])
    }


def write_split(
    folder: Path,
    split: SplitName,
    items: Sequence[PlannedImage],
    files: Sequence[FetchedFile],
    classes: Sequence[str],
    out: Path,
) -> SplitManifest:
    """Write the index of a split, and return its entry in the manifest."""
    images = [(item, item.record.tar) for item in items if item.record.tar is not None]
    shards: list[ShardFile] = []
    for number, group in groupby(images, key=lambda image: image[1].number):
        tars = [tar for _, tar in group]
        shards.append(
            ShardFile(
                name=f"{split}-{len(shards):05d}.tar",
                count=len(tars),
                bytes=files[number].size,
                sha256=files[number].sha256,
                location=describe_location(tars[0].tar, out),
            )
        )
    entries = [ShardEntry(item.key, tar.offset, tar.size, item.labels) for item, tar in images]
    index = build_index(entries, collect_label_names(item.record.attributes for item in items), ())
    path = folder / f"{split}.index.npz"
    atomic_write(path, serialize_index(index))
    counts = Counter(index.expression.tolist())
    histogram = {name: counts[code] for code, name in enumerate(classes)}
    return SplitManifest(count=len(items), classes=histogram, shards=tuple(shards), index_sha256=sha256_of(path))


def describe_location(tar: Location, out: Path) -> str:
    """Return the location of a tar as it is stored: relative if it is next to the folder `out` or below."""
    if tar.is_remote:
        return tar.raw
    path = Path(os.path.abspath(tar.path))
    if path.is_relative_to(out.parent):
        return "./" + Path(os.path.relpath(path, out)).as_posix()
    return str(path)

"""Extract a classifier's features and outputs for every image and its horizontal flip, and cache them."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featgan.blackbox.class_names import format_class_names
from featgan.blackbox.loading import BlackBox, load_blackbox
from featgan.blackbox.output_check import name_outputs_by_labels, report_agreement
from featgan.blackbox.prefetch import prefetch_map
from featgan.blackbox.spec import parse_spec
from featgan.blackbox.weights import choose_device
from featgan.config.trusted_callables import NO_CALLABLES, TrustedCallables
from featgan.data.feature_cache.cache import FeatureCache, FeatureWriter, PendingShard
from featgan.data.feature_cache.storage import PARTIAL_MANIFEST_FILE, array_path, cache_folder
from featgan.data.shards.manifest import MANIFEST_FILE
from featgan.data.shards.shard_set import ShardSet
from featgan.distributed.work_group import SINGLE_PROCESS, WorkGroup
from featgan.errors import UserError
from featgan.system.device import limit_torch_threads
from featgan.system.images import to_float
from featgan.system.locations import Location
from featgan.system.memory import keep_freed_memory
from featgan.system.progress import ProgressBar, progress_bar
from featgan.system.resources import count_threads

logger = logging.getLogger(__name__)

CONSTANT_PREDICTION_SHARE = 0.95
"""If one class is predicted for at least this share of the images, a warning is logged."""

MAX_CHECKED_IMAGES = 10_000
"""Number of training images whose predictions are checked for that."""

MAX_FILE_DELAY = 90.0
"""Seconds after which a file of another node must be visible; network file systems remember missing files."""

COUNT_INTERVAL = 2.0
"""Seconds between two counts of the files that all processes have written."""

MAX_DECODER_THREADS = 8
"""Maximum number of threads that decode images, one for two cores. A network on a GPU is faster than one of them."""


def extract_features(
    shards: Path | str | Location,
    spec: str,
    cache_name: str,
    layer: str | None = None,
    num_components: int | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    task: str | None = None,
    trusted: TrustedCallables = NO_CALLABLES,
    group: WorkGroup = SINGLE_PROCESS,
) -> FeatureCache:
    """Fill the feature cache SHARDS/features/CACHE_NAME for all splits and return it.

    A CACHE_NAME with a slash is the folder of the cache. Shards that were already extracted are kept; corrupted files
    are extracted again. `num_components` K is the number of whitened principal components that form the condition;
    None uses all features. `preprocessing`, `task` and `trusted` are those of `load_blackbox`.
    The processes of `group` divide the shards among themselves; the files do not depend on their number.

    Raises UserError if the shards changed since they were packed, if the SPEC or the layer cannot be used, or if a
    cache of that name has another content.
    """
    keep_freed_memory()
    limit_torch_threads()
    extraction = Extraction(shards, cache_name, num_components, max(1, batch_size), group)
    chosen_device = choose_device(device or group.device)

    def load() -> BlackBox:
        return load_blackbox(spec, layer, chosen_device, preprocessing, task, trusted)

    if group.run_on_main(lambda: extraction.prepare(load)):
        return extraction.open_existing()
    with group.joined():
        if not group.is_main:
            extraction.join(load())
    extraction.extract_pending()
    with group.joined():
        extraction.save_sums()
    group.run_on_main(extraction.commit)
    return extraction.open_existing()


class Extraction:
    """The steps of an extraction in one process of a group."""

    def __init__(
        self, shards: Path | str | Location, name: str, num_components: int | None, batch_size: int, group: WorkGroup
    ) -> None:
        self.shards = ShardSet.open(shards)
        self.name = name
        self.num_components = num_components
        self.batch_size = batch_size
        self.group = group
        self.cache: FeatureCache | None = None

    def prepare(self, load: Callable[[], BlackBox]) -> bool:
        """Create or check the folder, in the process of rank 0. Returns whether the cache is complete."""
        self.shards.verify()
        blackbox = load()
        logger.info(blackbox.input_description)
        existing = find_existing_cache(self.shards, self.name, blackbox)
        if existing is not None and existing.num_components == self.num_components:
            logger.info(f"{existing.path}: already extracted")
            report_agreement(existing, self.shards)
            self.cache = existing
            return True
        if existing is not None:
            warn_changed_components(existing, self.num_components)
        self.open_writer(blackbox)
        repair_cache(self.writer)
        return False

    def join(self, blackbox: BlackBox) -> None:
        """Use the folder that rank 0 has created. Raises UserError if this node does not see it."""
        folder = cache_folder(self.shards, self.name)
        if not wait_until((folder / PARTIAL_MANIFEST_FILE).is_file):
            raise UserError(f"{folder}: not found here; all nodes must share the file system of this folder")
        self.open_writer(blackbox)

    def open_writer(self, blackbox: BlackBox) -> None:
        """Open the cache for writing."""
        self.blackbox = blackbox
        self.writer = FeatureWriter(self.shards, self.name, blackbox, self.num_components)

    def extract_pending(self) -> None:
        """Extract the shards of this process; the progress bar of rank 0 shows the images of all processes."""
        num_images = sum(len(self.shards.get_split(split)) for split in self.shards.split_names)
        all_pending = self.writer.list_pending()
        pending = self.writer.list_pending(self.group.rank, self.group.world_size)
        num_done = num_images - sum(len(shard.rows) for shard in all_pending)
        with progress_bar(
            "extracting features", num_images, "images", completed=num_done, is_shown=self.group.is_main
        ) as bar:
            progress = ExtractionProgress(bar, self.writer.path, all_pending if self.group.world_size > 1 else None)
            with self.group.joined(progress.update):
                self.extract_shards(pending, progress)
            progress.update(is_last=True)

    def extract_shards(self, pending: Sequence[PendingShard], progress: "ExtractionProgress") -> None:
        """Extract and write some shards; ends early if another process has failed."""
        extracted = FeatureExtractor(self.shards, self.blackbox, self.batch_size, progress).extract_shards(pending)
        for _ in prefetch_map(lambda shard: self.writer.write_shard(*shard), extracted):
            self.group.check_peers()

    def save_sums(self) -> None:
        """Compute a part of the sums for the feature space, if there are several processes."""
        if self.group.world_size > 1:
            wait_until(lambda: not self.writer.list_pending())  # the files of other nodes may appear later
            self.writer.save_sums(self.group.rank, self.group.world_size)

    def commit(self) -> bool:
        """Complete the cache, in the process of rank 0."""
        if self.blackbox.task == "expression" and not self.blackbox.class_names:
            rename_outputs(self.writer, self.shards, self.blackbox)
        self.cache = self.writer.commit()
        warn_constant_prediction(self.cache)
        report_agreement(self.cache, self.shards)
        return True

    def open_existing(self) -> FeatureCache:
        """Return the complete cache."""
        if self.cache is None:
            manifest = cache_folder(self.shards, self.name) / MANIFEST_FILE
            wait_until(manifest.is_file)
            self.cache = FeatureCache.open(self.shards, self.name)
        return self.cache


def wait_until(condition: Callable[[], bool]) -> bool:
    """Wait for files of another node, which a shared file system may show late; return whether they have appeared."""
    deadline = time.monotonic() + MAX_FILE_DELAY
    while not (is_true := condition()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return is_true


def warn_changed_components(existing: FeatureCache, num_components: int | None) -> None:
    """Log a warning that the feature space of a complete cache changes."""
    previous_text, new_text = (
        f"{count} components" if count else "all features" for count in (existing.num_components, num_components)
    )
    logger.warning(
        f"{existing.path}: changing from {previous_text} to {new_text}; "
        "runs trained with the previous setting cannot resume"
    )


def rename_outputs(writer: FeatureWriter, shards: ShardSet, blackbox: BlackBox) -> None:
    """Name the outputs after the classes of the shards if the predictions agree with the labels.

    The SPEC in the cache gets the names too.
    """
    names = name_outputs_by_labels(
        parse_spec(blackbox.spec).name,
        shards,
        blackbox.output_dim,
        writer.read_outputs,
    )
    if names:
        spec = str(parse_spec(blackbox.spec, classes=format_class_names(names)))
        writer.set_output_names(names, spec)


def warn_constant_prediction(cache: FeatureCache) -> None:
    """Log a warning if the classifier predicts the same class for nearly every image.

    Its features then carry little information, which is better known before hours of training.
    """
    if cache.task != "expression":
        return
    num_images = len(cache.arrays["train", "outputs"])
    rows = np.unique(np.linspace(0, num_images - 1, min(num_images, MAX_CHECKED_IMAGES)).astype(np.int64))
    prediction_counts = np.bincount(cache.outputs("train", rows).argmax(1), minlength=cache.output_dim)
    most_frequent = int(prediction_counts.argmax())
    if prediction_counts[most_frequent] >= CONSTANT_PREDICTION_SHARE * len(rows):
        name = (
            cache.class_names[most_frequent]
            if most_frequent < len(cache.class_names)
            else f"output {most_frequent + 1}"
        )
        share = prediction_counts[most_frequent] / len(rows)
        logger.warning(
            f"{cache.path}: the classifier predicts {name!r} for {share:.0%} of the images, so its features may carry "
            "little information; check its preprocessing or train it for longer"
        )


def find_existing_cache(shards: ShardSet, name: str, blackbox: BlackBox) -> FeatureCache | None:
    """Return the cache if it is complete, not corrupted, and from this classifier and layer; else None."""
    if not (cache_folder(shards, name) / MANIFEST_FILE).is_file():
        return None
    try:
        cache = FeatureCache.open(shards, name)
        cache.verify()
    except UserError:  # the writer rejects another cache and repairs a corrupted one
        return None
    same_blackbox = (cache.blackbox["sha256"], cache.blackbox["layer"]) == (blackbox.sha256, blackbox.layer)
    # Names that the classifier itself does not have come from the labels.
    same_outputs = cache.task == blackbox.task and blackbox.class_names in (cache.class_names, ())
    return cache if same_blackbox and same_outputs else None


def repair_cache(writer: FeatureWriter) -> None:
    """Remove the corrupted files of a complete cache, so that they are extracted again."""
    corrupt_files = writer.remove_corrupt_files()
    if corrupt_files:
        others_text = f" and {len(corrupt_files) - 1:,} more files" if len(corrupt_files) > 1 else ""
        logger.warning(
            f"{writer.path / corrupt_files[0]}{others_text}: does not match its checksum; extracting it again"
        )


class ExtractionProgress:
    """Shows the progress and the speed of all processes; those of this process only if `pending` is None."""

    def __init__(self, bar: ProgressBar, folder: Path, pending: Sequence[PendingShard] | None = None) -> None:
        self.bar = bar
        self.folder = folder
        self.pending = pending
        self.started = self.counted = time.monotonic()
        self.num_done = 0

    def add(self, num_images: int) -> None:
        """Count images that this process has extracted."""
        if self.pending is None:
            self.show(self.num_done + num_images)
        else:
            self.update()

    def update(self, is_last: bool = False) -> None:
        """Count the images of the shards that all processes have written since the start."""
        now = time.monotonic()
        if self.pending is None or self.bar.is_hidden or (now - self.counted < COUNT_INTERVAL and not is_last):
            return
        self.counted = now
        names = {path.name for path in self.folder.iterdir()}
        written = [shard for shard in self.pending if array_path(Path(), shard.shard, "outputs").name in names]
        self.show(sum(len(shard.rows) for shard in written))

    def show(self, num_done: int) -> None:
        """Advance the progress bar and update the speed."""
        self.bar.advance(num_done - self.num_done)
        self.num_done = num_done
        self.bar.set_note(f"{num_done / (time.monotonic() - self.started):.0f} images/s")


class FeatureExtractor:
    """Runs the classifier over shards."""

    def __init__(self, shards: ShardSet, blackbox: BlackBox, batch_size: int, progress: ExtractionProgress) -> None:
        self.shards = shards
        self.blackbox = blackbox
        self.batch_size = batch_size
        self.progress = progress

    def extract_shards(self, pending: Sequence[PendingShard]) -> Iterator[tuple[PendingShard, Tensor, Tensor]]:
        """Yield each shard with features [n, 2, F] and outputs [n, 2, O]; index 1 is the horizontal flip.

        The next shards are downloaded ahead, and images are decoded ahead in threads, also across shards. Each image
        is decoded once for both versions.
        """
        fetched = prefetch_map(self.fetch_shard, pending)
        tasks = ((shard, rows) for shard in fetched for rows in chunk_rows(shard.rows, self.batch_size))
        results: list[tuple[Tensor, Tensor]] = []
        num_threads = count_threads(MAX_DECODER_THREADS, cores_per_thread=2)
        for (shard, rows), images in prefetch_map(self.decode_task, tasks, num_threads):
            results.append(extract_with_flip(self.blackbox, images))
            self.progress.add(len(images))
            if rows.stop == shard.rows.stop:
                features, outputs = zip(*results, strict=True)
                yield shard, torch.cat(features), torch.cat(outputs)
                results = []

    def fetch_shard(self, shard: PendingShard) -> PendingShard:
        """Download a shard if it is behind a URL, and return it."""
        split = self.shards.get_split(shard.split)
        split.reader.shard_files.fetch(int(split.shard_of([shard.rows.start])[0]))
        return shard

    def decode_task(self, task: tuple[PendingShard, range]) -> tuple[tuple[PendingShard, range], Tensor]:
        """Decode the images of one task: uint8 [n, 3, S, S]; return the task too."""
        shard, rows = task
        return task, self.shards.get_split(shard.split).decode(rows)


def chunk_rows(rows: range, size: int) -> list[range]:
    """Split the rows into ranges of at most `size` rows."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def extract_with_flip(blackbox: BlackBox, images: Tensor) -> tuple[Tensor, Tensor]:
    """Run the classifier on images and on their horizontal flips.

    uint8 [n, 3, S, S] => features [n, 2, F] and outputs [n, 2, O] on the classifier's device; index 1 is the flip.
    Images are transferred as bytes and converted to float on the device.
    """
    as_floats = to_float(images.to(blackbox.device))
    original, flipped = blackbox(as_floats), blackbox(as_floats.flip(3))
    features, outputs = (torch.stack(pair, 1) for pair in zip(original, flipped, strict=True))
    return features, outputs

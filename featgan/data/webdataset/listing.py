"""The records of a WebDataset source: one pass over its tars, which are not stored."""

import logging
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featgan.data.readers.class_codes import ClassCodes, assign_class_codes, check_names_file
from featgan.data.readers.records import DatasetListing, Record, TarImage, use_test_images
from featgan.data.shards.manifest import SkippedFile
from featgan.data.webdataset.labels import LabelField, attribute_names, parse_label_option
from featgan.data.webdataset.scan import ScannedSample, TarScan, scan_tar
from featgan.data.webdataset.sources import SourceTar, expand_sources
from featgan.errors import UserError
from featgan.system.json_files import read_json
from featgan.system.limits import MAX_CLASSES
from featgan.system.plain_text import format_one_line
from featgan.system.progress import track_progress

logger = logging.getLogger(__name__)

LAYOUT = "webdataset"
OPTIONS = ("label", "classes", "validation")
"""Layout options of `featgan pack webdataset`."""


def list_webdataset(sources: Sequence[str], label: str = "", classes: str = "", validation: str = "") -> DatasetListing:
    """Return one record per image of the tars, in their order.

    `label` names the files and fields with labels, `classes` a file with the names of the classes, and `validation` a
    pattern for the names of the validation tars. Raises UserError if a tar cannot be read or a label has a wrong type.
    """
    fields = parse_label_option(label)
    check_names_file(classes)
    collector = SampleCollector(fields)
    tars = expand_sources(sources, validation)
    for number, tar in enumerate(track_progress(tars, "reading labels", unit="tars")):
        collector.add_scan(tar, number, scan_tar(tar.location, fields))
    return collector.build_listing({"label": label, "classes": classes})


@dataclass
class TarListing(DatasetListing):
    """The records of a WebDataset source, and its unusable images."""

    unusable: tuple[SkippedFile, ...] = ()


class SampleCollector:
    """Collects the images and labels of samples."""

    def __init__(self, fields: Sequence[LabelField]) -> None:
        self.fields = fields
        self.attribute_names = attribute_names(fields)
        self.images: deque[tuple[SourceTar, str, str, TarImage, dict[str, Any]]] = deque()
        self.labels: set[str] = set()
        self.has_labels = False
        self.unusable: list[SkippedFile] = []

    def add_scan(self, tar: SourceTar, number: int, scan: TarScan) -> None:
        """Add the samples of a tar, which has a number in the source."""
        for sample in scan.samples:
            self.add(tar, number, sample)

    def add(self, tar: SourceTar, number: int, sample: ScannedSample) -> None:
        """Add one sample; one without a usable image is listed with the reason."""
        name = f"{tar.location.name}/{sample.key}"
        reason = sample.problem if sample.suffix else "missing file"
        if reason:
            path = f"{name}.{sample.suffix}" if sample.suffix else name
            self.unusable.append(SkippedFile(source=format_one_line(path), reason=reason))
            return
        image = TarImage(tar.location, number, sample.offset, sample.size, sample.crc)
        values = sample.values
        self.has_labels |= any(value is not None for value in values.values())
        if values.get("expression") is not None:
            self.labels.add(values["expression"])
        if len(self.labels) > MAX_CLASSES:
            raise UserError(
                f"{tar.location}: more than {MAX_CLASSES:,} different classes, such as "
                f"{format_one_line(min(self.labels)[:40])!r}; choose another --layout-option label"
            )
        stem = tar.location.name.removesuffix(".tar")
        self.images.append((tar, f"{stem}/{sample.key}", f"{name}.{sample.suffix}", image, values))

    def build_listing(self, options: Mapping[str, str]) -> TarListing:
        """Return the listing, with a class code for each label; call this once, at the end.

        Raises UserError if no sample has the chosen labels.
        """
        if options.get("label") and self.fields and not self.has_labels:
            raise UserError(f"--layout-option label={options['label']}: no sample has this label; choose another one")
        if not options.get("label") and not self.has_labels:
            logger.warning(
                "no labels: no sample has a cls file; name a field of the json files, such as "
                "--layout-option label=json:label, or use --layout-option label=none"
            )
        classes = read_classes_option(options.get("classes", ""))
        codes = assign_class_codes(self.labels, classes) if self.labels else ClassCodes((), {})
        skipped = Counter(file.reason for file in self.unusable)
        records = []
        while self.images:  # an image is removed when its record is made, which saves memory
            tar, key, path, image, values = self.images.popleft()
            text = values.get("expression")
            reason = codes.find_skip_reason(text) if text is not None else ""
            if reason:
                skipped[reason] += 1
                continue
            records.append(self.make_record(key, path, tar.split, image, values, codes))
        records = use_test_images(records, skipped)
        missing_files = [file.source for file in self.unusable]
        return TarListing(records, codes.names, skipped, missing_files, tuple(self.unusable))

    def make_record(
        self, key: str, path: str, split: str, image: TarImage, values: dict[str, Any], codes: ClassCodes
    ) -> Record:
        """Return the record of one image."""
        text = values.get("expression")
        names = self.attribute_names
        return Record(
            key=f"{image.number:05d}-{key}",
            path=Path(path),
            split=split,
            expression=None if text is None else codes.find_code(text, str(image.tar)),
            valence=values.get("valence"),
            arousal=values.get("arousal"),
            attributes={name: values.get(f"attributes.{name}") for name in names} if names else None,
            identity=values.get("identity"),
            tar=image,
        )


def read_classes_option(option: str) -> str | Sequence[str]:
    """Return the option `classes`; a JSON file contains a list of names, or an object with a name for each code."""
    if not option.lower().endswith(".json"):
        return option
    content: Any = read_json(Path(option))
    if isinstance(content, dict) and content and all(isinstance(name, str) for name in content.values()):
        return [f"{code}={name}" for code, name in content.items()]
    if isinstance(content, list) and content and all(isinstance(name, str) for name in content):
        return content
    raise UserError(f'{option}: not a list of names; write a JSON list, or an object such as {{"0": "cat"}}')

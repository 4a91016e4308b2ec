"""The content of one tar: the position, checksum and labels of each image, which can be stored and read again."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from featgan.data.remote.fetching import RETRY_SECONDS, FetchedFile, finish_stream, open_stream
from featgan.data.webdataset.labels import LabelField
from featgan.data.webdataset.samples import MAX_TAR_BYTES, read_samples
from featgan.system.files import atomic_write
from featgan.system.json_files import read_json_lines
from featgan.system.locations import Location

FindProblem = Callable[[bytes], str]
"""Returns the reason why an image cannot be used, or an empty text."""


@dataclass(frozen=True, slots=True)
class ScannedSample:
    """A sample: its key, its image, and its labels by target. Without an image, `suffix` is empty."""

    key: str
    suffix: str
    offset: int
    size: int
    crc: int
    problem: str
    values: dict[str, Any]


@dataclass(frozen=True)
class TarScan:
    """The hash and size of a tar, and its samples in order."""

    file: FetchedFile
    samples: list[ScannedSample]


def scan_tar(tar: Location, fields: Sequence[LabelField], find_problem: FindProblem | None = None) -> TarScan:
    """Read a tar once, without storing it. Raises UserError if it cannot be read or a label has a wrong type."""
    suffixes = frozenset(label_field.suffix for label_field in fields)
    samples = []
    with open_stream(tar, MAX_TAR_BYTES, RETRY_SECONDS) as file:
        for sample in read_samples(file, tar, suffixes, find_problem):
            values = {field.target: field.read(sample, str(tar)) for field in fields} if sample.suffix else {}
            position = (sample.offset, sample.size, sample.crc)
            samples.append(ScannedSample(sample.key, sample.suffix, *position, sample.problem, values))
        fetched = finish_stream(file)
    return TarScan(fetched, samples)


def save_scan(path: Path, scan: TarScan, stamp: list[int]) -> None:
    """Store a scan; `stamp` identifies the version of a local tar."""
    header = {"sha256": scan.file.sha256, "bytes": scan.file.size, "count": len(scan.samples), "stamp": stamp}
    lines = [json.dumps(value) for value in (header, *map(asdict, scan.samples))]
    atomic_write(path, ("\n".join(lines) + "\n").encode())


def load_scan(path: Path, stamp: list[int]) -> TarScan | None:
    """Return a stored scan; None if it is missing, damaged or of another version of the tar."""
    if not path.is_file():
        return None
    try:
        header, *samples = read_json_lines(path)
        if header["stamp"] != stamp or header["count"] != len(samples):
            return None
        file = FetchedFile(str(header["sha256"]), int(header["bytes"]))
        return TarScan(file, [ScannedSample(**sample) for sample in samples])
    except (KeyError, TypeError, ValueError):
        return None


def tar_stamp(tar: Location) -> list[int]:
    """Return the size and modification time of a local tar; empty for a URL, or if reading the tar will fail."""
    if tar.is_remote:
        return []
    try:
        status = tar.path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]

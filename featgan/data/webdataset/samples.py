"""Samples of a WebDataset tar: consecutive files with one key, by the rules of the webdataset library."""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from webdataset.tariterators import base_plus_ext

from featgan.data.readers.records import TarImage
from featgan.data.remote.fetching import RETRY_SECONDS, open_stream
from featgan.data.webdataset.tar_stream import StreamMember, TarStream
from featgan.errors import UserError
from featgan.system.limits import MAX_IMAGE_BYTES, MAX_LABEL_BYTES
from featgan.system.locations import Location
from featgan.system.plain_text import format_one_line

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
"""Suffixes of images, in lower case."""

MAX_TAR_BYTES = 1 << 40
MAX_TAR_SAMPLES = 2_000_000
"""Samples of one tar, whose keys are compared with each other; usual tars have 1,000 to 10,000."""


@dataclass
class TarSample:
    """Consecutive files with the same key: an image, and the content of the files with labels, by suffix."""

    key: str
    suffixes: set[str] = field(default_factory=set)
    suffix: str = ""
    """Suffix of the image; empty if there is none."""
    offset: int = 0
    size: int = 0
    crc: int = 0
    problem: str = ""
    """The reason why the image cannot be used, or an empty text."""
    labels: dict[str, bytes] = field(default_factory=dict)


def read_samples(
    file: BinaryIO,
    tar: Location,
    label_suffixes: frozenset[str],
    find_problem: Callable[[bytes], str] | None = None,
) -> Iterator[TarSample]:
    """Yield the samples of an open tar in order, with the files whose suffix is in `label_suffixes`.

    `find_problem` checks each image. Raises UserError if the tar cannot be read, or if a key or file occurs twice.
    """
    stream = TarStream(file, tar)
    sample: TarSample | None = None
    keys: set[str] = set()
    for member in stream.members():
        key, suffix = split_member_name(member.name)
        if not suffix:
            continue
        if sample is None or sample.key != key:
            if sample is not None:
                yield sample
            if key in keys:
                raise UserError(f"{tar}: two samples have the key {format_one_line(key)!r}; rename one of them")
            if len(keys) >= MAX_TAR_SAMPLES:
                raise UserError(f"{tar}: contains more than {MAX_TAR_SAMPLES:,} samples; use smaller tars")
            keys.add(key)
            sample = TarSample(key)
        if suffix in IMAGE_SUFFIXES:
            add_image(sample, suffix, stream, member, find_problem)
        else:
            add_label_file(sample, suffix, stream, member, label_suffixes)
    if sample is not None:
        yield sample


def split_member_name(name: str) -> tuple[str, str]:
    """Return the key of a member and its suffix in lower case; two empty texts for a member that is not read.

    The key ends at the first dot of the file name and contains the folders, as in webdataset.
    """
    base_name = name.rpartition("/")[2]
    key, suffix = base_plus_ext(name)
    if key is None or (name.startswith("__") and name.endswith("__")) or base_name.startswith("."):
        return "", ""
    return key, suffix.lower()


def add_suffix(sample: TarSample, suffix: str, name: str) -> None:
    """Note that a sample contains a file. Raises UserError if it contains its suffix already."""
    if suffix in sample.suffixes:
        raise UserError(f"{name}: occurs twice; remove one of the files")
    sample.suffixes.add(suffix)


def add_image(
    sample: TarSample,
    suffix: str,
    stream: TarStream,
    member: StreamMember,
    find_problem: Callable[[bytes], str] | None,
) -> None:
    """Add the image of a sample. Raises UserError if it has one already, or if the file is too large."""
    name = f"{stream.location}: {format_one_line(member.name)}"
    add_suffix(sample, suffix, name)
    if sample.suffix:
        raise UserError(f"{name}: is a second image of this sample; remove one of them")
    if member.size > MAX_IMAGE_BYTES:
        raise UserError(f"{name}: has {member.size:,} bytes; at most {MAX_IMAGE_BYTES:,} are possible")
    content = stream.read_exactly(member.size)
    sample.suffix, sample.offset, sample.size, sample.crc = suffix, member.offset, member.size, zlib.crc32(content)
    sample.problem = find_problem(content) if find_problem else ""


def add_label_file(
    sample: TarSample, suffix: str, stream: TarStream, member: StreamMember, label_suffixes: frozenset[str]
) -> None:
    """Add another file; it is read if it may contain labels. Raises UserError if it is too large."""
    name = f"{stream.location}: {format_one_line(member.name)}"
    add_suffix(sample, suffix, name)
    if suffix in label_suffixes:
        if member.size > MAX_LABEL_BYTES:
            raise UserError(f"{name}: has {member.size:,} bytes; labels have at most {MAX_LABEL_BYTES:,}")
        sample.labels[suffix] = stream.read_exactly(member.size)


class ImageReader:
    """Reads the images of tars again, in the order of the source; each tar is read once from its start."""

    def __init__(self) -> None:
        self.stream: TarStream | None = None
        self.number = -1

    def read(self, image: TarImage) -> bytes:
        """Return the content of an image. Raises UserError if it is not that of the first pass."""
        if self.stream is None or self.number != image.number or self.stream.position > image.offset:
            self.close()
            self.stream = TarStream(open_stream(image.tar, MAX_TAR_BYTES, RETRY_SECONDS), image.tar)
            self.number = image.number
        self.stream.skip_to(image.offset)
        content = self.stream.read_exactly(image.size)
        if zlib.crc32(content) != image.crc:
            raise UserError(f"{image.tar}: has changed while it was read; run the same command again")
        return content

    def close(self) -> None:
        """Close the tar."""
        if self.stream is not None:
            self.stream.file.close()
            self.stream = None

"""The index of a split: the position of each image in its tar file, and every label as an array."""

import io
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from featgan.errors import UserError
from featgan.system.array_files import ArrayError, map_arrays
from featgan.system.files import open_regular_file
from featgan.system.json_files import JsonError, parse_json
from featgan.system.limits import MAX_KEY_BYTES, MAX_LABEL_BYTES
from featgan.system.plain_text import format_one_line


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One image of a shard: its key, the position of its JPEG, and its labels."""

    key: str
    offset: int
    size: int
    labels: Mapping[str, Any]


@dataclass(frozen=True)
class SplitIndex:
    """The index of N images, in the order of the shards, with A attributes and F factors."""

    keys: np.ndarray  # bytes [N]; keys are ASCII
    offset: np.ndarray  # int64 [N], position of the JPEG in its tar file in bytes
    size: np.ndarray  # int64 [N], size of the JPEG in bytes
    expression: np.ndarray  # int16 [N], -1 if unknown
    valence: np.ndarray  # float32 [N], nan if unknown
    arousal: np.ndarray  # float32 [N], nan if unknown
    attributes: np.ndarray  # int8 [N, A], 0 or 1, -1 if unknown
    factors: np.ndarray  # float32 [N, F], nan if unknown

    def slice_rows(self, start: int, end: int) -> "SplitIndex":
        """Return the index of the rows from `start` to `end`, exclusive, without a copy."""
        return SplitIndex(*(getattr(self, field.name)[start:end] for field in fields(self)))


INDEX_COLUMNS = {
    "keys": ("S", 1),
    "offset": ("i8", 1),
    "size": ("i8", 1),
    "expression": ("i2", 1),
    "valence": ("f4", 1),
    "arousal": ("f4", 1),
    "attributes": ("i1", 2),
    "factors": ("f4", 2),
}
"""Required data type and number of dimensions of each array."""


MEMBER_KINDS = frozenset({tarfile.REGTYPE, tarfile.AREGTYPE})
"""Types of the members of a shard."""

OTHER_MEMBER_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.DIRTYPE: "a folder",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
}
"""Names of other types in messages."""


def build_index(
    entries: Sequence[ShardEntry], attribute_names: Sequence[str], factor_names: Sequence[str]
) -> SplitIndex:
    """Convert the labels of all entries to arrays; missing labels become -1 or nan."""
    labels = [entry.labels for entry in entries]

    def label_column(name: str, kind: str, missing: float) -> np.ndarray:
        return np.array([missing if row.get(name) is None else row[name] for row in labels], kind)

    def label_table(name: str, names: Sequence[str], kind: str, missing: float) -> np.ndarray:
        rows = [[(row.get(name) or {}).get(column) for column in names] for row in labels]
        filled = [[missing if value is None else value for value in row] for row in rows]
        return np.array(filled, kind).reshape(len(entries), len(names))

    return SplitIndex(
        keys=np.array([entry.key.encode("ascii") for entry in entries], "S" if entries else "S1"),
        offset=np.array([entry.offset for entry in entries], np.int64),
        size=np.array([entry.size for entry in entries], np.int64),
        expression=label_column("expression", "i2", -1),
        valence=label_column("valence", "f4", np.nan),
        arousal=label_column("arousal", "f4", np.nan),
        attributes=label_table("attributes", attribute_names, "i1", -1),
        factors=label_table("factors", factor_names, "f4", np.nan),
    )


def serialize_index(index: SplitIndex) -> bytes:
    """Return the index as an uncompressed npz file; equal indexes give equal bytes."""
    buffer = io.BytesIO()
    np.savez(buffer, **{field.name: getattr(index, field.name) for field in fields(index)})
    return buffer.getvalue()


def load_index(path: Path) -> SplitIndex:
    """Map an index written by `serialize_index`; its values are read when they are used.

    Raises UserError if its structure is corrupted.
    """
    try:
        index = SplitIndex(**map_arrays(path, tuple(INDEX_COLUMNS)))
    except ArrayError as error:
        raise UserError(f"{path}: corrupted index ({error}); delete it to rebuild it from the shards") from error
    for name, (kind, num_dims) in INDEX_COLUMNS.items():
        array = getattr(index, name)
        fits = array.dtype.kind == "S" if kind == "S" else array.dtype == np.dtype(kind)
        if not fits or array.ndim != num_dims or len(array) != len(index.keys):
            raise UserError(f"{path}: corrupted index ({name}); delete it to rebuild it from the shards")
    if index.keys.dtype.itemsize > MAX_KEY_BYTES:
        raise UserError(f"{path}: corrupted index (keys); delete it to rebuild it from the shards")
    return index


def scan_shard(path: Path) -> Iterator[ShardEntry]:
    """Yield the entries of a tar file in order. Raises UserError if KEY.jpg is not followed by KEY.json."""
    try:
        with open_regular_file(path) as file:
            while (image := read_member(file)) is not None:
                yield read_entry(path, file, image, read_member(file))
    except (TarMemberError, OSError) as error:
        raise UserError(f"{path}: not a readable tar file ({error}); pack the images again") from error


class TarMemberError(ValueError):
    """A member of a tar file that packing does not write; the message is the problem."""


@dataclass(frozen=True)
class TarMember:
    """A regular file in a tar file: its name, position and size in bytes."""

    name: str
    offset: int
    size: int


def read_member(file: BinaryIO) -> TarMember | None:
    """Read the header of the next member and skip its content; None at the end of the archive.

    Only what packing writes is accepted: regular files in the ustar format. So a link cannot lead elsewhere, and a
    negative size, a sparse map or an extended header cannot make the scan slow. Raises TarMemberError.
    """
    start = file.tell()
    header = file.read(tarfile.BLOCKSIZE)
    if header == bytes(tarfile.BLOCKSIZE):
        return None
    try:
        info = tarfile.TarInfo.frombuf(header, "ascii", "strict")
    except (tarfile.HeaderError, ValueError) as error:
        raise TarMemberError(f"invalid header at byte {start}: {error}") from None
    if info.type not in MEMBER_KINDS:
        kind = OTHER_MEMBER_KINDS.get(info.type, "an entry of another kind")
        raise TarMemberError(f"{format_one_line(info.name)} is {kind}, not a regular file")
    offset = start + tarfile.BLOCKSIZE
    end = offset + info.size
    if info.size < 0 or end > os.fstat(file.fileno()).st_size:
        raise TarMemberError(f"{format_one_line(info.name)} ends after the end of the file")
    file.seek(offset + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
    return TarMember(info.name, offset, info.size)


def read_entry(path: Path, file: BinaryIO, image: TarMember, labels: TarMember | None) -> ShardEntry:
    """Read the labels of one image. Raises UserError if they are missing or invalid."""
    key, extension = image.name.partition(".")[::2]
    name = format_one_line(image.name)
    if extension != "jpg" or not key.isprintable() or key.startswith("/") or not key:
        raise UserError(f"{path}: {name} is not the name of a packed image; pack the images again")
    if labels is None or labels.name != f"{key}.json" or labels.size > MAX_LABEL_BYTES:
        raise UserError(f"{path}: {name} is not followed by its {key}.json; pack the images again")
    next_member = file.tell()
    file.seek(labels.offset)
    try:
        parsed = parse_json(file.read(labels.size))
    except JsonError as error:
        raise UserError(f"{path}: {labels.name}: {error}; pack the images again") from error
    file.seek(next_member)
    if not isinstance(parsed, dict):
        raise UserError(f"{path}: {labels.name} is not a JSON object; pack the images again")
    return ShardEntry(key, image.offset, image.size, parsed)

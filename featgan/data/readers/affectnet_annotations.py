"""Readers of AffectNet with one annotation file per image: the 8-class release (npy) and AffectNet+ (JSON)."""

import io
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from featgan.data.readers.parsing import (
    UNUSABLE_EXPRESSIONS,
    normalize_word,
    parse_expression,
    parse_valence_arousal,
    split_from_folder_name,
)
from featgan.data.readers.records import EXPRESSIONS, DatasetListing, RecordCollector
from featgan.data.readers.text_tables import TextTable
from featgan.errors import UserError
from featgan.system.array_files import ArrayError, read_array_header
from featgan.system.files import describe_read_error, read_regular_file
from featgan.system.image_files import IMAGE_SUFFIXES, is_system_file
from featgan.system.json_files import JsonError, parse_json
from featgan.system.limits import MAX_LABEL_BYTES
from featgan.system.progress import track_progress

SET_FOLDERS = {"train": "train_set", "validation": "val_set"}
"""Split => its folder."""

SCALAR_LABELS = {"exp": "expression", "val": "valence", "aro": "arousal"}
"""Suffix of an annotation file => label."""

MAX_NPY_BYTES = 64 << 10
NON_FACTOR_COLUMNS = ("id", "split", "expression", "valence", "arousal")
"""Columns of factors.csv that are not factors."""


def read_small_file(path: Path, max_bytes: int) -> bytes:
    """Return the content of a file. Raises UserError if it is larger than `max_bytes` or unreadable."""
    try:
        return read_regular_file(path, max_bytes)
    except OSError as error:
        problem = describe_read_error(error)
        raise UserError(f"{path}: cannot be read: {problem}; check the file and its permissions") from error


# -- the 8-class release ----------------------------------------------------------------------------------------------


def read_affectnet(source: Path) -> DatasetListing:
    """Read `train_set/` and `val_set/`, each with `images/ID.*` and `annotations/ID_{exp,val,aro}.npy`.

    One of the sets may be missing. If `factors.csv` is present, as in synthetic data sets, its columns become the
    factors of the records.
    """
    folders = {split: source / name for split, name in SET_FOLDERS.items() if (source / name).is_dir()}
    if not folders:
        raise UserError(
            f"{source}: neither {' nor '.join(SET_FOLDERS.values())} exists; give the folder that contains them"
        )
    factors = read_factors(source / "factors.csv")
    collector = RecordCollector(source)
    for split, folder in folders.items():
        for name in track_progress(list_image_names(collector, folder), f"reading {folder.name}", unit="labels"):
            add_annotated_image(collector, folder, name, split, factors)
        count_orphan_annotations(collector, folder)
    return collector.build_listing(EXPRESSIONS)


def list_image_names(collector: RecordCollector, folder: Path) -> list[str]:
    """Return the image names of a set, sorted. Raises UserError if one of its folders is missing."""
    for name in ("images", "annotations"):
        if not (folder / name).is_dir():
            raise UserError(f"{folder / name}: no such folder; a set consists of images/ and annotations/")
    names = set(collector.directory_cache.list_names(folder / "images").values())
    return sorted(name for name in names if not is_system_file(name))


def add_annotated_image(
    collector: RecordCollector, folder: Path, name: str, split: str, factors: Mapping[str, dict[str, float]]
) -> None:
    """Add one image with the labels in its npy files."""
    identifier = Path(name).stem
    paths = {suffix: folder / "annotations" / f"{identifier}_{suffix}.npy" for suffix in SCALAR_LABELS}
    if collector.directory_cache.find_file(paths["exp"]) is None:
        collector.count_skipped("no annotation")
        return
    cells = {
        suffix: read_scalar(path) if collector.directory_cache.find_file(path) else "" for suffix, path in paths.items()
    }
    expression = parse_expression(cells["exp"], str(paths["exp"]))
    if expression in UNUSABLE_EXPRESSIONS:
        collector.count_skipped(UNUSABLE_EXPRESSIONS[expression])
        return
    labels = {
        "expression": expression,
        **parse_valence_arousal(cells["val"], cells["aro"], str(folder / "annotations" / identifier)),
        "factors": factors.get(identifier),
    }
    collector.add_image(folder / "images" / name, split, labels)


def read_scalar(path: Path) -> str:
    """Return the value of an npy file as text, stored as a number or as a string. Nothing is unpickled.

    Raises UserError if the file does not contain exactly one value.
    """
    content = read_small_file(path, MAX_NPY_BYTES)
    try:
        header = read_array_header(io.BytesIO(content), len(content))
    except ArrayError as error:
        raise UserError(f"{path}: not an npy file with one number or string ({error}); copy it again") from error
    size = math.prod(header.shape)
    if size != 1:
        raise UserError(f"{path}: {size} values, but one is required; copy it again")
    values = content[header.offset :]
    if header.dtype.kind == "U":  # decoded here, since NumPy would return a string with characters that do not exist
        return values.decode("utf-32-be" if header.dtype.byteorder == ">" else "utf-32-le", "replace").rstrip("\0")
    value = np.frombuffer(values, header.dtype).item()
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)


def count_orphan_annotations(collector: RecordCollector, folder: Path) -> None:
    """Count annotations without an image as missing files."""
    images = {Path(name).stem for name in set(collector.directory_cache.list_names(folder / "images").values())}
    for name in sorted(set(collector.directory_cache.list_names(folder / "annotations").values())):
        identifier = name.removesuffix("_exp.npy")
        if identifier != name and identifier not in images:
            collector.count_skipped("missing file")
            collector.missing_files.append((folder / "images" / identifier).relative_to(collector.source).as_posix())


def read_factors(path: Path) -> dict[str, dict[str, float]]:
    """Return the true factors of each image by its id, or nothing if the file does not exist."""
    if not path.exists():
        return {}
    table = TextTable(path)
    table.require_columns("id")
    names = [name for name in table.columns if name not in NON_FACTOR_COLUMNS]
    factors: dict[str, dict[str, float]] = {}
    for row in table:
        try:
            factors[row["id"]] = {name: float(row[name]) for name in names}
        except ValueError:
            raise UserError(f"{row.location}: a factor is not a number; correct this line") from None
    return factors


# -- AffectNet+ -------------------------------------------------------------------------------------------------------


def read_affectnet_plus(source: Path) -> DatasetListing:
    """Read one JSON file per image, next to it or in a folder `annotations` next to `images`.

    The split is the name of a parent folder.
    """
    collector = RecordCollector(source)
    for path in track_progress(find_json_files(source), "reading JSON", unit="files"):
        labels = read_plus_labels(path)
        if labels["expression"] in UNUSABLE_EXPRESSIONS:
            collector.count_skipped(UNUSABLE_EXPRESSIONS[labels["expression"]])
            continue
        folders = path.relative_to(source).parts[:-1]
        split = next(filter(None, map(split_from_folder_name, folders)), "")
        collector.add_image(find_plus_image(collector, path), split, labels)
    return collector.build_listing(EXPRESSIONS)


def find_json_files(source: Path) -> list[Path]:
    """Return all JSON files below the source, sorted. Raises UserError if there are none."""
    paths = [
        Path(folder) / name
        for folder, _, names in os.walk(source)
        for name in names
        if name.lower().endswith(".json") and not is_system_file(name)
    ]
    if not paths:
        raise UserError(
            f"{source}: no JSON files, but AffectNet+ has one per image; give the folder that contains them"
        )
    return sorted(paths)


def find_plus_image(collector: RecordCollector, path: Path) -> Path:
    """Return the image of a JSON file, or its expected path if it does not exist."""
    image_parts = [
        part if part.lower() != "annotations" else "images" for part in path.relative_to(collector.source).parts
    ]
    for folder in (path.parent, collector.source.joinpath(*image_parts).parent):
        for suffix in IMAGE_SUFFIXES:
            image_path = collector.directory_cache.find_file(folder / f"{path.stem}{suffix}")
            if image_path is not None:
                return image_path
    return path.with_suffix(".jpg")


def read_plus_labels(path: Path) -> dict[str, Any]:
    """Return the expression, and the valence and arousal if present, of one JSON file."""
    try:
        content = parse_json(read_small_file(path, MAX_LABEL_BYTES))
    except JsonError as error:
        raise UserError(f"{path}: {error}; copy it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object with the key Human-Label; copy the file again")
    keys = {normalize_word(name): value for name, value in content.items()}
    if "humanlabel" not in keys:
        raise UserError(
            f"{path}: no key Human-Label; the keys are {', '.join(content) or 'none'}; rename the key of the expression"
        )
    metadata = keys.get("metadata")
    nested = {normalize_word(name): value for name, value in metadata.items()} if isinstance(metadata, dict) else {}
    valence, arousal = (scalar_to_text((keys | nested).get(name, ""), path, name) for name in ("valence", "arousal"))
    expression = parse_expression(scalar_to_text(keys["humanlabel"], path, "Human-Label"), f"{path}, Human-Label")
    return {"expression": expression, **parse_valence_arousal(valence, arousal, str(path))}


def scalar_to_text(value: Any, path: Path, name: str) -> str:
    """Return a JSON value as text. Raises UserError if it is not one number or name."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"{path}: {name} is {str(value)[:40]!r}; it must be one number or name")
    return str(value)

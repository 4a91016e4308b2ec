"""Readers of AffectNet with an annotation file an image: the 8-label release (npy) and AffectNet+ (JSON)."""

import io
import json
import math
import os
from collections.abc import Mapping
from json import JSONDecodeError
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic

from featgan.data.readers.parsing import UNUSABLE, affect, folder_split, parse_expression, squeeze
from featgan.data.readers.records import EXPRESSIONS, IMAGE_SUFFIXES, Collector, Layout
from featgan.data.readers.text_tables import Table
from featgan.errors import UserError
from featgan.system.progress import track

SET_FOLDERS = {"train": "train_set", "validation": "val_set"}
SCALARS = {"exp": "expression", "val": "valence", "aro": "arousal"}
MAX_NPY_BYTES = 64 << 10
MAX_JSON_BYTES = 1 << 20
FACTOR_LABELS = ("id", "split", "expression", "valence", "arousal")
"""Columns of factors.csv that are no factors."""


def read_bounded(path: Path, limit: int) -> bytes:
    """A small file's bytes; UserError when it is larger than it can rightly be, or unreadable."""
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > limit:
        raise UserError(f"{path}: larger than {limit} bytes; it should hold the labels of one image")
    return content


# -- the 8-label release ----------------------------------------------------------------------------------------------


def read_affectnet(source: Path) -> Layout:
    """`train_set/` and `val_set/` (one may be absent), each `images/ID.*` and `annotations/ID_{exp,val,aro}.npy`.

    Where `factors.csv` lies beside them, as in drawn data sets, its columns become the records' factors.
    """
    folders = {split: source / name for split, name in SET_FOLDERS.items() if (source / name).is_dir()}
    if not folders:
        raise UserError(f"{source}: neither {' nor '.join(SET_FOLDERS.values())} is there")
    factors = read_factors(source / "factors.csv")
    collector = Collector(source)
    for split, folder in folders.items():
        for name in track(image_names(collector, folder), f"reading {folder.name}", unit="labels"):
            add_annotated(collector, folder, name, split, factors)
        count_orphans(collector, folder)
    return collector.finish(EXPRESSIONS)


def image_names(collector: Collector, folder: Path) -> list[str]:
    """The images of a set, sorted; UserError when one of its folders is missing."""
    for name in ("images", "annotations"):
        if not (folder / name).is_dir():
            raise UserError(f"{folder / name}: no such folder; a set has images/ and annotations/")
    names = set(collector.listing.names(folder / "images").values())
    return sorted(name for name in names if not name.startswith("."))


def add_annotated(
    collector: Collector, folder: Path, name: str, split: str, factors: Mapping[str, dict[str, float]]
) -> None:
    """Take one image with what its npy files say."""
    identifier = Path(name).stem
    paths = {suffix: folder / "annotations" / f"{identifier}_{suffix}.npy" for suffix in SCALARS}
    if collector.listing.find(paths["exp"]) is None:
        collector.skip("no annotation")
        return
    cells = {suffix: read_scalar(path) if collector.listing.find(path) else "" for suffix, path in paths.items()}
    expression = parse_expression(cells["exp"], str(paths["exp"]))
    if expression in UNUSABLE:
        collector.skip(UNUSABLE[expression])
        return
    labels = {
        "expression": expression,
        **affect(cells["val"], cells["aro"], str(folder / "annotations" / identifier)),
        "factors": factors.get(identifier),
    }
    collector.add(folder / "images" / name, split, labels)


def read_scalar(path: Path) -> str:
    """The one number of a npy file as text, whether it is stored as a number or as a string; never unpickled."""
    file = io.BytesIO(read_bounded(path, MAX_NPY_BYTES))
    try:
        header = read_array_header_1_0 if read_magic(file) == (1, 0) else read_array_header_2_0
        shape, _, dtype = header(file)
        size = math.prod(shape)
        value = np.frombuffer(file.read(), dtype, count=1).item() if size == 1 else None
    except ValueError as error:
        raise UserError(f"{path}: not a npy file of one number or text") from error
    if value is None:
        raise UserError(f"{path}: it holds {size} values where one should be")
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)


def count_orphans(collector: Collector, folder: Path) -> None:
    """Count annotations whose image is not there."""
    images = {Path(name).stem for name in set(collector.listing.names(folder / "images").values())}
    for name in sorted(set(collector.listing.names(folder / "annotations").values())):
        identifier = name.removesuffix("_exp.npy")
        if identifier != name and identifier not in images:
            collector.skip("missing file")
            collector.missing_files.append((folder / "images" / identifier).relative_to(collector.source).as_posix())


def read_factors(path: Path) -> dict[str, dict[str, float]]:
    """The true factors of each image by its id; nothing where there is no such file."""
    if not path.exists():
        return {}
    table = Table(path)
    table.require("id")
    names = [name for name in table.columns if name not in FACTOR_LABELS]
    factors: dict[str, dict[str, float]] = {}
    for row in table:
        try:
            factors[row["id"]] = {name: float(row[name]) for name in names}
        except ValueError:
            raise UserError(f"{row.place}: a factor is not a number") from None
    return factors


# -- AffectNet+ -------------------------------------------------------------------------------------------------------


def read_affectnet_plus(source: Path) -> Layout:
    """One JSON file an image, beside it or in a folder `annotations` next to `images`; the split is a folder's name."""
    collector = Collector(source)
    for path in track(find_json(source), "reading JSON", unit="files"):
        labels = read_plus_labels(path)
        if labels["expression"] in UNUSABLE:
            collector.skip(UNUSABLE[labels["expression"]])
            continue
        folders = path.relative_to(source).parts[:-1]
        split = next(filter(None, map(folder_split, folders)), "")
        collector.add(plus_image(collector, path), split, labels)
    return collector.finish(EXPRESSIONS)


def find_json(source: Path) -> list[Path]:
    """Every JSON file below the source, sorted; UserError when there is none."""
    found = [Path(top) / name for top, _, names in os.walk(source) for name in names if name.lower().endswith(".json")]
    if not found:
        raise UserError(f"{source}: no JSON file is there; AffectNet+ has one for each image")
    return sorted(found)


def plus_image(collector: Collector, path: Path) -> Path:
    """The image of a JSON file, or where it should be."""
    swapped = [part if part.lower() != "annotations" else "images" for part in path.relative_to(collector.source).parts]
    for folder in (path.parent, collector.source.joinpath(*swapped).parent):
        for suffix in IMAGE_SUFFIXES:
            found = collector.listing.find(folder / f"{path.stem}{suffix}")
            if found is not None:
                return found
    return path.with_suffix(".jpg")


def read_plus_labels(path: Path) -> dict[str, Any]:
    """Expression, and valence and arousal where they are given, of one JSON file."""
    try:
        content = json.loads(read_bounded(path, MAX_JSON_BYTES))
    except (JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: it should hold an object with the key Human-Label")
    keys = {squeeze(name): value for name, value in content.items()}
    if "humanlabel" not in keys:
        raise UserError(f"{path}: no key Human-Label; there are {', '.join(content) or 'none'}")
    metadata = keys.get("metadata")
    nested = {squeeze(name): value for name, value in metadata.items()} if isinstance(metadata, dict) else {}
    valence, arousal = (scalar_text((keys | nested).get(name, ""), path, name) for name in ("valence", "arousal"))
    expression = parse_expression(scalar_text(keys["humanlabel"], path, "Human-Label"), f"{path}, Human-Label")
    return {"expression": expression, **affect(valence, arousal, str(path))}


def scalar_text(value: Any, path: Path, name: str) -> str:
    """A JSON value that should be one number or name, as text."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"{path}: {name} should be one number or name, not {str(value)[:40]!r}")
    return str(value)

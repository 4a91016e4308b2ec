"""The registry of data set layouts: the reader function of each layout, by name."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path

from featgan.data.readers.affectnet_annotations import read_affectnet, read_affectnet_plus
from featgan.data.readers.affectnet_lists import read_affectnet_csv, read_affectnet_lists
from featgan.data.readers.celeba import read_celeba
from featgan.data.readers.csv_dataset import read_csv
from featgan.data.readers.image_folder import read_class_folders
from featgan.data.readers.records import DatasetListing
from featgan.errors import UserError

LAYOUT_READERS: dict[str, Callable[..., DatasetListing]] = {
    "affectnet-lists": read_affectnet_lists,
    "affectnet-csv": read_affectnet_csv,
    "affectnet": read_affectnet,
    "affectnet-plus": read_affectnet_plus,
    "celeba": read_celeba,
    "folder": read_class_folders,
    "csv": read_csv,
}
"""Layout name => reader function; its parameters after `source` are the options of the layout."""


def read_dataset(name: str, source: Path, options: Mapping[str, str] | None = None) -> DatasetListing:
    """Read the records of the data set in the folder `source`, which has the layout `name`, a key of LAYOUT_READERS.

    Raises UserError if the layout, an option or the folder does not exist, or if the data set contains an error; the
    message then names the file and the line.
    """
    if name not in LAYOUT_READERS:
        raise UserError(f"layout {name!r}: unknown; choose from {', '.join(LAYOUT_READERS)}")
    if not Path(source).is_dir():
        raise UserError(f"{source}: no such folder; give the folder of the data set as SOURCE")
    known_options = [option for option in inspect.signature(LAYOUT_READERS[name]).parameters if option != "source"]
    for option in options or {}:
        if option not in known_options:
            raise UserError(
                f"--layout-option {option}: not an option of layout {name}; its options are "
                f"{', '.join(known_options) or 'none'}"
            )
    return LAYOUT_READERS[name](Path(source), **(options or {}))

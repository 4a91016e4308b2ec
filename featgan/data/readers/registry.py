"""Every data set layout by name; each reader turns a folder into records for the packer."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from featgan.data.readers.affectnet_annotations import read_affectnet, read_affectnet_plus
from featgan.data.readers.affectnet_lists import read_affectnet_csv, read_affectnet_lists
from featgan.data.readers.celeba import read_celeba
from featgan.data.readers.csv_dataset import read_csv
from featgan.data.readers.image_folder import read_folder
from featgan.data.readers.records import EXPRESSIONS as EXPRESSIONS
from featgan.data.readers.records import Layout as Layout
from featgan.data.readers.records import Record as Record
from featgan.errors import UserError

LAYOUTS: dict[str, Callable[..., Layout]] = {
    "affectnet-lists": read_affectnet_lists,
    "affectnet-csv": read_affectnet_csv,
    "affectnet": read_affectnet,
    "affectnet-plus": read_affectnet_plus,
    "celeba": read_celeba,
    "folder": read_folder,
    "csv": read_csv,
}


def read_layout(name: str, source: Path, **options: Any) -> Layout:
    """Read the records of the data set in `source`, laid out as `name` says (a key of LAYOUTS).

    UserError: an unknown layout or option, or whatever is wrong in the data set, with its file and line.
    """
    if name not in LAYOUTS:
        raise UserError(f"unknown layout {name!r}; known are {', '.join(LAYOUTS)}")
    if not Path(source).is_dir():
        raise UserError(f"{source}: no such folder")
    known = [option for option in inspect.signature(LAYOUTS[name]).parameters if option != "source"]
    for option in options:
        if option not in known:
            raise UserError(f"layout {name} has no option {option}; known are {', '.join(known) or 'none'}")
    return LAYOUTS[name](Path(source), **options)

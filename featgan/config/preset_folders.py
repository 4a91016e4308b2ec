"""The folders with the configurations that come with featgan: presets, and clusters in the subfolder `cluster`."""

import tempfile
import zipfile
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

FOLDERS = ("featgan/configs", "configs")
"""Folders of the installed package and of a checkout."""


def find_preset_folders() -> list[Path]:
    """Return the folders. Code that runs from an archive, such as code.zip of a job, extracts them first."""
    root = Path(extract_presets().name) if ROOT.is_file() else ROOT
    return [root / folder for folder in FOLDERS]


@cache
def extract_presets() -> "tempfile.TemporaryDirectory[str]":
    """Return a folder with the configurations of the archive; it is removed at the end of the process."""
    folder = tempfile.TemporaryDirectory(prefix="featgan-configs-")
    with zipfile.ZipFile(ROOT) as archive:
        archive.extractall(folder.name, [name for name in archive.namelist() if name.startswith(FOLDERS)])
    return folder

"""File names in tables and lists: how other systems write them, and where the files are."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from featgan.data.readers.records import RecordCollector
from featgan.errors import UserError
from featgan.system.image_files import has_image_suffix, is_system_file
from featgan.system.plain_text import format_one_line

MAX_PROBED_NAMES = 50
"""Number of listed files that are used to find the folder of the images."""
MAX_SUBFOLDERS = 50
"""Number of subfolders in which the images are looked for."""


@dataclass(frozen=True)
class ImagePaths:
    """Where the listed images are: in `folder`, after the first `num_stripped` folders of the listed path.

    If `path_by_name` is given, it contains the path of every file with a unique name, and only names are compared.
    """

    folder: Path
    num_stripped: int = 0
    path_by_name: Mapping[str, Path | None] = field(default_factory=dict)

    def resolve(self, name: str, location: str) -> Path:
        """Return the path of a listed file. Raises UserError if the name is empty or points outside the folder."""
        parts = split_listed_path(name)
        if not parts:
            raise UserError(f"{location}: the file name is empty; correct this line")
        if (path := self.path_by_name.get(parts[-1])) is not None:
            return path
        kept = parts[min(self.num_stripped, len(parts) - 1) :]
        if ".." in kept or kept[0] == "/" or "\0" in name:
            raise UserError(
                f"{location}: the path {format_one_line(name[:80])!r} points outside {self.folder}; "
                "use a path relative to that folder"
            )
        return self.folder.joinpath(*kept)


def split_listed_path(name: str) -> list[str]:
    """Return the parts of a path that may be written as on Windows; the first one is "/" if it is absolute.

    `.` and `folder/..` are removed.
    """
    text = re.sub(r"^[A-Za-z]:", "/", name.strip().replace("\\", "/"))
    parts: list[str] = []
    for part in PurePosixPath(re.sub(r"^/+", "/", text)).parts:
        if part == ".." and parts and parts[-1] not in ("..", "/"):
            parts.pop()
        else:
            parts.append(part)
    return parts


def find_image_paths(collector: RecordCollector, folders: Sequence[Path], names: Iterable[str]) -> ImagePaths:
    """Return where the first listed files are, or the first folder if none of them exists.

    The folders are tried in order. If no listed path exists in them, folders at its start are removed: absolute paths
    of another computer, or paths that start with the name of the source. If that does not help, images with the same
    name are used from anywhere below the first folder, because many tables contain names only.
    """
    probed = [
        parts for name, _ in zip(names, range(MAX_PROBED_NAMES), strict=False) if (parts := split_listed_path(name))
    ]
    for num_stripped in range(max(map(len, probed), default=0)):
        counts = [count_existing(collector, folder, probed, num_stripped) for folder in folders]
        if any(counts):
            return ImagePaths(folders[counts.index(max(counts))], num_stripped)
    path_by_name = index_file_names(folders[0]) if probed else {}
    if any(path_by_name.get(parts[-1]) for parts in probed):
        return ImagePaths(folders[0], path_by_name=path_by_name)
    return ImagePaths(folders[0])


def index_file_names(folder: Path) -> dict[str, Path | None]:
    """Return the paths of all images below a folder by name; None if the name occurs twice."""
    path_by_name: dict[str, Path | None] = {}
    for root, folder_names, names in os.walk(folder, onerror=raise_error):
        folder_names[:] = sorted(name for name in folder_names if not is_system_file(name))
        for name in names:
            if has_image_suffix(name) and not is_system_file(name):
                path_by_name[name] = None if name in path_by_name else Path(root) / name
    return path_by_name


def raise_error(error: OSError) -> None:
    """Raise the error of a folder that cannot be read; os.walk would leave its images out without a message."""
    raise error


def count_existing(collector: RecordCollector, folder: Path, probed: Sequence[Sequence[str]], num_stripped: int) -> int:
    """Return how many of the probed paths exist in the folder."""
    kept = [parts[num_stripped:] for parts in probed if len(parts) > num_stripped]
    inside = [parts for parts in kept if parts[0] != "/" and ".." not in parts]
    return sum(collector.directory_cache.find_file(folder.joinpath(*parts)) is not None for parts in inside)

"""The job folder: a copy of the code, so that later edits do not affect the job, and the records of its attempts."""

import json
import re
import shutil
import zipfile
from importlib import resources
from pathlib import Path
from typing import Any

from featgan.errors import UserError
from featgan.system.file_cache import cache_by_version
from featgan.system.files import write_text
from featgan.system.json_files import read_side_file
from launch.private_folders import make_private_folder

ROOT = Path(__file__).parent.parent
PACKAGES = ("featgan", "launch")
FILE_PATTERNS = ("*.py", "*.yaml", "*.j2", "*.css", "*.js", "*.sh")

CODE_ARCHIVE = "code.zip"
"""Copy of the code in the job folder."""

REQUEUE_SCRIPT = "requeue.sh"
"""Shell part of the job script, in this package and in the job folder."""

DONE_FILE = "done"
"""File that marks the success of a job submitted with sbatch. For jobs of the launcher, submitit writes a result."""

JOB_FOLDER_PATTERN = re.compile(r"(\d{3,})-(\w+)")


def make_job_folder(jobs: Path, kind: str) -> Path:
    """Create the next free folder JOBS/NNN-KIND; concurrent submissions get different folders.

    Both are private: the pickles and the code run as this user. Raises UserError if JOBS belongs to another user.
    """
    make_private_folder(jobs)
    numbers = [int(match[1]) for path in jobs.iterdir() if (match := JOB_FOLDER_PATTERN.fullmatch(path.name))]
    for number in range(max(numbers, default=0) + 1, 1_000_000):
        folder = jobs / f"{number:03d}-{kind}"
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            continue
        return folder
    raise UserError(f"{jobs}: no free job number; remove old job folders")


def copy_code(folder: Path) -> Path:
    """Write the packages and presets to FOLDER/code.zip, which is on the PYTHONPATH of the job.

    A job folder on a shared file system should have few files, and Python imports from zip archives.
    """
    archive_path = folder / CODE_ARCHIVE
    archive_path.touch(mode=0o600)
    if ROOT.is_file():  # this code runs from such an archive itself
        shutil.copyfile(ROOT, archive_path)
        return archive_path
    with zipfile.ZipFile(archive_path, "w", zipfile.ZIP_DEFLATED) as archive:
        for source in find_code_files():
            archive.write(source, source.relative_to(ROOT))
    return archive_path


def find_code_files() -> list[Path]:
    """Return the files of the packages and the presets."""
    files = [path for package in PACKAGES for pattern in FILE_PATTERNS for path in (ROOT / package).rglob(pattern)]
    return [*files, *(ROOT / "configs").rglob("*.yaml")]


def write_requeue_script(folder: Path) -> None:
    """Write the shell part of the job script, which the job script sources."""
    text = resources.files("launch").joinpath(REQUEUE_SCRIPT).read_text()
    write_text(folder / REQUEUE_SCRIPT, text)


def write_job_info(folder: Path, job_info: dict[str, Any]) -> None:
    """Write job.json, which describes what was submitted."""
    write_text(folder / "job.json", json.dumps(job_info, indent=1) + "\n")


def read_job_info(folder: Path) -> dict[str, Any]:
    """Read job.json; empty if it is missing or cannot be read."""
    return read_job_file(folder / "job.json")


@cache_by_version
def read_job_file(path: Path) -> dict[str, Any]:
    """Read a file written by `write_job_info`."""
    return read_side_file(path) or {}

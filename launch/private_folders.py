"""Job folders are private: they contain code and pickles that the job runs with the permissions of its user."""

import logging
import os
import stat
from contextlib import suppress
from pathlib import Path

from featgan.errors import UserError

logger = logging.getLogger(__name__)

GROUP_AND_OTHERS = 0o077


def make_private_folder(folder: Path) -> None:
    """Create a folder that only this user can access, with any umask; missing parents have usual permissions.

    An existing folder becomes private, with everything in it. Raises UserError if it belongs to another user.
    """
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        if not folder.is_dir():
            raise
        check_owner(folder)
        if folder.stat().st_mode & GROUP_AND_OTHERS:
            make_content_private(folder)
    # mkdir applies the umask, and file systems with access lists add permissions of the parent folder.
    make_private(folder, 0o700)
    if folder.stat().st_mode & GROUP_AND_OTHERS:
        logger.warning(f"{folder}: this file system cannot make it private; keep the run where others cannot write")


def check_owner(folder: Path) -> None:
    """Raise UserError if a folder, or a link with its name, belongs to another user. Root may use any folder."""
    if os.geteuid() != 0 and {folder.stat().st_uid, folder.lstat().st_uid} != {os.geteuid()}:
        raise UserError(
            f"{folder}: belongs to another user, who could change your jobs; work on a copy of the run, "
            "or run `featgan evaluate` or `featgan render` without a job"
        )


def make_content_private(folder: Path) -> None:
    """Make all folders and files in a folder private, except those of other users, and links."""
    for parent, folder_names, file_names in os.walk(folder):
        for name in folder_names:
            make_private(Path(parent, name), 0o700)
        for name in file_names:
            make_private(Path(parent, name), 0o600)


def make_private(path: Path, mode: int) -> None:
    """Set the mode of a file or folder; keep that of links, of files of other users, and of files that are gone."""
    with suppress(FileNotFoundError, PermissionError):
        status = path.lstat()
        if not stat.S_ISLNK(status.st_mode) and stat.S_IMODE(status.st_mode) != mode:
            path.chmod(mode)

"""The folder of the node cache: where it is, who owns it, and how much it may contain."""

import fcntl
import logging
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from featgan.errors import UserError
from featgan.system.files import name_file_in_errors, user_friendly_write_errors

logger = logging.getLogger(__name__)

DEFAULT_SHARE_OF_DISK = 0.8
"""Share of the free space, with that of the cached files, which the cache may use by default."""

GIGABYTE = 10**9

NETWORK_FILE_SYSTEMS = frozenset(
    [
        "nfs",
        "nfs4",
        "lustre",
        "gpfs",
        "beegfs",
        "cifs",
        "smb3",
        "ceph",
        "fuse.ceph",
        "fuse.sshfs",
        "fuse.glusterfs",
        "glusterfs",
        "panfs",
        "pvfs2",
        "afs",
    ]
)

CACHE_REMEDY = "free some space, or set dataset.cache_dir to a folder on a local disk"


def default_cache_folder() -> Path:
    """Return the folder of the user's cache on the local disk: in $SLURM_TMPDIR, $TMPDIR or /tmp."""
    parent = os.environ.get("SLURM_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    return Path(parent).absolute() / f"featgan-cache-{os.geteuid()}"


def create_cache_folder(folder: Path) -> None:
    """Create the folder, which only this user may write.

    Raises UserError if it cannot be created, or if it is a link or belongs to another user: in a folder such as /tmp,
    someone else may have created it to replace the cached files.
    """
    with user_friendly_write_errors(folder, CACHE_REMEDY):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    problem = find_folder_problem(status)
    if problem:
        raise UserError(f"{folder}: {problem}; set dataset.cache_dir to another folder")


def warn_about_network_folder(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> None:
    """Log a warning if the folder is on a network file system, on which it gains nothing and locks may not work."""
    try:
        lines = [line.split() for line in mounts.read_text(errors="replace").splitlines()]
    except OSError:
        return
    resolved = folder.resolve()
    # A path in this file contains spaces as \040; the last of several mounts on one path is the one in use.
    kinds = {Path(fields[1].replace(r"\040", " ")): fields[2] for fields in lines if len(fields) > 2}
    parents = (path for path in kinds if resolved.is_relative_to(path))
    mount = max(parents, key=lambda path: len(path.parts), default=None)
    if mount is not None and kinds[mount] in NETWORK_FILE_SYSTEMS:
        logger.warning(
            f"{folder}: is on a network file system ({kinds[mount]}); set dataset.cache_dir to a folder on a local disk"
        )


def find_folder_problem(status: os.stat_result) -> str:
    """Return why a folder cannot be the cache; empty if it can."""
    if stat.S_ISLNK(status.st_mode):
        return "is a symbolic link, not a folder"
    if status.st_uid != os.geteuid():
        return "belongs to another user, who could replace the cached files"
    if status.st_mode & 0o022:
        return "other users can write to it, and could replace the cached files"
    return ""


def default_cache_bytes(folder: Path, cached_bytes: int) -> int:
    """Return how many bytes the cache may contain if no limit is given."""
    return int(DEFAULT_SHARE_OF_DISK * (shutil.disk_usage(folder).free + cached_bytes))


@contextmanager
def exclusive_lock(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a file, which is created if it is missing, during the block; yield whether it was acquired.

    With `wait`, wait for the process or thread that has it. The kernel releases the lock of a killed process. The file
    is never removed: otherwise two processes could each lock a file of this name.
    """
    descriptor = open_lock_file(path)
    try:
        yield lock_descriptor(path, descriptor, wait)
    finally:
        with suppress(OSError):  # a forked process may have inherited the descriptor, and the lock with it
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def open_lock_file(path: Path) -> int:
    """Return the descriptor of a lock file."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def lock_descriptor(path: Path, descriptor: int, wait: bool) -> bool:
    """Lock an open file and return whether this succeeded.

    Raises UserError if the file system does not support locks.
    """
    try:
        with name_file_in_errors(path):
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        raise UserError(
            f"{path}: cannot be locked ({error.strerror}); set dataset.cache_dir to a folder on a local disk"
        ) from None
    return True

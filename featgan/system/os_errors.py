"""Errors of the operating system about the user's files and machine, described in one line each."""

import errno

from featgan.errors import UserError
from featgan.system.plain_text import format_one_line

MAX_PATH_LENGTH = 200
"""Number of characters of a path shown in a message; a longer one is cut in the middle."""

TRANSIENT_ERRORS = frozenset(
    {errno.ESTALE, errno.EIO, errno.EINTR, errno.ETIMEDOUT, errno.EREMOTEIO, errno.ENOTCONN, errno.EHOSTDOWN}
)
"""Errors of a network file system that are not caused by the user; a job may retry."""

CPU_MEMORY_ERROR = "DefaultCPUAllocator: "
"""Start of torch's message when the memory of the machine runs out, which is a plain RuntimeError."""

SHARED_MEMORY_REMEDY = (
    "free some space there; in a container, start it with a larger one, for example docker run --shm-size=1g"
)

MEMORY_REMEDY = "free or request more memory, or use a smaller batch size or image size"

FREE_SPACE = "free some space"
AGAIN = "run the command again"
ANOTHER_PATH = "choose another path"

DESCRIPTIONS = {
    errno.ENOSPC: ("the disk is full", f"{FREE_SPACE} and {AGAIN}"),
    errno.EDQUOT: ("the disk quota is used up", f"{FREE_SPACE} and {AGAIN}"),
    errno.EROFS: ("the file system is read-only", f"make it writable or {ANOTHER_PATH}"),
    errno.EACCES: ("permission denied", f"change its permissions or {ANOTHER_PATH}"),
    errno.EPERM: ("operation not permitted", f"change its permissions or {ANOTHER_PATH}"),
    errno.EFBIG: ("the file is too large for the file system or for `ulimit -f`", f"raise the limit or {ANOTHER_PATH}"),
    errno.ENAMETOOLONG: ("the path is too long", "choose a shorter one"),
    errno.ELOOP: ("symbolic links form a loop", "repair the links"),
    errno.ENOTDIR: ("a part of the path is not a folder", ANOTHER_PATH),
    errno.EISDIR: ("is a folder", ANOTHER_PATH),
    errno.EEXIST: ("already exists", ANOTHER_PATH),
    errno.ENOTEMPTY: ("the folder is not empty", ANOTHER_PATH),
    errno.EBUSY: ("in use", f"wait until it is not in use and {AGAIN}"),
    errno.EXDEV: ("is on another file system than its folder", ANOTHER_PATH),
    errno.EMFILE: ("too many open files", f"raise `ulimit -n` and {AGAIN}"),
    errno.ENFILE: ("too many open files", f"close other programs and {AGAIN}"),
    errno.ENOMEM: ("not enough memory", f"free or request more memory and {AGAIN}"),
    errno.EAGAIN: ("no more processes or threads can be started", f"raise `ulimit -u` and {AGAIN}"),
    errno.ENOTSUP: ("the file system does not support this operation", ANOTHER_PATH),
}
"""Reason and remedy of the errors that a user can fix, by error number."""

PATH_DESCRIPTIONS = {
    errno.ENOENT: ("no such file or folder", f"check the path; if it was just removed, {AGAIN}"),
    errno.EINVAL: ("the file system rejects the name or the operation", ANOTHER_PATH),
    errno.EILSEQ: ("the file system rejects the name", ANOTHER_PATH),
    errno.ENXIO: ("not a regular file", ANOTHER_PATH),
}
"""The same for errors that are about a file only if they name one."""


def describe_os_error(error: OSError) -> str | None:
    """Return where, what and what to do in one line; None for an error without a file that the user cannot fix."""
    path = "the file system" if error.filename is None else format_path(visible_path(error.filename))
    if error.errno in TRANSIENT_ERRORS:
        return f"{path}: {(error.strerror or 'error').lower()}; {AGAIN}"
    known = DESCRIPTIONS | PATH_DESCRIPTIONS if error.filename is not None else DESCRIPTIONS
    if error.errno in known:
        reason, remedy = known[error.errno]
        return f"{path}: {reason}; {remedy}"
    if error.filename is None or error.errno is None:
        return None
    return f"{path}: {(error.strerror or 'error').lower()}; check the file system and {AGAIN}"


def adapt_remedy(remedy: str, error: OSError) -> str:
    """Return a remedy that starts with FREE_SPACE, with a start that fits the error."""
    first_steps = {
        errno.EROFS: "make the file system writable",
        errno.EACCES: "change the permissions",
        errno.EPERM: "change the permissions",
        errno.ENAMETOOLONG: "choose a shorter path",
    }
    return remedy.replace(FREE_SPACE, first_steps.get(error.errno or 0, FREE_SPACE), 1)


def os_error_reason(error: OSError) -> str:
    """Return only the reason of an error, for a message that names the file and the remedy itself."""
    known = DESCRIPTIONS | PATH_DESCRIPTIONS
    return known[error.errno][0] if error.errno in known else (error.strerror or str(error)).lower()


def visible_path(path: str | bytes | int) -> str | bytes | int:
    """Return the path of a file, and for a temporary file of featgan the folder that contains it."""
    folder, _, name = str(path).rpartition("/")
    return (folder or ".") if name.startswith(".") and name.endswith(".partial") else path


def format_path(path: object) -> str:
    """Return a path on one line, shortened if it is very long."""
    text = format_one_line(path.decode(errors="replace") if isinstance(path, bytes) else str(path))
    half = MAX_PATH_LENGTH // 2
    return text if len(text) <= MAX_PATH_LENGTH else f"{text[:half]}...{text[-half:]}"


def user_error_message(error: BaseException) -> str | None:
    """Return one line for an error that the user can fix; None for an internal error."""
    if isinstance(error, UserError):
        return format_one_line(str(error).strip())
    if isinstance(error, OSError):
        return describe_os_error(error)
    lines = [line.strip() for line in str(error).splitlines() if "/dev/shm" in line]
    if isinstance(error, RuntimeError) and lines:  # of NCCL, which exchanges data between processes there
        return f"/dev/shm: {format_one_line(lines[-1])}; {SHARED_MEMORY_REMEDY}"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or CPU_MEMORY_ERROR in str(error):
        return f"not enough memory: {format_one_line(str(error)) or 'MemoryError'}; {MEMORY_REMEDY}"
    return None

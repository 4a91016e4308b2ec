"""Tests of the one-line descriptions of errors of the operating system, and of errors that stay internal."""

import errno
import os
from pathlib import Path

import pytest

from featgan.errors import UserError
from featgan.system.files import atomic_folder, atomic_write
from featgan.system.os_errors import MAX_PATH_LENGTH, describe_os_error, user_error_message

USER_ERRORS = [
    *("EACCES", "EDQUOT", "EEXIST", "EFBIG", "EIO", "EISDIR", "ELOOP", "EMFILE", "ENAMETOOLONG", "ENOENT", "ENOMEM"),
    *("ENOSPC", "ENOTDIR", "ENOTEMPTY", "EPERM", "EROFS", "ESTALE", "ETIMEDOUT", "EINTR", "EBADMSG", "EMLINK"),
]


@pytest.mark.parametrize("name", USER_ERRORS)
def test_error_of_a_path_is_one_line_with_a_remedy(name: str) -> None:
    number = getattr(errno, name)
    message = user_error_message(OSError(number, os.strerror(number), "runs/a"))
    assert message is not None and message.startswith("runs/a: ") and "; " in message and "\n" not in message


def test_internal_errors_are_not_described() -> None:
    assert user_error_message(ZeroDivisionError()) is None and user_error_message(RuntimeError("shape")) is None
    assert describe_os_error(ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")) is None
    assert describe_os_error(OSError("no number")) is None
    assert describe_os_error(FileNotFoundError(errno.ENOENT, "No such file or directory")) is None, "without a path"


def test_memory_errors_are_one_line() -> None:
    text = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory\nstack"
    for error in (MemoryError(), MemoryError("Unable to allocate 9 TiB"), RuntimeError(text)):
        message = user_error_message(error)
        assert message is not None and message.startswith("not enough memory") and "\n" not in message


def test_small_shared_memory_of_nccl_is_one_line() -> None:
    text = (
        "NCCL error in: x.cpp\nLast error:\nError while creating shared memory segment /dev/shm/nccl-a (size 9637888)"
    )
    message = user_error_message(RuntimeError(text))
    assert message is not None and message.startswith("/dev/shm: Error while creating") and "--shm-size" in message


def test_message_of_several_lines_becomes_one_line() -> None:
    assert user_error_message(UserError("shard a:\ncut off")) == "shard a:\\ncut off"


def test_path_of_a_message_is_short_and_printable() -> None:
    message = describe_os_error(OSError(errno.ENAMETOOLONG, "File name too long", "a\n\x1b[31m" + "b" * 5000))
    assert message is not None and message.isprintable() and len(message) < 2 * MAX_PATH_LENGTH
    message = describe_os_error(OSError(errno.EACCES, "Permission denied", b"\xff"))
    assert message is not None and message.isprintable()


def test_overlong_paths_raise_errors_that_are_described(tmp_path: Path) -> None:
    for name in ("n" * 250, "n" * 300, "/".join(["n" * 200] * 30)):
        path = tmp_path / name
        with pytest.raises(OSError) as error:
            atomic_write(path, b"")
        assert describe_os_error(error.value) is not None
        with pytest.raises(OSError) as error, atomic_folder(path):
            pass
        assert describe_os_error(error.value) is not None

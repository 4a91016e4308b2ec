"""Atomic writes of files and folders, and write errors."""

import errno
import hashlib
from pathlib import Path

import pytest

from featgan.errors import UserError
from featgan.system.files import (
    atomic_folder,
    atomic_write,
    open_for_append,
    sha256_of,
    user_friendly_write_errors,
    write_text,
)


def test_file_is_replaced_atomically(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_write(path, b"old")
    atomic_write(path, b"new")
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("file", b"new")]
    assert sha256_of(path) == hashlib.sha256(b"new").hexdigest()


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    atomic_write(path, b"old")

    def fail_to_sync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fail_to_sync)
    message = "file: cannot be written: the disk is full; buy a disk"
    with pytest.raises(UserError, match=message), user_friendly_write_errors(path, "buy a disk"):
        atomic_write(path, b"new")
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("file", b"old")]


def test_errors_of_open_files_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError) as of_write:
        atomic_write(tmp_path / "file", b"")
    with pytest.raises(OSError) as of_append, open_for_append(tmp_path / "log"):
        fail()
    with pytest.raises(OSError) as of_text:
        write_text(Path("/dev/full"), "text")
    names = [str(tmp_path / "file"), str(tmp_path / "log"), "/dev/full"]
    assert [error.value.filename for error in (of_write, of_append, of_text)] == names


def test_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with atomic_folder(out) as partial:
        (partial / "file").write_text("content")
        assert not out.exists()
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert (out / "file").read_text() == "content"


def test_failed_folder_is_removed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "out") as partial:
        (partial / "inner").mkdir()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".out.partial" / "inner").mkdir(parents=True)
    (tmp_path / ".out.partial" / "inner" / "stale").write_text("")
    (tmp_path / ".out.partial" / "stale").write_text("")
    with atomic_folder(tmp_path / "out"):
        pass
    assert list((tmp_path / "out").iterdir()) == []


def test_folder_has_one_writer_at_a_time(tmp_path: Path) -> None:
    rejection = pytest.raises(UserError, match="is being written by another process")
    with atomic_folder(tmp_path / "out"), rejection, atomic_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out").is_dir()

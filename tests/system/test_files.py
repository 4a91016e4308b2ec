"""Files and folders appear whole or not at all."""

import errno
import hashlib
from pathlib import Path

import pytest

from featgan.errors import UserError
from featgan.system.files import explain_write_errors, sha256_of, whole_folder, write_whole


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")
    write_whole(path, b"new")
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [("file", b"new")]
    assert sha256_of(path) == hashlib.sha256(b"new").hexdigest()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    complaint = "file: cannot be written: the disk is full; buy a disk"
    with pytest.raises(UserError, match=complaint), explain_write_errors(path, "buy a disk"):
        write_whole(path, b"new")
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [("file", b"old")]


def test_a_folder_appears_when_it_is_filled(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with whole_folder(out) as partial:
        (partial / "file").write_text("content")
        assert not out.exists()
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert (out / "file").read_text() == "content"


def test_a_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "out") as partial:
        (partial / "inner").mkdir()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".out.partial" / "inner").mkdir(parents=True)
    (tmp_path / ".out.partial" / "inner" / "stale").write_text("")
    (tmp_path / ".out.partial" / "stale").write_text("")
    with whole_folder(tmp_path / "out"):
        pass
    assert list((tmp_path / "out").iterdir()) == []


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    complaint = pytest.raises(UserError, match="another process is writing it")
    with whole_folder(tmp_path / "out"), complaint, whole_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out").is_dir()

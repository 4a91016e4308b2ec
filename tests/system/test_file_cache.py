"""A cached file is read again after each change."""

from pathlib import Path

from featgan.system.file_cache import cache_by_version


def test_file_is_read_once_until_it_changes(tmp_path: Path) -> None:
    path, reads = tmp_path / "file", []

    @cache_by_version
    def read_text(path: Path) -> str:
        reads.append(path)
        return path.read_text() if path.exists() else "missing"

    assert [read_text(path), read_text(path)] == ["missing"] * 2 and len(reads) == 2
    path.write_text("first")
    assert [read_text(path), read_text(path)] == ["first"] * 2 and len(reads) == 3
    path.write_text("second")
    assert read_text(path) == "second"
    replacement = tmp_path / "replacement"
    replacement.write_text("third!")  # the same size, another file
    replacement.replace(path)
    assert read_text(path) == "third!"
    path.unlink()
    assert read_text(path) == "missing"

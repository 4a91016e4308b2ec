"""The start of training with large indexes: time and memory hardly depend on the number of images."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from featgan.bench import scale
from featgan.bench.cli import bench
from featgan.bench.timing import run_in_new_process
from featgan.errors import UserError


def test_table_contains_each_size() -> None:
    result = scale.run_benchmark([3000], 1)
    (table,) = result.tables
    assert [cells[0] for cells in table.rows] == ["3,000"]
    assert all(not row.goals for row in result.rows)


def test_three_million_images_need_little_memory(tmp_path: Path) -> None:
    scale.write_shards(tmp_path, 3_000_000)
    usage = run_in_new_process("featgan.bench.scale:start_training", str(tmp_path))
    # The first start checks each row, in chunks; afterwards one bit per image is left.
    assert usage.megabytes < 200 and usage.result["anonymous"] < 40


def test_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1_000_000))
    with pytest.raises(UserError, match=r"0\.0 GB are free, but the index of 10,000,000 images needs 1\.0 GB"):
        scale.write_shards(tmp_path, 10_000_000)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("images", ["many", "0", "10,2000000000"])
def test_wrong_sizes_are_a_usage_error(images: str) -> None:
    assert CliRunner().invoke(bench, ["scale", "--images", images]).exit_code == 2

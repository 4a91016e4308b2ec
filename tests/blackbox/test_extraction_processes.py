"""Several processes extract the same files as one, and a later extraction can have another number of processes."""

import os
import signal
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest

from featgan.blackbox import extraction
from featgan.data.feature_cache.cache import FeatureWriter, PendingShard
from featgan.distributed.work_group import WorkGroup
from featgan.errors import UserError
from tests.blackbox.test_extraction import (  # noqa: F401  # fixtures
    extract_features,
    half_image_colors,
    register_classifier,
    shards,
)
from tests.helpers.groups import KILLED, run_group


def read_cache(folder: Path) -> Mapping[str, bytes]:
    """Return the files of a cache."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def test_files_do_not_depend_on_the_number_of_processes(
    shards: Path,  # noqa: F811
    register_classifier: Callable[[object], str],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = register_classifier(half_image_colors)
    monkeypatch.setattr("featgan.data.feature_cache.space_fitting.MAX_SPACE_ROWS", 4)  # sums of groups of shards
    reference = read_cache(extract_features(shards, spec, "one", batch_size=3).path)
    for count in (2, 3):
        extract = partial(extract_features, shards, spec, f"with-{count}", batch_size=3)
        messages = run_group(count, lambda group, extract=extract: extract(group=group), tmp_path / "results")  # type: ignore[misc]
        assert messages == [""] * count
        assert read_cache(shards / "features" / f"with-{count}") == reference
    # A complete cache is complete for any number of processes.
    again = run_group(
        2, lambda group: extract_features(shards, spec, "one", batch_size=3, group=group), tmp_path / "results"
    )
    assert again == ["", ""] and read_cache(shards / "features" / "one") == reference


@pytest.mark.parametrize(("killed", "num_later"), [(1, 1), (0, 3)])
def test_killed_extraction_resumes_with_another_number_of_processes(
    shards: Path,  # noqa: F811
    register_classifier: Callable[[object], str],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed: int,
    num_later: int,
) -> None:
    spec = register_classifier(half_image_colors)
    reference = read_cache(extract_features(shards, spec, "one", batch_size=3).path)
    written = tmp_path / "written"
    write_shard = FeatureWriter.write_shard

    def count_and_write(writer: FeatureWriter, pending: PendingShard, *arrays: object) -> None:
        with written.open("a") as file:
            file.write(f"{pending.shard}\n")
        write_shard(writer, pending, *arrays)  # type: ignore[arg-type]

    def extract_and_kill(group: WorkGroup) -> None:
        if group.rank == killed:
            monkeypatch.setattr(
                extraction.Extraction, "extract_pending", lambda extraction: os.kill(os.getpid(), signal.SIGKILL)
            )
        extract_features(shards, spec, "two", batch_size=3, group=group)

    monkeypatch.setattr(FeatureWriter, "write_shard", count_and_write)
    messages = run_group(2, extract_and_kill, tmp_path / "results")
    assert messages[killed] == KILLED and "another process of this command has ended" in messages[1 - killed]
    later = run_group(
        num_later, lambda group: extract_features(shards, spec, "two", batch_size=3, group=group), tmp_path / "results"
    )
    assert later == [""] * num_later
    assert read_cache(shards / "features" / "two") == reference
    names = written.read_text().split()
    assert len(names) == len(set(names)) == 4 if killed == 1 else len(set(names)) == 4


def test_an_error_in_one_process_ends_the_extraction_with_one_line(
    shards: Path,  # noqa: F811
    register_classifier: Callable[[object], str],  # noqa: F811
    tmp_path: Path,
) -> None:
    spec = register_classifier(half_image_colors)

    def extract_or_fail(group: WorkGroup) -> None:
        def fail(*_: object) -> None:
            raise UserError("the classifier fails")

        extract_features(shards, spec, "two", group=group) if group.rank == 0 else fail_in(fail)

    def fail_in(fail: Callable[..., None]) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(extraction, "load_blackbox", fail)
            extract_features(shards, spec, "two", group=WorkGroup(1, 2))

    assert run_group(2, extract_or_fail, tmp_path / "results") == [
        "rank 1: the classifier fails", "the classifier fails",
    ]  # fmt: skip

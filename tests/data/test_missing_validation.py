"""Tests of data sets without a validation split: pack creates one, and every command works or says what is missing."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from featgan.cli.main import cli
from featgan.data.packing.pack import PackSummary, describe_summary, pack_shards
from featgan.data.packing.validation_split import choose_validation_images
from featgan.data.readers.records import Record
from featgan.data.shards.shard_set import ShardSet
from featgan.errors import UserError
from featgan.explore.session import load_session
from featgan.training.train import train


def make_images(folder: Path, count: int, first: int = 0) -> None:
    folder.mkdir(parents=True)
    for number in range(first, first + count):
        Image.new("RGB", (20, 16), (number * 37 % 256, number * 61 % 256, 99)).save(folder / f"{number}.png")


def pack_folder(source: Path, out: Path, **options: object) -> PackSummary:
    return pack_shards("folder", source, out, image_size=16, workers=1, **options)  # type: ignore[arg-type]


def make_competition(source: Path) -> Path:
    """Make Kaggle's usual data set: labeled training images in class folders, and test images without labels."""
    make_images(source / "train" / "cat", 30)
    make_images(source / "train" / "dog", 12, 30)
    make_images(source / "test", 10, 50)
    return source


@pytest.mark.parametrize("test_folder", ["test", "test/unknown", "test/test"])
def test_competition_gets_a_validation_split_of_its_training_images(tmp_path: Path, test_folder: str) -> None:
    source = make_competition(tmp_path / "source")
    if test_folder != "test":
        (source / "test").rename(source / "moved")
        (source / "test").mkdir()
        (source / "moved").rename(source / test_folder)
    summary = pack_folder(source, tmp_path / "out")
    assert summary.classes == {"train": {"cat": 27, "dog": 11}, "validation": {"cat": 3, "dog": 1}}
    assert summary.skipped == {"test split without labels": 10}
    assert summary.manifest.validation_split == "created"
    line = "validation split: the source has none; held out 4 of 42 images, some of every class"
    assert line in describe_summary(summary)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["validation_split"] == "created" and manifest["options"]["validation_fraction"] == 0.1


def test_labeled_test_folder_is_used_for_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            make_images(tmp_path / "source" / split / label, 3)
    summary = pack_folder(tmp_path / "source", tmp_path / "out")
    assert summary.num_images_by_split == {"train": 6, "validation": 6}
    assert "its test images are used for validation" in capsys.readouterr().err
    assert summary.manifest.validation_split == "source"


def test_table_with_unlabeled_test_rows(tmp_path: Path) -> None:
    make_images(tmp_path / "source", 12)
    rows = [
        f"{number}.png,{'xy'[number % 2] if number < 8 else ''},{'train' if number < 8 else 'test'}"
        for number in range(12)
    ]
    (tmp_path / "source" / "labels.csv").write_text("file,label,split\n" + "\n".join(rows) + "\n")
    summary = pack_shards("csv", tmp_path / "source", tmp_path / "out", image_size=16, workers=1)
    assert summary.num_images_by_split == {"train": 6, "validation": 2}
    assert summary.skipped == {"test split without labels": 4}


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_every_class_is_in_both_splits(tmp_path: Path, fraction: float) -> None:
    sizes = {"a": 1, "b": 2, "c": 3, "d": 40}
    for label, count in sizes.items():
        make_images(tmp_path / "source" / label, count)
    summary = pack_folder(tmp_path / "source", tmp_path / "out", validation_fraction=fraction)
    for label, count in sizes.items():
        held_out = summary.classes["validation"][label]
        assert summary.classes["train"][label] == count - held_out >= 1
        assert held_out == (min(max(1, round(fraction * count)), count - 1) if count > 1 else 0)


def test_split_does_not_depend_on_the_order_and_on_other_classes() -> None:
    records = [Record(f"k{number}", Path("a"), "", expression=number % 3) for number in range(90)]
    keys = choose_validation_images(records, 0.1)
    assert keys == choose_validation_images(records[::-1], 0.1) and len(keys) == 9
    first = [record for record in records if record.expression == 0]
    assert choose_validation_images(first, 0.1) == keys & {record.key for record in first}


def test_images_of_a_person_are_not_divided() -> None:
    records = [
        Record(f"k{number}", Path("a"), "", expression=number % 4, identity=str(number // 8)) for number in range(160)
    ]
    keys = choose_validation_images(records, 0.1)
    assert 8 <= len(keys) <= 24
    people = {record.identity for record in records if record.key in keys}
    assert len(keys) == 8 * len(people)
    assert Counter(record.expression for record in records if record.key in keys).keys() == {0, 1, 2, 3}
    # One person in everything: nothing can be held out.
    assert choose_validation_images([Record(f"k{n}", Path("a"), "", identity="1") for n in range(9)], 0.1) == set()
    # Two people with many images: one of them is better than none.
    pair = [Record(f"k{n}", Path("a"), "", identity=str(n % 2)) for n in range(40)]
    assert len(choose_validation_images(pair, 0.1)) == 20


def test_large_data_set_is_split_quickly() -> None:
    records = [Record(f"k{number}", Path("a"), "", expression=number % 8) for number in range(100_000)]
    assert len(choose_validation_images(records, 0.1)) == 10_000


def test_sample_of_a_large_source_has_validation_images(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        make_images(tmp_path / "source" / "train" / label, 60)
        make_images(tmp_path / "source" / "val" / label, 1, 200)
    summary = pack_folder(tmp_path / "source", tmp_path / "out", max_images=10)
    assert summary.num_images_by_split["validation"] >= 1


def run_pack(source: Path, out: Path, *options: str) -> Result:
    arguments = ["pack", "folder", str(source), "--out", str(out), "--image-size", "16", "--workers", "1", *options]
    return CliRunner().invoke(cli, arguments)


@pytest.mark.parametrize("value", ["0", "none"])
def test_validation_split_can_be_turned_off(tmp_path: Path, value: str) -> None:
    result = run_pack(make_competition(tmp_path / "source"), tmp_path / "out", "--validation-fraction", value)
    assert (
        result.exit_code == 0 and "validation split: none (turned off); `featgan evaluate` needs one" in result.output
    )
    shards = ShardSet.open(tmp_path / "out")
    assert not shards.has_validation and shards.manifest.validation_split == "none"
    with pytest.raises(UserError, match="no validation split, which `featgan evaluate` needs.*pack the images again"):
        shards.get_split("validation")


@pytest.mark.parametrize("value", ["many", "1", "-0.1", "nan"])
def test_invalid_fraction_is_an_error(tmp_path: Path, value: str) -> None:
    result = run_pack(make_competition(tmp_path / "source"), tmp_path / "out", f"--validation-fraction={value}")
    assert isinstance(result.exception, UserError) and "--validation-fraction" in str(result.exception)
    assert "between 0 and 0.9" in str(result.exception)


def test_one_image_per_class_is_packed_without_validation_split(tmp_path: Path) -> None:
    for label in ("a", "b", "c"):
        make_images(tmp_path / "source" / label, 1)
    summary = pack_folder(tmp_path / "source", tmp_path / "out")
    assert summary.num_images_by_split == {"train": 3}
    assert "validation split: none (too few images of every class or person)" in describe_summary(summary)


@pytest.fixture(scope="module")
def unvalidated_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unvalidated")
    for label in ("cat", "dog"):
        make_images(folder / "source" / label, 4)
    pack_folder(folder / "source", folder / "shards", validation_fraction=0.0)
    return folder / "shards"


@pytest.fixture(scope="module")
def unvalidated_run(unvalidated_shards: Path) -> Path:
    from featgan.config.loading import load_config

    return train(load_config("debug", config_overrides(unvalidated_shards)))


def config_overrides(shards: Path) -> list[str]:
    return [
        f"run_dir={shards.parent / 'run'}",
        f"dataset.shards={shards}",
        "dataset.condition.kind=expression",
        "generator.dim=4",
        "discriminator.dim=4",
        "discriminator.num_layers=3",
        "training.steps=2",
        "training.checkpoint_every=2",
        "training.num_workers=0",
        "training.precision=fp32",
    ]


def test_train_warns_before_it_starts(
    unvalidated_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from featgan.config.loading import load_config
    from featgan.training.dry_run import describe_plan

    config = load_config("debug", [*config_overrides(unvalidated_shards), f"run_dir={tmp_path / 'run'}"])
    describe_plan(config)
    warning = f"warning: {unvalidated_shards}: no validation split, which `featgan evaluate` needs"
    assert capsys.readouterr().err.count(warning) == 1
    train(config)
    assert capsys.readouterr().err.count(warning) == 1


def test_train_suggests_a_command_that_works(
    unvalidated_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*config_overrides(unvalidated_shards), f"run_dir={tmp_path / 'run'}"]
    result = CliRunner().invoke(cli, ["train", "debug", *overrides], catch_exceptions=False)
    assert result.exit_code == 0
    assert f"next: featgan render {tmp_path / 'run'} --images DIR" in capsys.readouterr().err + result.output


def test_evaluate_and_render_say_what_is_missing(unvalidated_run: Path) -> None:
    for arguments in (["evaluate", str(unvalidated_run)], ["render", str(unvalidated_run)]):
        result = CliRunner().invoke(cli, arguments)
        assert isinstance(result.exception, UserError), result.output
        message = str(result.exception)
        assert "no validation split" in message and "--images" in message and "\n" not in message


def test_own_images_are_rendered_without_validation_images(unvalidated_run: Path, tmp_path: Path) -> None:
    make_images(tmp_path / "own", 2)
    (tmp_path / "own" / "0.png").rename(tmp_path / "own" / os.fsdecode(b"Andr\xe9\n.png"))
    result = CliRunner().invoke(
        cli, ["render", str(unvalidated_run), "--images", str(tmp_path / "own"), "--video", "none"]
    )
    assert result.exit_code == 0, result.exception
    assert "Andr\\udce9" in (unvalidated_run / "report-own.html").read_text()


def test_own_images_are_explored_without_validation_images(unvalidated_run: Path, tmp_path: Path) -> None:
    make_images(tmp_path / "own", 1)
    session = load_session([unvalidated_run])
    assert session.image_store.sample(4) == []
    assert session.accepts_uploads
    stored = session.image_store.add_upload((tmp_path / "own" / "0.png").read_bytes(), "own")
    assert session.first_run.prepare_image(stored).image.shape == (1, 3, 16, 16)

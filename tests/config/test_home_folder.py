"""Tests of `~` and `$HOME` in configuration files, overrides and path options, which no shell has replaced."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from featgan.blackbox.spec import parse_spec
from featgan.cli.main import cli
from featgan.config.loading import load_config
from featgan.system.user_paths import expand_path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("SCRATCH", str(folder / "scratch"))
    working_folder = tmp_path / "working"
    working_folder.mkdir()
    monkeypatch.chdir(working_folder)
    return folder


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("~", ""),
        ("~/a", "a"),
        ("$HOME/a", "a"),
        ("${HOME}/a b", "a b"),
        ("$SCRATCH/a", "scratch/a"),
    ],
)
def test_home_folder_and_variables_are_replaced(home: Path, text: str, expected: str) -> None:
    assert expand_path(text) == home / expected


@pytest.mark.parametrize("text", ["a~b", "./~", "$UNDEFINED_NAME/a", "a/~/b", "cost$"])
def test_other_paths_are_not_changed(home: Path, text: str) -> None:
    assert str(expand_path(text)) == str(Path(text))


def test_configuration_file_and_overrides(home: Path) -> None:
    (home / "tilde.yaml").write_text("run_dir: ~/runs/first\ndataset: {shards: ~/shards/drawn}\n")
    config = load_config("~/tilde.yaml")
    assert (config.run_dir, config.dataset.shards.path) == (home / "runs/first", home / "shards/drawn")
    config = load_config("debug", ["run_dir=~/runs/second", "dataset.shards=$SCRATCH/shards"])
    assert (config.run_dir, config.dataset.shards.path) == (home / "runs/second", home / "scratch/shards")


def test_path_options(home: Path) -> None:
    for name in ("cat", "dog"):
        (home / "faces" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (8, 8)).save(home / "faces" / name / f"{number}.png")
    arguments = ["pack", "folder", "~/faces", "--out=~/shards", "--image-size=8", "--workers=1"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.exception
    assert (home / "shards" / "manifest.json").is_file()
    assert not any(Path.cwd().iterdir())


def test_classifier(home: Path) -> None:
    (home / "classifier").mkdir()
    assert parse_spec("~/classifier").location == str(home / "classifier")
    assert parse_spec("torchvision:resnet18:~/weights.pth").weights == home / "weights.pth"

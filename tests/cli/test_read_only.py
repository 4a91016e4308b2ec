"""Every command with read-only folders, missing rights and overlong paths: one line, and exit code 2."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from featgan.blackbox.fitting.fit import fit_blackbox
from featgan.cli.main import main
from featgan.config.loading import to_yaml
from featgan.run.model_metadata import read_model_metadata
from featgan.training.train import train
from tests.conftest import World
from tests.helpers.mounts import featgan_command, read_only, run_with_mounts

RUN_COMMANDS = """
import json, sys
from featgan.cli.main import cli
for arguments in json.loads(sys.argv[1]):
    cli.main(arguments, standalone_mode=False)
"""

LONG_PATHS = {"file name": "n" * 300, "temporary name": "n" * 250, "path": "/".join(["n" * 200] * 25)}


@pytest.fixture(scope="module")
def workspace(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with shards, a classifier, a trained run and its configuration."""
    folder = tmp_path_factory.mktemp("workspace")
    shutil.copytree(world.shards.path, folder / "shards")
    fit_blackbox(folder / "shards", "expression", folder / "classifier", epochs=1, width=0.125)
    dataset = {"shards": str(folder / "shards")}
    config = world.make_config(folder / "run", dataset=dataset)
    train(config)
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "empty").mkdir()
    return folder


def command_line(world: World, workspace: Path, name: str, out: str) -> list[str]:
    """Return a command line of featgan that writes to `out`."""
    shards, config = workspace / "shards", workspace / "config.yaml"
    arguments: dict[str, list[object]] = {
        "synthesize": ["synthesize", out, "--num-images", 4],
        "pack": ["pack", "affectnet", world.source, "--out", out, "--image-size", 16, "--workers", 1],
        "fit": ["blackbox", "fit", "--shards", shards, "--out", out, "--epochs", 1],
        "train": ["train", config, f"run_dir={out}"],
        "demo": ["demo", "--run-dir", out],
        "evaluate": ["evaluate", out],
        "render": ["render", out],
        "explore": ["explore", out, "--port", 0],
        "info": ["info", out],
    }
    return featgan_command(*arguments[name])


def check_one_line(result: "subprocess.CompletedProcess[str]", expected: str) -> None:
    """Check that a command ended with one line that contains a text, after its progress."""
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("featgan: ")]
    assert len(lines) == 1 and expected in lines[0] and "; " in lines[0], result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["synthesize", "pack", "fit", "train", "demo"])
def test_read_only_output_is_one_line(world: World, workspace: Path, name: str) -> None:
    setup = read_only(workspace / "empty")
    command = command_line(world, workspace, name, str(workspace / "empty" / "out"))
    result = run_with_mounts(setup, command)
    check_one_line(result, "the file system is read-only; make")
    assert "training classifier" not in result.stderr, "checked before the work"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "evaluate", "render"])
def test_read_only_run_is_one_line(world: World, workspace: Path, name: str) -> None:
    command = command_line(world, workspace, name, str(workspace / "run"))
    result = run_with_mounts(read_only(workspace / "run"), command)
    check_one_line(result, "the file system is read-only; make")
    assert "editing" not in result.stderr and ".partial" not in result.stderr


@pytest.mark.slow
def test_read_only_run_can_be_read(workspace: Path) -> None:
    result = run_with_mounts(read_only(workspace / "run"), featgan_command("info", workspace / "run"))
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_read_only_shards_are_one_line(workspace: Path) -> None:
    command = featgan_command("extract", "--shards", workspace / "shards", "--blackbox", workspace / "classifier")
    result = run_with_mounts(read_only(workspace / "shards"), command)
    check_one_line(result, "the file system is read-only; make")


@pytest.mark.slow
def test_features_of_read_only_shards_are_in_another_folder(world: World, workspace: Path, tmp_path: Path) -> None:
    caches, run = tmp_path / "caches", tmp_path / "run"
    dataset = {"shards": str(workspace / "shards"), "feature_cache": str(caches / "own")}
    (tmp_path / "config.yaml").write_text(to_yaml(world.make_config(run, dataset=dataset)))
    extract = ["extract", "--shards", workspace / "shards", "--blackbox", workspace / "classifier", "--out"]
    commands = [
        [*extract, caches / "own"],
        ["train", tmp_path / "config.yaml"],
        ["evaluate", run, "--suite", "quick", "--max-pairs", "8"],
        ["render", run, "--video", "none", "--directions", "quantiles", "--num-images", "2"],
    ]
    setup = read_only(workspace / "shards")
    before = sorted((workspace / "shards").rglob("*"))
    lists = [[str(argument) for argument in command] for command in commands]
    result = run_with_mounts(setup, [sys.executable, "-c", RUN_COMMANDS, json.dumps(lists)])
    assert result.returncode == 0, result.stderr
    assert (run / "report.html").is_file()
    metadata = read_model_metadata(run / "checkpoints" / "step-00000004" / "model.json")
    assert metadata.dataset["features"] == str(caches / "own")
    assert sorted((workspace / "shards").rglob("*")) == before
    setup += f"\n{read_only(caches)}"
    check_one_line(run_with_mounts(setup, featgan_command(*extract, caches / "new")), "the file system is read-only")


@pytest.mark.slow
def test_watch_continues_after_a_read_only_run(workspace: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(workspace / "run", tmp_path / "runs" / name)
    command = [sys.executable, "-m", "launch", "watch", str(tmp_path / "runs"), "--once"]
    result = run_with_mounts(read_only(tmp_path / "runs" / "a"), command)
    assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr
    assert f"{tmp_path}/runs/a: skipped: " in result.stderr and "read-only" in result.stderr
    assert f"{tmp_path}/runs/b: evaluating step 4" in result.stderr
    assert (tmp_path / "runs" / "leaderboard.csv").is_file()


@pytest.mark.parametrize("kind", LONG_PATHS)
@pytest.mark.parametrize(
    "name", ["synthesize", "pack", "fit", "train", "demo", "evaluate", "render", "explore", "info"]
)
def test_overlong_path_is_one_line(
    world: World,
    workspace: Path,
    name: str,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if kind == "temporary name" and name in {"train", "demo"}:
        pytest.skip("a run folder has no temporary name")
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(sys, "argv", ["featgan", *command_line(world, workspace, name, LONG_PATHS[kind])[3:]])
    with pytest.raises(SystemExit) as exited:
        main()
    errors = capsys.readouterr().err
    check_one_line(subprocess.CompletedProcess([], int(str(exited.value.code)), "", errors), "nnn")
    assert "training classifier" not in errors, "checked before the work"

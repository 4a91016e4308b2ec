"""The command as a user meets it: order, help without torch, one line and exit code 2 for every mistake."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from featgan.cli.main import cli, explain, main
from featgan.errors import UserError
from featgan.run.paths import step_folder
from featgan.training.train import train
from tests.conftest import World


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """A new process, as from a shell, on a terminal 200 columns wide."""
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run([sys.executable, "-m", "featgan", *words], capture_output=True, text=True, env=environment)


def call(*words: str) -> str:
    """In this process; what was printed, all on standard output."""
    result = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_help_lists_the_commands_in_the_order_of_work() -> None:
    shown = call("--help")
    commands = ("synthesize", "pack", "blackbox", "extract", "train", "evaluate", "render", "info", "demo")
    places = [shown.index(f"\n  {name} ") for name in commands]
    assert places == sorted(places)


@pytest.mark.parametrize("name", ["synthesize", "pack", "blackbox", "extract", "train", "evaluate", "render", "info"])
def test_every_command_explains_itself(name: str) -> None:
    assert "Usage" in call(name, "--help")


MISTAKES = {
    "train no-such": "no such file, and no preset",
    "train debug generator.dimm=3": "did you mean 'generator.dim'",
    "train debug dataset.shards=none": "none: ",
    "evaluate none": "no such run folder",
    "render none": "no such run folder",
    "evaluate . --step soon": "a number or latest",
    "info .": "no shard folder, feature cache, box, run or checkpoint",
    "info none": "no such file or folder",
    "pack csv none --out out": "no such folder",
    "pack csv . --out out --option colour": "NAME=VALUE",
    "extract --shards none --blackbox x": "none: ",
    "extract --blackbox x": "name the shards",
    "blackbox fit --shards none --out out": "none: ",
}


@pytest.mark.parametrize(("words", "said"), MISTAKES.items())
def test_mistakes_end_with_one_line_and_code_two(
    words: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["featgan", *words.split()])
    with pytest.raises(SystemExit) as stopped:
        main()
    shown = capsys.readouterr()
    assert stopped.value.code == 2 and shown.out == ""
    assert shown.err.count("\n") == 1 and said in shown.err
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_in_a_new_process() -> None:
    done = run("train", "debug", "training.stepz=3")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "did you mean 'training.steps'" in done.stderr


def test_a_workers_error_is_one_line() -> None:
    error = UserError("Caught UserError in worker 0.\nTraceback:\n  x\nfeatgan.errors.UserError: shard a: cut off")
    assert explain(error) == "shard a: cut off"
    assert explain(OSError(28, "No space left on device", "runs/a")) is not None
    assert explain(NotADirectoryError(20, "Not a directory", "a/b")) == "a/b: not a directory; choose another place"
    assert explain(ZeroDivisionError()) is None


def test_dry_run_shows_sizes_and_makes_nothing(world: World, tmp_path: Path) -> None:
    words = [f"dataset.shards={world.shards.path}", "dataset.features=stand-in", f"run={tmp_path / 'run'}"]
    shown = call("train", "debug", *words, "--dry-run")
    assert "parameters" in shown and "54 of 16 px" in shown and "GiB" in shown
    assert not (tmp_path / "run").exists()


def test_info_tells_what_each_folder_is(world: World, tmp_path: Path) -> None:
    train(world.config(tmp_path / "run"))
    for path, said in (
        (world.shards.path, "images in"),
        (world.cache.path, "stand-in"),
        (tmp_path / "run", "4 of 4"),
        (step_folder(tmp_path / "run", 4), "every byte"),
    ):
        assert said in call("info", str(path))

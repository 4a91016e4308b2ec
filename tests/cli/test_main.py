"""The command line: order of the commands, help texts, and one line with exit code 2 for every user error."""

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from featgan.cli.info import list_names
from featgan.cli.main import LAYOUT_NAMES, cli, main
from featgan.config.choices import EXTERNAL_TASKS, FITTED_TASKS, SUITES, TASKS
from featgan.data.readers.registry import LAYOUT_READERS
from featgan.evaluation.evaluate import SUITE_SIZES
from featgan.run.paths import step_folder
from featgan.training.train import train
from launch.__main__ import cli as launch_cli
from scripts.generate_cli_docs import option_default
from tests.conftest import World, write_features


def run_process(*words: str) -> subprocess.CompletedProcess[str]:
    """Run featgan in a new process with a terminal width of 200 columns."""
    environment = {**os.environ, "COLUMNS": "200"}
    command = [sys.executable, "-m", "featgan", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def invoke_cli(*words: str) -> str:
    """Run featgan in this process and return its output."""
    result = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def list_commands(group: click.Group, path: str) -> list[tuple[str, click.Command]]:
    """Return every command of a group with its full name, subgroups included."""
    commands: list[tuple[str, click.Command]] = []
    for name, command in group.commands.items():
        commands.append((f"{path} {name}", command))
        if isinstance(command, click.Group):
            commands += list_commands(command, f"{path} {name}")
    return commands


COMMANDS = dict(list_commands(cli, "featgan") + list_commands(launch_cli, "launch"))


def test_help_lists_the_commands_in_the_order_of_work() -> None:
    output = invoke_cli("--help")
    commands = ("synthesize", "pack", "blackbox", "extract", "train", "evaluate", "render", "info", "demo")
    positions = [output.index(f"\n  {name} ") for name in commands]
    assert positions == sorted(positions)


@pytest.mark.parametrize("name", ["synthesize", "pack", "blackbox", "extract", "train", "evaluate", "render", "info"])
def test_every_command_has_a_help_page(name: str) -> None:
    assert "Usage" in invoke_cli(name, "--help")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_a_help_text(name: str) -> None:
    command = COMMANDS[name]
    assert command.help and command.help.splitlines()[0].endswith(".")
    for option in command.get_params(click.Context(command)):
        if isinstance(option, click.Option):
            assert option.help, f"{name} {option.opts[0]}"
            assert option.help[0].isupper() or option.help[0] == "`", f"{name} {option.opts[0]}: {option.help}"


def test_choices_of_the_command_line_are_complete() -> None:
    assert set(LAYOUT_NAMES) == {*LAYOUT_READERS, "webdataset"}
    assert set(SUITE_SIZES) == set(SUITES)
    assert set(TASKS) == {*FITTED_TASKS, *EXTERNAL_TASKS}


def test_default_of_zero_is_documented() -> None:
    option = next(option for option in COMMANDS["featgan synthesize"].params if option.name == "seed")
    assert isinstance(option, click.Option) and option_default(option) == "`0`"


@pytest.mark.parametrize("group", [cli, launch_cli], ids=["featgan", "launch"])
def test_list_of_commands_is_not_truncated(group: click.Group) -> None:
    output = CliRunner().invoke(group, ["--help"], terminal_width=80).output
    commands = output.partition("Commands:")[2].splitlines()
    assert len(commands) > 5 and not [line for line in commands if line.endswith("...")]


ERROR_MESSAGES = {
    "train no-such": "no such file, and no preset",
    "train debug generator.dimm=3": "did you mean 'generator.dim'",
    "train debug dataset.shards=none": "none: ",
    "evaluate none": "no such run folder",
    "render none": "no such run folder",
    "evaluate . --step soon": "give a number or latest",
    "info .": "not a shard folder, feature cache, classifier, run or checkpoint",
    "info none": "no such file or folder",
    "pack csv none --out out": "no such folder",
    "pack csv . --out out --layout-option color": "NAME=VALUE",
    "pack csv . --out out --layout-option crop=3": "--layout-option crop: not an option of layout csv",
    "pack csv . --out out --layout-option source=a": "--layout-option source: not an option of layout csv",
    "extract --shards none --blackbox x": "none: ",
    "extract --blackbox x": "name the folder with --shards",
    "extract --shards s --blackbox x --cache-name a/b": "is a path, not a name; give the folder with --out",
    "extract --shards s --blackbox x --cache-name a --out b": "has no effect with --out b",
    "extract --shards s --blackbox x --out https://a.org/b": "features cannot be written to a URL",
    "train debug dataset.feature_cache=https://you:secret@example.org/x": "contains a password",
    "train debug dataset={shards:https://example.org/x?key=secret}": "dataset.shards",
    "train debug dataset.stage=https://you:secret@example.org/x": "dataset.stage",
    "train debug dataset.shards=[https://you:secret@example.org/x]": "dataset.shards",
    "train debug dataset.url=https://you:secret@example.org/x": "unknown key",
    "train debug https://you:secret@example.org/x": "not an override",
    "blackbox fit --shards none --out out": "none: ",
}


@pytest.mark.parametrize(("words", "message"), ERROR_MESSAGES.items())
def test_user_errors_are_one_line_with_exit_code_2(
    words: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["featgan", *words.split()])
    with pytest.raises(SystemExit) as exited:
        main()
    output = capsys.readouterr()
    assert exited.value.code == 2 and output.out == ""
    assert output.err.count("\n") == 1 and message in output.err and "secret" not in output.err
    assert list(tmp_path.iterdir()) == []


def test_user_error_in_a_new_process() -> None:
    result = run_process("train", "debug", "training.stepz=3")
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.count("\n") == 1 and "did you mean 'training.steps'" in result.stderr


def test_closed_or_full_output_leaves_no_traceback() -> None:
    command = f"{sys.executable} -m featgan pack --help"
    closed = subprocess.run(
        ["bash", "-c", f"{command} | true; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True
    )
    assert closed.stderr == "" and closed.stdout.strip() in {"0", "1"}
    full = subprocess.run(["bash", "-c", f"{command} > /dev/full"], capture_output=True, text=True)
    assert full.returncode == 2 and "the disk is full" in full.stderr and full.stderr.count("\n") == 1


def test_dry_run_shows_sizes_and_writes_nothing(world: World, tmp_path: Path) -> None:
    words = [f"dataset.shards={world.shards.path}", f"run_dir={tmp_path / 'run'}"]
    words.append(f"dataset.feature_cache={world.cache.path.name}")
    output = invoke_cli("train", "debug", *words, "--dry-run")
    assert "parameters" in output and "54 of 16 px" in output and "GiB" in output
    assert not (tmp_path / "run").exists()


def test_info_shows_long_paths_in_full(tmp_path: Path) -> None:
    shards = tmp_path / ("long-folder-name-" * 8)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(f"dataset: {{shards: {shards}}}\n")
    output = CliRunner().invoke(cli, ["info", str(run)], env={"COLUMNS": "80"}).output
    assert "…" not in output and max(map(len, output.splitlines())) <= 80
    assert str(shards) in "".join(re.findall(r"│([^│]*)│$", output, re.M)).replace(" ", "")


def test_info_lists_the_first_of_many_names() -> None:
    assert list_names(["a", "b"]) == "a, b"
    text = list_names([f"class {number}" for number in range(1000)])
    assert text.startswith("class 0, class 1, ") and text.endswith("class 39 and 960 more")


def test_info_describes_each_kind_of_folder(world: World, tmp_path: Path) -> None:
    train(world.make_config(tmp_path / "run"))
    for path, text in (
        (world.shards.path, "images in"),
        (world.cache.path, world.cache.blackbox["spec"]),
        (tmp_path / "run", "4 of 4"),
        (step_folder(tmp_path / "run", 4), "all checksums match"),
    ):
        assert text in invoke_cli("info", str(path))


def test_info_describes_a_feature_cache_outside_the_shards(world: World, tmp_path: Path) -> None:
    cache = write_features(world.shards, world.classifier, str(tmp_path / "caches" / "mine"))
    train(world.make_config(tmp_path / "run", dataset={"feature_cache": str(cache.path)}))
    for path, text in (
        (cache.path, str(world.shards.path)),
        (tmp_path / "run", str(cache.path)),
        (step_folder(tmp_path / "run", 4), str(cache.path)),
    ):
        output = CliRunner().invoke(cli, ["info", str(path)], env={"COLUMNS": "400"}).output
        assert text in output, output
    file = cache.path / "train-00000.outputs.npy"
    file.write_bytes(file.read_bytes()[:-1])
    result = CliRunner().invoke(cli, ["info", str(cache.path)])
    assert "train-00000.outputs.npy: " in str(result.exception)


def test_only_rank_0_of_torchrun_renders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    run.mkdir()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    result = CliRunner().invoke(cli, ["render", str(run)])
    assert (result.exit_code, result.output) == (0, "")
    monkeypatch.setenv("RANK", "0")
    result = CliRunner().invoke(cli, ["render", str(run)])
    assert result.exit_code != 0 and list(run.iterdir()) == []

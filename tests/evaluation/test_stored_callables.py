"""A file that names Python code as a classifier does not run it, unless the user names it too or trusts it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from featgan.blackbox.loading import load_blackbox
from featgan.cli.click_helpers import run_command
from featgan.cli.main import cli as featgan
from featgan.config.loading import to_yaml
from featgan.config.trusted_callables import UntrustedCallableError, callable_name
from featgan.run.approved_callables import approved_callables, record_callables, record_path
from featgan.run.paths import checkpoint_steps, step_folder
from featgan.training.train import train
from launch.__main__ import cli as launch
from launch.watch_trust import find_untrusted, trust_own_run
from tests.conftest import World

CODE = """
from pathlib import Path
Path(__file__).with_name("imported").touch()

def make():
    return lambda images: (images.mean((2, 3)), images.flatten(1)[:, :8])

def make_other():
    return lambda images: (images.mean((2, 3)), images.flatten(1)[:, 8:16])
"""
SPEC = "stored_code:make"


@pytest.fixture(scope="module")
def original(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose feature cache was extracted with the callable, by its name on the command line."""
    folder = tmp_path_factory.mktemp("original")
    (folder / "stored_code.py").write_text(CODE)
    arguments = ["--shards", str(world.shards.path), "--blackbox", f"{SPEC}?task=expression", "--cache-name", "stored"]
    result = start_featgan(folder, "extract", *arguments)
    assert result.returncode == 0, result.stderr
    train(world.make_config(folder / "run", dataset={"feature_cache": "stored"}, training={"num_workers": 0}))
    (folder / "imported").unlink()
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run and the code; the folder is the working directory, and its record of callables is its own."""
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


@pytest.fixture
def run(folder: Path) -> Path:
    return folder / "run"


def start_featgan(folder: Path, *arguments: str, module: str = "featgan") -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, in the folder that contains the code."""
    command = [sys.executable, "-m", module, *arguments]
    environment = os.environ | {"XDG_STATE_HOME": str(folder / "state")}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def read_refusal(capsys: pytest.CaptureFixture[str], *arguments: str, command: click.Command = featgan) -> str:
    """Run a command that must fail before it imports the code; return its message, which is one line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run_command(command, "featgan", list(arguments))
    message = capsys.readouterr().err.strip()
    assert caught.value.code == 2, message
    assert len(message.splitlines()) == 1 and "--trust-callables" in message, message
    assert not Path("imported").exists()
    return message


def change_run(run: Path, **values: Any) -> None:
    """Set keys of the section `evaluation` in config.yaml."""
    content = yaml.safe_load((run / "config.yaml").read_text())
    content["evaluation"] |= values
    (run / "config.yaml").write_text(yaml.safe_dump(content))


def change_model(run: Path, values: Mapping[str, str]) -> None:
    """Change the classifier's identity in model.json."""
    path = step_folder(run, max(checkpoint_steps(run))) / "model.json"
    content = json.loads(path.read_text())
    content["blackbox"] |= values
    path.write_text(json.dumps(content))
    manifest = path.with_name("manifest.json")
    entries = json.loads(manifest.read_text())
    if "files" in entries:
        entries["files"].pop("model.json", None)
        manifest.write_text(json.dumps(entries))


@pytest.mark.parametrize("command", [("evaluate",), ("render",), ("explore", "--port", "0")])
def test_model_json_does_not_run_code(run: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]) -> None:
    message = read_refusal(capsys, *command, "run")
    assert f"names the Python code {SPEC}" in message and f"--blackbox {SPEC}" in message


def test_code_runs_if_the_user_names_or_trusts_it(run: Path, folder: Path) -> None:
    evaluate = ("evaluate", "run", "--suite", "quick", "--max-pairs", "4")
    result = start_featgan(folder, *evaluate, "--trust-callables")
    assert result.returncode == 0 and (folder / "imported").exists(), result.stderr
    result = start_featgan(folder, *evaluate, "--blackbox", f"{SPEC}?task=expression")
    assert result.returncode == 0, result.stderr
    result = start_featgan(folder, *evaluate, "--blackbox", "stored_code:make_other")
    assert result.returncode == 2 and "not the classifier that the features were extracted with" in result.stderr
    options = ("--video", "none", "--num-images", "1", "--blackbox", f"{SPEC}?task=expression")
    result = start_featgan(folder, "render", "run", *options)
    assert result.returncode == 0 and "no predictions" not in result.stderr, result.stderr


def test_os_abort_in_model_json_does_not_end_the_process(run: Path, folder: Path) -> None:
    change_model(run, {"spec": "os:abort"})
    result = start_featgan(folder, "evaluate", "run")
    assert result.returncode == 2 and "os:abort" in result.stderr


@pytest.mark.parametrize(
    ("name", "value", "option"),
    [
        ("second_classifier", SPEC, "--second-classifier"),
        ("factor_probe", SPEC, "--factor-probe"),
        ("classifiers", [SPEC], "--blackbox"),
    ],
)
def test_config_of_a_run_does_not_run_code(
    run: Path, capsys: pytest.CaptureFixture[str], name: str, value: object, option: str
) -> None:
    change_run(run, **{name: value})
    message = read_refusal(capsys, "evaluate", "run")
    assert f"config.yaml: evaluation.{name}: names the Python code {SPEC}" in message and f"{option} {SPEC}" in message


@pytest.mark.parametrize("command", ["evaluate", "render"])
def test_submission_of_an_evaluation_reports_stored_code(
    run: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert "--blackbox" in read_refusal(capsys, command, "run", "--dry-run", "--cluster", "local", command=launch)


def test_pipeline_trusts_what_its_user_submits_and_extracted(
    world: World, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = world.make_config(folder / "new", dataset={"feature_cache": "stored"})
    (folder / "config.yaml").write_text(to_yaml(config))
    pipeline = ("pipeline", "config.yaml", "--dry-run", f"evaluation.second_classifier={SPEC}")
    capsys.readouterr()
    launch.main(list(pipeline), standalone_mode=False)
    assert capsys.readouterr().out.count("#!/bin/bash") == 3
    (folder / "state" / "featgan" / "callables.jsonl").unlink()
    assert f"--blackbox {SPEC}" in read_refusal(capsys, "pipeline", "config.yaml", "--dry-run", command=launch)
    for option in (["--blackbox", SPEC], ["--trust-callables"]):
        launch.main(["pipeline", "config.yaml", "--dry-run", *option], standalone_mode=False)
    assert not (folder / "imported").exists()


def test_pipeline_trusts_what_its_user_extracted_to_another_folder(
    world: World, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(world.shards.path / "features" / "stored", folder / "cache")
    config = world.make_config(folder / "new", dataset={"feature_cache": "./cache"})
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "state" / "featgan" / "callables.jsonl").unlink()
    assert f"--blackbox {SPEC}" in read_refusal(capsys, "pipeline", "config.yaml", "--dry-run", command=launch)
    arguments = ["--shards", str(world.shards.path), "--blackbox", f"{SPEC}?task=expression", "--out", "cache"]
    result = start_featgan(folder, "extract", *arguments)
    assert result.returncode == 0 and "already extracted" in result.stderr, result.stderr
    assert approved_callables(world.shards.path) == frozenset()
    capsys.readouterr()
    launch.main(["pipeline", "config.yaml", "--dry-run"], standalone_mode=False)
    assert capsys.readouterr().out.count("#!/bin/bash") == 3


def test_watch_runs_only_code_that_its_user_named(run: Path, folder: Path) -> None:
    change_run(run, every=2, suite="quick")
    watch = ("watch", ".", "--once", "--max-evaluations", "1")
    record = folder / "state" / "featgan" / "callables.jsonl"
    assert record.stat().st_mode & 0o777 == 0o600
    record.rename(folder / "record")
    result = start_featgan(folder, *watch, module="launch")
    assert "--trust-callables" in result.stderr and not (folder / "imported").exists()
    assert not list(run.glob("evaluations/*.failed")), "the checkpoint is not counted as failed"
    (folder / "record").rename(record)
    result = start_featgan(folder, *watch, module="launch")
    assert result.returncode == 0 and (folder / "imported").exists(), result.stderr
    assert list(run.glob("evaluations/*.json")), result.stderr
    change_run(run, second_classifier="os:abort")
    result = start_featgan(folder, *watch, module="launch")
    assert "os:abort" in result.stderr and "--trust-callables" in result.stderr


def test_record_of_callables_is_per_folder_and_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    record_callables(tmp_path / "a", ["code:make"])
    assert approved_callables(tmp_path / "a") == {"code:make"}
    assert approved_callables(tmp_path / "b") == frozenset()
    with record_path().open("a") as file:
        file.write("[1]\n" + "[" * 5000 + "\n")
    record_path().write_bytes(record_path().read_bytes() + b"\xff\n")
    record_callables(tmp_path / "b", ["code:other"])
    assert approved_callables(tmp_path / "b") == {"code:other"}
    record_path().chmod(0o620)
    assert approved_callables(tmp_path / "a") == frozenset()


@pytest.mark.skipif(os.geteuid() != 0, reason="changing the owner of a file requires root")
def test_run_of_another_user_is_never_trusted(run: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    from featgan.run.paths import load_run_config

    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    config, step = load_run_config(run), max(checkpoint_steps(run))
    assert find_untrusted(run, step, trust_own_run(run, step, config, trusts_all=True)) is None
    os.chown(step_folder(run, step) / "model.json", 12345, -1)
    assert "names the Python code" in (find_untrusted(run, step, trust_own_run(run, step, config, True)) or "")


def test_load_blackbox_imports_no_code_by_default(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(UntrustedCallableError, match="--trust-callables"):
        load_blackbox(SPEC)
    assert not (folder / "imported").exists()


def test_callable_name_ignores_other_specs() -> None:
    assert callable_name("a.b:c?task=other") == "a.b:c"
    for spec in ("torchvision:resnet18", "timm:resnet18", "model.onnx", "folder/x", ""):
        assert callable_name(spec) is None

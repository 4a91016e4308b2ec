"""Training while its files are removed, cannot be written or belong to another process."""

import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from featgan.config.loading import to_yaml
from featgan.config.schema import Config
from featgan.errors import UserError
from featgan.run.paths import TRAINING_LOCK, checkpoint_steps, load_run_config
from featgan.system.file_lease import FileLease, LeaseOwner, serialize_owner
from featgan.training.logger import TrainingLogger
from featgan.training.train import train
from tests.conftest import World, read_checkpoint_tensors
from tests.helpers.mounts import featgan_command, run_with_mounts


def call_after_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], object]) -> None:
    """Call a function when a step is complete, before anything of it is written."""
    count_step, steps = TrainingLogger.on_step_end, iter(range(1, 1000))

    def on_step_end(self: TrainingLogger) -> None:
        count_step(self)
        if next(steps) == step:
            action()

    monkeypatch.setattr(TrainingLogger, "on_step_end", on_step_end)


@pytest.fixture
def config(world: World, tmp_path: Path) -> Config:
    return world.make_config(tmp_path / "run")


def logged_steps(config: Config) -> list[int]:
    """Return the steps in metrics.jsonl."""
    return [json.loads(line)["step"] for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]


def test_removed_run_folder_is_written_again(
    world: World, config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call_after_step(monkeypatch, 3, lambda: shutil.rmtree(config.run_dir))
    train(config)
    assert checkpoint_steps(config.run_dir) == [4] and logged_steps(config) == [3, 4]
    assert load_run_config(config.run_dir) == config and any((config.run_dir / "tensorboard").glob("events.*"))
    assert not (config.run_dir / TRAINING_LOCK).exists()
    errors = capsys.readouterr().err
    assert f"{config.run_dir}: files were removed during training" in errors and "Traceback" not in errors
    monkeypatch.undo()
    train(reference := world.make_config(config.run_dir.with_name("reference")))
    for name, value in read_checkpoint_tensors(reference.run_dir, 4, "generator_ema").items():
        assert np.array_equal(read_checkpoint_tensors(config.run_dir, 4, "generator_ema")[name], value)


def test_removed_tensorboard_folder_is_written_again(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call_after_step(monkeypatch, 2, lambda: shutil.rmtree(config.run_dir / "tensorboard"))
    train(config)
    assert checkpoint_steps(config.run_dir) == [2, 4] and logged_steps(config) == [1, 2, 3, 4]
    assert any((config.run_dir / "tensorboard").glob("events.*"))
    assert capsys.readouterr().err.count("tensorboard: was removed; writing a new one") == 1


def test_error_of_the_tensorboard_writer_names_its_folder(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SummaryWriter, "add_scalar", fail)
    with pytest.raises(OSError) as failure:
        train(config)
    assert failure.value.filename == str(config.run_dir / "tensorboard")


def test_run_that_another_process_has_taken_over_is_left_to_it(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(LeaseOwner.current_process(), token="other")

    def take_over() -> None:
        shutil.rmtree(config.run_dir)
        config.run_dir.mkdir()
        assert FileLease(config.run_dir / TRAINING_LOCK).acquire(other)

    call_after_step(monkeypatch, 3, take_over)
    with pytest.raises(
        UserError, match="was removed during training and is now trained by process .*this process stops"
    ):
        train(config)
    assert [path.name for path in config.run_dir.iterdir()] == [TRAINING_LOCK]
    assert (config.run_dir / TRAINING_LOCK).read_bytes() == serialize_owner(other)


def test_file_in_place_of_the_checkpoints_is_one_line(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    call_after_step(monkeypatch, 1, lambda: (config.run_dir / "checkpoints").write_text(""))
    with pytest.raises(UserError, match="step-00000002: cannot be written: "):
        train(config)


@pytest.mark.slow
@pytest.mark.parametrize("becomes_read_only", [False, True])
def test_read_only_or_full_file_system_is_one_line(world: World, tmp_path: Path, becomes_read_only: bool) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    config = world.make_config(disk / "run", training={"steps": 100_000, "checkpoint_every": 10, "log_every": 10})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    make_unusable = "mount -o remount,ro" if becomes_read_only else "dd if=/dev/zero bs=64k of=$disk/fill; : "
    setup = (
        f"disk='{disk}'; mount -t tmpfs -o size=64m tmpfs $disk\n"
        f"( until [ -d $disk/run/checkpoints/step-00000010 ]; do sleep 0.1; done; "
        f"until {make_unusable} $disk; do sleep 0.01; done ) > /dev/null 2>&1 &"
    )
    result = run_with_mounts(setup, featgan_command("train", tmp_path / "config.yaml"))
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    last_line = result.stderr.strip().splitlines()[-1]
    assert last_line.startswith(f"featgan: {disk}") and ("read-only" in last_line or "disk is full" in last_line)

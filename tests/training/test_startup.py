"""Starting a run: the training lock, resetting the optimizer, restarts, hangs, and the first log line."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from featgan.config.loading import to_yaml
from featgan.errors import TrainingInterrupted, UserError
from featgan.networks import winograd
from featgan.run.paths import TRAINING_LOCK, step_folder
from featgan.system.file_lease import FileLease, LeaseOwner, serialize_owner
from featgan.system.files import sha256_of
from featgan.training.train import train
from tests.conftest import World, read_checkpoint_tensors
from tests.distributed.test_distributed import StopSignalAfter


def test_run_is_trained_by_one_process_at_a_time(world: World, tmp_path: Path) -> None:
    config = world.make_config(tmp_path / "run")
    config.run_dir.mkdir()
    other, lease = LeaseOwner.current_process(), FileLease(config.run_dir / TRAINING_LOCK)
    assert lease.acquire(other)
    with pytest.raises(UserError, match=f"is already being trained by process {os.getpid()} on "):
        train(config)
    assert lease.live_owner() == other and [path.name for path in config.run_dir.iterdir()] == [TRAINING_LOCK]
    lease.path.write_bytes(serialize_owner(replace(other, started="1")))  # a killed process
    train(config)
    assert not lease.path.exists()


@pytest.mark.slow
def test_training_process_holds_the_lock_until_it_ends(world: World, tmp_path: Path) -> None:
    config = world.make_config(tmp_path / "run", training={"steps": 100_000, "log_every": 1})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    command = [sys.executable, "-m", "featgan", "train", str(tmp_path / "config.yaml")]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not (config.run_dir / "metrics.jsonl").exists():
        assert first.poll() is None
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and f"process {first.pid} on" in result.stderr and result.stderr.count("\n") == 1
    first.kill()
    first.wait()
    assert (config.run_dir / TRAINING_LOCK).exists()
    with pytest.raises(TrainingInterrupted):
        train(config, stop_signal=StopSignalAfter(1))
    assert not (config.run_dir / TRAINING_LOCK).exists()


@pytest.mark.slow
def test_wait_for_an_unreadable_lock_ends_with_a_stop_signal(world: World, tmp_path: Path) -> None:
    config = world.make_config(tmp_path / "run")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    config.run_dir.mkdir()
    (config.run_dir / TRAINING_LOCK).touch()
    command = [sys.executable, "-m", "featgan", "train", str(tmp_path / "config.yaml")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            os.utime(config.run_dir / TRAINING_LOCK)  # an empty file that is always new: still in creation
            if handles_signal(process.pid, signal.SIGTERM):
                process.terminate()
            time.sleep(0.05)
        assert process.poll() == 128 + signal.SIGTERM
        last_line = process.stderr.read().splitlines()[-1] if process.stderr else ""
    assert last_line == f"featgan: {config.run_dir}: stopped before the first step; run the same command again"


def handles_signal(pid: int, signal_number: int) -> bool:
    """Return whether a process has a handler for a signal."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    mask = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
    return bool(mask >> (signal_number - 1) & 1)


def test_wait_for_an_unreadable_lock_is_bounded(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = world.make_config(tmp_path / "run")
    config.run_dir.mkdir()
    (config.run_dir / TRAINING_LOCK).touch()
    monkeypatch.setattr("featgan.training.startup.JOB_END_TIMEOUT", 0)
    with pytest.raises(UserError, match=f"{TRAINING_LOCK}: names no owner; remove it if no process or job trains"):
        train(config)


def test_empty_lock_with_a_future_time_is_replaced(world: World, tmp_path: Path) -> None:
    config = world.make_config(tmp_path / "run")
    config.run_dir.mkdir()
    (config.run_dir / TRAINING_LOCK).touch()
    os.utime(config.run_dir / TRAINING_LOCK, (4e9, 4e9))
    train(config)
    assert step_folder(config.run_dir, 4).is_dir()


def test_optimizer_is_reset_once_and_not_at_every_restart(world: World, tmp_path: Path) -> None:
    train(world.make_config(tmp_path / "first"))
    origin = step_folder(tmp_path / "first", 4)
    uninterrupted, restarted, without_reset = (
        world.make_config(tmp_path / name, training={"steps": 8, "checkpoint_every": 8})
        for name in ("uninterrupted", "restarted", "without_reset")
    )
    train(uninterrupted, origin, reset_optimizer=True)
    with pytest.raises(TrainingInterrupted):
        train(restarted, origin, StopSignalAfter(2), reset_optimizer=True)
    train(restarted, origin, reset_optimizer=True)  # as in a requeued job
    train(without_reset, origin)
    for name in ("generator_ema", "discriminator", "optimizer-generator", "optimizer-discriminator"):
        one, two = (read_checkpoint_tensors(config.run_dir, 8, name) for config in (uninterrupted, restarted))
        assert all(np.array_equal(one[key], two[key]) for key in one), name
    step_counts = [
        read_checkpoint_tensors(config.run_dir, 8, "optimizer-discriminator")["0.step"]
        for config in (uninterrupted, without_reset)
    ]
    assert step_counts == [4, 8]


@pytest.mark.parametrize(
    ("key", "new_key", "message"),
    [
        ("1.exp_avg", "x", "1.exp_avg is missing"),
        ("1.exp_avg", "1.exp_avg.x", "1.exp_avg is missing"),
        ("", "900.step", "'900.step' does not belong to a parameter"),
        ("", "1.exp_avg", r"1.exp_avg is torch.float32 \[5\], but real values"),
    ],
)
def test_optimizer_state_that_does_not_fit_is_a_user_error(
    world: World, tmp_path: Path, key: str, new_key: str, message: str
) -> None:
    config = world.make_config(tmp_path / "run")
    train(config)
    path = step_folder(config.run_dir, 4) / "optimizer-generator.safetensors"
    tensors = load_file(path)
    tensors[new_key] = tensors.pop(key) if key else torch.ones(5)
    save_file(tensors, path)
    entry = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    manifest = path.with_name("manifest.json")
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "files": {**content["files"], path.name: entry}}))
    with pytest.raises(UserError, match=f"optimizer-generator.safetensors: does not fit the optimizer .{message}"):
        train(config)


def test_resetting_the_optimizer_requires_a_checkpoint(world: World, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--reset-optimizer requires --init-from; "):
        train(world.make_config(tmp_path / "run"), reset_optimizer=True)
    assert not (tmp_path / "run").exists()


HANG_PROGRAM = """
import sys, time
import featgan.training.train
from featgan.config.loading import load_config

featgan.training.train.resume_or_start = lambda *arguments: time.sleep(600)
featgan.training.train.train(load_config(sys.argv[1]))
"""


@pytest.mark.slow
def test_hang_before_the_first_step_prints_the_stacks(world: World, tmp_path: Path) -> None:
    config = world.make_config(tmp_path / "run", distributed={"hang_timeout": 6})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    command = [sys.executable, "-c", HANG_PROGRAM, str(tmp_path / "config.yaml")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1 and "Timeout (0:00:06)!" in result.stderr and "<lambda>" in result.stderr
    assert json.loads((config.run_dir / TRAINING_LOCK).read_text())["pid"], "the next start replaces the stale lock"


def test_first_line_lists_the_optimizations_in_use(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def first_line(distributed: Mapping[str, object] | None = None, **training: object) -> str:
        run = tmp_path / str(len(list(tmp_path.iterdir())))
        train(world.make_config(run, training=training, distributed=distributed or {}))
        return " ".join(capsys.readouterr().err.split())

    fp32 = first_line(steps=2)
    assert "on cpu in fp32" in fp32 and "Winograd" not in fp32 and "cached" not in fp32
    memory_savings = {"gradient_accumulation_steps": 2, "activation_checkpointing": True}
    assert "on cpu in fp32; 2 gradient accumulation steps; activation checkpointing" in first_line(
        steps=2, distributed=memory_savings
    )
    monkeypatch.setattr(winograd, "MIN_TILES", 1)
    monkeypatch.setattr(winograd, "MIN_CHANNELS", 1)
    line = first_line(steps=20, checkpoint_every=20)
    assert "; Winograd convolutions; decoded images cached in memory" in line
    bf16 = first_line(steps=2, precision="bf16")
    assert "on cpu in bf16 (losses and penalties in fp32)" in bf16 and "Winograd" not in bf16

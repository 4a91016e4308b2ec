"""How a run begins: alone in its folder, with or without moments, and as before when it is started again."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from featgan.config.loading import to_yaml
from featgan.errors import Stopped, UserError
from featgan.networks import winograd
from featgan.run.paths import LOCK, step_folder
from featgan.system.file_lease import Hold, Holder, compose
from featgan.training.train import train
from tests.conftest import World, tensors_of
from tests.distributed.test_distributed import StopAfter


def test_a_run_is_trained_by_one_at_a_time(world: World, tmp_path: Path) -> None:
    config = world.config(tmp_path / "run")
    config.run.mkdir()
    other, hold = Holder.here(), Hold(config.run / LOCK)
    assert hold.take(other)
    with pytest.raises(UserError, match=f"process {os.getpid()} on .* trains it already"):
        train(config)
    assert hold.living() == other and [path.name for path in config.run.iterdir()] == [LOCK]
    hold.path.write_bytes(compose(replace(other, started="1")))  # killed
    train(config)
    assert not hold.path.exists()


@pytest.mark.slow
def test_a_training_by_hand_keeps_others_away_while_it_lasts(world: World, tmp_path: Path) -> None:
    config = world.config(tmp_path / "run", training={"steps": 100_000, "report_every": 1})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    command = [sys.executable, "-m", "featgan", "train", str(tmp_path / "config.yaml")]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not (config.run / "metrics.jsonl").exists():
        assert first.poll() is None
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 2 and f"process {first.pid} on" in found.stderr and found.stderr.count("\n") == 1
    first.kill()
    first.wait()
    assert (config.run / LOCK).exists()
    with pytest.raises(Stopped):
        train(config, request=StopAfter(1))
    assert not (config.run / LOCK).exists()


def test_moments_are_fresh_once_and_not_at_every_restart(world: World, tmp_path: Path) -> None:
    train(world.config(tmp_path / "first"))
    origin = step_folder(tmp_path / "first", 4)
    whole, parts, usual = (
        world.config(tmp_path / name, training={"steps": 8, "save_every": 8}) for name in ("whole", "parts", "usual")
    )
    train(whole, origin, fresh_optimizer=True)
    with pytest.raises(Stopped):
        train(parts, origin, StopAfter(2), fresh_optimizer=True)
    train(parts, origin, fresh_optimizer=True)  # as a job that is queued again
    train(usual, origin)
    for name in ("average", "discriminator", "optimizer-generator", "optimizer-discriminator"):
        one, two = tensors_of(whole.run, 8, name), tensors_of(parts.run, 8, name)
        assert all(np.array_equal(one[key], two[key]) for key in one), name
    fresh, kept = (tensors_of(run, 8, "optimizer-discriminator")["0.step"] for run in (whole.run, usual.run))
    assert (fresh, kept) == (4, 8)


def test_fresh_moments_need_a_checkpoint_to_begin_from(world: World, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--fresh-optimizer is for the checkpoint that --resume-from names"):
        train(world.config(tmp_path / "run"), fresh_optimizer=True)
    assert not (tmp_path / "run").exists()


HANG = """
import sys, time
import featgan.training.train
from featgan.config.loading import load_config

featgan.training.train.begin = lambda *arguments: time.sleep(600)
featgan.training.train.train(load_config(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_hang_before_the_first_step_shows_its_stacks_too(world: World, tmp_path: Path) -> None:
    config = world.config(tmp_path / "run", distribution={"hang_timeout": 6})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    command = [sys.executable, "-c", HANG, str(tmp_path / "config.yaml")]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert found.returncode == 1 and "Timeout (0:00:06)!" in found.stderr and "<lambda>" in found.stderr
    assert json.loads((config.run / LOCK).read_text())["pid"], "the next start takes it over"


def test_the_first_line_tells_in_which_ways_is_trained(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def first_line(distribution: dict[str, object] | None = None, **training: object) -> str:
        run = tmp_path / str(len(list(tmp_path.iterdir())))
        train(world.config(run, training=training, distribution=distribution or {}))
        return " ".join(capsys.readouterr().err.split())

    short = first_line(steps=2)
    assert "on cpu in fp32" in short and "tiles" not in short and "kept" not in short
    parts = first_line(steps=2, distribution={"accumulation": 2, "recompute": True})
    assert "on cpu in fp32; batches in 2 parts; G's activations made again" in parts
    monkeypatch.setattr(winograd, "FEWEST_TILES", 1)
    monkeypatch.setattr(winograd, "FEWEST_CHANNELS", 1)
    assert "; residual blocks by tiles; images kept decoded" in first_line(steps=20, save_every=20)
    half = first_line(steps=2, precision="bf16")
    assert "on cpu in bf16, penalties' norms and losses in fp32" in half and "tiles" not in half

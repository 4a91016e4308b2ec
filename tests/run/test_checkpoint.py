"""Checkpoints, the exported model, the EMA and the metrics log: atomic, verified, never unpickled."""

import contextlib
import json
import os
import pickle
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tensorboard.summary.writer.record_writer import RecordWriter

from featgan.errors import UserError
from featgan.inference.model import load_model
from featgan.networks.ema import EMA
from featgan.run import checkpoint, metrics_log
from featgan.run.checkpoint import (
    find_corruption,
    newest_checkpoint,
    read_tensors,
    remove_old_checkpoints,
    save_checkpoint,
)
from featgan.run.metrics_log import MetricsLog, append_metrics_line
from featgan.run.paths import checkpoint_steps, step_folder
from featgan.system.files import sha256_of
from featgan.training.train import train
from tests.conftest import World


def save_step(run: Path, step: int, max_checkpoints: int = 9) -> Path:
    """Save a checkpoint with one tensor."""
    return save_checkpoint(
        run, step, {"weights": {"a": torch.full((3,), float(step))}}, {"state": {"step": step}}, max_checkpoints
    )


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in range(1, 6):
        save_step(tmp_path, step, 2)
    assert checkpoint_steps(tmp_path) == [4, 5]


def test_crash_while_saving_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_step(tmp_path, 1)

    def crash(source: object, target: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "sha256_of", lambda path: crash(path, path))
        with pytest.raises(KeyboardInterrupt):
            save_step(tmp_path, 2)
    assert checkpoint_steps(tmp_path) == [1] and newest_checkpoint(tmp_path) == step_folder(tmp_path, 1)
    save_step(tmp_path, 2)
    assert checkpoint_steps(tmp_path) == [1, 2]


def kill_during(monkeypatch: pytest.MonkeyPatch, module: object, name: str) -> None:
    """Make a function raise KeyboardInterrupt after it has removed one file of the folder."""

    def remove_one_file(folder: Path, ignore_errors: bool = False) -> None:
        if folder.is_dir():
            sorted(folder.iterdir())[0].unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(module, name, remove_one_file)


def test_interrupted_removal_leaves_no_incomplete_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_step(tmp_path, 1, 1)
    with monkeypatch.context() as patch:
        kill_during(patch, shutil, "rmtree")
        with pytest.raises(KeyboardInterrupt):
            save_step(tmp_path, 2, 1)
    assert not step_folder(tmp_path, 1).exists()
    remove_old_checkpoints(tmp_path, 2, 1)
    assert list((tmp_path / "checkpoints").iterdir()) == [step_folder(tmp_path, 2)]


def test_finished_run_removes_the_checkpoints_that_a_killed_process_has_kept(world: World, tmp_path: Path) -> None:
    config = world.make_config(tmp_path / "run", training={"checkpoint_every": 1, "max_checkpoints": 2})
    train(config)
    first_step, last_step = checkpoint_steps(config.run_dir)[0], config.training.steps
    shutil.copytree(step_folder(config.run_dir, last_step), step_folder(config.run_dir, first_step - 1))
    shutil.copytree(step_folder(config.run_dir, last_step), tmp_path / "run/checkpoints/.step-00000001.former.partial")
    train(config)
    assert sorted((config.run_dir / "checkpoints").iterdir()) == [
        step_folder(config.run_dir, step) for step in (first_step, last_step)
    ]


@pytest.mark.parametrize("corruption", ["truncate", "flip", "remove", "manifest"])
def test_corruption_is_detected_and_skipped(tmp_path: Path, corruption: str) -> None:
    save_step(tmp_path, 1)
    folder = save_step(tmp_path, 2)
    path = folder / ("manifest.json" if corruption == "manifest" else "weights.safetensors")
    content = path.read_bytes()
    if corruption == "remove":
        path.unlink()
    elif corruption == "flip":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        path.write_bytes(content[:-5])
    assert find_corruption(folder)
    assert newest_checkpoint(tmp_path) == step_folder(tmp_path, 1)


@pytest.mark.parametrize("name", ["generator_ema", "space"])
def test_values_that_are_not_finite_are_a_user_error(world: World, tmp_path: Path, name: str) -> None:
    train(world.make_config(tmp_path / "run"))
    path = step_folder(tmp_path / "run", 4) / f"{name}.safetensors"
    tensors = load_file(path)
    key = next(key for key, value in tensors.items() if value.is_floating_point())
    tensors[key][0] = torch.nan
    save_file(tensors, path)
    with pytest.raises(UserError, match=rf"{name}.safetensors: cannot be read as safetensors .'{key}' contains NaN"):
        read_tensors(path)


def test_full_disk_is_a_user_error_and_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_to_write(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint, "atomic_write", fail_to_write)
    with pytest.raises(UserError, match=r"the disk is full; free some space"):
        save_step(tmp_path, 1)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_pickle_in_a_checkpoint_is_never_loaded(world: World, tmp_path: Path) -> None:
    class MaliciousObject:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "executed"),)

    run = tmp_path / "run"
    train(world.make_config(run))
    folder = step_folder(run, 4)
    path = folder / "generator_ema.safetensors"
    path.write_bytes(pickle.dumps(MaliciousObject()))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        load_model(run, 4)
    assert not (tmp_path / "executed").exists()


def test_exported_model_is_the_ema(world: World, tmp_path: Path) -> None:
    train(world.make_config(tmp_path / "run", training={"ema_half_life_images": 50}))
    model = load_model(tmp_path / "run")
    assert model.space is not None and model.metadata.step == 4 and model.metadata.condition_kind == "features"
    torch.testing.assert_close(model.space.mean, world.cache.space.mean)
    features = torch.from_numpy(world.cache.features("validation", [0, 1]))
    edited = model.edit_images(torch.zeros(2, 3, 16, 16), model.encode(features))
    assert edited.shape == (2, 3, 16, 16) and edited.abs().max() <= 1
    with pytest.raises(UserError, match=r"no such checkpoint; the run has checkpoints of steps: 2, 4"):
        load_model(tmp_path / "run", 3)


def test_ema_has_its_half_life() -> None:
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(network.weight)
    ema = EMA(network, 100)
    torch.nn.init.ones_(network.weight)
    ema.update(network, 10_000, 100)
    assert ema.module.get_parameter("weight").item() == pytest.approx(0.5)
    ema.update(network, 1000, 50)  # at the start, the half-life is a twentieth of the images seen
    assert ema.module.get_parameter("weight").item() == pytest.approx(0.75)


def test_tensorboard_write_error_is_raised_at_the_next_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_to_write(*data: bytes) -> None:
        raise OSError(28, "No space left on device")

    exceptions: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", exceptions.append)
    metrics_log = MetricsLog(tmp_path, 0)
    monkeypatch.setattr(RecordWriter, "write", fail_to_write)
    with pytest.raises(OSError, match="No space left"):
        for step in range(1, 1000):
            metrics_log.write_scalars(step, {"loss": 1.0})
    assert not exceptions  # the writer thread prints no traceback
    other = threading.Thread(target=fail_to_write)
    other.start()
    other.join()
    assert [exception.thread for exception in exceptions] == [other]
    with contextlib.suppress(OSError):
        metrics_log.close()
    assert threading.excepthook == exceptions.append


def test_metrics_log_drops_lines_after_the_checkpoint(tmp_path: Path) -> None:
    metrics_log = MetricsLog(tmp_path, 0)
    for step in (1, 2, 3):
        metrics_log.write_scalars(step, {"loss": float(step)})
    metrics_log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    MetricsLog(tmp_path, 2).close()
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_evaluation_line_survives_a_truncation_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MetricsLog(tmp_path, 0).close()
    append_metrics_line(tmp_path, 1, {"loss": 1.0})
    is_same_file = metrics_log.is_same_file
    truncations = iter([lambda: MetricsLog(tmp_path, 2).close()])

    def truncate_and_check(path: Path, descriptor: int) -> bool:
        """Truncate the file once, after the line is written and before the check."""
        next(truncations, lambda: None)()
        return is_same_file(path, descriptor)

    monkeypatch.setattr(metrics_log, "is_same_file", truncate_and_check)
    append_metrics_line(tmp_path, 1, {"evaluation/ccc": 0.5})
    (tmp_path / "metrics.1.former").write_text('{"step": 2, "loss": 2.0}\n')  # of a truncation that was killed
    replace = os.replace

    def replace_and_evaluate(*paths: Path) -> None:
        with (tmp_path / "metrics.jsonl").open("ab") as file:  # opened before the file is renamed, written after it
            replace(*paths)
            file.write(b'{"step": 2, "evaluation/ccc": 0.6}\n')

    monkeypatch.setattr(os, "replace", replace_and_evaluate)
    MetricsLog(tmp_path, 2).close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {(line["step"], *list(line)[1:]) for line in lines} == {
        (1, "loss"), (1, "evaluation/ccc"), (2, "loss"), (2, "evaluation/ccc")
    }  # fmt: skip
    assert not list(tmp_path.glob("*.former"))

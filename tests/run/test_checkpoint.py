"""Checkpoints and the exported model: whole or not there, never unpickled, damage named."""

import contextlib
import json
import os
import pickle
import threading
from pathlib import Path

import pytest
import torch
from tensorboard.summary.writer.record_writer import RecordWriter

from featgan.errors import UserError
from featgan.inference.model import load_model
from featgan.networks.ema import Average
from featgan.run import checkpoint, metrics_log
from featgan.run.checkpoint import damage, newest_checkpoint, save_checkpoint
from featgan.run.metrics_log import Journal, append_line
from featgan.run.paths import committed_steps, step_folder
from featgan.training.train import train
from tests.conftest import World


def save(run: Path, step: int, keep: int = 9) -> Path:
    return save_checkpoint(
        run, step, {"weights": {"a": torch.full((3,), float(step))}}, {"state": {"step": step}}, keep
    )


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(tmp_path, step, 2)
    assert committed_steps(tmp_path) == [4, 5]


def test_a_crash_while_saving_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def crash(source: object, target: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "sha256_of", lambda path: crash(path, path))
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 2)
    assert committed_steps(tmp_path) == [1] and newest_checkpoint(tmp_path) == step_folder(tmp_path, 1)
    save(tmp_path, 2)
    assert committed_steps(tmp_path) == [1, 2]


@pytest.mark.parametrize("harm", ["cut", "flip", "remove", "manifest"])
def test_damage_is_noticed_and_passed_over(tmp_path: Path, harm: str) -> None:
    save(tmp_path, 1)
    folder = save(tmp_path, 2)
    path = folder / ("manifest.json" if harm == "manifest" else "weights.safetensors")
    content = path.read_bytes()
    if harm == "remove":
        path.unlink()
    elif harm == "flip":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        path.write_bytes(content[:-5])
    assert damage(folder)
    assert newest_checkpoint(tmp_path) == step_folder(tmp_path, 1)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint, "write_whole", full)
    with pytest.raises(UserError, match=r"the disk is full; free some space"):
        save(tmp_path, 1)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_pickle_in_a_checkpoint_is_never_run(world: World, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    run = tmp_path / "run"
    train(world.config(run))
    folder = step_folder(run, 4)
    path = folder / "average.safetensors"
    path.write_bytes(pickle.dumps(Trap()))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][path.name] = {"bytes": path.stat().st_size, "sha256": checkpoint.sha256_of(path)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        load_model(run, 4)
    assert not (tmp_path / "sprung").exists()


def test_the_exported_model_is_the_average(world: World, tmp_path: Path) -> None:
    train(world.config(tmp_path / "run", training={"ema_images": 50}))
    model = load_model(tmp_path / "run")
    assert model.space is not None and model.step == 4 and model.condition_kind == "features"
    torch.testing.assert_close(model.space.mean, world.cache.space.mean)
    features = torch.from_numpy(world.cache.features("validation", [0, 1]))
    edited = model.edit(torch.zeros(2, 3, 16, 16), model.encode(features))
    assert edited.shape == (2, 3, 16, 16) and edited.abs().max() <= 1
    with pytest.raises(UserError, match=r"there is none; checkpoints of this run: 2, 4"):
        load_model(tmp_path / "run", 3)


def test_the_average_follows_with_its_half_life() -> None:
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(network.weight)
    average = Average(network, 100)
    torch.nn.init.ones_(network.weight)
    average.update(network, 10_000, 100)
    assert average.network.weight.item() == pytest.approx(0.5)
    average.update(network, 1000, 50)  # early on the half-life is a twentieth of the images seen
    assert average.network.weight.item() == pytest.approx(0.75)


def test_a_disk_that_is_full_for_the_board_is_told_at_the_next_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*data: bytes) -> None:
        raise OSError(28, "No space left on device")

    shown: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", shown.append)
    journal = Journal(tmp_path, 0)
    monkeypatch.setattr(RecordWriter, "write", full)
    with pytest.raises(OSError, match="No space left"):
        for step in range(1, 1000):
            journal.write(step, {"loss": 1.0})
    assert not shown  # no traceback of the thread that writes
    other = threading.Thread(target=full)
    other.start()
    other.join()
    assert [failure.thread for failure in shown] == [other]
    with contextlib.suppress(OSError):
        journal.close()
    assert threading.excepthook == shown.append


def test_the_journal_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 0)
    for step in (1, 2, 3):
        journal.write(step, {"loss": float(step)})
    journal.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    Journal(tmp_path, 2).close()
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_a_line_of_an_evaluation_survives_a_cut_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Journal(tmp_path, 0).close()
    append_line(tmp_path, 1, {"loss": 1.0})
    whole, looks = metrics_log.is_at, iter([lambda: Journal(tmp_path, 2).close()])  # after the line, before the look
    monkeypatch.setattr(metrics_log, "is_at", lambda *found: (next(looks, lambda: None)(), whole(*found))[1])
    append_line(tmp_path, 1, {"evaluation/ccc": 0.5})
    (tmp_path / "metrics.1.former").write_text('{"step": 2, "loss": 2.0}\n')  # of a cut that was killed
    replaced = os.replace

    def replace_and_evaluate(*paths: Path) -> None:
        with (tmp_path / "metrics.jsonl").open("ab") as file:  # opened before the file is set aside, written after it
            replaced(*paths)
            file.write(b'{"step": 2, "evaluation/ccc": 0.6}\n')

    monkeypatch.setattr(os, "replace", replace_and_evaluate)
    Journal(tmp_path, 2).close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {(line["step"], *list(line)[1:]) for line in lines} == {
        (1, "loss"), (1, "evaluation/ccc"), (2, "loss"), (2, "evaluation/ccc")
    }  # fmt: skip
    assert not list(tmp_path.glob("*.former"))

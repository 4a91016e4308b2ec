"""Tests of the shared memory and the processes of the data workers: values, errors, killed workers, small /dev/shm."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from featgan.config.loading import parse_config, to_yaml
from featgan.config.schema import Config
from featgan.data.batch_workers import BATCHES_AHEAD, compute_ahead
from featgan.data.conditions import build_condition
from featgan.data.loader import BatchDataset, TrainingSet, open_loader
from featgan.data.shared_tensors import SharedSlots
from featgan.errors import TrainingInterrupted, UserError
from featgan.run.paths import step_folder
from featgan.system.signals import StopSignal
from tests.conftest import World, read_checkpoint_tensors
from tests.helpers.mounts import featgan_command, run_with_mounts, small_shared_memory

SLOT_BYTES = 1 << 12


def write_config(path: Path, world: World, run: Path, num_workers: int, batch_size: int = 4) -> Path:
    """Write the configuration of a short run."""
    training = {"num_workers": num_workers, "batch_size": batch_size}
    path.write_text(to_yaml(world.make_config(run, training=training)))
    return path


def build_batches(world: World, config: Config) -> BatchDataset:
    condition = build_condition(config.dataset, world.shards, "train")
    return BatchDataset([TrainingSet(world.shards.get_split("train"), condition, True)], 16, 1, 1)


@pytest.fixture
def batches(world: World) -> BatchDataset:
    tree = {"shards": str(world.shards.path), "feature_cache": "linear"}
    return build_batches(world, parse_config({"dataset": tree}, "test"))


def test_tensors_are_read_as_they_were_written() -> None:
    slots = SharedSlots(2, SLOT_BYTES)
    tensors = {
        "bytes": torch.arange(7, dtype=torch.uint8),
        "empty": torch.zeros(5, 0),
        "number": torch.tensor(3.5, dtype=torch.float64),
        "transposed": torch.randn(3, 4).T,
    }
    for slot, layouts in enumerate([slots.write(slot, tensors) for slot in range(2)]):
        copies = slots.read(slot, layouts)
        assert list(copies) == list(tensors)
        for name, tensor in tensors.items():
            assert torch.equal(copies[name], tensor) and copies[name].dtype == tensor.dtype


def test_read_tensors_are_copies() -> None:
    slots = SharedSlots(1, SLOT_BYTES)
    copies = slots.read(0, slots.write(0, {"x": torch.ones(8)}))
    slots.write(0, {"x": torch.zeros(8)})
    assert torch.equal(copies["x"], torch.ones(8))


def test_slot_holds_what_another_process_wrote() -> None:
    slots = SharedSlots(1, SLOT_BYTES)
    layouts = slots.write(0, {"x": torch.zeros(8)})
    process = multiprocessing.get_context("fork").Process(target=slots.write, args=(0, {"x": torch.full((8,), 2.0)}))
    process.start()
    process.join()
    assert torch.equal(slots.read(0, layouts)["x"], torch.full((8,), 2.0))


def test_too_little_memory_is_one_line() -> None:
    with pytest.raises(UserError, match=r"need .* GB of memory.*training.num_workers"):
        SharedSlots(4, 1 << 58)


def make_batch(step: int) -> tuple[dict[str, Tensor], int]:
    return {"x": torch.full((16,), step)}, step


@pytest.mark.parametrize("num_workers", [1, 3])
def test_batches_arrive_in_order_and_stay_valid(num_workers: int) -> None:
    steps = range(5, 5 + 4 * BATCHES_AHEAD * num_workers + 1)
    with compute_ahead(make_batch, steps, num_workers, SLOT_BYTES) as loader:
        batches = list(loader)
    assert [(int(tensors["x"][0]), step) for tensors, step in batches] == [(step, step) for step in steps]
    assert multiprocessing.active_children() == []


def test_batches_of_workers_equal_batches_of_this_process(batches: BatchDataset) -> None:
    reference = [batches[step] for step in range(20)]
    with open_loader(batches, 0, 20, 3) as loader:
        for batch, expected in zip(loader, reference, strict=True):
            for name, value in expected.named_tensors().items():
                assert torch.equal(batch.named_tensors()[name], value)


def test_size_of_a_batch_is_known_before_it_is_read(batches: BatchDataset) -> None:
    sizes = [value.nbytes for value in batches[3].named_tensors().values()]
    assert batches.max_batch_bytes() == sum(sizes)


@pytest.mark.parametrize(
    "error", [UserError("FILE: is bad"), OSError(5, "Input/output error", "FILE"), MemoryError("too large")]
)
def test_error_of_a_worker_is_raised_with_its_type_and_text(error: Exception) -> None:
    def fail_at_step_2(step: int) -> tuple[dict[str, Tensor], int]:
        if step == 2:
            raise error
        return make_batch(step)

    with compute_ahead(fail_at_step_2, range(9), 2, SLOT_BYTES) as loader:
        assert [next(loader)[1], next(loader)[1]] == [0, 1]
        with pytest.raises(type(error)) as raised:
            next(loader)
    assert str(raised.value) == str(error) and "fail_at_step_2" in raised.value.__notes__[0]


def test_other_error_of_a_worker_arrives_as_text() -> None:
    def fail(step: int) -> tuple[dict[str, Tensor], int]:
        class LocalError(Exception):
            pass

        raise LocalError("the cause")

    loader_context = compute_ahead(fail, range(1), 1, SLOT_BYTES)
    with loader_context as loader, pytest.raises(RuntimeError, match="LocalError: the cause"):
        next(loader)


@pytest.mark.parametrize(
    ("signal_number", "expected"),
    [(signal.SIGKILL, "was killed by SIGKILL, probably because memory ran out"), (signal.SIGALRM, "killed by SIGALRM")],
)
def test_killed_worker_is_named(signal_number: int, expected: str) -> None:
    def end_at_step_9(step: int) -> tuple[dict[str, Tensor], int]:
        if step == 9:
            os.kill(os.getpid(), signal_number)
        return make_batch(step)

    message = rf"data worker 2 of 2 \(process \d+\) .*{expected}.*training.num_workers"
    with compute_ahead(end_at_step_9, range(100), 2, SLOT_BYTES) as loader, pytest.raises(UserError, match=message):
        list(loader)
    assert multiprocessing.active_children() == []


def test_killed_worker_does_not_hang_the_loader() -> None:
    with compute_ahead(make_batch, range(10**6), 2, SLOT_BYTES) as loader:
        next(loader)
        pid = multiprocessing.active_children()[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(UserError, match="was killed by SIGKILL"):
            list(loader)


@pytest.mark.slow
def test_training_does_not_need_shared_memory(world: World, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", world, tmp_path / "run", num_workers=2, batch_size=48)
    batch_bytes = 48 * 3 * 16**2
    assert batch_bytes > 16 << 10
    result = run_with_mounts(small_shared_memory(16), featgan_command("train", config))
    assert result.returncode == 0, result.stderr
    reference = write_config(tmp_path / "reference.yaml", world, tmp_path / "reference", num_workers=0, batch_size=48)
    result = run_with_mounts(small_shared_memory(16), featgan_command("train", reference))
    assert result.returncode == 0, result.stderr
    assert step_folder(tmp_path / "run", 4).is_dir()
    for name, value in read_checkpoint_tensors(tmp_path / "reference", 4, "generator_ema").items():
        assert np.array_equal(read_checkpoint_tensors(tmp_path / "run", 4, "generator_ema")[name], value)


@pytest.mark.slow
def test_full_shared_memory_does_not_stop_training(world: World, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", world, tmp_path / "run", num_workers=2)
    setup = small_shared_memory(4) + "\ndd if=/dev/zero of=/dev/shm/file bs=4k 2> /dev/null || true"
    result = run_with_mounts(setup, featgan_command("train", config))
    assert result.returncode == 0, result.stderr


def make_slow_batch(step: int) -> tuple[dict[str, Tensor], int]:
    time.sleep(60.0 if step == 2 else 0.5)
    return make_batch(step)


def test_stop_signal_ends_the_wait_for_a_batch_that_does_not_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featgan.data.batch_workers.POLL_SECONDS", 0.05)
    monkeypatch.setattr("featgan.data.batch_workers.STOP_SECONDS", 10.0)
    with StopSignal() as stop_signal, compute_ahead(make_slow_batch, range(4), 1, SLOT_BYTES) as loader:
        signal.raise_signal(signal.SIGTERM)
        assert next(loader)[1] == 0, "a batch that arrives soon is used, so that the step is completed and saved"
        assert next(loader)[1] == 1 and stop_signal.received_signal == signal.SIGTERM
        monkeypatch.setattr("featgan.data.batch_workers.STOP_SECONDS", 0.2)
        with pytest.raises(TrainingInterrupted, match="run the same command again to resume") as raised:
            next(loader)
    assert raised.value.exit_code == 128 + signal.SIGTERM
    assert multiprocessing.active_children() == []

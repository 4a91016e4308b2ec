"""Training over s3 with a small cache, killed and resumed with other numbers of processes, equals local training."""

import os
import signal
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from featgan.config.schema import Config
from featgan.run.paths import step_folder
from featgan.training import checkpointing
from featgan.training import train as train_module
from featgan.training.train import train
from tests.conftest import World, read_checkpoint_tensors
from tests.distributed.test_distributed import join_process_group, train_for_steps
from tests.helpers.many_shards import largest_shard_bytes, pack_many_shards
from tests.helpers.servers import serve_s3

STEPS, JOB_STEPS, WINDOW = 9, 3, 6
TRAINING = {
    "steps": STEPS,
    "batch_size": 16,
    "checkpoint_every": JOB_STEPS,
    "num_workers": 1,
    "ema_half_life_images": 20,
}


def find_free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def kill_after_saving(last_step: int) -> None:
    """Let the main process kill itself as soon as the checkpoint of a step is complete."""

    def save_and_end(state: object, run: Path, step: int) -> None:
        checkpointing.save_train_state(state, run, step)  # type: ignore[arg-type]
        if step == last_step and step_folder(run, step).exists():
            os.kill(os.getpid(), signal.SIGKILL)

    train_module.save_train_state = save_and_end  # type: ignore[attr-defined, assignment]


def train_rank(rank: int, num_processes: int, port: int, local: Config, remote: Config, last_step: int) -> None:
    """Train in one of several processes until the checkpoint of a step: on local data, and then on remote data."""
    join_process_group(rank, port, num_processes)
    train_for_steps(local, JOB_STEPS if last_step < STEPS else None)
    if rank == 0 and last_step < STEPS:
        kill_after_saving(last_step)
    train(remote)
    torch.distributed.destroy_process_group()


def run_job(num_processes: int, local: Config, remote: Config, last_step: int) -> None:
    """Train on until the checkpoint of a step: on local data, and then on remote data.

    The second training is killed after this checkpoint, unless it is the last one.
    """
    context, port = torch.multiprocessing.get_context("spawn"), find_free_port()
    processes = [
        context.Process(target=train_rank, args=(rank, num_processes, port, local, remote, last_step))
        for rank in range(num_processes)
    ]
    for process in processes:
        process.start()
    processes[0].join(300)
    if last_step < STEPS:
        for process in processes:
            process.kill()
    for process in processes:
        process.join(60)
    assert processes[0].exitcode == (-signal.SIGKILL if last_step < STEPS else 0)


@pytest.mark.slow
def test_killed_and_resized_training_over_s3_equals_that_on_local_data(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = pack_many_shards(tmp_path / "data")
    cache_gb = 2.5 * WINDOW * largest_shard_bytes(shards) / 1e9

    def make_config(name: str, location: str) -> Config:
        dataset = {"shards": location, "shuffle_window": WINDOW, "cache_dir": str(tmp_path / "cache")}
        return world.make_config(tmp_path / name, dataset=dataset | {"cache_gb": cache_gb}, training=TRAINING)

    local = make_config("local", str(shards.path))
    with serve_s3() as server:
        server.put_folder("data", shards.path)
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        remote = make_config("remote", "s3://data/manifest.json")
        for index, num_processes in enumerate((2, 1, 4)):
            run_job(num_processes, local, remote, (index + 1) * JOB_STEPS)
    for step in range(JOB_STEPS, STEPS + 1, JOB_STEPS):
        for name in ("generator_ema", "discriminator", "optimizer-generator", "optimizer-discriminator"):
            found, expected = (read_checkpoint_tensors(config.run_dir, step, name) for config in (remote, local))
            assert all((found[key] == expected[key]).all() for key in found | expected), (step, name)
    assert cache_gb * 1e9 < sum(path.stat().st_size for path in shards.path.glob("train-*.tar"))
    assert sum(path.stat().st_size for path in (tmp_path / "cache" / "objects").iterdir()) <= cache_gb * 1e9

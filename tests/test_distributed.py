"""Two processes are one process on the joined batch: concordance, and whole steps of both players."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor

from featgan.config import Config, to_yaml
from featgan.errors import Stopped
from featgan.interruption import StopRequest
from featgan.losses import concordance_loss
from featgan.schedule import step_folder
from featgan.train import train
from tests.conftest import World, tensors_of

PORT = 29611


def join(rank: int, port: int) -> None:
    """One of two gloo processes on this machine."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1",
    )  # fmt: skip
    torch.set_num_threads(1)


def concordance_part(rank: int, estimate: Tensor, target: Tensor, results: str) -> None:
    join(rank, PORT)
    torch.distributed.init_process_group("gloo")
    part = estimate[rank * 4 : rank * 4 + 4].clone().requires_grad_()
    loss = concordance_loss(part, target[rank * 4 : rank * 4 + 4])
    loss.backward()
    torch.save({"loss": loss.detach(), "gradient": part.grad}, f"{results}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_concordance_over_two_processes_is_that_of_the_joined_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    estimate, target = torch.randn(8, 3), torch.randn(8, 3)
    torch.multiprocessing.spawn(concordance_part, (estimate, target, str(tmp_path)), nprocs=2)
    whole = estimate.clone().requires_grad_()
    loss = concordance_loss(whole, target)
    loss.backward()
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for part in parts:
        torch.testing.assert_close(part["loss"], loss.detach())
    # Gradients are averaged over the two processes afterwards, as distributed training does.
    joined = torch.cat([part["gradient"] for part in parts]) / 2
    torch.testing.assert_close(joined, whole.grad, rtol=1e-4, atol=1e-6)


class StopAfter(StopRequest):
    """Asks to stop once it was looked at after so many steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    @property
    def signal(self) -> signal.Signals | None:  # type: ignore[override]
        self.steps -= 1
        return signal.SIGTERM if self.steps <= 0 else None


def train_part(rank: int, config: Config, port: int, steps: int | None) -> None:
    join(rank, port)
    train_some(config, steps)
    torch.distributed.destroy_process_group()


def train_some(config: Config, steps: int | None) -> None:
    """Train to the end, or for so many steps and then as if a signal had come."""
    try:
        train(config, request=StopAfter(steps) if steps else None)
    except Stopped:
        assert steps


def train_together(config: Config, port: int, steps: int | None = None) -> None:
    """Two processes that share every batch."""
    torch.multiprocessing.spawn(train_part, (config, port, steps), nprocs=2)


def assert_close(first: Path, second: Path, step: int = 4) -> None:
    """The same weights and moments, but for sums in another order."""
    for name in ("average", "discriminator", "optimizer-generator", "optimizer-discriminator"):
        one, two = tensors_of(first, step, name), tensors_of(second, step, name)
        assert one.keys() == two.keys()
        for key in one:
            # Adam divides by the root of tiny second moments: rounding is magnified in the first steps.
            torch.testing.assert_close(torch.from_numpy(one[key]), torch.from_numpy(two[key]), rtol=1e-3, atol=5e-5)


WGAN = {"losses": {"adversarial": "wgan_gp", "identity_weight": 1.0}}
LOGISTIC = {"losses": {"adversarial": "logistic", "r1_every": 2, "identity_weight": 1.0}}


@pytest.fixture(scope="module", params=[WGAN, LOGISTIC], ids=["wgan_gp", "logistic"])
def alone(request: pytest.FixtureRequest, world: World, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Four steps in one process, of everything that could tell processes apart."""
    config = world.config(
        tmp_path_factory.mktemp("alone") / "run",
        **request.param,
        generator={"conditioning": "modulation", "output": "residual"},
        discriminator={"projection": True},
        training={"batch_size": 8, "ema_images": 20},
    )
    train(config)
    return config


def variant(config: Config, run: Path, **distribution: object) -> Config:
    """The same training, its work shared otherwise."""
    tree = config.model_dump(mode="json") | {"run": str(run), "distribution": distribution}
    return Config.model_validate(tree)


@pytest.mark.slow
@pytest.mark.parametrize(
    "distribution",
    [
        {},
        {"accumulation": 2},
        {"strategy": "deepspeed", "zero_stage": 0},
        {"strategy": "deepspeed", "zero_stage": 1},
        {"strategy": "deepspeed", "zero_stage": 2},
        {"strategy": "deepspeed", "zero_stage": 2, "accumulation": 2},
    ],
    ids=["ddp", "ddp-parts", "zero-0", "zero-1", "zero-2", "zero-2-parts"],
)
def test_two_processes_train_as_one(alone: Config, tmp_path: Path, distribution: dict[str, object]) -> None:
    train_together(variant(alone, tmp_path / "two", **distribution), PORT + 1)
    assert_close(alone.run, tmp_path / "two")


@pytest.mark.parametrize("accumulation", [2, 4])
def test_a_batch_in_parts_is_the_batch(alone: Config, tmp_path: Path, accumulation: int) -> None:
    train(variant(alone, tmp_path / "parts", accumulation=accumulation))
    assert_close(alone.run, tmp_path / "parts")
    lines = [(run / "metrics.jsonl").read_text().splitlines() for run in (alone.run, tmp_path / "parts")]
    for whole, parts in zip(*(map(json.loads, each) for each in lines), strict=True):
        for name in ("discriminator/condition", "generator/condition", "discriminator/loss", "generator/cycle"):
            if name in whole:
                assert whole[name] == pytest.approx(parts[name], rel=1e-3, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "deepspeed"])
def test_a_run_goes_on_with_more_and_with_fewer_processes(alone: Config, tmp_path: Path, strategy: str) -> None:
    run = tmp_path / "run"
    train_some(variant(alone, run), 1)
    train_together(variant(alone, run, strategy=strategy), PORT + 2, 2)
    train(variant(alone, run))
    assert_close(alone.run, run)
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


@pytest.mark.slow
def test_accelerate_launch_starts_processes_that_see_each_other(world: World, tmp_path: Path) -> None:
    config = world.config(tmp_path / "run")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/cpu.yaml"]
    command = [
        *accelerate,
        "--main_process_port",
        str(PORT + 3),
        "-m",
        "featgan",
        "train",
        str(tmp_path / "config.yaml"),
    ]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr[-3000:]
    assert found.stdout == f"{config.run}\n", "one of the processes speaks"
    state = json.loads((step_folder(config.run, 4) / "state.json").read_text())
    assert state["world_size"] == 2

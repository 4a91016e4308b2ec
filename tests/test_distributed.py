"""Two processes are one process on the joined batch: concordance, and whole steps of both players."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor

from featgan.config import Config
from featgan.losses import concordance_loss
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


def train_part(rank: int, config: Config) -> None:
    join(rank, PORT + 1)
    train(config)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("adversarial", ["wgan_gp", "logistic"])
def test_two_processes_train_as_one(world: World, tmp_path: Path, adversarial: str) -> None:
    def config(name: str) -> Config:
        return world.config(
            tmp_path / name,
            losses={"adversarial": adversarial, "r1_every": 2, "identity_weight": 1.0},
            generator={"conditioning": "modulation", "output": "residual"},
            discriminator={"projection": True},
        )

    train(config("one"))
    torch.multiprocessing.spawn(train_part, (config("two"),), nprocs=2)
    for name in ("average", "discriminator"):
        one, two = tensors_of(tmp_path / "one", 4, name), tensors_of(tmp_path / "two", 4, name)
        for key in one:
            # Adam divides by the root of tiny second moments: rounding is magnified in the first steps.
            torch.testing.assert_close(torch.from_numpy(one[key]), torch.from_numpy(two[key]), rtol=1e-3, atol=5e-5)

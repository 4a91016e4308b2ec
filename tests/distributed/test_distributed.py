"""Two processes are one process on the joined batch: concordance, and whole steps of both players."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor

from featgan.config.loading import to_yaml
from featgan.config.schema import Config
from featgan.errors import Stopped
from featgan.run.paths import step_folder
from featgan.system.signals import StopRequest
from featgan.training.losses import concordance_loss
from featgan.training.train import train
from tests.conftest import World, tensors_of

PORT = 29611


def join(rank: int, port: int, count: int = 2) -> None:
    """One of so many gloo processes on this machine."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
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


def train_part(rank: int, config: Config, port: int, steps: int | None, count: int, origin: Path | None) -> None:
    join(rank, port, count)
    train_some(config, steps, origin)
    torch.distributed.destroy_process_group()


def train_some(config: Config, steps: int | None, origin: Path | None = None) -> None:
    """Train to the end, or for so many steps and then as if a signal had come; with an origin, from its weights."""
    try:
        train(config, origin, StopAfter(steps) if steps else None, fresh_optimizer=origin is not None)
    except Stopped:
        assert steps


def train_together(
    config: Config, port: int, steps: int | None = None, count: int = 2, origin: Path | None = None
) -> None:
    """So many processes that share every batch."""
    torch.multiprocessing.spawn(train_part, (config, port, steps, count, origin), nprocs=count)


def assert_close(first: Path, second: Path, step: int = 4) -> None:
    """The same weights and moments, but for sums in another order."""
    for name in ("average", "discriminator", "optimizer-generator", "optimizer-discriminator"):
        one, two = tensors_of(first, step, name), tensors_of(second, step, name)
        assert one.keys() == two.keys()
        for key in one:
            # Adam divides by the root of tiny second moments: rounding is magnified in the first steps.
            torch.testing.assert_close(torch.from_numpy(one[key]), torch.from_numpy(two[key]), rtol=1e-3, atol=5e-5)


WGAN = {
    "losses": {"adversarial": "wgan_gp", "identity_weight": 1.0},
    "training": {"batch_size": 16, "ema_images": 20},
}
LOGISTIC = {
    "losses": {"adversarial": "logistic", "r1_every": 2, "identity_weight": 1.0},
    "training": {"head_start": 1, "batch_size": 16, "ema_images": 20},
}


@pytest.fixture(scope="module", params=[WGAN, LOGISTIC], ids=["wgan_gp", "logistic"])
def alone(request: pytest.FixtureRequest, world: World, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Four steps in one process, of everything that could tell processes apart."""
    config = world.config(
        tmp_path_factory.mktemp("alone") / "run",
        **request.param,
        generator={"conditioning": "modulation", "output": "blend"},
        discriminator={"projection": True},
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
        {"recompute": True},
        {"strategy": "deepspeed", "zero_stage": 0},
        {"strategy": "deepspeed", "zero_stage": 1, "recompute": True},
        {"strategy": "deepspeed", "zero_stage": 2},
        {"strategy": "deepspeed", "zero_stage": 2, "accumulation": 2},
    ],
    ids=["ddp", "ddp-parts", "ddp-again", "zero-0", "zero-1-again", "zero-2", "zero-2-parts"],
)
def test_two_processes_train_as_one(alone: Config, tmp_path: Path, distribution: dict[str, object]) -> None:
    train_together(variant(alone, tmp_path / "two", **distribution), PORT + 1)
    assert_close(alone.run, tmp_path / "two")
    # The curves are of the whole batch too, not of the first process's share.
    one, two = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (alone.run, tmp_path / "two")
    )
    for mine, joint in zip(one, two, strict=True):
        losses = {name: value for name, value in mine.items() if name.startswith(("generator/", "discriminator/"))}
        assert losses == pytest.approx({name: joint[name] for name in losses}, rel=2e-3, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("distribution", [{}, {"strategy": "deepspeed", "zero_stage": 2}], ids=["ddp", "zero-2"])
def test_fresh_moments_go_on_from_the_weights_on_any_number_of_processes(
    alone: Config, tmp_path: Path, distribution: dict[str, object]
) -> None:
    origin, longer = step_folder(alone.run, 4), alone.training.model_copy(update={"steps": 8})
    more = alone.model_copy(update={"training": longer})
    one, two = variant(more, tmp_path / "one"), variant(more, tmp_path / "two", **distribution)
    train(one, origin, fresh_optimizer=True)
    train_together(two, PORT + 2, origin=origin)
    for name in ("average", "discriminator", "optimizer-generator", "optimizer-discriminator"):
        before, mine, joint = (
            np.concatenate([each.ravel() for _, each in sorted(tensors_of(run, step, name).items())])
            for run, step in ((alone.run, 4), (one.run, 8), (two.run, 8))
        )
        # The first step of fresh moments is as long for a gradient that is rounding alone: few weights part at random.
        assert np.linalg.norm(mine - joint) < 0.01 * np.linalg.norm(mine - before)


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
@pytest.mark.parametrize("strategy", ["ddp", "deepspeed"])
def test_a_run_goes_from_one_process_to_four_and_to_two(alone: Config, tmp_path: Path, strategy: str) -> None:
    run = tmp_path / "run"
    train_some(variant(alone, run), 1)
    train_together(variant(alone, run, strategy=strategy, zero_stage=2), PORT + 5, 2, count=4)
    train_together(variant(alone, run, strategy=strategy, zero_stage=1), PORT + 6)
    assert_close(alone.run, run)
    sizes = [json.loads((step_folder(run, step) / "state.json").read_text())["world_size"] for step in (3, 4)]
    assert sizes == [4, 2]


@pytest.mark.slow
def test_deepspeed_serves_a_process_that_was_started_alone(world: World, tmp_path: Path) -> None:
    config = world.config(tmp_path / "run", distribution={"strategy": "deepspeed", "zero_stage": 2})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    command = [sys.executable, "-m", "featgan", "train", str(tmp_path / "config.yaml")]
    for _ in range(2):  # the same command says that it is done
        found = subprocess.run(command, capture_output=True, text=True)
        assert found.returncode == 0, found.stderr[-3000:]
    train(variant(config, tmp_path / "plain"))
    assert_close(config.run, tmp_path / "plain")


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


def hang_part(rank: int, config: Config, port: int, folder: str) -> None:
    """The second process hangs in its third step; the first one waits for it in an exchange of gradients."""
    sys.stderr = sys.__stderr__ = Path(folder, f"{rank}.log").open("w")
    join(rank, port)
    if rank == 1:
        from featgan.training import train as module

        whole = module.split

        def hang(*arguments: object) -> object:
            hang.calls += 1  # type: ignore[attr-defined]
            return whole(*arguments) if hang.calls < 3 else time.sleep(600)  # type: ignore[attr-defined, arg-type]

        hang.calls = 0  # type: ignore[attr-defined]
        module.split = hang  # type: ignore[assignment]
    train(config)


def test_when_one_process_hangs_all_show_their_stacks_and_end(world: World, tmp_path: Path) -> None:
    config = world.config(tmp_path / "run", distribution={"hang_timeout": 12}, training={"num_workers": 0})
    context = torch.multiprocessing.get_context("spawn")
    parts = [context.Process(target=hang_part, args=(rank, config, PORT + 4, str(tmp_path))) for rank in range(2)]
    for part in parts:
        part.start()
    for part in parts:
        part.join(90)
    assert [part.exitcode for part in parts] == [1, 1]
    logs = [(tmp_path / f"{rank}.log").read_text() for rank in range(2)]
    assert all("Timeout (0:00:12)!" in log for log in logs)
    assert "in hang\n" in logs[1] and "in hang\n" not in logs[0] and "in step\n" in logs[0]

"""Training with several processes equals training with one process on the global batch."""

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
from torch.multiprocessing.spawn import spawn

from featgan.config.loading import to_yaml
from featgan.config.schema import Config
from featgan.errors import TrainingInterrupted
from featgan.run.paths import step_folder
from featgan.system.signals import StopSignal
from featgan.training.losses import ccc_loss
from featgan.training.train import train
from tests.conftest import World, read_checkpoint_tensors

PORT = 29611


def join_process_group(rank: int, port: int, num_processes: int = 2) -> None:
    """Set the environment of one of `num_processes` gloo processes on this machine."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(num_processes), MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port), ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1",
    )  # fmt: skip
    torch.set_num_threads(1)


def concordance_worker(rank: int, estimate: Tensor, target: Tensor, results: str) -> None:
    """Save the loss and gradient of one process's rows."""
    join_process_group(rank, PORT)
    torch.distributed.init_process_group("gloo")
    shard = estimate[rank * 4 : rank * 4 + 4].clone().requires_grad_()
    loss = ccc_loss(shard, target[rank * 4 : rank * 4 + 4])
    loss.backward()
    torch.save({"loss": loss.detach(), "gradient": shard.grad}, f"{results}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_concordance_over_two_processes_is_that_of_the_global_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    estimate, target = torch.randn(8, 3), torch.randn(8, 3)
    spawn(concordance_worker, (estimate, target, str(tmp_path)), nprocs=2)
    global_estimate = estimate.clone().requires_grad_()
    loss = ccc_loss(global_estimate, target)
    loss.backward()
    shard_results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for shard_result in shard_results:
        torch.testing.assert_close(shard_result["loss"], loss.detach())
    # Distributed training averages the gradients over the two processes afterwards.
    averaged = torch.cat([shard_result["gradient"] for shard_result in shard_results]) / 2
    torch.testing.assert_close(averaged, global_estimate.grad, rtol=1e-4, atol=1e-6)


class StopSignalAfter(StopSignal):
    """A stop signal that arrives at the check number `steps`, with one check per step."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    @property
    def received_signal(self) -> signal.Signals | None:  # type: ignore[override]
        self.steps -= 1
        return signal.SIGTERM if self.steps <= 0 else None


def train_worker(
    rank: int, config: Config, port: int, steps: int | None, num_processes: int, init_from: Path | None
) -> None:
    """Train in one of several processes."""
    join_process_group(rank, port, num_processes)
    train_for_steps(config, steps, init_from)
    torch.distributed.destroy_process_group()


def train_for_steps(config: Config, steps: int | None, init_from: Path | None = None) -> None:
    """Train to the end, or stop by a signal after `steps` steps; start from the weights of `init_from` if given."""
    try:
        train(config, init_from, StopSignalAfter(steps) if steps else None, reset_optimizer=init_from is not None)
    except TrainingInterrupted:
        assert steps


def train_distributed(
    config: Config, port: int, steps: int | None = None, num_processes: int = 2, init_from: Path | None = None
) -> None:
    """Train with several processes that split every batch."""
    spawn(train_worker, (config, port, steps, num_processes, init_from), nprocs=num_processes)


def assert_checkpoints_close(first: Path, second: Path, step: int = 4) -> None:
    """Assert equal weights and optimizer states, except for the rounding of sums in another order."""
    for name in ("generator_ema", "discriminator", "optimizer-generator", "optimizer-discriminator"):
        one, two = read_checkpoint_tensors(first, step, name), read_checkpoint_tensors(second, step, name)
        assert one.keys() == two.keys()
        for key in one:
            # Adam divides by the root of very small averages, which magnifies rounding errors in the first steps.
            torch.testing.assert_close(torch.from_numpy(one[key]), torch.from_numpy(two[key]), rtol=1e-3, atol=5e-5)


WGAN_SECTIONS = {
    "losses": {"adversarial": "wgan_gp", "identity_weight": 1.0},
    "training": {"batch_size": 16, "ema_half_life_images": 20},
}
NON_SATURATING_SECTIONS = {
    "losses": {"adversarial": "non_saturating", "r1_interval": 2, "identity_weight": 1.0},
    "training": {"discriminator_warmup_steps": 1, "batch_size": 16, "ema_half_life_images": 20},
}


@pytest.fixture(scope="module", params=[WGAN_SECTIONS, NON_SATURATING_SECTIONS], ids=["wgan_gp", "non_saturating"])
def single_process_config(
    request: pytest.FixtureRequest, world: World, tmp_path_factory: pytest.TempPathFactory
) -> Config:
    """Train for four steps in one process, with every option that depends on the number of processes."""
    config = world.make_config(
        tmp_path_factory.mktemp("single") / "run",
        **request.param,
        generator={"conditioning": "adain", "output": "masked_blend"},
        discriminator={"projection": True},
    )
    train(config)
    return config


def redistributed_config(config: Config, run_dir: Path, **distributed: object) -> Config:
    """Return the same configuration with other `distributed` settings."""
    tree = config.model_dump(mode="json") | {"run_dir": str(run_dir), "distributed": distributed}
    return Config.model_validate(tree)


@pytest.mark.slow
@pytest.mark.parametrize(
    "distributed",
    [
        {},
        {"gradient_accumulation_steps": 2},
        {"activation_checkpointing": True},
        {"strategy": "deepspeed", "zero_stage": 0},
        {"strategy": "deepspeed", "zero_stage": 1, "activation_checkpointing": True},
        {"strategy": "deepspeed", "zero_stage": 2},
        {"strategy": "deepspeed", "zero_stage": 2, "gradient_accumulation_steps": 2},
    ],
    ids=[
        "ddp",
        "ddp-accumulation",
        "ddp-checkpointing",
        "zero-0",
        "zero-1-checkpointing",
        "zero-2",
        "zero-2-accumulation",
    ],
)
def test_two_processes_match_one(single_process_config: Config, tmp_path: Path, distributed: dict[str, object]) -> None:
    train_distributed(redistributed_config(single_process_config, tmp_path / "two", **distributed), PORT + 1)
    assert_checkpoints_close(single_process_config.run_dir, tmp_path / "two")
    # The logged losses are those of the global batch, not those of the first process.
    single, double = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (single_process_config.run_dir, tmp_path / "two")
    )
    for single_line, double_line in zip(single, double, strict=True):
        scalars = {
            name: value for name, value in single_line.items() if name.startswith(("generator/", "discriminator/"))
        }
        assert scalars == pytest.approx({name: double_line[name] for name in scalars}, rel=2e-3, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("distributed", [{}, {"strategy": "deepspeed", "zero_stage": 2}], ids=["ddp", "zero-2"])
def test_reset_optimizer_starts_from_the_weights_with_any_number_of_processes(
    single_process_config: Config, tmp_path: Path, distributed: dict[str, object]
) -> None:
    origin = step_folder(single_process_config.run_dir, 4)
    training = single_process_config.training.model_copy(update={"steps": 8})
    longer = single_process_config.model_copy(update={"training": training})
    one = redistributed_config(longer, tmp_path / "one")
    two = redistributed_config(longer, tmp_path / "two", **distributed)
    train(one, origin, reset_optimizer=True)
    train_distributed(two, PORT + 2, init_from=origin)
    for name in ("generator_ema", "discriminator", "optimizer-generator", "optimizer-discriminator"):
        before, single, double = (
            np.concatenate([value.ravel() for _, value in sorted(read_checkpoint_tensors(run, step, name).items())])
            for run, step in ((single_process_config.run_dir, 4), (one.run_dir, 8), (two.run_dir, 8))
        )
        # After a reset, Adam's first step has the same length even for a gradient that is only a rounding error.
        # So a few weights differ at random.
        assert np.linalg.norm(single - double) < 0.01 * np.linalg.norm(single - before)


@pytest.mark.parametrize("accumulation_steps", [2, 4])
def test_gradient_accumulation_matches_the_complete_batch(
    single_process_config: Config, tmp_path: Path, accumulation_steps: int
) -> None:
    run_dir = tmp_path / "accumulated"
    train(redistributed_config(single_process_config, run_dir, gradient_accumulation_steps=accumulation_steps))
    assert_checkpoints_close(single_process_config.run_dir, run_dir)
    expected, actual = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (single_process_config.run_dir, run_dir)
    )
    for expected_line, actual_line in zip(expected, actual, strict=True):
        for name in ("discriminator/condition", "generator/condition", "discriminator/loss", "generator/cycle"):
            if name in expected_line:
                assert expected_line[name] == pytest.approx(actual_line[name], rel=1e-3, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "deepspeed"])
def test_run_resumes_with_more_and_with_fewer_processes(
    single_process_config: Config, tmp_path: Path, strategy: str
) -> None:
    run = tmp_path / "run"
    train_for_steps(redistributed_config(single_process_config, run), 1)
    train_distributed(redistributed_config(single_process_config, run, strategy=strategy), PORT + 2, 2)
    train(redistributed_config(single_process_config, run))
    assert_checkpoints_close(single_process_config.run_dir, run)
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "deepspeed"])
def test_run_resumes_with_one_then_four_then_two_processes(
    single_process_config: Config, tmp_path: Path, strategy: str
) -> None:
    run = tmp_path / "run"
    train_for_steps(redistributed_config(single_process_config, run), 1)
    train_distributed(
        redistributed_config(single_process_config, run, strategy=strategy, zero_stage=2), PORT + 5, 2, num_processes=4
    )
    train_distributed(redistributed_config(single_process_config, run, strategy=strategy, zero_stage=1), PORT + 6)
    assert_checkpoints_close(single_process_config.run_dir, run)
    sizes = [json.loads((step_folder(run, step) / "state.json").read_text())["world_size"] for step in (3, 4)]
    assert sizes == [4, 2]


@pytest.mark.slow
def test_deepspeed_supports_a_single_process(world: World, tmp_path: Path) -> None:
    config = world.make_config(tmp_path / "run", distributed={"strategy": "deepspeed", "zero_stage": 2})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    command = [sys.executable, "-m", "featgan", "train", str(tmp_path / "config.yaml")]
    for _ in range(2):  # the second run of the command reports that training is complete
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-3000:]
    train(redistributed_config(config, tmp_path / "ddp"))
    assert_checkpoints_close(config.run_dir, tmp_path / "ddp")


@pytest.mark.slow
def test_accelerate_launch_starts_communicating_processes(world: World, tmp_path: Path) -> None:
    config = world.make_config(tmp_path / "run")
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
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout == f"{config.run_dir}\n", "only one process prints the run folder"
    state = json.loads((step_folder(config.run_dir, 4) / "state.json").read_text())
    assert state["world_size"] == 2


def hang_worker(rank: int, config: Config, port: int, folder: str) -> None:
    """Hang in the third step of the second process; the first process waits for it in a gradient reduction."""
    log = Path(folder, f"{rank}.log").open("w")  # noqa: SIM115 - open until the process ends
    sys.stderr = sys.__stderr__ = log  # type: ignore[misc]
    join_process_group(rank, port)
    if rank == 1:
        from featgan.training import train as module

        split_microbatches = module.split_microbatches  # type: ignore[attr-defined]

        def hang(*arguments: object) -> object:
            hang.calls += 1  # type: ignore[attr-defined]
            return split_microbatches(*arguments) if hang.calls < 3 else time.sleep(600)  # type: ignore[attr-defined, arg-type]

        hang.calls = 0  # type: ignore[attr-defined]
        module.split_microbatches = hang  # type: ignore[attr-defined, assignment]
    train(config)


def test_all_processes_print_their_stacks_if_one_hangs(world: World, tmp_path: Path) -> None:
    config = world.make_config(tmp_path / "run", distributed={"hang_timeout": 12}, training={"num_workers": 0})
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=hang_worker, args=(rank, config, PORT + 4, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(90)
    assert [process.exitcode for process in processes] == [1, 1]
    logs = [(tmp_path / f"{rank}.log").read_text() for rank in range(2)]
    assert all("Timeout (0:00:12)!" in log for log in logs)
    assert "in hang\n" in logs[1] and "in hang\n" not in logs[0] and "in step\n" in logs[0]

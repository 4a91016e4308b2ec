"""The distributed context: rendezvous under SLURM, rejected settings, hangs, and the optimizer step."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from featgan.config.loading import parse_config, to_yaml
from featgan.config.schema import DistributedConfig, OptimizerConfig
from featgan.distributed import rendezvous
from featgan.distributed.context import DistributedContext
from featgan.errors import UserError
from tests.conftest import World

SLURM_STEP = {
    "SLURM_STEP_ID": "0", "SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "17",
    "SLURM_JOB_NODELIST": "n[07-09,12]",
}  # fmt: skip
VARIABLE_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Replace os.environ with an empty dictionary."""
    variables: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", variables)
    monkeypatch.setattr(os, "isatty", lambda descriptor: False)
    return variables


def test_tasks_of_one_srun_share_a_rendezvous(environment: dict[str, str]) -> None:
    environment.update(SLURM_STEP)
    rendezvous.init_env_from_slurm()
    assert [environment[name] for name in VARIABLE_NAMES[:4]] == ["3", "4", "1", "n07"]
    first_port = environment["MASTER_PORT"]
    environment.clear()
    environment.update(SLURM_STEP, SLURM_RESTART_COUNT="1")
    rendezvous.init_env_from_slurm()
    assert 1024 < int(first_port) != int(environment["MASTER_PORT"]) < 32768, "the first port may still be in use"


def test_launcher_variables_are_kept_and_a_single_task_is_one_process(environment: dict[str, str]) -> None:
    environment.update(SLURM_STEP, RANK="0", WORLD_SIZE="2")
    rendezvous.init_env_from_slurm()
    assert environment["RANK"] == "0" and "MASTER_ADDR" not in environment
    environment.clear()
    environment.update(SLURM_STEP, SLURM_NTASKS="1")
    rendezvous.init_env_from_slurm()
    assert "RANK" not in environment
    environment.clear()
    environment.update({name: value for name, value in SLURM_STEP.items() if name != "SLURM_STEP_ID"})
    rendezvous.init_env_from_slurm()
    assert "RANK" not in environment, "the batch script is not a task of a step"


def test_interactive_shell_in_an_allocation_is_one_process(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment.update(SLURM_STEP, SLURM_STEP_ID="4294967290", SLURM_STEP_NUM_TASKS="1")  # the shell of salloc
    rendezvous.init_env_from_slurm()
    assert "RANK" not in environment
    environment.update(SLURM_STEP_ID="0", SLURM_STEP_NUM_TASKS="4")
    monkeypatch.setattr(os, "isatty", lambda descriptor: descriptor == 0)  # srun --pty: the first task only
    rendezvous.init_env_from_slurm()
    assert "RANK" not in environment


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("gpu[3-4]", "gpu3"),
        ("a-[001,005]", "a-001"),
        ("", "127.0.0.1"),
        ("r[1-2]n[03-16],z3", "r1n03"),
        ("rack01-n[7,9-12]", "rack01-n7"),
        ("n[1-2]-ib", "n1-ib"),
        ("[1-3]", "1"),
        ("a,b[1-2]", "a"),
    ],
)
def test_first_node_of_a_node_list(environment: dict[str, str], nodes: str, first: str) -> None:
    assert rendezvous.first_node(nodes) == first


@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        ({"distributed": {"strategy": "fsdp"}}, "distributed.strategy: FSDP frees weights"),
        ({"distributed": {"strategy": "deepspeed", "zero_stage": 3}}, "distributed.zero_stage: 3 frees weights"),
        ({"distributed": {"static_graph": True}}, "distributed.static_graph: DDP would then reduce"),
        ({"training": {"precision": "fp16"}}, "training.precision: fp16 needs a loss scale"),
        (
            {"training": {"batch_size": 10}, "distributed": {"gradient_accumulation_steps": 4}},
            "distributed.gradient_accumulation_steps: training.batch_size 10 is not divisible",
        ),
    ],
)
def test_unsupported_settings_are_rejected_with_a_reason(tree: dict[str, object], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        parse_config(tree, "config.yaml")


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "true", "set distributed.strategy=deepspeed instead"),
        ("ACCELERATE_USE_FSDP", "True", "FSDP frees weights"),
        ("ACCELERATE_USE_MEGATRON_LM", "1", "Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "complete networks"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "hide the DDP wrapper"),
    ],
)
def test_launcher_settings_that_wrap_the_networks_are_rejected(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"{name}={value}: not supported .*{reason}.*; remove it"):
        DistributedContext("fp32", DistributedConfig())
    monkeypatch.setenv(name, "NO" if "DYNAMO" in name else "false")
    DistributedContext("fp32", DistributedConfig())


def test_networks_without_gradient_reduction_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    context = DistributedContext("fp32", DistributedConfig())
    monkeypatch.setattr(DistributedContext, "world_size", 2)
    monkeypatch.setattr(context.accelerator, "prepare_model", lambda network: network)
    with pytest.raises(AssertionError):
        context.wrap_with_ddp(torch.nn.Linear(2, 2))


HANG_PROGRAM = """
import sys, time
from featgan.training import logger
from featgan.config.loading import load_config
from featgan.training.train import train

def wait_forever(self):
    time.sleep(600)

logger.TrainingLogger.on_step_end = wait_forever
train(load_config(sys.argv[1]))
"""


def test_hung_process_prints_its_stacks_and_exits(world: World, tmp_path: Path) -> None:
    config = world.make_config(tmp_path / "run", distributed={"hang_timeout": 6})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    command = [sys.executable, "-c", HANG_PROGRAM, str(tmp_path / "config.yaml")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert "Timeout (0:00:06)!" in result.stderr and "wait_forever" in result.stderr


def test_step_is_adam_with_clipped_gradients() -> None:
    """Compare with algorithm 1 of Kingma & Ba 2015; the gradient is clipped by its norm over all weights."""
    torch.manual_seed(3)
    network, inputs, targets = torch.nn.Linear(5, 4), torch.randn(6, 5), 10 * torch.randn(6, 4)
    config = OptimizerConfig(beta1=0.5, beta2=0.9, max_grad_norm=2.0)
    trainable = DistributedContext("fp32", DistributedConfig()).prepare(network, 0.1, config)
    weights = [parameter.detach().clone().requires_grad_() for parameter in network.parameters()]
    means, squares = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))

    def loss(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return (inputs @ weight.T + bias - targets).square().mean()

    for step, lr in enumerate((0.1, 0.1, 0.02), 1):
        step_scalars = trainable.step([lambda: (loss(network.weight, network.bias), {})], lr)
        gradients = torch.autograd.grad(loss(*weights), weights)
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        assert norm > 2 and float(step_scalars["gradient_norm"]) == pytest.approx(float(norm), rel=1e-5)
        assert step_scalars.keys() == {"loss", "gradient_norm", "learning_rate"}
        for index, gradient in enumerate(gradient * 2 / norm for gradient in gradients):
            means[index] = 0.5 * means[index] + 0.5 * gradient
            squares[index] = 0.9 * squares[index] + 0.1 * gradient**2
            size = (squares[index] / (1 - 0.9**step)).sqrt() + 1e-8
            weights[index] = (weights[index] - lr * means[index] / (1 - 0.5**step) / size).detach().requires_grad_()
    for actual, expected in zip(network.parameters(), weights, strict=True):
        torch.testing.assert_close(actual.detach(), expected.detach(), rtol=1e-5, atol=1e-6)

"""Processes find each other under a scheduler, a hung one is noticed, and what cannot work is refused with a reason."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from featgan.config.loading import to_yaml, validate
from featgan.config.schema import DistributionConfig, OptimizerConfig
from featgan.distributed import rendezvous
from featgan.distributed.context import Engine
from featgan.errors import UserError
from tests.conftest import World

STEP = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "17",
        "SLURM_JOB_NODELIST": "n[07-09,12]"}  # fmt: skip
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A clean stand-in for os.environ, on a machine without scontrol."""
    found: dict[str, str] = {}
    monkeypatch.setattr(rendezvous.os, "environ", found)
    monkeypatch.setattr(rendezvous.os, "isatty", lambda descriptor: False)

    def no_scontrol(*arguments: object, **options: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(rendezvous.subprocess, "run", no_scontrol)
    return found


def test_tasks_of_one_srun_find_each_other(environment: dict[str, str]) -> None:
    environment.update(STEP)
    rendezvous.adopt_scheduler()
    assert [environment[name] for name in NAMES[:4]] == ["3", "4", "1", "n07"]
    first = environment["MASTER_PORT"]
    environment.clear()
    environment.update(STEP, SLURM_RESTART_COUNT="1")
    rendezvous.adopt_scheduler()
    assert 1024 < int(first) != int(environment["MASTER_PORT"]) < 32768, "the old port may still be held"


def test_a_launchers_word_goes_first_and_a_single_task_is_alone(environment: dict[str, str]) -> None:
    environment.update(STEP, RANK="0", WORLD_SIZE="2")
    rendezvous.adopt_scheduler()
    assert environment["RANK"] == "0" and "MASTER_ADDR" not in environment
    environment.clear()
    environment.update(STEP, SLURM_NTASKS="1")
    rendezvous.adopt_scheduler()
    assert "RANK" not in environment
    environment.clear()
    environment.update({name: value for name, value in STEP.items() if name != "SLURM_STEP_ID"})
    rendezvous.adopt_scheduler()
    assert "RANK" not in environment, "the batch script itself is no task of a step"


def test_a_terminal_inside_an_allocation_is_alone(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    environment.update(STEP, SLURM_STEP_ID="4294967290", SLURM_STEP_NUM_TASKS="1")  # what salloc's own shell has
    rendezvous.adopt_scheduler()
    assert "RANK" not in environment
    environment.update(SLURM_STEP_ID="0", SLURM_STEP_NUM_TASKS="4")
    monkeypatch.setattr(rendezvous.os, "isatty", lambda descriptor: descriptor == 0)  # srun --pty: the first task only
    rendezvous.adopt_scheduler()
    assert "RANK" not in environment


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n1,n2", "n1"), ("gpu[3-4]", "gpu3"), ("a-[001,005]", "a-001"), ("", "127.0.0.1")],
)
def test_the_first_node_is_read_off_the_list(environment: dict[str, str], nodes: str, first: str) -> None:
    assert rendezvous.first_node(nodes) == first


@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        ({"distribution": {"strategy": "fsdp"}}, "distribution.strategy: FSDP frees weights"),
        ({"distribution": {"strategy": "deepspeed", "zero_stage": 3}}, "distribution.zero_stage: 3 frees weights"),
        ({"distribution": {"static_graph": True}}, "distribution.static_graph: DDP then reduces"),
        ({"training": {"precision": "fp16"}}, "training.precision: fp16 needs a loss scale"),
        ({"training": {"batch_size": 10}, "distribution": {"accumulation": 4}}, "distribution.accumulation: 4 parts"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(tree: dict[str, object], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        validate(tree, "config.yaml")


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "true", "distribution.strategy=deepspeed does that"),
        ("ACCELERATE_USE_FSDP", "True", "FSDP frees weights"),
        ("ACCELERATE_USE_MEGATRON_LM", "1", "Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "whole networks"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "no second derivative"),
    ],
)
def test_a_launcher_may_not_wrap_the_networks_otherwise(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"{name}={value}: leave it out.*{reason}"):
        Engine("fp32", DistributionConfig())
    monkeypatch.setenv(name, "NO" if "DYNAMO" in name else "false")
    Engine("fp32", DistributionConfig())


def test_networks_that_would_not_exchange_gradients_are_never_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine("fp32", DistributionConfig())
    monkeypatch.setattr(Engine, "world_size", 2)
    monkeypatch.setattr(engine.accelerator, "prepare_model", lambda network: network)
    with pytest.raises(AssertionError):
        engine.wrap(torch.nn.Linear(2, 2))


HANG = """
import sys, time
from featgan.training import logger
from featgan.config.loading import load_config
from featgan.training.train import train

def wait_for_ever(self):
    time.sleep(600)

logger.Recorder.count = wait_for_ever
train(load_config(sys.argv[1]))
"""


def test_a_hung_process_shows_its_stacks_and_ends(world: World, tmp_path: Path) -> None:
    config = world.config(tmp_path / "run", distribution={"hang_timeout": 6})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    command = [sys.executable, "-c", HANG, str(tmp_path / "config.yaml")]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert found.returncode == 1
    assert "Timeout (0:00:06)!" in found.stderr and "wait_for_ever" in found.stderr


def test_a_step_is_adams() -> None:
    """Kingma & Ba 2015, algorithm 1, written out, with the gradient clipped by its norm over all weights."""
    torch.manual_seed(3)
    network, inputs, targets = torch.nn.Linear(5, 4), torch.randn(6, 5), 10 * torch.randn(6, 4)
    config = OptimizerConfig(beta1=0.5, beta2=0.9, clip_norm=2.0)
    player = Engine("fp32", DistributionConfig()).player(network, 0.1, config)
    weights = [each.detach().clone().requires_grad_() for each in network.parameters()]
    first, second = ([torch.zeros_like(each) for each in weights] for _ in range(2))

    def loss(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return (inputs @ weight.T + bias - targets).square().mean()

    for step, rate in enumerate((0.1, 0.1, 0.02), 1):
        told = player.step([lambda: (loss(network.weight, network.bias), {})], rate)
        gradients = torch.autograd.grad(loss(*weights), weights)
        norm = torch.cat([each.flatten() for each in gradients]).norm()
        assert norm > 2 and float(told["gradient_norm"]) == pytest.approx(float(norm), rel=1e-5)
        for index, gradient in enumerate(each * 2 / norm for each in gradients):
            first[index] = 0.5 * first[index] + 0.5 * gradient
            second[index] = 0.9 * second[index] + 0.1 * gradient**2
            size = (second[index] / (1 - 0.9**step)).sqrt() + 1e-8
            weights[index] = (weights[index] - rate * first[index] / (1 - 0.5**step) / size).detach().requires_grad_()
    for found, expected in zip(network.parameters(), weights, strict=True):
        torch.testing.assert_close(found.detach(), expected.detach(), rtol=1e-5, atol=1e-6)

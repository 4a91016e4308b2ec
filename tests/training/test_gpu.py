"""On a CUDA device: the CPU's first steps in fp32, and a run in bf16 that is saved, resumed and edits an image."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from featgan.config.loading import to_yaml
from featgan.errors import Stopped
from featgan.inference.model import load_model
from featgan.run.paths import committed_steps, step_folder
from featgan.training.train import train
from tests.conftest import World, tensors_of
from tests.distributed.test_distributed import StopAfter

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_four_steps_are_those_of_the_cpu(world: World, tmp_path: Path) -> None:
    train(world.config(tmp_path / "cuda"))
    (tmp_path / "config.yaml").write_text(to_yaml(world.config(tmp_path / "cpu")))
    command = [sys.executable, "-m", "featgan", "train", str(tmp_path / "config.yaml")]
    subprocess.run(command, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, check=True)
    for name in ("average", "discriminator"):
        one, two = tensors_of(tmp_path / "cuda", 4, name), tensors_of(tmp_path / "cpu", 4, name)
        for key in one:
            torch.testing.assert_close(torch.from_numpy(one[key]), torch.from_numpy(two[key]), rtol=1e-2, atol=5e-4)


def test_bf16_trains_resumes_and_edits(world: World, tmp_path: Path) -> None:
    sections = {"training": {"precision": "bf16", "steps": 8, "save_every": 8}}
    config = world.config(tmp_path / "run", **sections)
    with pytest.raises(Stopped):
        train(config, request=StopAfter(3))
    (stopped,) = committed_steps(config.run)
    assert 0 < stopped < 8
    train(config)
    assert committed_steps(config.run) == [stopped, 8]
    lines = [json.loads(line)["step"] for line in (config.run / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(1, 9))
    model = load_model(config.run, device="cuda")
    edited = model.edit(torch.zeros(2, 3, 16, 16), torch.randn(2, model.condition_dim))
    assert edited.isfinite().all()


@pytest.mark.parametrize("strategy", ["ddp", "deepspeed"])
def test_processes_of_every_start_train_on_the_gpus(world: World, tmp_path: Path, strategy: str) -> None:
    """As `accelerate launch` starts them, one a GPU."""
    count = torch.cuda.device_count()
    sections = {"training": {"precision": "bf16", "batch_size": 4 * count}, "distribution": {"strategy": strategy}}
    config = world.config(tmp_path / "run", **sections)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(count)]
    accelerate += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    accelerate += ["--multi_gpu"] if count > 1 else []
    command = [*accelerate, "-m", "featgan", "train", str(tmp_path / "config.yaml")]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-3000:]
    assert json.loads((step_folder(config.run, 4) / "state.json").read_text())["world_size"] == count


def test_a_slurm_step_finds_its_gpu(world: World, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(world.config(tmp_path / "run")))
    step = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "17"}
    command = [sys.executable, "-m", "featgan", "train", str(tmp_path / "config.yaml")]
    found = subprocess.run(command, env=os.environ | step, capture_output=True, text=True, check=True)
    assert "on cuda" in found.stderr

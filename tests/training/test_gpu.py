"""Training on a CUDA device: equal to the CPU in fp32; saving, resuming and editing in bf16; all launchers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from featgan.config.loading import to_yaml
from featgan.errors import TrainingInterrupted
from featgan.inference.model import load_model
from featgan.run.paths import checkpoint_steps, step_folder
from featgan.training.train import train
from tests.conftest import World, read_checkpoint_tensors
from tests.distributed.test_distributed import StopSignalAfter

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_first_steps_match_the_cpu(world: World, tmp_path: Path) -> None:
    train(world.make_config(tmp_path / "cuda"))
    (tmp_path / "config.yaml").write_text(to_yaml(world.make_config(tmp_path / "cpu")))
    command = [sys.executable, "-m", "featgan", "train", str(tmp_path / "config.yaml")]
    subprocess.run(command, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, check=True)
    for name in ("generator_ema", "discriminator"):
        cuda, cpu = (read_checkpoint_tensors(tmp_path / device, 4, name) for device in ("cuda", "cpu"))
        for key in cuda:
            torch.testing.assert_close(torch.from_numpy(cuda[key]), torch.from_numpy(cpu[key]), rtol=1e-2, atol=5e-4)


def test_bf16_trains_resumes_and_edits(world: World, tmp_path: Path) -> None:
    sections = {"training": {"precision": "bf16", "steps": 8, "checkpoint_every": 8}}
    config = world.make_config(tmp_path / "run", **sections)
    with pytest.raises(TrainingInterrupted):
        train(config, stop_signal=StopSignalAfter(3))
    (stop_step,) = checkpoint_steps(config.run_dir)
    assert 0 < stop_step < 8
    train(config)
    assert checkpoint_steps(config.run_dir) == [stop_step, 8]
    lines = [json.loads(line)["step"] for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(1, 9))
    model = load_model(config.run_dir, device="cuda")
    edited = model.edit_images(torch.zeros(2, 3, 16, 16), torch.randn(2, model.metadata.condition_dim))
    assert edited.isfinite().all()


@pytest.mark.parametrize("strategy", ["ddp", "deepspeed"])
def test_accelerate_launch_trains_on_all_gpus(world: World, tmp_path: Path, strategy: str) -> None:
    """`accelerate launch` starts one process per GPU."""
    count = torch.cuda.device_count()
    training = {"precision": "bf16", "batch_size": 4 * count}
    config = world.make_config(tmp_path / "run", training=training, distributed={"strategy": strategy})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(count)]
    accelerate += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    accelerate += ["--multi_gpu"] if count > 1 else []
    command = [*accelerate, "-m", "featgan", "train", str(tmp_path / "config.yaml")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads((step_folder(config.run_dir, 4) / "state.json").read_text())["world_size"] == count


def test_slurm_step_uses_its_gpu(world: World, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(world.make_config(tmp_path / "run")))
    step = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "17"}
    command = [sys.executable, "-m", "featgan", "train", str(tmp_path / "config.yaml")]
    result = subprocess.run(command, env=os.environ | step, capture_output=True, text=True, check=True)
    assert "on cuda" in result.stderr

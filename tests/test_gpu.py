"""On a CUDA device: the CPU's first steps in fp32, and a run in bf16 that is saved, resumed and edits an image."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from featgan.config import to_yaml
from featgan.model import load_model
from featgan.train import train
from tests.conftest import World, tensors_of

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
    config = world.config(tmp_path / "run", training={"precision": "bf16", "steps": 8})
    train(config)
    model = load_model(config.run, device="cuda")
    edited = model.edit(torch.zeros(2, 3, 16, 16), torch.randn(2, model.condition_dim))
    assert edited.isfinite().all()

"""Tests of LPIPS: weights from a user's file are loaded; wrong and unsafe files are rejected."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from featgan.errors import UserError
from featgan.metrics.lpips import Lpips


@pytest.fixture(scope="module")
def backbone() -> nn.Module:
    torch.manual_seed(0)
    return models.alexnet(weights=None).features


@pytest.fixture(scope="module")
def weights_path(backbone: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save random weights in the format of torchvision's alexnet, without its classifier."""
    path = tmp_path_factory.mktemp("weights") / "alexnet.safetensors"
    save_file({f"features.{name}": tensor for name, tensor in backbone.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_distance_of_a_copy_is_zero_and_grows_with_the_change(weights_path: Path, images: Tensor) -> None:
    lpips = Lpips(weights_path)
    assert lpips.backbone_name == "alex" and lpips(images, images).tolist() == [0, 0, 0]
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    near, far = (lpips(images, (images + size * noise).clamp(-1, 1)) for size in (0.05, 0.5))
    assert (0 < near).all() and (near < far).all()


def test_the_backbone_has_the_users_weights(weights_path: Path, backbone: nn.Module) -> None:
    network = Lpips(weights_path).network.net
    assert torch.equal(network.get_parameter("slice1.0.weight"), backbone.get_parameter("0.weight"))
    assert torch.equal(network.get_parameter("slice5.10.weight"), backbone.get_parameter("10.weight"))


def test_other_weights_are_rejected_in_one_line(tmp_path: Path, backbone: nn.Module) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"layer1.weight": torch.zeros(2)}, path)
    with pytest.raises(UserError, match="not weights for LPIPS; --lpips needs torchvision's state dict"):
        Lpips(path)
    named = {f"features.{name}": tensor for name, tensor in backbone.state_dict().items()}
    save_file({name: tensor for name, tensor in named.items() if "10" not in name}, path)
    with pytest.raises(UserError, match=r"missing: 10\.bias"):
        Lpips(path)


def test_a_file_that_would_run_code_is_rejected(tmp_path: Path) -> None:
    path, created = tmp_path / "malicious.pth", tmp_path / "created"

    class MaliciousPickle:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (created,))

    path.write_bytes(pickle.dumps(MaliciousPickle(), protocol=2))
    with pytest.raises(UserError):
        Lpips(path)
    assert not created.exists()

"""LPIPS from a file of the user's: the right network is filled, wrong and dangerous files are refused."""

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
def weights(backbone: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the shape of torchvision's file of alexnet, without its classifier."""
    path = tmp_path_factory.mktemp("weights") / "alexnet.safetensors"
    save_file({f"features.{name}": tensor for name, tensor in backbone.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_a_copy_is_at_no_distance_and_a_larger_change_is_further(weights: Path, images: Tensor) -> None:
    lpips = Lpips(weights)
    assert lpips.kind == "alex" and lpips(images, images).tolist() == [0, 0, 0]
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    near, far = (lpips(images, (images + size * noise).clamp(-1, 1)) for size in (0.05, 0.5))
    assert (0 < near).all() and (near < far).all()


def test_the_backbone_is_the_users(weights: Path, backbone: nn.Module) -> None:
    network = Lpips(weights).network.net
    assert torch.equal(network.get_submodule("slice1.0").weight, backbone.get_submodule("0").weight)
    assert torch.equal(network.get_submodule("slice5.10").weight, backbone.get_submodule("10").weight)


def test_other_weights_are_refused_in_one_line(tmp_path: Path, backbone: nn.Module) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"layer1.weight": torch.zeros(2)}, path)
    with pytest.raises(UserError, match="no weights for LPIPS; --lpips takes torchvision's state dict"):
        Lpips(path)
    named = {f"features.{name}": tensor for name, tensor in backbone.state_dict().items()}
    save_file({name: tensor for name, tensor in named.items() if "10" not in name}, path)
    with pytest.raises(UserError, match="it lacks 10.bias"):
        Lpips(path)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path, touched = tmp_path / "trap.pth", tmp_path / "touched"

    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (touched,))

    path.write_bytes(pickle.dumps(Trap(), protocol=2))
    with pytest.raises(UserError):
        Lpips(path)
    assert not touched.exists()

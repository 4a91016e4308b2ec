"""Tests of Inception: weights from a user's file, and the pooling of the network of published distances."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import Inception3
from torchvision.models.inception import InceptionA

from featgan.errors import UserError
from featgan.metrics.inception import Inception, replace_pool
from featgan.metrics.realism import realism_metrics


def test_only_the_pooling_of_a_block_is_replaced() -> None:
    torch.manual_seed(0)
    block = InceptionA(4, pool_features=2).eval()
    images = torch.rand(1, 4, 5, 5)
    before = block(images)
    pooled = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    expected = block.branch_pool(pooled)
    replace_pool(block, lambda features: F.avg_pool2d(features, 3, stride=1, padding=1, count_include_pad=False))
    after = block(images)
    assert torch.equal(after[:, :-2], before[:, :-2])
    assert torch.allclose(after[:, -2:], expected)
    assert torch.allclose(after[..., 1:-1, 1:-1], before[..., 1:-1, 1:-1], atol=1e-6), "only the border differs"


def test_other_weights_are_rejected_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"fc.weight": torch.zeros(10, 512)}, path)
    with pytest.raises(UserError, match="not weights of Inception-v3"):
        Inception(path)


def random_network(num_classes: int, second_head: bool) -> nn.Module:
    torch.manual_seed(0)
    network = Inception3(num_classes, aux_logits=second_head, init_weights=False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.fill_(0.3)  # otherwise activations grow from layer to layer
    return network


@pytest.fixture
def images() -> Tensor:
    return (torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)


@pytest.mark.slow
@pytest.mark.parametrize(("num_classes", "second_head"), [(1008, False), (1000, True)])
def test_both_kinds_of_weights_give_2048_features(
    tmp_path: Path, images: Tensor, num_classes: int, second_head: bool
) -> None:
    path = tmp_path / "inception.pth"
    # Old files lack the batch counters of batch norm.
    state = random_network(num_classes, second_head).state_dict()
    torch.save({name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}, path)
    inception = Inception(path)
    assert inception.is_original == (num_classes == 1008)
    features = inception(images)
    assert features.shape == (6, 2048) and np.ptp(features, axis=0).max() > 0
    half = features[3:]
    metrics = realism_metrics(features, {"generator": half, "copy_source": half}, space="inception")
    assert list(metrics["copy_source"]) == ["fid", "inception_kid"]
    assert metrics["generator"]["fid"].value == pytest.approx(metrics["generator"]["fid_real"].value)

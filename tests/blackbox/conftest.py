"""Fixtures of the tests of black boxes: a small network and images."""

import pytest
import torch
from torch import Tensor

from tests.blackbox.small_network import SIZE, SmallNetwork


@pytest.fixture
def network() -> SmallNetwork:
    torch.manual_seed(1)
    return SmallNetwork().eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3)) * 2 - 1

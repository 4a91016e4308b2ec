"""Inception-v3's last features, the space of published FID and KID, from weights the user gives."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import Inception3

from featgan.blackbox.weights import load_weights, read_weights
from featgan.errors import UserError
from featgan.metrics.bootstrap import Floats, as_floats
from featgan.system.images import to_float
from featgan.system.progress import track

SIDE = 299
"""Pixels a side that the network takes."""

BATCH = 32

ORIGINAL_CLASSES = 1008
"""Outputs of the network of Heusel et al.; torchvision's own has 1000."""


class Inception:
    """Pictures => 2048 features each.

    The weights of pytorch-fid and torch-fidelity (`pt_inception-2015-12-05`) give numbers to be compared with published
    ones; torchvision's `inception_v3` gives a space of its own.
    """

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        """UserError when `path` holds neither. Nothing is downloaded, and nothing but tensors is read."""
        weights = read_weights(path)
        head = weights.get("fc.weight")
        if head is None or head.ndim != 2 or head.shape[1] != 2048 or "Mixed_7c.branch_pool.conv.weight" not in weights:
            raise UserError(
                f"{path}: no weights of Inception-v3; --inception takes the state dict of pytorch-fid's network or of "
                "torchvision's inception_v3"
            )
        has_second_head = any(name.startswith("AuxLogits.") for name in weights)
        network = Inception3(len(head), aux_logits=has_second_head, init_weights=False)
        load_weights(network, counted(weights, network), path)
        self.is_original = len(head) == ORIGINAL_CLASSES
        if self.is_original:
            pool_as_original(network)
        network.fc = nn.Identity()  # type: ignore[assignment]
        self.network = network.eval().requires_grad_(False).to(device)
        self.device = torch.device(device)

    def __call__(self, images: Tensor, what: str = "asking Inception") -> Floats:
        """uint8 or float in [-1, 1] [N, 3, H, W] => [N, 2048]."""
        parts = images.split(BATCH)
        return as_floats(torch.cat([self.features(part) for part in track(parts, what, len(parts), "batches")]))

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        images = (images if images.is_floating_point() else to_float(images)).to(self.device)
        resized = F.interpolate(images, (SIDE, SIDE), mode="bilinear", align_corners=False)
        return torch.as_tensor(self.network(resized)).cpu()


def counted(weights: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """With the counters of batch normalisation that old state dicts lack; nothing reads them here."""
    counters = {name: value for name, value in network.state_dict().items() if name.endswith("num_batches_tracked")}
    return counters | weights


def pool_as_original(network: Inception3) -> None:
    """Pool as the network that the weights were made for: averages leave the padding out, the last is a maximum."""

    def average(features: Tensor) -> Tensor:
        return F.avg_pool2d(features, 3, stride=1, padding=1, count_include_pad=False)

    def maximum(features: Tensor) -> Tensor:
        return F.max_pool2d(features, 3, stride=1, padding=1)

    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7b"):
        replace_pool(network.get_submodule(name), average)
    replace_pool(network.get_submodule("Mixed_7c"), maximum)


def replace_pool(block: nn.Module, pool: Callable[[Tensor], Tensor]) -> None:
    """Give the block's pooling branch `pool` of the block's input, in place of what the block pools."""
    entered: list[Tensor] = []
    block.register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0]))
    block.get_submodule("branch_pool").register_forward_pre_hook(lambda module, inputs: (pool(entered.pop()),))

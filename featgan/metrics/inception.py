"""Features of Inception-v3, the space of published FID and KID values, from weights that the user provides."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import Inception3

from featgan.blackbox.weights import load_state_dict, read_weights
from featgan.errors import UserError
from featgan.metrics.bootstrap import Floats, to_float64
from featgan.system.images import to_float
from featgan.system.memory import choose_batch_size
from featgan.system.progress import track_progress

INPUT_SIZE = 299
"""Width and height of the input in pixels."""

BATCH_SIZE = 32

ORIGINAL_CLASSES = 1008
"""Number of outputs of the network of Heusel et al.; torchvision's network has 1000."""


class Inception:
    """Inception-v3: images => 2048 features each.

    The weights of pytorch-fid and torch-fidelity (`pt_inception-2015-12-05`) give values that can be compared with
    published ones. The weights of torchvision's `inception_v3` give values in another space.
    """

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        """Raises UserError if `path` contains neither. Nothing is downloaded, and only tensors are read."""
        weights = read_weights(path)
        head = weights.get("fc.weight")
        if head is None or head.ndim != 2 or head.shape[1] != 2048 or "Mixed_7c.branch_pool.conv.weight" not in weights:
            raise UserError(
                f"{path}: not weights of Inception-v3; --inception needs the state dict of pytorch-fid's network or of "
                "torchvision's inception_v3"
            )
        has_second_head = any(name.startswith("AuxLogits.") for name in weights)
        network = Inception3(len(head), aux_logits=has_second_head, init_weights=False)
        load_state_dict(network, weights, path)
        self.is_original = len(head) == ORIGINAL_CLASSES
        if self.is_original:
            use_original_pooling(network)
        network.fc = nn.Identity()  # type: ignore[assignment]
        self.network = network.eval().requires_grad_(False).to(device)
        self.device = torch.device(device)

    def __call__(self, images: Tensor, description: str = "running Inception") -> Floats:
        """Images [N, 3, H, W], uint8 or float in [-1, 1] => features [N, 2048]."""
        batches = images.split(choose_batch_size(images.shape[-1], BATCH_SIZE))
        return to_float64(
            torch.cat(
                [
                    self.extract_features(batch)
                    for batch in track_progress(batches, description, len(batches), "batches")
                ]
            )
        )

    @torch.no_grad()
    def extract_features(self, images: Tensor) -> Tensor:
        """Compute the features of one batch, resized to the input size."""
        images = (images if images.is_floating_point() else to_float(images)).to(self.device)
        resized = F.interpolate(images, (INPUT_SIZE, INPUT_SIZE), mode="bilinear", align_corners=False)
        return torch.as_tensor(self.network(resized)).cpu()


def use_original_pooling(network: Inception3) -> None:
    """Use the pooling of the original network: averages exclude the padding, and the last pooling is a maximum."""

    def average(features: Tensor) -> Tensor:
        return F.avg_pool2d(features, 3, stride=1, padding=1, count_include_pad=False)

    def maximum(features: Tensor) -> Tensor:
        return F.max_pool2d(features, 3, stride=1, padding=1)

    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7b"):
        replace_pool(network.get_submodule(name), average)
    replace_pool(network.get_submodule("Mixed_7c"), maximum)


def replace_pool(block: nn.Module, pool: Callable[[Tensor], Tensor]) -> None:
    """Feed `pool` of the block's input to the block's pooling branch."""
    pool_inputs: list[Tensor] = []
    block.register_forward_pre_hook(lambda module, inputs: pool_inputs.append(inputs[0]))
    block.get_submodule("branch_pool").register_forward_pre_hook(lambda module, inputs: (pool(pool_inputs.pop()),))

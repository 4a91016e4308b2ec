"""What one process must know of the others; every function also works alone."""

import torch
import torch.distributed
import torch.distributed.nn.functional
from torch import Tensor


def world_size() -> int:
    """Number of processes that train together."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def gather_with_gradient(rows: Tensor) -> Tensor:
    """Rows of all processes in rank order, [n, ...] => [world * n, ...].

    The backward pass sums the gradients of all processes; since each computes the same loss of all rows and gradients
    are averaged over processes afterwards, the result is the gradient of the joined batch.
    """
    if world_size() == 1:
        return rows
    return torch.cat(torch.distributed.nn.functional.all_gather(rows.contiguous()))

"""Collectives over the processes of a run, with gradients."""

from typing import Any

import torch
import torch.distributed
from torch import Tensor


def world_size() -> int:
    """Number of processes that train together."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def gather_with_gradient(rows: Tensor) -> Tensor:
    """Rows of all processes in rank order, [n, ...] => [world * n, ...].

    The backward pass sums the gradients of all processes; since each computes the same loss of all rows and gradients
    are averaged over processes afterwards, the result is the gradient of the joined batch.
    """
    return rows if world_size() == 1 else Gather.apply(rows)


class Gather(torch.autograd.Function):
    """All processes' rows, and their gradients back; every process holds as many."""

    @staticmethod
    def forward(context: Any, rows: Tensor) -> Tensor:
        context.count = len(rows)
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        torch.distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        summed = gradient.contiguous()
        torch.distributed.all_reduce(summed)
        start = torch.distributed.get_rank() * context.count
        return summed[start : start + context.count]

"""Collective operations over the processes of a run, with gradients."""

from typing import Any

import torch
import torch.distributed
from torch import Tensor


def world_size() -> int:
    """Return the number of processes of the run."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def gather_with_gradient(rows: Tensor) -> Tensor:
    """Concatenate the rows of all processes in rank order, [n, ...] => [world * n, ...].

    The backward pass sums the gradients over the processes. Each process computes the same loss from all rows, and DDP
    averages the gradients afterwards. So the result is the gradient of the loss of the global batch.
    """
    return rows if world_size() == 1 else AllGatherWithGradient.apply(rows)


class AllGatherWithGradient(torch.autograd.Function):
    """All-gather with a gradient; every process must have the same number of rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        gathered = [torch.empty_like(rows) for _ in range(world_size())]
        torch.distributed.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        summed = gradient.contiguous()
        torch.distributed.all_reduce(summed)
        start = torch.distributed.get_rank() * ctx.count
        return summed[start : start + ctx.count]

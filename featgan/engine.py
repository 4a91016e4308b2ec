"""Devices, precision and optimiser steps for the two players; the only file that imports accelerate."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import cast

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn

from featgan.config import OptimizerConfig
from featgan.progress import console


class Player:
    """One network of the game with its optimiser.

    Call `network` (wrapped for distributed training) in its own step; call `bare` where the opponent is trained and
    for the penalty, since wrappers hook into inner derivatives.
    """

    def __init__(self, bare: nn.Module, network: nn.Module, optimizer: torch.optim.Optimizer, clip_norm: float) -> None:
        self.bare = bare
        self.network = network
        self.optimizer = optimizer
        self.clip_norm = clip_norm

    def step(self, loss: Tensor, rate: float) -> dict[str, Tensor]:
        """Backward, clip, optimise, zero, for the one scalar of this iteration; returns the gradient's norm."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss.backward()
        limit = self.clip_norm or float("inf")
        norm = nn.utils.clip_grad_norm_(self.bare.parameters(), limit)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"loss": loss.detach(), "gradient_norm": norm, "learning_rate": torch.tensor(rate)}

    @contextmanager
    def frozen(self) -> Iterator[nn.Module]:
        """The bare network without weight gradients, for the opponent's step."""
        self.bare.requires_grad_(False)
        try:
            yield self.bare
        finally:
            self.bare.requires_grad_(True)


class Engine:
    """The process's place among the others, its device, and the players it prepares."""

    def __init__(self, precision: str) -> None:
        # Mixed precision stays off in the accelerator: it would patch the networks' forward for the penalty as well.
        handlers = [DistributedDataParallelKwargs(broadcast_buffers=False)]
        self.accelerator = Accelerator(mixed_precision="no", kwargs_handlers=handlers)
        # Flags travel between the hosts, so that asking for one does not wait for the device.
        self.hosts: dist.ProcessGroup | None = None
        if self.world_size > 1:
            self.hosts = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
        self.half = is_half(precision, self.device)

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def rank(self) -> int:
        return int(self.accelerator.process_index)

    @property
    def world_size(self) -> int:
        return int(self.accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def player(self, network: nn.Module, rate: float, config: OptimizerConfig) -> Player:
        """The network on the device, wrapped when there are several processes, with its Adam."""
        network.to(self.device)
        betas = (config.beta1, config.beta2)
        optimizer = torch.optim.Adam(network.parameters(), rate, betas, fused=self.device.type == "cuda")
        wrapped = self.accelerator.prepare_model(network) if self.world_size > 1 else network
        return Player(network, wrapped, optimizer, config.clip_norm)

    def autocast(self) -> AbstractContextManager[None]:
        """bf16 for the networks, when asked for."""
        if self.half:
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def any_process(self, flag: bool) -> bool:
        """Whether the flag is set in any process; every process gets the same answer."""
        if self.hosts is None:
            return flag
        votes = torch.tensor(int(flag))
        dist.all_reduce(votes, dist.ReduceOp.MAX, group=self.hosts)
        return bool(votes)

    def announce(self, text: str) -> None:
        """Tell the user, once."""
        if self.is_main:
            console.print(text, markup=False)

    def wait(self) -> None:
        """Until every process is here."""
        self.accelerator.wait_for_everyone()


def is_half(precision: str, device: torch.device) -> bool:
    """Whether networks run in bf16 on a device under training.precision."""
    return precision == "bf16" or (precision == "auto" and has_fast_bf16(device))


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware; elsewhere it is emulated, slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def learning_rate(base: float, step: int, steps: int, decay_steps: int) -> float:
    """Constant, then linear to zero over the last `decay_steps`: the rate used in step `step` (from 0)."""
    if not decay_steps:
        return base
    return base * min(1.0, (steps - step) / decay_steps)

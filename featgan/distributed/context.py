"""Devices, precision and optimiser steps for the two players; the only file that imports accelerate."""

import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn

from featgan.config.schema import DistributionConfig, OptimizerConfig
from featgan.distributed.deepspeed import ShardedPlayer
from featgan.distributed.rendezvous import adopt_scheduler, refuse_launcher
from featgan.distributed.trainable import Player
from featgan.errors import UserError
from featgan.system.progress import console

PATIENCE = 60.0
"""Seconds that exchanges are waited for beyond the hang timeout, so that the stacks are shown first."""

NEVER = timedelta(days=365)


class Engine:
    """The process's place among the others, its device, and the players it prepares."""

    def __init__(self, precision: str, distribution: DistributionConfig) -> None:
        refuse_launcher()
        adopt_scheduler()
        self.distribution = distribution
        # Mixed precision stays off in the accelerator: it would patch the networks' forward for the penalty as well.
        patience = timedelta(seconds=distribution.hang_timeout + PATIENCE) if distribution.hang_timeout else NEVER
        handlers = [DistributedDataParallelKwargs(broadcast_buffers=False), InitProcessGroupKwargs(timeout=patience)]
        # Without a GPU, several processes find each other only where the accelerator is told that it is on a CPU.
        started = int(os.environ.get("WORLD_SIZE", "1"))
        on_cpu = started > 1 and not torch.cuda.is_available()
        self.accelerator = Accelerator(cpu=on_cpu, mixed_precision="no", kwargs_handlers=handlers)
        if self.world_size != started:
            raise UserError(f"started as one of {started} processes, but sees {self.world_size}; check the launcher")
        # Flags travel between the hosts, so that asking for one does not wait for the device.
        self.hosts: dist.ProcessGroup | None = None
        if self.world_size > 1:
            self.hosts = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=patience))
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
        optimizer = torch.optim.Adam(network.parameters(), rate, betas, fused=True)
        if self.distribution.strategy == "deepspeed":
            return ShardedPlayer(network, optimizer, config.clip_norm, self.distribution, self.device, self.autocast)
        return Player(network, self.wrap(network), optimizer, config.clip_norm)

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network that exchanges gradients with the other processes; itself where there are none."""
        if self.world_size == 1:
            return network
        with warnings.catch_warnings():
            # The newest torch has two words for broadcast_buffers; older ones know this one only.
            warnings.simplefilter("ignore", FutureWarning)
            wrapped: nn.Module = self.accelerator.prepare_model(network)
        # Anything else would leave each process to train by itself.
        assert isinstance(wrapped, nn.parallel.DistributedDataParallel), type(wrapped)
        return wrapped

    @property
    def name(self) -> str:
        """Of the device, and of the card where it is one."""
        return (
            f"{self.device} ({torch.cuda.get_device_name(self.device)})"
            if self.device.type == "cuda"
            else str(self.device)
        )

    def describe(self) -> str:
        """The device and what the networks compute in, in a few words."""
        if self.half:
            return f"{self.name} in bf16, penalties' norms and losses in fp32"
        return f"{self.name} in fp32" + ("" if has_fast_bf16(self.device) else " (it has no bf16 of its own)")

    def autocast(self) -> AbstractContextManager[None]:
        """bf16 for the networks, when asked for."""
        if self.half:
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    @property
    def vote_every(self) -> int:
        """Steps between two votes: each takes longer the more processes there are."""
        return max(1, self.world_size // 8)

    def any_process(self, flag: bool) -> bool:
        """Whether the flag is set in any process; every process gets the same answer."""
        if self.hosts is None:
            return flag
        votes = torch.tensor(int(flag))
        dist.all_reduce(votes, dist.ReduceOp.MAX, group=self.hosts)
        return bool(votes)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes of numbers on the host; the same in each."""
        if self.hosts is None:
            return values
        shared = values.clone()
        dist.all_reduce(shared, dist.ReduceOp.SUM, group=self.hosts)
        return shared / self.world_size

    def on_main(self, act: Callable[[], None], otherwise: str) -> None:
        """The main process acts; when it meets a UserError, every process ends with one (the others': `otherwise`)."""
        problem: UserError | None = None
        if self.is_main:
            try:
                act()
            except UserError as error:
                problem = error
        if self.any_process(problem is not None):
            raise problem or UserError(otherwise)

    def as_main(self, number: int) -> int:
        """The main process's number, in every process."""
        if self.hosts is None:
            return number
        shared = torch.tensor(number)
        dist.broadcast(shared, 0, group=self.hosts)
        return int(shared)

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

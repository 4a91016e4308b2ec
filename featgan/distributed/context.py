"""Device, precision and communication of a training process; the only module that imports accelerate."""

import logging
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

from featgan.config.schema import DistributedConfig, OptimizerConfig
from featgan.distributed.deepspeed import DeepSpeedNetwork
from featgan.distributed.rendezvous import check_launcher_env, init_env_from_slurm
from featgan.distributed.store_discovery import join_processes
from featgan.distributed.trainable import TrainableNetwork
from featgan.errors import TrainingInterrupted, UserError
from featgan.system.device import has_fast_bf16, limit_torch_threads, uses_bf16

logger = logging.getLogger(__name__)

TIMEOUT_MARGIN = 60.0
"""Seconds by which collectives outlast the hang timeout, so that the watchdog prints the stacks first."""

NO_TIMEOUT = timedelta(days=365)


class DistributedContext:
    """Rank, device, precision and collectives of this process; prepares networks for training."""

    def __init__(self, precision: str, distributed_config: DistributedConfig) -> None:
        check_launcher_env()
        rendezvous = init_env_from_slurm()
        self.distributed_config = distributed_config
        # No mixed precision in the accelerator: it would patch `forward`, but autocast contexts are set in the step.
        timeout = (
            timedelta(seconds=distributed_config.hang_timeout + TIMEOUT_MARGIN)
            if distributed_config.hang_timeout
            else NO_TIMEOUT
        )
        handlers = [DistributedDataParallelKwargs(broadcast_buffers=False), InitProcessGroupKwargs(timeout=timeout)]
        # Without a GPU, accelerate joins several processes only if it is created with cpu=True.
        expected_world_size = int(os.environ.get("WORLD_SIZE", "1"))
        on_cpu = expected_world_size > 1 and not torch.cuda.is_available()
        with join_processes(rendezvous, distributed_config.hang_timeout):
            self.accelerator = Accelerator(cpu=on_cpu, mixed_precision="no", kwargs_handlers=handlers)
        limit_torch_threads()  # after accelerate, which sets the number of threads too
        if self.world_size != expected_world_size:
            raise UserError(
                f"WORLD_SIZE={expected_world_size}: accelerate found {self.world_size} processes; check the launcher"
            )
        # Flags are exchanged between the CPUs, so that checking one does not wait for the GPU.
        self.cpu_group: dist.ProcessGroup | None = None
        if self.world_size > 1:
            self.cpu_group = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=timeout))
        self.uses_bf16 = uses_bf16(precision, self.device)

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

    def prepare(self, network: nn.Module, lr: float, config: OptimizerConfig) -> TrainableNetwork:
        """Move a network to the device, wrap it for distributed training, and create its Adam optimizer."""
        network.to(self.device)
        betas = (config.beta1, config.beta2)
        optimizer = torch.optim.Adam(network.parameters(), lr, betas, fused=True)
        if self.distributed_config.strategy == "deepspeed":
            return DeepSpeedNetwork(
                network, optimizer, config.max_grad_norm, self.distributed_config, self.device, self.autocast
            )
        return TrainableNetwork(network, self.wrap_with_ddp(network), optimizer, config.max_grad_norm)

    def wrap_with_ddp(self, network: nn.Module) -> nn.Module:
        """Wrap a network with DDP; return it unchanged if there is one process only."""
        if self.world_size == 1:
            return network
        with warnings.catch_warnings():
            # The newest torch renames broadcast_buffers; older versions support this name only.
            warnings.simplefilter("ignore", FutureWarning)
            wrapped: nn.Module = self.accelerator.prepare_model(network)
        # Without DDP, each process would train its own network.
        assert isinstance(wrapped, nn.parallel.DistributedDataParallel), type(wrapped)
        return wrapped

    @property
    def device_name(self) -> str:
        """The device, and the model of the GPU."""
        return (
            f"{self.device} ({torch.cuda.get_device_name(self.device)})"
            if self.device.type == "cuda"
            else str(self.device)
        )

    def describe_device(self) -> str:
        """Return the device and the precision as a short text."""
        if self.uses_bf16:
            return f"{self.device_name} in bf16 (losses and penalties in fp32)"
        return f"{self.device_name} in fp32" + ("" if has_fast_bf16(self.device) else " (no hardware support for bf16)")

    def autocast(self) -> AbstractContextManager[None]:
        """Return the autocast context of the networks' forward passes."""
        if self.uses_bf16:
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    @property
    def stop_check_every(self) -> int:
        """Steps between two checks for a stop signal; the check takes longer with more processes."""
        return max(1, self.world_size // 8)

    def any_rank(self, flag: bool) -> bool:
        """Return whether the flag is set in any process; the result is the same in every process."""
        if self.cpu_group is None:
            return flag
        flag_tensor = torch.tensor(int(flag))
        dist.all_reduce(flag_tensor, dist.ReduceOp.MAX, group=self.cpu_group)
        return bool(flag_tensor)

    def all_reduce_mean(self, values: Tensor) -> Tensor:
        """Return the mean of CPU tensors over the processes; the result is the same in every process."""
        if self.cpu_group is None:
            return values
        total = values.clone()
        dist.all_reduce(total, dist.ReduceOp.SUM, group=self.cpu_group)
        return total / self.world_size

    def run_on_main(self, action: Callable[[], None], other_rank_message: str) -> None:
        """Run an action in the main process only.

        If it raises UserError, TrainingInterrupted or OSError, the other processes raise
        UserError(`other_rank_message`) instead of waiting for it.
        """
        main_error: Exception | None = None
        if self.is_main:
            try:
                action()
            except (UserError, TrainingInterrupted, OSError) as error:
                main_error = error
        if self.any_rank(main_error is not None):
            raise main_error or UserError(other_rank_message)

    def broadcast_int(self, value: int) -> int:
        """Return the main process's value in every process."""
        if self.cpu_group is None:
            return value
        tensor = torch.tensor(value)
        dist.broadcast(tensor, 0, group=self.cpu_group)
        return int(tensor)

    def log_on_main(self, text: str) -> None:
        """Log a message once, in the main process."""
        if self.is_main:
            logger.info(text)

    def barrier(self) -> None:
        """Wait until every process calls this."""
        self.accelerator.wait_for_everyone()

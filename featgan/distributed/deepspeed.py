"""A player whose optimiser DeepSpeed shards over the processes (ZeRO 0 to 2); the only file that imports deepspeed.

Each player has an engine of its own, made without Accelerate's plugins: those hold one model each, clip by default,
and need transformers. What DeepSpeed shards is gathered for checkpoints, so these are the same for every strategy.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from featgan.config.schema import DistributionConfig
from featgan.distributed.trainable import Loss, Player, mean_scalars, set_rate
from featgan.errors import UserError


class Within(nn.Module):
    """A network whose passes are within a context of its own: DeepSpeed ends an autocast that it has not begun."""

    def __init__(self, network: nn.Module, context: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__()
        self.network = network
        self.context = context

    def forward(self, *inputs: Tensor) -> Any:
        with self.context():
            return self.network(*inputs)


MOMENTS = ("exp_avg", "exp_avg_sq")


class ShardedPlayer(Player):
    """A player with a DeepSpeed engine as its `network`.

    The engine reduces in hooks of the backward pass, so the opponent must be frozen while it steps, and the penalty
    must go through `bare`.
    """

    def __init__(
        self,
        bare: nn.Module,
        optimizer: torch.optim.Optimizer,
        clip_norm: float,
        distribution: DistributionConfig,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """UserError where deepspeed is not installed."""
        deepspeed = import_deepspeed(device)
        settings = {
            "train_micro_batch_size_per_gpu": 1,  # only for DeepSpeed's own figures; featgan makes the batches
            "gradient_accumulation_steps": distribution.accumulation,
            "zero_optimization": {"stage": distribution.zero_stage},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "gradient_clipping": clip_norm,  # DeepSpeed clips at 1 when nothing is said
        }
        with local_rank():
            engine, *_ = deepspeed.initialize(
                model=Within(bare, autocast), optimizer=optimizer, config=settings, dist_init_required=False
            )
        super().__init__(bare, engine, optimizer, clip_norm)
        self.engine: Any = engine
        self.stage = distribution.zero_stage
        # Adam's fused form counts its steps on the device.
        self.fused = bool(optimizer.defaults.get("fused"))

    def step(self, parts: Sequence[Loss], rate: float) -> dict[str, Tensor]:
        """As `Player.step`; the engine divides by the number of parts, exchanges, clips and zeroes by itself."""
        set_rate(self.engine.optimizer, rate)
        found = []
        for part in parts:
            loss, scalars = part()
            self.engine.backward(loss)
            if not self.stage:  # there it knows the norm only where it clips
                norm = nn.utils.clip_grad_norm_(self.bare.parameters(), float("inf")).detach()
            self.engine.step()
            found.append(scalars | {"loss": loss.detach()})
        if self.stage:
            norm = torch.as_tensor(float(self.engine.get_global_grad_norm() or 0.0))
        return mean_scalars(found) | {"gradient_norm": norm, "learning_rate": torch.tensor(rate)}

    def moments(self) -> dict[str, Tensor]:
        if not self.stage:
            return super().moments()
        from deepspeed.utils import safe_get_full_optimizer_state

        states = [state for state in self.optimizer.state.values() if "step" in state]
        if not states:
            return {}
        count = states[0]["step"].detach()
        found = {}
        for index, parameter in enumerate(self.bare.parameters()):
            found[f"{index}.step"] = count.clone()
            for name in MOMENTS:
                found[f"{index}.{name}"] = safe_get_full_optimizer_state(parameter, name)
        return found

    def restore(self, moments: Mapping[str, Tensor] | None) -> None:
        if not self.stage:
            return super().restore(moments)
        from deepspeed.utils import safe_set_full_optimizer_state

        sharded = self.engine.optimizer
        sharded.refresh_fp32_params()
        if not moments:
            return
        # DeepSpeed makes Adam's state in the first step; it has to be there now to be filled.
        for partition in sharded.single_partition_of_fp32_groups:
            self.optimizer.state[partition] = {
                "step": moments["0.step"].to(partition.device if self.fused else "cpu", copy=True),
                **{name: torch.zeros_like(partition) for name in MOMENTS},
            }
        sharded._lazy_init_hp_params_optimizer_state()
        for index, parameter in enumerate(self.bare.parameters()):
            for name in MOMENTS:
                value = moments[f"{index}.{name}"].to(parameter.device)
                safe_set_full_optimizer_state(parameter, value, name)


@contextmanager
def local_rank() -> Iterator[None]:
    """DeepSpeed asks for LOCAL_RANK, which a process that was started alone does not have."""
    is_alone = "LOCAL_RANK" not in os.environ
    if is_alone:
        os.environ["LOCAL_RANK"] = "0"
    try:
        yield
    finally:
        if is_alone:
            del os.environ["LOCAL_RANK"]


def import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed for a device, with a process group of one where there are no others."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    try:
        import deepspeed
    except ImportError:
        raise UserError("distribution.strategy: deepspeed is not installed; pip install 'featgan[deepspeed]'") from None
    if not dist.is_initialized():
        dist.init_process_group(
            "gloo" if device.type == "cpu" else "nccl",
            rank=0,
            world_size=1,
            store=dist.HashStore(),  # type: ignore[attr-defined]
        )
    deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)
    return deepspeed

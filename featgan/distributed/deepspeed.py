"""A trainable network whose optimizer is sharded by DeepSpeed (ZeRO 0 to 2); the only module that imports deepspeed.

Each network has its own DeepSpeed engine. Accelerate's plugins are not used: they hold one model each, clip gradients
by default, and require transformers. The sharded state is gathered for checkpoints, so the checkpoint format is the
same for every strategy.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from featgan.config.schema import DistributedConfig
from featgan.distributed.trainable import (
    ADAM_STATE_KEYS,
    LossClosure,
    StepScalars,
    TrainableNetwork,
    check_optimizer_state,
    mean_scalars,
    set_lr,
)
from featgan.errors import UserError


class AutocastModule(nn.Module):
    """Runs a network in its own autocast context, since DeepSpeed disables autocast contexts that it did not start."""

    def __init__(self, module: nn.Module, autocast: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__()
        self.module = module
        self.autocast = autocast

    def forward(self, *inputs: Tensor) -> Any:
        with self.autocast():
            return self.module(*inputs)


class DeepSpeedNetwork(TrainableNetwork):
    """A trainable network whose `wrapped` network is a DeepSpeed engine.

    The engine reduces gradients in hooks of the backward pass. So the other network must be frozen during its step,
    and the gradient penalty must use `module`.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        max_grad_norm: float,
        distributed_config: DistributedConfig,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """Raises UserError if deepspeed is not installed."""
        deepspeed = import_deepspeed(device)
        deepspeed_config = {
            "train_micro_batch_size_per_gpu": 1,  # used by DeepSpeed's logs only; featgan builds the batches
            "gradient_accumulation_steps": distributed_config.gradient_accumulation_steps,
            "zero_optimization": {"stage": distributed_config.zero_stage},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "gradient_clipping": max_grad_norm,  # DeepSpeed clips at 1 by default
        }
        with default_local_rank():
            deepspeed_engine, *_ = deepspeed.initialize(
                model=AutocastModule(module, autocast),
                optimizer=optimizer,
                config=deepspeed_config,
                dist_init_required=False,
            )
        super().__init__(module, deepspeed_engine, optimizer, max_grad_norm)
        self.deepspeed_engine: Any = deepspeed_engine
        self.zero_stage = distributed_config.zero_stage
        # Fused Adam counts its steps on the device.
        self.is_fused = bool(optimizer.defaults.get("fused"))

    def step(self, loss_closures: Sequence[LossClosure], lr: float) -> StepScalars:
        """Update the weights as in `TrainableNetwork.step`.

        The engine divides by the number of microbatches, reduces, clips and zeroes the gradients.
        """
        set_lr(self.deepspeed_engine.optimizer, lr)
        microbatch_scalars = []
        for compute_loss in loss_closures:
            loss, scalars = compute_loss()
            self.deepspeed_engine.backward(loss)
            if not self.zero_stage:  # at stage 0, the engine computes the norm only if it clips
                grad_norm = nn.utils.clip_grad_norm_(self.module.parameters(), float("inf")).detach()
            self.deepspeed_engine.step()
            microbatch_scalars.append(scalars | {"loss": loss.detach()})
        if self.zero_stage:
            grad_norm = torch.as_tensor(float(self.deepspeed_engine.get_global_grad_norm() or 0.0))
        return mean_scalars(microbatch_scalars) | {"gradient_norm": grad_norm, "learning_rate": torch.tensor(lr)}

    def optimizer_state(self) -> dict[str, Tensor]:
        if not self.zero_stage:
            return super().optimizer_state()
        from deepspeed.utils import safe_get_full_optimizer_state

        states = [state for state in self.optimizer.state.values() if "step" in state]
        if not states:
            return {}
        step_count = states[0]["step"].detach()
        tensors = {}
        for index, parameter in enumerate(self.module.parameters()):
            tensors[f"{index}.step"] = step_count.clone()
            for name in ADAM_STATE_KEYS:
                tensors[f"{index}.{name}"] = safe_get_full_optimizer_state(parameter, name)
        return tensors

    def load_optimizer_state(self, state: Mapping[str, Tensor] | None) -> None:
        if not self.zero_stage:
            super().load_optimizer_state(state)
            return
        from deepspeed.utils import safe_set_full_optimizer_state

        sharded_optimizer = self.deepspeed_engine.optimizer
        sharded_optimizer.refresh_fp32_params()
        if not state:
            return
        check_optimizer_state(state, self.module.parameters())
        step_count = next(value for key, value in state.items() if key.endswith(".step"))
        # DeepSpeed creates Adam's state in the first step, but it is needed here to be filled.
        for partition in sharded_optimizer.single_partition_of_fp32_groups:
            self.optimizer.state[partition] = {
                "step": step_count.to(partition.device if self.is_fused else "cpu", copy=True),
                **{name: torch.zeros_like(partition) for name in ADAM_STATE_KEYS},
            }
        sharded_optimizer._lazy_init_hp_params_optimizer_state()
        for index, parameter in enumerate(self.module.parameters()):
            for name in ADAM_STATE_KEYS:
                value = state.get(f"{index}.{name}")
                if value is not None:  # a parameter without a gradient has no state
                    safe_set_full_optimizer_state(parameter, value.to(parameter.device), name)


@contextmanager
def default_local_rank() -> Iterator[None]:
    """Set LOCAL_RANK, which DeepSpeed requires, for a process that was started without a launcher."""
    is_unset = "LOCAL_RANK" not in os.environ
    if is_unset:
        os.environ["LOCAL_RANK"] = "0"
    try:
        yield
    finally:
        if is_unset:
            del os.environ["LOCAL_RANK"]


def import_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed for a device, and create a process group of size 1 if there is none.

    Raises UserError if deepspeed is not installed.
    """
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    try:
        import deepspeed
    except ImportError:
        raise UserError(
            "distributed.strategy: deepspeed is not installed; run pip install 'featgan[deepspeed]'"
        ) from None
    if not dist.is_initialized():
        dist.init_process_group(
            "gloo" if device.type == "cpu" else "nccl",
            rank=0,
            world_size=1,
            store=dist.HashStore(),  # type: ignore[attr-defined]
        )
    deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)
    return deepspeed

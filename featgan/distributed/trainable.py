"""A network with its optimizer, wrapped for distributed training."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

STEP_KEY, ADAM_STATE_KEYS = "step", ("exp_avg", "exp_avg_sq")
"""Names of the values that Adam keeps for a parameter: the number of its updates, and two averages of its shape."""

LossClosure = Callable[[], tuple[Tensor, dict[str, Tensor]]]
"""Computes the loss of one microbatch, and its unweighted terms."""

StepScalars = dict[str, Tensor]
"""Scalars to log after an update: the loss terms, `loss`, `gradient_norm` and `learning_rate`."""


class TrainableNetwork:
    """A network with its optimizer.

    `wrapped` is the network wrapped for distributed training; use it when this network is updated. `module` is the
    unwrapped network. Use it when the other network is updated, and for the gradient penalty, which does not call
    `forward`.
    """

    def __init__(
        self, module: nn.Module, wrapped: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float
    ) -> None:
        self.module = module
        self.wrapped = wrapped
        self.optimizer = optimizer
        self.max_grad_norm = max_grad_norm

    def step(self, loss_closures: Sequence[LossClosure], lr: float) -> StepScalars:
        """Update the weights once: backward, clip the gradients, optimizer step, zero the gradients.

        The loss is the mean over the microbatches, one closure each. Returns scalars to log: the means of the loss
        terms, `loss`, `gradient_norm` (before clipping) and `learning_rate`.
        """
        set_lr(self.optimizer, lr)
        microbatch_scalars = []
        for index, compute_loss in enumerate(loss_closures):
            with self.no_sync() if index + 1 < len(loss_closures) else nullcontext():
                loss, scalars = compute_loss()
                (loss / len(loss_closures)).backward()
            microbatch_scalars.append(scalars | {"loss": loss.detach()})
        grad_norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.max_grad_norm or float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return mean_scalars(microbatch_scalars) | {"gradient_norm": grad_norm, "learning_rate": torch.tensor(lr)}

    def reset_optimizer_state(self) -> None:
        """Set Adam's state to zero.

        Otherwise, weights that had no gradient so far would take steps far above the learning rate, since Adam's
        average of their squared gradients is almost zero.
        """
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()

    def no_sync(self) -> AbstractContextManager[None]:
        """Return a context without gradient reduction, for all microbatches but the last."""
        wrapped = self.wrapped
        return wrapped.no_sync() if isinstance(wrapped, nn.parallel.DistributedDataParallel) else nullcontext()

    @contextmanager
    def frozen(self) -> Iterator[nn.Module]:
        """Yield the unwrapped network with frozen weights, for the update of the other network."""
        self.module.requires_grad_(False)
        try:
            yield self.module
        finally:
            self.module.requires_grad_(True)

    def optimizer_state(self) -> dict[str, Tensor]:
        """Return the complete optimizer state by parameter index (`3.exp_avg`); all processes must call this."""
        return flatten_optimizer_state(self.optimizer)

    def load_optimizer_state(self, state: Mapping[str, Tensor] | None) -> None:
        """Load the optimizer state, unless it is None. Raises ValueError if it does not fit the parameters.

        Call this after the weights of `module` were loaded: DeepSpeed then refreshes its copies.
        """
        if state is not None:
            check_optimizer_state(state, self.module.parameters())
            unflatten_optimizer_state(self.optimizer, state)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def mean_scalars(microbatch_scalars: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of each scalar over the microbatches."""
    return {
        name: torch.stack([scalars[name].detach() for scalars in microbatch_scalars]).mean()
        for name in microbatch_scalars[0]
    }


def check_optimizer_state(state: Mapping[str, Tensor], parameters: Iterable[Tensor]) -> None:
    """Raise ValueError unless the state is that of Adam for all or some of these parameters."""
    unknown = set(state)
    for index, parameter in enumerate(parameters):
        shapes = {f"{index}.{STEP_KEY}": torch.Size(), **{f"{index}.{key}": parameter.shape for key in ADAM_STATE_KEYS}}
        present = shapes.keys() & state.keys()
        if present and present != shapes.keys():  # a parameter without a gradient has no state
            raise ValueError(f"{min(shapes.keys() - present)} is missing")
        for key in present:
            if state[key].shape != shapes[key] or not state[key].is_floating_point():
                found = f"{state[key].dtype} {list(state[key].shape)}"
                raise ValueError(f"{key} is {found}, but real values {list(shapes[key])} are required")
        unknown -= present
    if unknown:
        raise ValueError(f"{min(unknown)!a} does not belong to a parameter of this network")


def flatten_optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return Adam's state by parameter index: `3.exp_avg`."""
    states = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, state in states.items() for name, value in state.items()}


def unflatten_optimizer_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load the result of `flatten_optimizer_state`; the learning rate comes from the schedule."""
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        states.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})

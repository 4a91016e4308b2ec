"""A network with its optimizer, wrapped for distributed training."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

Loss = Callable[[], tuple[Tensor, dict[str, Tensor]]]
"""Computes one part's scalar and what to report of it."""


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

    def step(self, parts: Sequence[Loss], rate: float) -> dict[str, Tensor]:
        """One iteration from one scalar, the mean of the parts': backward, clip, optimise, zero.

        Returns the parts' means, the scalar and the gradient's norm.
        """
        set_rate(self.optimizer, rate)
        found = []
        for index, part in enumerate(parts):
            with self.alone() if index + 1 < len(parts) else nullcontext():
                loss, scalars = part()
                (loss / len(parts)).backward()
            found.append(scalars | {"loss": loss.detach()})
        norm = nn.utils.clip_grad_norm_(self.bare.parameters(), self.clip_norm or float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return mean_scalars(found) | {"gradient_norm": norm, "learning_rate": torch.tensor(rate)}

    def forget(self) -> None:
        """Begin anew with Adam's moments: weights that had no gradient yet would take steps far too long."""
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()

    def alone(self) -> AbstractContextManager[None]:
        """No gradients are exchanged: another part of the batch follows."""
        wrapped = self.network
        return wrapped.no_sync() if isinstance(wrapped, nn.parallel.DistributedDataParallel) else nullcontext()

    @contextmanager
    def frozen(self) -> Iterator[nn.Module]:
        """The bare network without weight gradients, for the opponent's step."""
        self.bare.requires_grad_(False)
        try:
            yield self.bare
        finally:
            self.bare.requires_grad_(True)

    def moments(self) -> dict[str, Tensor]:
        """The optimiser's state, whole, by parameter number (`3.exp_avg`); every process must ask for it."""
        return optimizer_tensors(self.optimizer)

    def restore(self, moments: Mapping[str, Tensor] | None) -> None:
        """Take up the weights that were loaded into `bare`, and the optimiser's state where it is given."""
        if moments is not None:
            restore_optimizer(self.optimizer, moments)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def mean_scalars(found: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Means over the parts of a batch."""
    return {name: torch.stack([scalars[name].detach() for scalars in found]).mean() for name in found[0]}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's moments by parameter number: `3.exp_avg`."""
    states = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, state in states.items() for name, value in state.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`; rates come from the schedule."""
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        states.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})

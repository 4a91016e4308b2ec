"""A run that has just begun to train, and its forward passes: counted while something works with it, and alone."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featgan.bench.fixtures import draw_faces, write_shards
from featgan.blackbox.extraction import extract
from featgan.blackbox.fitting.network import Architecture, build_network
from featgan.blackbox.loading import BlackBox, load_blackbox
from featgan.blackbox.weights import choose_device
from featgan.config.loading import validate
from featgan.data.shards.shard_set import ShardSet
from featgan.inference.model import Model, load_model
from featgan.training.train import train

FRESH_BOX = f"{__name__}:fresh_box"
NAME = "fresh"
"""Of the feature cache."""

Sizes = dict[str, list[int]]
"""How many images each call was given, by what was called: `edit` of the model, `box`."""


def fresh_box() -> nn.Module:
    """A box as `featgan blackbox fit` builds them, without having learnt anything."""
    torch.manual_seed(0)
    return build_network(Architecture(output_dim=8)).eval()


def make_shards(root: Path, num_images: int, image_size: int) -> ShardSet:
    """Drawn faces."""
    jpegs, items = draw_faces(num_images, image_size)
    return write_shards(root / "shards", jpegs, items, image_size)


def make_run(root: Path, shards: ShardSet, spec: str, dim: int) -> Path:
    """A run after one step of training on a box's features."""
    extract(shards.path, spec, NAME)
    tree = {
        "run": str(root / "run"),
        "dataset": {"shards": str(shards.path), "features": NAME},
        "generator": {"dim": dim},
        "discriminator": {"dim": 4, "num_layers": 3},
        "training": {"steps": 1, "batch_size": 2, "num_workers": 0},
    }
    return train(validate(tree, "featgan bench"))


class Passes:
    """The edits of a run's model and the looks of its box that happen in a block, to be repeated without the rest."""

    def __init__(self) -> None:
        self.sizes: Sizes = {"edit": [], "box": []}

    @contextmanager
    def counted(self) -> Iterator[None]:
        called = {"edit": (Model, "edit"), "box": (BlackBox, "__call__")}
        with replaced({place: counting(getattr(*place), self.sizes[name]) for name, place in called.items()}):
            yield

    def alone(self, run: Path, spec: str) -> Callable[[], None]:
        """What makes the same passes on numbers that lie ready."""
        device = choose_device(None)
        model, box = load_model(run, None, device), load_blackbox(spec, device=device)
        most = max((*self.sizes["edit"], *self.sizes["box"]))
        images = torch.rand(most, 3, model.image_size, model.image_size, device=device) * 2 - 1
        nothing = torch.zeros(most, model.condition_dim, device=device)
        conditions = model.ask(nothing, nothing)

        def work() -> None:
            for size in self.sizes["edit"]:
                model.edit(images[:size], conditions[:size])
            for size in self.sizes["box"]:
                box(images[:size])
            wait(device)

        return work

    def __str__(self) -> str:
        return f"G's {sum(self.sizes['edit']):,} and the box's {sum(self.sizes['box']):,} passes, on ready floats"


def wait(device: torch.device) -> None:
    """Until a device has computed what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def replaced(functions: Mapping[tuple[Any, str], Callable[..., Any]]) -> Iterator[None]:
    """Other functions in the place of some of a class or module, while the block runs."""
    originals = {place: getattr(*place) for place in functions}
    try:
        for (owner, name), function in functions.items():
            setattr(owner, name, function)
        yield
    finally:
        for (owner, name), function in originals.items():
            setattr(owner, name, function)


def counting(method: Callable[..., Any], sizes: list[int]) -> Callable[..., Any]:
    """The method, which notes how many images it is given."""

    def wrapped(self: object, images: Tensor, *others: Any) -> Any:
        sizes.append(len(images))
        return method(self, images, *others)

    return wrapped


def timing(function: Callable[..., Any], seconds: dict[str, float], name: str) -> Callable[..., Any]:
    """The function, which adds up the seconds of its calls."""

    def wrapped(*arguments: Any, **named: Any) -> Any:
        before = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - before

    return wrapped

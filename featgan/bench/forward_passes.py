"""A run after one training step, and its forward passes: recorded during a task, then repeated alone."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featgan.bench.fixtures import make_synthetic_faces, write_shards
from featgan.blackbox.extraction import extract_features
from featgan.blackbox.fitting.network import Architecture, build_network
from featgan.blackbox.loading import BlackBox, load_blackbox
from featgan.blackbox.weights import choose_device
from featgan.config.loading import parse_config
from featgan.config.trusted_callables import trust_given_specs
from featgan.data.shards.shard_set import ShardSet
from featgan.inference.model import EditingModel, load_model
from featgan.training.train import train

UNTRAINED_CLASSIFIER = f"{__name__}:build_untrained_classifier"
UNTRAINED_CACHE_NAME = "untrained"
"""Name of the feature cache."""

CallSizes = dict[str, list[int]]
"""Batch size of every call, by the called network: `edit` or `blackbox`."""


def build_untrained_classifier() -> nn.Module:
    """Return a classifier as built by `featgan blackbox fit`, with random weights."""
    torch.manual_seed(0)
    return build_network(Architecture(output_dim=8)).eval()


def make_shards(root: Path, num_images: int, image_size: int) -> ShardSet:
    """Write shards of synthetic faces."""
    jpegs, items = make_synthetic_faces(num_images, image_size)
    return write_shards(root / "shards", jpegs, items, image_size)


def make_run(root: Path, shards: ShardSet, spec: str, dim: int) -> Path:
    """Train a run for one step on a classifier's features."""
    extract_features(shards.path, spec, UNTRAINED_CACHE_NAME, trusted=trust_given_specs([spec]))
    tree = {
        "run_dir": str(root / "run"),
        "dataset": {"shards": str(shards.path), "feature_cache": UNTRAINED_CACHE_NAME},
        "generator": {"dim": dim},
        "discriminator": {"dim": 4, "num_layers": 3},
        "training": {"steps": 1, "batch_size": 2, "num_workers": 0},
    }
    return train(parse_config(tree, "featgan bench"))


class ForwardPassRecorder:
    """Records the batch sizes of a model's edits and a classifier's predictions, and repeats these passes alone."""

    def __init__(self) -> None:
        self.call_sizes: CallSizes = {"edit": [], "blackbox": []}

    @contextmanager
    def record_passes(self) -> Iterator[None]:
        """Record every forward pass inside a block."""
        methods = {"edit": (EditingModel, "edit_images"), "blackbox": (BlackBox, "__call__")}
        with patched_functions(
            {method: count_images(getattr(*method), self.call_sizes[name]) for name, method in methods.items()}
        ):
            yield

    def prepare_replay(self, run_dir: Path, spec: str) -> Callable[[], None]:
        """Return a function that repeats the recorded passes on random tensors."""
        device = choose_device(None)
        model, blackbox = (
            load_model(run_dir, None, device),
            load_blackbox(spec, device=device, trusted=trust_given_specs([spec])),
        )
        max_size = max((*self.call_sizes["edit"], *self.call_sizes["blackbox"]))
        images = torch.rand(max_size, 3, model.metadata.image_size, model.metadata.image_size, device=device) * 2 - 1
        zeros = torch.zeros(max_size, model.metadata.condition_dim, device=device)
        conditions = model.condition_input(zeros, zeros)

        def run_passes() -> None:
            for size in self.call_sizes["edit"]:
                model.edit_images(images[:size], conditions[:size])
            for size in self.call_sizes["blackbox"]:
                blackbox(images[:size])
            synchronize_device(device)

        return run_passes

    def __str__(self) -> str:
        num_edits, num_predictions = (sum(self.call_sizes[name]) for name in ("edit", "blackbox"))
        return f"forward passes of G ({num_edits:,} images) and the classifier ({num_predictions:,}), on float tensors"


def synchronize_device(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def patched_functions(replacements: Mapping[tuple[Any, str], Callable[..., Any]]) -> Iterator[None]:
    """Replace functions of classes or modules inside a block."""
    originals = {location: getattr(*location) for location in replacements}
    try:
        for (owner, name), function in replacements.items():
            setattr(owner, name, function)
        yield
    finally:
        for (owner, name), function in originals.items():
            setattr(owner, name, function)


def count_images(method: Callable[..., Any], sizes: list[int]) -> Callable[..., Any]:
    """Wrap a method so that it appends the number of its images to `sizes`."""

    def counted_method(self: object, images: Tensor, *arguments: Any) -> Any:
        sizes.append(len(images))
        return method(self, images, *arguments)

    return counted_method


def time_calls(function: Callable[..., Any], seconds: dict[str, float], name: str) -> Callable[..., Any]:
    """Wrap a function so that it adds the time of its calls to `seconds[name]`."""

    def timed_function(*arguments: Any, **keywords: Any) -> Any:
        start_time = time.perf_counter()
        try:
            return function(*arguments, **keywords)
        finally:
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start_time

    return timed_function

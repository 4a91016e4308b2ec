"""Choose how many images a network runs at a time: files can contain a fixed batch size that they do not declare."""

import logging

import torch
from torch import Tensor

from featgan.blackbox.adapters.base import NetworkAdapter
from featgan.errors import UserError

logger = logging.getLogger(__name__)

MAX_BATCH_EFFECT = 1e-2
"""Largest difference between the outputs of an image alone and in a batch, relative to the largest output."""


class SingleImageAdapter:
    """A network that runs one image at a time."""

    def __init__(self, network: NetworkAdapter) -> None:
        self.network = network
        self.preprocessing = network.preprocessing
        self.preprocessing_source = network.preprocessing_source
        self.class_names = network.class_names
        self.sha256 = network.sha256

    def list_layers(self, images: Tensor) -> list[tuple[str, int]]:
        return self.network.list_layers(images[:1])

    def default_layer(self, images: Tensor) -> str | None:
        return self.network.default_layer(images[:1])

    def select_layer(self, layer: str) -> None:
        self.network.select_layer(layer)

    def compute_outputs(self, images: Tensor) -> Tensor:
        return torch.cat([self.network.compute_outputs(image) for image in images.split(1)])

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, outputs = zip(*(self.network(image) for image in images.split(1)), strict=True)
        return torch.cat(features), torch.cat(outputs)

    def last_linear(self) -> tuple[Tensor, Tensor] | None:
        return self.network.last_linear()


def choose_batching(network: NetworkAdapter, images: Tensor, name: str) -> NetworkAdapter:
    """Return the network, or an adapter that runs one image at a time if the network cannot run these images together.

    `images` are preprocessed, `name` is that of the network. Raises UserError if it cannot run one image either.
    """
    try:
        together = network.compute_outputs(images)
    except UserError as error:
        try:
            network.compute_outputs(images[:1])
        except UserError:
            raise error from None
        logger.info(f"{name}: the batch size is fixed in the file; running one image at a time")
        return SingleImageAdapter(network)
    single = SingleImageAdapter(network)
    try:
        separate = single.compute_outputs(images)
    except (UserError, RuntimeError):  # the batch size is fixed to another number
        return network
    if together.shape == separate.shape:
        effect = float((together - separate).abs().max()) / float(separate.abs().max().clamp_min(1e-12))
        if effect <= MAX_BATCH_EFFECT:
            return network
        logger.warning(
            f"{name}: the outputs of an image depend on the other images of its batch, or change between two calls; "
            "running one image at a time. Save the network after calling eval()"
        )
        return single
    if len(together) != len(images) and len(separate) == len(images):
        logger.info(f"{name}: the batch size is fixed in the file; running one image at a time")
        return single
    return network

"""Edit images in batches with a progress bar, and run a classifier on images in batches."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from featgan.blackbox.loading import BlackBox
from featgan.distributed.work_group import SINGLE_PROCESS, WorkGroup
from featgan.inference.model import EditingModel
from featgan.metrics.predictions import Predictions
from featgan.system.images import to_float, to_uint8
from featgan.system.memory import choose_batch_size
from featgan.system.progress import ProgressBar, progress_bar

BATCH_SIZE = 64


class ImageEditor:
    """Edits uint8 images with the generator of a model; the processes of `group` divide the batches."""

    def __init__(self, model: EditingModel, group: WorkGroup = SINGLE_PROCESS) -> None:
        self.model = model
        self.group = group
        self.progress_bar: ProgressBar | None = None

    @contextmanager
    def show_progress(self, description: str, total: int) -> Iterator[None]:
        """Show a progress bar over the next `total` edits."""
        with progress_bar(description, total, "edits") as self.progress_bar:
            yield
        self.progress_bar = None

    def edit_uint8(self, images: Tensor, condition: Tensor) -> Tensor:
        """Compute G(x, c): uint8 [N, 3, S, S], condition inputs [N, P] => uint8 [N, 3, S, S].

        Edits are rounded to 256 levels, so that metrics are computed on the images that would be saved.
        """
        batch_size = choose_batch_size(images.shape[-1], BATCH_SIZE)
        batches = list(zip(images.split(batch_size), condition.split(batch_size), strict=True))
        results = self.group.map_batches(self.edit_batch, batches)
        return torch.cat([edited for (edited,) in results]).to(self.model.device)

    def edit_batch(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor]:
        """Edit the images of one batch of images and condition inputs."""
        images, condition = batch
        edited = to_uint8(self.model.edit_images(to_float(images.to(self.model.device)), condition))
        if self.progress_bar is not None:
            self.progress_bar.advance(len(images) * self.group.world_size)  # the other processes are as far
        return (edited,)


def predict(classifier: BlackBox, images: Tensor, group: WorkGroup = SINGLE_PROCESS) -> Predictions:
    """Run a classifier on uint8 images [N, 3, S, S] in batches; return features [N, F] and outputs [N, O].

    The processes of `group` divide the batches.
    """
    batches = images.split(choose_batch_size(images.shape[-1], BATCH_SIZE))
    results = group.map_batches(lambda batch: tuple(classifier(to_float(batch.to(classifier.device)))), batches)
    features, outputs = (torch.cat(parts).cpu() for parts in zip(*results, strict=True))
    return Predictions.from_values(features, outputs)

"""Edit images in batches with a progress bar, and run a classifier on images in batches."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from featgan.blackbox.loading import BlackBox
from featgan.inference.model import EditingModel
from featgan.metrics.predictions import Predictions
from featgan.system.images import to_float, to_uint8
from featgan.system.memory import choose_batch_size
from featgan.system.progress import ProgressBar, progress_bar

BATCH_SIZE = 64


class ImageEditor:
    """Edits uint8 images with the generator of a model."""

    def __init__(self, model: EditingModel) -> None:
        self.model = model
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
        edited, batch_size = [], choose_batch_size(images.shape[-1], BATCH_SIZE)
        for batch, condition_batch in zip(images.split(batch_size), condition.split(batch_size), strict=True):
            edited.append(to_uint8(self.model.edit_images(to_float(batch.to(self.model.device)), condition_batch)))
            if self.progress_bar is not None:
                self.progress_bar.advance(len(batch))
        return torch.cat(edited)


def predict(classifier: BlackBox, images: Tensor) -> Predictions:
    """Run a classifier on uint8 images [N, 3, S, S] in batches; return features [N, F] and outputs [N, O]."""
    batches = images.split(choose_batch_size(images.shape[-1], BATCH_SIZE))
    results = [classifier(to_float(batch.to(classifier.device))) for batch in batches]
    features, outputs = (torch.cat(parts).cpu() for parts in zip(*results, strict=True))
    return Predictions.from_values(features, outputs)

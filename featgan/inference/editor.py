"""What an evaluation does to pictures: it edits them, a batch at a time behind a bar, and shows them to a box."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from featgan.blackbox.loading import BlackBox
from featgan.inference.model import Model
from featgan.metrics.predictions import Response
from featgan.system.images import to_float, to_uint8
from featgan.system.progress import Meter, meter

BATCH = 64


class Editor:
    """A model's G at work on pictures as they are stored."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.bar: Meter | None = None

    @contextmanager
    def showing(self, what: str, total: int) -> Iterator[None]:
        """A bar over the next `total` edits."""
        with meter(what, total, "edits") as self.bar:
            yield
        self.bar = None

    def edit(self, images: Tensor, condition: Tensor) -> Tensor:
        """G(x, c), rounded to the 256 levels of a picture: uint8 [N, 3, S, S], [N, C] => uint8 [N, 3, S, S].

        So that what is measured is what can be saved and seen.
        """
        edited = []
        for part, wanted in zip(images.split(BATCH), condition.split(BATCH), strict=True):
            edited.append(to_uint8(self.model.edit(to_float(part.to(self.model.device)), wanted)))
            if self.bar is not None:
                self.bar.advance(len(part))
        return torch.cat(edited)


def ask(box: BlackBox, images: Tensor) -> Response:
    """What a box says of images uint8 [N, 3, S, S], a batch at a time; bytes travel to its device, few numbers back."""
    found = [box(to_float(part.to(box.device))) for part in images.split(BATCH)]
    features, outputs = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
    return Response.of(features, outputs)

"""Images in [-1, 1] as featgan holds them => what a network from elsewhere expects."""

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor
from torch.nn import functional as F

from featgan.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LUMA = (0.299, 0.587, 0.114)
"""Red, green and blue in a grey image (ITU-R BT.601)."""


def split_numbers(value: Any) -> Any:
    """`0.5,0.5,0.5` as on a command line, or one number => a tuple."""
    if isinstance(value, str):
        return tuple(value.split(","))
    return (value,) if isinstance(value, int | float) else value


Numbers = Annotated[
    tuple[Annotated[float, Field(allow_inf_nan=False)], ...], BeforeValidator(split_numbers), Field(max_length=3)
]


class Preprocessing(BaseModel):
    """How images reach a network: resized, scaled to `range`, minus `mean`, divided by `std`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: Annotated[int, Field(ge=8, le=4096)] | None = None
    """Side in pixels; None takes images as they come."""
    range: Annotated[tuple[float, float], BeforeValidator(split_numbers)] = (-1.0, 1.0)
    """Black and white before mean and std."""
    mean: Numbers = (0.0,)
    """One number, or one for each channel in the network's order."""
    std: Numbers = (1.0,)
    layout: Literal["nchw", "nhwc"] = "nchw"
    channels: Literal["rgb", "bgr", "grey"] = "rgb"

    @model_validator(mode="after")
    def check(self) -> "Preprocessing":
        num_channels, needed = (1, "1 is") if self.channels == "grey" else (3, "1 or 3 are")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, num_channels):
                raise ValueError(f"{name} has {len(values)} numbers where {needed} needed")
        if 0 in self.std:
            raise ValueError("std must not be 0")
        return self

    def changed(self, options: Mapping[str, Any], spec: str) -> "Preprocessing":
        """With `options` in place of its own; UserError names the SPEC and the key that is wrong."""
        try:
            return Preprocessing.model_validate({**self.model_dump(), **options})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(str(part) for part in first["loc"][:1]) or "preprocessing"
            raise UserError(f"{spec}: {key}: {first['msg'].removeprefix('Value error, ').lower()}") from error

    @cached_property
    def affine(self) -> tuple[Tensor, Tensor]:
        """Factor and shift [1, C or 1, 1, 1] that do range, mean and std at once."""
        low, high = self.range
        mean, std = (torch.tensor(values)[None, :, None, None] for values in (self.mean, self.std))
        return (high - low) / 2 / std, ((high + low) / 2 - mean) / std

    def __call__(self, images: Tensor) -> Tensor:
        """float [N, 3, H, W] in [-1, 1] => float32 [N, C, S, S], or [N, S, S, C] for `nhwc`."""
        images = images.float()
        if self.image_size and images.shape[2:] != (self.image_size, self.image_size):
            size = (self.image_size, self.image_size)
            images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        if self.channels == "bgr":
            images = images.flip(1)
        elif self.channels == "grey":
            images = (images * images.new_tensor(LUMA)[None, :, None, None]).sum(1, keepdim=True)
        factor, shift = (values.to(images.device) for values in self.affine)
        images = images * factor + shift
        return images.permute(0, 2, 3, 1).contiguous() if self.layout == "nhwc" else images


IMAGENET = Preprocessing(image_size=224, range=(0, 1), mean=IMAGENET_MEAN, std=IMAGENET_STD)
UNIT = Preprocessing(range=(0, 1))

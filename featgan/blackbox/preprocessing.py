"""Preprocessing: images in [-1, 1] as featgan stores them => the input that an external network expects."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor
from torch.nn import functional as F

from featgan.errors import UserError
from featgan.system.limits import MAX_IMAGE_SIZE
from featgan.system.plain_text import print_line

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LUMA_WEIGHTS = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a gray image (ITU-R BT.601)."""

ADDED_FIELDS = ("interpolation", "resize_size")
"""Fields that feature caches of older versions do not know; their hashes must stay the same."""


def parse_numbers(value: Any) -> Any:
    """Convert `0.5,0.5,0.5` from a command line, or one number, to a tuple."""
    if isinstance(value, str):
        return tuple(value.split(","))
    return (value,) if isinstance(value, int | float) else value


ChannelNumbers = Annotated[
    tuple[Annotated[float, Field(allow_inf_nan=False)], ...], BeforeValidator(parse_numbers), Field(max_length=3)
]


class Preprocessing(BaseModel):
    """Input of a network: images are resized, scaled to `range`, then normalized with `mean` and `std`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: Annotated[int, Field(ge=8, le=MAX_IMAGE_SIZE)] | None = None
    """Width and height in pixels; None keeps the size of the images."""
    range: Annotated[tuple[float, float], BeforeValidator(parse_numbers)] = (-1.0, 1.0)
    """Values of black and white before mean and std."""
    mean: ChannelNumbers = (0.0,)
    """One number, or one for each channel in the order of the network."""
    std: ChannelNumbers = (1.0,)
    layout: Literal["nchw", "nhwc"] = "nchw"
    channels: Literal["rgb", "bgr", "gray"] = "rgb"
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    """How images are resized; bilinear and bicubic average over the pixels when they reduce the size."""
    resize_size: Annotated[int, Field(ge=8, le=MAX_IMAGE_SIZE)] | None = None
    """Images are resized to this size, and their center of `image_size` pixels is used; None uses the whole image."""

    @model_validator(mode="after")
    def check_channel_counts(self) -> "Preprocessing":
        """Reject a mean or std whose length differs from the number of channels, and a std of 0."""
        num_channels, needed = (1, "1 is needed") if self.channels == "gray" else (3, "1 or 3 are needed")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, num_channels):
                raise ValueError(
                    f"{name}: {len(values)} numbers, but {needed} for channels={self.channels}; write {name}=NUMBER"
                )
        if 0 in self.std:
            raise ValueError("std: must not be 0; use std=1 for no scaling")
        if self.resize_size and self.resize_size < (self.image_size or self.resize_size + 1):
            raise ValueError("resize_size: must not be below image_size; the center of image_size pixels is used")
        return self

    def with_options(self, options: Mapping[str, Any], spec: str) -> "Preprocessing":
        """Return a copy with `options` replaced; raises UserError that names the SPEC and the invalid key."""
        try:
            return Preprocessing.model_validate({**self.model_dump(), **options})
        except ValidationError as error:
            first_error = error.errors(include_url=False)[0]
            message = first_error["msg"]
            if first_error["type"] == "value_error":  # from check_channel_counts, which names the key
                raise UserError(f"{spec}: {message.removeprefix('Value error, ')}") from error
            problem = f"{message[0].lower()}{message[1:]}"
            raise UserError(f"{spec}: {first_error['loc'][0]}: {problem}; see docs/blackbox.md") from error

    @cached_property
    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Factor and shift [1, C or 1, 1, 1] that apply range, mean and std in one step."""
        low, high = self.range
        mean, std = (torch.tensor(values)[None, :, None, None] for values in (self.mean, self.std))
        return (high - low) / 2 / std, ((high + low) / 2 - mean) / std

    def resize_images(self, images: Tensor) -> Tensor:
        """Resize images [N, 3, H, W] in [-1, 1] to [N, 3, S, S], and crop their center if `resize_size` is set."""
        size = self.resize_size or self.image_size
        if size and images.shape[2:] != (size, size):
            images = resize_batch(images, size, self.interpolation)
        if self.resize_size and self.image_size:
            start = round((self.resize_size - self.image_size) / 2)
            images = images[:, :, start : start + self.image_size, start : start + self.image_size]
        return images

    def hash_text(self) -> str:
        """Return the text that identifies the preprocessing in a hash; fields added later count if they are used."""
        unused = {name for name in ADDED_FIELDS if getattr(self, name) == type(self).model_fields[name].default}
        return self.model_dump_json(exclude=unused)

    def __str__(self) -> str:
        """Describe the input in one line."""
        size = f"{self.image_size} x {self.image_size}" if self.image_size else "the size of the images"
        crop = f" (center of {self.resize_size} x {self.resize_size})" if self.resize_size else ""
        numbers = {"range": self.range, "mean": self.mean, "std": self.std}
        listed = ", ".join(f"{name} {format_numbers(values)}" for name, values in numbers.items())
        return f"{size}{crop}, {listed}, {self.channels}, {self.layout}, {self.interpolation}"

    def __call__(self, images: Tensor) -> Tensor:
        """Images, float [N, 3, H, W] in [-1, 1] => float32 [N, C, S, S], or [N, S, S, C] for `nhwc`."""
        images = self.resize_images(images.float())
        if self.channels == "bgr":
            images = images.flip(1)
        elif self.channels == "gray":
            images = (images * images.new_tensor(LUMA_WEIGHTS)[None, :, None, None]).sum(1, keepdim=True)
        factor, shift = (values.to(images.device) for values in self.scale_and_shift)
        images = images * factor + shift
        return images.permute(0, 2, 3, 1).contiguous() if self.layout == "nhwc" else images


def format_numbers(values: Iterable[float]) -> str:
    """Format numbers as in a SPEC: `0.5,0.5,0.5`."""
    return ",".join(f"{value:g}" for value in values)


def resize_batch(images: Tensor, size: int, interpolation: str) -> Tensor:
    """Resize images [N, C, H, W] in [-1, 1] to [N, C, S, S]."""
    if interpolation == "nearest":
        return F.interpolate(images, (size, size), mode="nearest-exact")
    resized = F.interpolate(images, (size, size), mode=interpolation, antialias=True, align_corners=False)
    # Bicubic interpolation exceeds black and white at edges; Pillow, which the libraries use, clips that.
    return resized.clamp(-1, 1) if interpolation == "bicubic" else resized


IMAGENET = Preprocessing(image_size=224, range=(0, 1), mean=IMAGENET_MEAN, std=IMAGENET_STD)
UNIT_RANGE = Preprocessing(range=(0, 1))


@dataclass(frozen=True)
class KindDefault:
    """The default preprocessing of one kind of SPEC, and where it comes from."""

    preprocessing: Preprocessing | None
    """None if every network of this kind has its own."""
    source: str


KIND_DEFAULTS = {
    "fitted": KindDefault(None, "classifier.json"),
    "torchvision": KindDefault(None, "torchvision's default weights of this network"),
    "timm": KindDefault(None, "timm's pretrained_cfg of this network"),
    "torchscript": KindDefault(UNIT_RANGE, "the default for TorchScript files"),
    "onnx": KindDefault(UNIT_RANGE, "the shape and type of the input; its range is the default for ONNX files"),
    "callable": KindDefault(Preprocessing(), "the default for callables"),
}
"""The defaults by kind of SPEC; docs/blackbox.md contains them as a table."""


def build_defaults_table() -> str:
    """Build the Markdown table of the default of every kind of SPEC: `python -m featgan.blackbox.preprocessing`."""
    rows = ["| SPEC | `image_size` | `range` | `mean` | `std` | from |", "|---|---|---|---|---|---|"]
    for kind, default in KIND_DEFAULTS.items():
        if default.preprocessing is None:
            cells = ["its own"] * 4
        else:
            numbers = (default.preprocessing.range, default.preprocessing.mean, default.preprocessing.std)
            size = default.preprocessing.image_size
            cells = [str(size) if size else "the size of the images", *(format_numbers(values) for values in numbers)]
        rows.append(f"| {kind} | {' | '.join(cells)} | {default.source} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print_line(build_defaults_table())

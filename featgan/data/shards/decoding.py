"""Decoding of the JPEGs of a shard."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from featgan.system.image_files import fit_center_square, read_image, resize_crop

START_OF_FRAME_MARKERS = frozenset({0xC0, 0xC1, 0xC2})
"""JPEG markers of the segment that contains the image size: baseline, extended, progressive."""


def decode_jpegs(contents: Sequence[bytearray]) -> list[Tensor]:
    """Decode JPEGs as uint8 [3, H, W] each. Raises RuntimeError if one is corrupted."""
    files = [torch.frombuffer(content, dtype=torch.uint8) for content in contents]
    images: list[Tensor] = decode_jpeg(files, mode=ImageReadMode.RGB) if files else []
    return images


def decode_square(content: bytes, image_size: int, crop: int | None) -> Tensor:
    """Decode an image file of any format, as packing does: the center square, resized, as uint8 [3, S, S].

    Raises ImageFileError if the file cannot be used.
    """
    image = read_image(content)
    square = resize_crop(image, fit_center_square(image.size, crop), image_size)
    return torch.from_numpy(np.array(square).transpose(2, 0, 1))


def is_decodable(content: bytearray) -> bool:
    """Return whether a JPEG can be decoded."""
    try:
        decode_jpegs([content])
    except RuntimeError:
        return False
    return True


def read_jpeg_size(content: bytearray) -> tuple[int, int] | None:
    """Return (height, width) from the header of a JPEG, or None if there is no such header."""
    if content[:2] != b"\xff\xd8":
        return None
    position = 2
    while position + 9 <= len(content) and content[position] == 0xFF:
        if content[position + 1] in START_OF_FRAME_MARKERS:
            height, width = content[position + 5 : position + 7], content[position + 7 : position + 9]
            return int.from_bytes(height), int.from_bytes(width)
        position += 2 + int.from_bytes(content[position + 2 : position + 4])
    return None

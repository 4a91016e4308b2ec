"""Tests of cropping one image file, and of the reasons why a file is skipped."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featgan.data.packing.crop import CropJob, CropOptions, choose_crop_window, crop_file

CROP_OPTIONS = CropOptions(image_size=16, quality=95, crop=None, margin=0.0)


def corrupt_image(path: Path, kind: str) -> None:
    if kind == "missing file":
        path.unlink()
    elif kind == "empty file":
        path.write_bytes(b"")
    elif kind == "not an image":
        path.write_bytes(b"<html>404</html>" * 50)
    elif kind == "smaller than 8 pixels":
        Image.new("RGB", (24, 7)).save(path)
    else:
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(path, "JPEG" if kind == "truncated" else "PNG")
        content = bytearray(path.read_bytes())
        if kind == "truncated":
            content = content[: len(content) // 2]
        else:
            content[100:5000] = bytes(4900)
        path.write_bytes(content)


UNREADABLE_KINDS = ("missing file", "empty file", "not an image", "truncated", "corrupted")


@pytest.mark.parametrize("kind", [*UNREADABLE_KINDS, "smaller than 8 pixels"])
def test_unusable_file_is_skipped_with_its_reason(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "image.png"
    Image.new("RGB", (24, 20)).save(path)
    corrupt_image(path, kind)
    crop = crop_file(CropJob(path, None), CROP_OPTIONS)
    assert (crop.jpeg, crop.skip_reason) == (b"", kind)


def test_multi_picture_file_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (24, 20), color) for color in ("white", "black")]
    frames[0].save(tmp_path / "image.jpg", "MPO", save_all=True, append_images=frames[1:])
    crop = crop_file(CropJob(tmp_path / "image.jpg", None), CROP_OPTIONS)
    assert np.asarray(Image.open(io.BytesIO(crop.jpeg))).min() > 245


def test_crop_is_a_square_around_the_bounding_box_with_a_margin() -> None:
    options = CropOptions(image_size=16, quality=95, crop=None, margin=0.25)
    assert choose_crop_window((200, 100), (60, 40, 20, 16), options) == (55, 33, 85, 63)
    # Near the border the square moves inside the image, and it is never larger than the image.
    assert choose_crop_window((200, 100), (0, 0, 40, 40), options) == (0, 0, 60, 60)
    assert choose_crop_window((200, 100), (50, 10, 100, 90), options) == (50, 0, 150, 100)
    assert choose_crop_window((200, 100), None, options) == (50, 0, 150, 100)
    assert choose_crop_window((178, 218), (0, 0, 40, 40), CropOptions(16, 95, 178, 0.0)) == (0, 20, 178, 198)


def test_bounding_box_outside_the_image_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.new("RGB", (24, 20)).save(path)
    assert crop_file(CropJob(path, (30, 5, 10, 10)), CROP_OPTIONS).skip_reason == "bounding box outside the image"
    assert crop_file(CropJob(path, (2, 5, 0, 10)), CROP_OPTIONS).skip_reason == "bounding box outside the image"

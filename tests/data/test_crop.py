"""Tests of cropping one image file, and of the reasons why a file is skipped."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featgan.data.packing import crop as crop_module
from featgan.data.packing.crop import CropJob, CropOptions, choose_crop_window, crop_file

CROP_OPTIONS = CropOptions(image_size=16, quality=95, crop=None, margin=0.0)


def corrupt_image(path: Path, kind: str) -> None:
    if kind == "missing file":
        path.unlink()
    elif kind == "empty file":
        path.write_bytes(b"")
    elif kind == "not an image":
        path.write_bytes(b"<html>404</html>" * 50)
    elif kind == "not 8 bits per channel":
        Image.fromarray(np.full((20, 24), 40000, np.uint16)).save(path, "PNG")
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


UNREADABLE_KINDS = ("missing file", "empty file", "not an image", "truncated", "corrupted", "not 8 bits per channel")


@pytest.mark.parametrize("kind", [*UNREADABLE_KINDS, "smaller than 8 pixels"])
def test_unusable_file_is_skipped_with_its_reason(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "image.png"
    Image.new("RGB", (24, 20)).save(path)
    corrupt_image(path, kind)
    crop = crop_file(CropJob(path, None), CROP_OPTIONS)
    assert (crop.jpeg, crop.skip_reason) == (b"", kind)


def test_image_with_too_many_pixels_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image.png"
    Image.new("1", (2_000, 2_000)).save(path)
    assert crop_file(CropJob(path, None), CROP_OPTIONS).jpeg
    monkeypatch.setattr(crop_module, "MAX_PIXELS", 3_999_999)
    assert crop_file(CropJob(path, None), CROP_OPTIONS).skip_reason == "too many pixels"


def test_decompression_bomb_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image.png"
    Image.new("1", (2_000, 2_000)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    assert crop_file(CropJob(path, None), CROP_OPTIONS).skip_reason == "too many pixels"


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


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate clockwise by 90 degrees: the stored top becomes the right side
    Image.fromarray(pixels).save(tmp_path / "image.jpg", exif=exif)
    crop = crop_file(CropJob(tmp_path / "image.jpg", None), CROP_OPTIONS)
    upright = np.asarray(Image.open(io.BytesIO(crop.jpeg))).astype(int)
    assert upright[:, 12:].min() > 200
    assert upright[:, :4].max() < 50


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_every_color_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new("L", (24, 20), 255).convert("RGB").convert(mode if mode != "LA" else "L").convert(mode).save(path)
    crop = crop_file(CropJob(path, None), CROP_OPTIONS)
    pixels = np.asarray(Image.open(io.BytesIO(crop.jpeg)))
    assert pixels.shape == (16, 16, 3)
    assert pixels.min() > 245

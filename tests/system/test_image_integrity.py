"""Tests of the checks of large image files before decoding: complete files pass, damaged ones cost little."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featgan.system.image_files import ImageFileError, read_image
from featgan.system.image_integrity import find_damage
from tests.helpers.limits import measure_call

SETUP = "from pathlib import Path\nfrom featgan.system.image_files import read_image"


def encode_image(image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(buffer, image_format, **options)
    return buffer.getvalue()


def make_exif_with_thumbnail() -> bytes:
    """Return EXIF data that contain a complete JPEG file, which has an end of its own."""
    return b"Exif\0\0" + encode_image("JPEG")


FILES = {
    "baseline": ("JPEG", encode_image("JPEG")),
    "progressive": ("JPEG", encode_image("JPEG", progressive=True)),
    "thumbnail": ("JPEG", encode_image("JPEG", exif=make_exif_with_thumbnail())),
    "png": ("PNG", encode_image("PNG")),
}


@pytest.mark.parametrize("name", FILES)
def test_complete_files_pass_and_truncated_ones_do_not(name: str) -> None:
    image_format, content = FILES[name]
    assert find_damage(io.BytesIO(content), image_format) == ""
    assert find_damage(io.BytesIO(content + bytes(5000)), image_format) == ""
    for share in (0.2, 0.5, 0.9, 0.99):
        assert find_damage(io.BytesIO(content[: int(share * len(content))]), image_format) == "truncated"


def test_wrong_checksum_of_a_png_file_is_found_and_the_position_is_kept() -> None:
    content = bytearray(FILES["png"][1])
    content[len(content) // 2] ^= 1
    file = io.BytesIO(content)
    file.seek(33)
    assert find_damage(file, "PNG") == "corrupted"
    assert file.tell() == 33
    assert find_damage(file, "TIFF") == ""


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_large_complete_image_is_read(tmp_path: Path, image_format: str) -> None:
    path = tmp_path / "large"
    Image.new("RGB", (5000, 3300), (200, 100, 50)).save(path, image_format)
    assert read_image(path).size == (5000, 3300)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"progressive": True}, {}], ids=["progressive", "baseline"])
def test_truncated_jpeg_of_81_million_pixels_is_rejected_at_low_cost(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "large.jpg"
    Image.new("RGB", (9000, 9000), (200, 100, 50)).save(path, subsampling=0, **options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 9 // 10])
    call = measure_call(SETUP, f"read_image(Path({str(path)!r}))")
    assert call.is_cheap(), call
    assert call.message and ("truncated" in call.message or "progressive" in call.message)


def test_progressive_jpeg_with_too_many_pixels_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    Image.new("L", (6000, 6000)).save(path, progressive=True)
    with pytest.raises(ImageFileError, match="too many pixels for a progressive JPEG; save it as a baseline JPEG"):
        read_image(path)

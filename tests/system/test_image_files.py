"""Tests of the image reader: every format and mode, the checks before decoding, and equal pixels in every command."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featgan.data.packing import crop as crop_module
from featgan.data.packing.crop import CropJob, CropOptions
from featgan.explore.image_store import decode_upload
from featgan.report.edits.sources import read_image_folder
from featgan.system import image_files
from featgan.system.image_files import ImageFileError, convert_to_rgb, read_image
from featgan.system.limits import MAX_IMAGE_BYTES
from tests.helpers.limits import measure_call

COLOR = (200, 100, 50)
MODES = (
    *("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"),
    *("I", "I;16", "I;16B", "I;16L", "F"),
)
SUFFIX_BY_FORMAT = {
    "JPEG": ".jpg", "PNG": ".png", "BMP": ".bmp", "WEBP": ".webp", "TIFF": ".tif", "GIF": ".gif", "PPM": ".ppm"
}  # fmt: skip


def convert_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert an RGB image to any mode; Pillow needs two steps for some."""
    if mode in ("I;16", "I;16B", "I;16L"):
        values = np.asarray(image.convert("L")).astype(np.uint16) * 257
        return Image.frombytes(mode, image.size, values.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    steps = {"La": "LA", "PA": "P", "RGBa": "RGBA", "I": "L", "F": "L", "LAB": "RGB", "HSV": "RGB"}
    return image.convert(steps.get(mode, mode)).convert(mode)


def make_gradient(width: int = 40, height: int = 28) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(mode: str) -> None:
    converted = convert_to_rgb(convert_mode(Image.new("RGB", (10, 10), COLOR), mode))
    assert converted.mode == "RGB"
    gray = 0 if mode == "1" else 124
    expected = COLOR if mode in ("RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV") else (gray,) * 3
    expected = (204, 102, 51) if mode in ("P", "PA") else expected  # the nearest color of the palette
    assert np.abs(np.array(converted.getpixel((5, 5))) - expected).max() <= (128 if mode == "1" else 1)


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa"])
def test_transparent_parts_become_white_in_every_mode(mode: str) -> None:
    layers = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    layers.paste((0, 0, 0, 255), (0, 0, 10, 20))
    if mode == "PA":
        image = Image.merge("LA", [Image.new("L", (20, 20)), layers.getchannel("A")])
        image = Image.frombytes("PA", image.size, image.tobytes())
        image.putpalette([0] * 768)
    else:
        image = layers.convert("LA").convert(mode) if mode.startswith("L") else layers.convert(mode)
    converted = np.asarray(convert_to_rgb(image))
    assert (converted[:, :10] == 0).all() and (converted[:, 10:] == 255).all()


def make_png(bit_depth: int, color_type: int, row: bytes, transparent: tuple[int, ...]) -> bytes:
    """Return an 8 x 8 PNG file with a transparent value or color."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 8, 8, bit_depth, color_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
        + chunk(b"IDAT", zlib.compress((b"\0" + row) * 8))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("bit_depth", "color_type", "row", "transparent"),
    [
        (1, 0, b"\xf0", (0,)),
        (2, 0, b"\xff\x00", (0,)),
        (2, 0, b"\xff\x55", (1,)),
        (4, 0, b"\xff\xff\x33\x33", (3,)),
        (8, 0, b"\xff" * 4 + b"\x42" * 4, (0x42,)),
        (16, 0, b"\xff\xff" * 4 + b"\x12\x34" * 4, (0x1234,)),
        (8, 2, b"\xff" * 12 + b"\1\2\3" * 4, (1, 2, 3)),
        (16, 2, b"\xff" * 24 + b"\1\2\3\4\5\6" * 4, (0x102, 0x304, 0x506)),
    ],
)
def test_transparent_value_of_a_png_file_becomes_white(
    bit_depth: int, color_type: int, row: bytes, transparent: tuple[int, ...]
) -> None:
    assert (np.asarray(read_image(make_png(bit_depth, color_type, row, transparent))) == 255).all()
    # Another transparent value leaves the second half as it is.
    other = tuple(value ^ 1 if bit_depth < 16 else value ^ 0xF00 for value in transparent)
    assert (np.asarray(read_image(make_png(bit_depth, color_type, row, other)))[:, 4:] < 255).all()


def test_palettes_with_partial_transparency_are_composed_on_white() -> None:
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 0, 0, 255])
    image.paste(0, (0, 0, 8, 16))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=bytes([0, 128]))
    pixels = np.asarray(read_image(buffer.getvalue()))
    assert (pixels[:, :8] == 255).all() and np.abs(pixels[:, 8:].astype(int) - (127, 127, 255)).max() <= 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([0.0, 0.5, 1.0], np.float32), [0, 128, 255]),
        (np.array([0.0, 100.0, 255.0], np.float32), [0, 100, 255]),
        (np.array([0.0, 257.0, 65535.0], np.float32), [0, 1, 255]),
        (np.array([-1.0, 0.0, 1.0], np.float32), [0, 128, 255]),
        (np.array([np.nan, np.inf, 1.0], np.float32), [0, 0, 255]),
        (np.array([-5.0, -5.0, -5.0], np.float32), [0, 0, 0]),
        (np.array([0, 1, 255], np.int32), [0, 1, 255]),
        (np.array([0, 256, 65535], np.int32), [0, 1, 255]),
        (np.array([0, 1 << 30, (1 << 31) - 1], np.int32), [0, 128, 255]),
    ],
)
def test_deep_gray_values_are_scaled(tmp_path: Path, values: np.ndarray, expected: list[int]) -> None:
    Image.fromarray(np.tile(np.repeat(values, 3), (9, 1))).save(tmp_path / "image.tif")
    assert np.asarray(read_image(tmp_path / "image.tif"))[0, ::3, 0].tolist() == expected


def test_16_bit_files_of_every_format_are_scaled(tmp_path: Path) -> None:
    gray = np.tile(np.linspace(0, 255, 16).astype(np.uint8), (16, 1))
    for name in ("image.png", "image.tif", "image.pgm"):
        # A dark image must stay dark, although all its values are below 256.
        for values in (gray.astype(np.uint16) * 257, np.full((16, 16), 200, np.uint16)):
            Image.fromarray(values).save(tmp_path / name)
            assert (np.asarray(read_image(tmp_path / name))[..., 0] == values >> 8).all(), name


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8] = 255
    upright[:, :12, 0] = 128
    stored = Image.fromarray(upright)
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image_files.turn_upright(stored, inverse).save(tmp_path / f"a{suffix}", exif=exif, quality=100)
    pixels = np.asarray(read_image(tmp_path / f"a{suffix}")).astype(int)
    assert pixels.shape == upright.shape and np.abs(pixels - upright).mean() < 12


def test_corrupted_exif_data_are_ignored(tmp_path: Path) -> None:
    make_gradient().save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\xff\xff\xff\xff\xff")
    assert read_image(tmp_path / "a.jpg").size == (40, 28)


def test_only_the_first_frame_is_used(tmp_path: Path) -> None:
    red, blue = (Image.new("RGB", (16, 16), color) for color in ("red", "blue"))
    for name in ("a.gif", "a.png", "a.webp", "a.tif"):
        red.save(tmp_path / name, save_all=True, append_images=[blue], lossless=True)
        assert read_image(tmp_path / name).getpixel((3, 3)) == (255, 0, 0)


def test_print_colors_are_inverted_as_adobe_writes_them(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), COLOR).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    assert np.abs(np.asarray(read_image(tmp_path / "a.jpg")).astype(int) - COLOR).max() <= 3


# -- rejected files ----------------------------------------------------------------------------------------------------


def make_bmp_header(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHI", 100, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, *[0] * 6)


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((1, 24_000_000), "smaller than 8 pixels"),
        ((24_000_000, 1), "smaller than 8 pixels"),
        ((8, 12_000_000), "a side is longer than 65,535 pixels"),
        ((30_000, 30_000), "too many pixels"),
        ((12_000, 12_000), "too many pixels"),
        ((7, 7), "smaller than 8 pixels"),
    ],
)
def test_size_is_checked_before_decoding(tmp_path: Path, size: tuple[int, int], reason: str) -> None:
    path = tmp_path / "a.bmp"
    path.write_bytes(make_bmp_header(*size) + bytes(100))
    for source in (path, path.read_bytes()):
        with pytest.raises(ImageFileError) as error:
            read_image(source)
        assert error.value.reason == reason
    assert str(path) not in str(error.value) and "\n" not in str(error.value)


def test_special_files_are_rejected_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "large.png").touch()
    os.truncate(tmp_path / "large.png", MAX_IMAGE_BYTES + 1)
    reasons = {
        "pipe.png": "not a regular file",
        "device.png": "not a regular file",
        "folder.png": "not a regular file",
        "loop.png": "unreadable file",
        "large.png": "too many bytes",
        "none.png": "missing file",
        "none.png/a.png": "missing file",
    }
    for name, reason in reasons.items():
        with pytest.raises(ImageFileError) as error:
            read_image(tmp_path / name)
        assert (name, error.value.reason) == (name, reason)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM"])
def test_truncated_files_are_rejected(image_format: str) -> None:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(buffer, image_format)
    content = buffer.getvalue()
    for length in (len(content) // 4, len(content) // 2, len(content) * 3 // 4):
        with pytest.raises(ImageFileError) as error:
            read_image(content[:length])
        assert error.value.reason in ("truncated", "corrupted", "not an image")


MEASURE_MEMORY = """
import resource, sys, time
from pathlib import Path
from featgan.system.limits import MAX_IMAGE_BYTES
from tests.helpers.limits import measure_call
from featgan.system.image_files import ImageFileError, read_image
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
try:
    read_image(Path(sys.argv[1]))
except ImageFileError as error:
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, error.reason)
"""


@pytest.mark.parametrize("name", ["header.bmp", "tall.png", "empty.png"])
def test_rejected_file_needs_little_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "header.bmp":
        path.write_bytes(make_bmp_header(10_000, 10_000) + bytes(100))
    else:
        Image.new("1", (8, 60_000)).save(path)
        content = bytearray(path.read_bytes())
        size = (1, 24_000_000) if name == "tall.png" else (9_999, 9_999)
        content[16:24] = struct.pack(">II", *size)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
        path.write_bytes(content)
    result = subprocess.run([sys.executable, "-c", MEASURE_MEMORY, path], capture_output=True, text=True, check=True)
    megabytes, reason = result.stdout.strip().split(" ", 1)
    assert int(megabytes) < 200 and reason


# -- the same pixels everywhere ----------------------------------------------------------------------------------------


def save_all_modes(folder: Path) -> list[str]:
    """Save a gradient in every mode and format that Pillow can write and read; return the names, sorted."""
    names = []
    for mode in MODES:
        image = convert_mode(make_gradient(), mode)
        if mode in ("LA", "PA", "RGBA"):
            image.putalpha(make_gradient().getchannel("G"))
        for image_format, suffix in SUFFIX_BY_FORMAT.items():
            path = folder / f"{mode.replace(';', '_')}_{image_format}{suffix}"
            try:
                image.save(path, image_format)
                Image.open(path).load()
            except (OSError, ValueError, KeyError):
                path.unlink(missing_ok=True)  # this format has no such mode
                continue
            names.append(path.name)
    return sorted(names)


@pytest.mark.filterwarnings("ignore:Saving I mode")
def test_pack_render_and_explore_read_the_same_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = save_all_modes(tmp_path)
    assert len(names) > 60 and {name.split("_")[-1].split(".")[0] for name in names} == set(SUFFIX_BY_FORMAT)
    rendered, rendered_names = read_image_folder(tmp_path, 16, 1000)
    assert list(rendered_names) == names
    packed: list[Image.Image] = []
    monkeypatch.setattr(crop_module, "encode_jpeg", lambda image, quality: packed.append(image) or b"jpeg")
    options = CropOptions(image_size=16, quality=95, crop=None, margin=0.0)
    crops = crop_module.crop_files([CropJob(tmp_path / name, None) for name in names], options)
    assert all(crop.jpeg for crop in crops)
    for name, image, crop in zip(names, rendered, packed, strict=True):
        uploaded = decode_upload((tmp_path / name).read_bytes(), [16])[16]
        assert (image == uploaded).all(), name
        assert (image.permute(1, 2, 0).numpy() == np.asarray(crop)).all(), name


@pytest.mark.parametrize("mode", ["F", "I", "RGBA", "LA"])
def test_the_conversion_of_a_large_image_needs_little_memory(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "large.tif"
    Image.new(mode, (3990, 3990)).save(path, compression="tiff_adobe_deflate")
    setup = "from pathlib import Path; from featgan.system.image_files import read_image"
    measured = measure_call(setup, f"read_image(Path({str(path)!r}))")
    assert measured.message is None and measured.is_cheap(), measured


@pytest.mark.parametrize("mode", ["F", "I", "I;16", "RGBA", "P"])
def test_bands_do_not_change_the_pixels(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(30 * 20).reshape(30, 20)
    arrays: dict[str, np.ndarray] = {
        "F": (values - 7.5).astype(np.float32),
        "I": (values * 100).astype(np.int32),
        "I;16": (values * 100).astype(np.uint16),
    }
    if mode in arrays:
        image = Image.fromarray(arrays[mode])
    else:
        channels = np.stack([values // 3, values % 256, values // 2, values % 200], 2).astype(np.uint8)
        image = Image.fromarray(channels, "RGBA").convert(mode)
        image.info["transparency"] = 3 if mode == "P" else None
    complete = convert_to_rgb(image)
    monkeypatch.setattr(image_files, "MAX_BAND_PIXELS", 7 * 20)
    assert len(list(image_files.split_into_bands(image.size))) == 5
    assert convert_to_rgb(image).tobytes() == complete.tobytes()

"""Write a small data set in the layout of timm's imagenet-1k-wds: 1,000 classes of drawn shapes in WebDataset tars.

    python scripts/make_imagenet_like.py OUT --train-per-class 20 --validation-per-class 2

A class is one of ten shapes in one of ten colors on one of ten backgrounds. The images have different sizes and are not
square. OUT contains the tars, _info.json and class_names.txt. The same options write the same bytes.
"""

import colorsys
import io
import json
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageDraw
from webdataset import TarWriter

NUM_CLASSES = 1000
SHAPES = (
    "circle", "square", "triangle", "pentagon", "hexagon", "bar", "column", "ring", "cross", "diamond",
)  # fmt: skip
COLORS = ("red", "orange", "yellow", "lime", "green", "teal", "cyan", "blue", "violet", "pink")
NUM_SIDES = {"triangle": 3, "diamond": 4, "pentagon": 5, "hexagon": 6}


def class_name(label: int) -> str:
    """Return the name of a class, such as `red circle on teal`."""
    shape, color, background = label // 100, label // 10 % 10, label % 10
    return f"{COLORS[color]} {SHAPES[shape]} on {COLORS[(color + background) % 10]} {background}"


def rgb(color: int, saturation: float, value: float) -> tuple[int, int, int]:
    """Return a color of COLORS as RGB."""
    red, green, blue = colorsys.hsv_to_rgb(color / 10, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_image(label: int, generator: np.random.Generator) -> Image.Image:
    """Draw an image of a class, with random size, position, scale and noise."""
    width, height = (int(side) for side in generator.integers(72, 144, 2))
    shape, color, background = SHAPES[label // 100], label // 10 % 10, label % 10
    image = Image.new("RGB", (width, height), rgb((color + background) % 10, 0.25, 0.35 + 0.06 * background))
    radius = min(width, height) * generator.uniform(0.25, 0.4)
    x, y = (side / 2 + generator.uniform(-0.08, 0.08) * side for side in (width, height))
    draw_shape(ImageDraw.Draw(image), shape, (x, y), radius, rgb(color, 0.9, 0.95))
    pixels = np.asarray(image, np.float32) + generator.normal(0, 4, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, center: tuple[float, float], radius: float, color: tuple[int, int, int]
) -> None:
    """Draw one filled shape."""
    x, y = center
    if shape in NUM_SIDES:
        draw.regular_polygon((x, y, radius), NUM_SIDES[shape], 45 if shape == "diamond" else 0, fill=color)
    elif shape == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
    elif shape == "ring":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=color, width=round(radius / 3))
    else:
        thin = radius / 3
        half_sizes = {"square": [(radius, radius)], "bar": [(radius, thin)], "column": [(thin, radius)]}
        for dx, dy in half_sizes.get(shape, [(radius, thin), (thin, radius)]):
            draw.rectangle((x - dx, y - dy, x + dx, y + dy), fill=color)


def make_samples(split: str, per_class: int) -> Iterator[dict[str, object]]:
    """Yield the samples of a split; the classes are mixed, as in the original."""
    order = np.random.default_rng(len(split)).permutation(NUM_CLASSES * per_class)
    for position, number in enumerate(order):
        label = int(number) % NUM_CLASSES
        generator = np.random.default_rng((len(split), int(number)))
        buffer = io.BytesIO()
        draw_image(label, generator).save(buffer, "JPEG", quality=90)
        details = {"label": label, "class_name": class_name(label), "filename": f"{split}/{label:04d}/{number}.JPEG"}
        key = f"shapes_{split}_{position:08d}"
        yield {
            "__key__": key,
            "jpg": buffer.getvalue(),
            "cls": str(label).encode(),
            "json": json.dumps(details).encode(),
        }


def write_split(out: Path, split: str, per_class: int, per_tar: int) -> dict[str, object]:
    """Write the tars of a split and return its entry of _info.json."""
    samples = make_samples(split, per_class)
    file_names, lengths = [], []
    num_tars = -(-NUM_CLASSES * per_class // per_tar)
    for number in range(num_tars):
        file_names.append(f"imagenet1k-{split}-{number:04d}.tar")
        count = min(per_tar, NUM_CLASSES * per_class - number * per_tar)
        with (out / file_names[-1]).open("wb") as file, TarWriter(file, mtime=0, encoder=False) as writer:
            for _ in range(count):
                writer.write(next(samples))
        lengths.append(count)
    return {"name": split, "num_samples": sum(lengths), "filenames": file_names, "shard_lengths": lengths}


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--train-per-class", default=20, show_default=True, type=click.IntRange(1))
@click.option("--validation-per-class", default=2, show_default=True, type=click.IntRange(1))
@click.option("--per-tar", default=1000, show_default=True, type=click.IntRange(1), help="Images in one tar.")
def main(out: Path, train_per_class: int, validation_per_class: int, per_tar: int) -> None:
    """Write the data set to the folder OUT."""
    out.mkdir(parents=True, exist_ok=True)
    counts = {"train": train_per_class, "validation": validation_per_class}
    splits = {split: write_split(out, split, per_class, per_tar) for split, per_class in counts.items()}
    (out / "_info.json").write_text(json.dumps({"splits": splits}, indent=1) + "\n")
    (out / "class_names.txt").write_text("".join(f"{class_name(label)}\n" for label in range(NUM_CLASSES)))


if __name__ == "__main__":
    main()

"""Reader of CelebA: its list of attributes, with the official partition and identities where they are there."""

from collections.abc import Iterable
from pathlib import Path

from featgan.data.readers.parsing import parse_attribute, parse_split, path_below
from featgan.data.readers.records import Collector, Layout
from featgan.data.readers.text_tables import read_lines
from featgan.errors import UserError

ATTRIBUTES = "list_attr_celeba.txt"
LIST_FOLDERS = (".", "Anno", "Eval")
IMAGE_FOLDERS = ("img_align_celeba", "Img/img_align_celeba", "images", ".")


def read_celeba(source: Path, images: str = "") -> Layout:
    """`list_attr_celeba.txt`, with `list_eval_partition.txt` and `identity_CelebA.txt` where they are there.

    `images` is the folder of the images below `source` (default: the usual ones).
    """
    attributes = find_below(source, ATTRIBUTES)
    if attributes is None:
        raise UserError(f"{source}: no {ATTRIBUTES}")
    splits = {name: parse_split(value, place) for name, value, place in read_pairs(source, "list_eval_partition.txt")}
    persons = {name: value for name, value, _ in read_pairs(source, "identity_CelebA.txt")}
    usual = [source / name for name in IMAGE_FOLDERS]
    folders = [path_below(source, images, "option images")] if images else usual
    folder = next((path for path in folders if path.is_dir()), None)
    if folder is None:
        raise UserError(f"{folders[0]}: no such folder of images")
    collector = Collector(source)
    for name, values, place in read_attributes(attributes):
        labels = {"attributes": values, "identity": persons.get(name)}
        collector.add(path_below(folder, name, place), splits.get(name, ""), labels)
    return collector.finish(())


def find_below(source: Path, name: str) -> Path | None:
    """A file in the source or in one of CelebA's folders."""
    return next((path for folder in LIST_FOLDERS if (path := source / folder / name).is_file()), None)


def read_pairs(source: Path, name: str) -> Iterable[tuple[str, str, str]]:
    """(file, value, place) of an optional list with one value an image."""
    path = find_below(source, name)
    for place, line in read_lines(path) if path else ():
        cells = line.split()
        if len(cells) != 2:
            raise UserError(f"{place}: {len(cells)} words where a file and a value should be")
        yield cells[0], cells[1], place


def read_attributes(path: Path) -> Iterable[tuple[str, dict[str, int], str]]:
    """(file, attributes, place) of every image; UserError when the list's own count is not met."""
    lines = iter(read_lines(path))
    place, first = next(lines, (str(path), ""))
    if not first.strip().isdigit():
        raise UserError(f"{place}: the first line should be the number of images")
    names = next(lines, ("", ""))[1].split()
    if not names:
        raise UserError(f"{path}: the second line should name the attributes")
    count = 0
    for place, line in lines:
        name, *values = line.split()
        if len(values) != len(names):
            raise UserError(f"{place}: {len(values)} values, but there are {len(names)} attributes")
        yield name, {key: parse_attribute(value, place, key) for key, value in zip(names, values, strict=True)}, place
        count += 1
    if count != int(first):
        raise UserError(f"{path}: {count} images, but its first line says {first.strip()}; is it cut off?")

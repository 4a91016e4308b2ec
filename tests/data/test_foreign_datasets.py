"""Tests of data sets as other tools and operating systems write them: tables, labels, file names and links."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from featgan.cli.main import cli
from featgan.data.packing.pack import PackSummary, pack_shards, print_summary
from featgan.data.readers.records import EXPRESSIONS, DatasetListing, Record
from featgan.data.readers.registry import read_dataset
from featgan.data.shards.shard_set import ShardSet
from featgan.errors import UserError
from featgan.system.os_errors import describe_os_error


def save_image(path: Path | bytes, number: int = 0) -> None:
    """Write a small PNG image, under any name."""
    folder = os.path.dirname(path)  # noqa: PTH120 - the path may be bytes
    os.makedirs(folder, exist_ok=True)  # noqa: PTH103
    with open(path, "wb") as file:  # noqa: PTH123
        Image.new("RGB", (16, 16), (number * 40 % 255, 80, 120)).save(file, "PNG")


def make_table(source: Path, content: str | bytes, name: str = "labels.csv", images: str = "a b c d") -> None:
    source.mkdir(exist_ok=True)
    (source / name).write_bytes(content.encode() if isinstance(content, str) else content)
    for number, image in enumerate(images.split()):
        save_image(source / f"{image}.png", number)


def classes_of(listing: DatasetListing) -> dict[str, str | None]:
    """Return the name of the class of each image, by the name of its file."""
    return {
        record.path.name: None if record.expression is None else listing.classes[record.expression]
        for record in listing.records
    }


def pack_csv(source: Path, out: Path, **options: str) -> PackSummary:
    return pack_shards("csv", source, out, image_size=16, workers=1, layout_options=options)


# -- labels


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (range(1, 8), tuple("1234567")),
        (range(7), tuple("0123456")),
        (range(12), tuple(map(str, range(12)))),
        (range(2), ("0", "1")),
        (["10", "9", "-1"], ("-1", "9", "10")),
        (["2.0", "1.0", ""], ("1", "2")),
        (["8", "9"], ("8", "9")),
        (["anger", "joy", "boredom"], ("anger", "boredom", "joy")),
        (["3", "cat"], ("3", "cat")),
        (["日本", "été"], ("été", "日本")),
    ],
)
def test_labels_are_classes_of_their_own(tmp_path: Path, labels: list[str], classes: tuple[str, ...]) -> None:
    names = [f"i{number}" for number in range(len(labels))]
    rows = "\n".join(f"{name}.png,{label}" for name, label in zip(names, labels, strict=True))
    make_table(tmp_path / "source", f"image,label\n{rows}\n", images=" ".join(names))
    listing = read_dataset("csv", tmp_path / "source")
    assert listing.classes == classes and not listing.skipped
    for number, label in enumerate(labels):
        expected = str(label).removesuffix(".0") or None
        assert classes_of(listing)[f"i{number}.png"] == expected


def test_numbers_and_unknown_words_are_reported_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_table(tmp_path / "numbers", "image,label\na.png,1\nb.png,2\n")
    read_dataset("csv", tmp_path / "numbers")
    message = capsys.readouterr().err
    assert "the labels 1 .. 2 become classes" in message and message.count("\n") == 1
    assert "--layout-option classes=1=NAME,2=NAME" in message and "raf-db or fer2013" in message
    make_table(tmp_path / "words", "image,label\na.png,happy\nb.png,hapy\n")
    assert read_dataset("csv", tmp_path / "words").classes == ("happy", "hapy")
    assert "'hapy' is not one of the known expressions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "classes", "first"),
    [
        ("1=cat,2=dog", ("cat", "dog"), "cat"),
        ("2=dog, 1=cat", ("dog", "cat"), "cat"),
        ("1=pet,2=pet", ("pet",), "pet"),
        ("cat,dog", ("cat", "dog"), "cat"),  # the codes start at 1
        ("ant,cat,dog", ("ant", "cat", "dog"), "cat"),  # the codes start at 0
        ("names.txt", ("cat", "dog"), "cat"),
        ("pairs.txt", ("dog", "cat"), "cat"),
        ("raf-db", ("surprise", "fear", "disgust", "happy", "sad", "anger", "neutral"), "surprise"),
        ("fer2013", ("anger", "disgust", "fear", "happy", "sad", "surprise", "neutral"), "disgust"),
        ("affectnet", EXPRESSIONS, "happy"),
    ],
)
@pytest.mark.parametrize("layout", ["csv", "folder"])
def test_names_of_numbers_can_be_given(
    tmp_path: Path, layout: str, option: str, classes: tuple[str, ...], first: str
) -> None:
    if layout == "csv":
        make_table(tmp_path, "image,label\na.png,1.0\nb.png,2.0\n")
    else:
        save_image(tmp_path / "1" / "a.png")
        save_image(tmp_path / "2" / "b.png")
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    (tmp_path / "pairs.txt").write_text("2 dog\n1;cat\n")
    options = {"classes": option} | ({"csv": "labels.csv"} if layout == "csv" else {})
    listing = read_dataset(layout, tmp_path, options)
    assert listing.classes == classes and classes_of(listing)["a.png"] == first


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("1=cat", "line 3: unknown class '2'; use one of cat, or name the classes with --layout-option classes"),
        ("1=cat,dog", "only some entries have the form VALUE=NAME"),
        (" , ", "contains no names"),
        ("1=cat,2=", "a name is empty"),
    ],
)
def test_invalid_names_are_errors(tmp_path: Path, option: str, message: str) -> None:
    make_table(tmp_path, "image,label\na.png,1\nb.png,2\n")
    with pytest.raises(UserError, match=message) as error:
        read_dataset("csv", tmp_path, {"classes": option})
    assert "\n" not in str(error.value)


def test_column_with_too_many_values_is_an_error(tmp_path: Path) -> None:
    rows = "\n".join(f"{number}.png,{number}" for number in range(1001))
    make_table(tmp_path, f"image,label\n{rows}\n")
    with pytest.raises(UserError, match="1,001 different classes, such as .*at most 1,000 are possible"):
        read_dataset("csv", tmp_path)


def test_affectnet_layouts_keep_their_codes(tmp_path: Path) -> None:
    for code in (0, 7, 9):
        save_image(tmp_path / "train_set" / "images" / f"{code}.png")
        (tmp_path / "train_set" / "annotations").mkdir(exist_ok=True)
        np.save(tmp_path / "train_set" / "annotations" / f"{code}_exp.npy", np.array(str(code)))
    listing = read_dataset("affectnet", tmp_path)
    assert listing.classes == EXPRESSIONS and listing.skipped == {"uncertain": 1}


# -- attributes


@pytest.mark.parametrize(
    ("one", "zero"),
    [
        ("True", "False"),
        ("1.0", "0.0"),
        ("1", "0"),
        ("1", "-1"),
        ("yes", "No"),
        ("Y", "N"),
        ("t", "f"),
        ("TRUE", "FALSE"),
    ],
)
def test_attribute_values_of_other_tools_are_read(tmp_path: Path, one: str, zero: str) -> None:
    make_table(tmp_path, f"file,Smiling,Male,age\na.png,{one},{one},31\nb.png,{zero},,40\nc.png,nan,{zero},\n")
    by_name = {record.path.stem: record.attributes for record in read_dataset("csv", tmp_path).records}
    assert by_name == {
        "a": {"Smiling": 1, "Male": 1},
        "b": {"Smiling": 0, "Male": None},
        "c": {"Smiling": None, "Male": 0},
    }


def test_unknown_attributes_are_stored_as_unknown(tmp_path: Path) -> None:
    make_table(tmp_path / "source", "file,Smiling,Male,split\na.png,,1,train\nb.png,1,0,train\nc.png,0,,validation\n")
    summary = pack_csv(tmp_path / "source", tmp_path / "shards")
    assert summary.manifest.attribute_names == ("Smiling", "Male")
    shards = ShardSet.open(tmp_path / "shards")
    assert sorted(shards.get_split("train").attributes.tolist()) == [[-1, 1], [1, 0]]
    assert shards.get_split("validation").attributes.tolist() == [[0, -1]]
    # The index is the same if it is rebuilt from the tar files.
    (tmp_path / "shards" / "train.index.npz").unlink()
    assert sorted(ShardSet.open(tmp_path / "shards").get_split("train").attributes.tolist()) == [[-1, 1], [1, 0]]


def test_columns_that_are_no_attributes_are_left_out(tmp_path: Path) -> None:
    # A row number without a name, a column of `f` for female, a blank column, and a column with three values.
    make_table(tmp_path, ",file,sex,empty,score\n0,a.png,f,,-1\n1,b.png,f,,0\n,c.png,f,,1\n")
    listing = read_dataset("csv", tmp_path)
    assert [set(record.attributes or {}) for record in listing.records] == [set()] * 3


# -- tables


TABLE = [("file", "emotion"), ("é 1.png", "joyful"), ("b.png", "bored")]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_encodings_delimiters_and_line_ends(tmp_path: Path, delimiter: str, encoding: str, line_end: str) -> None:
    text = line_end.join(delimiter.join(row) for row in TABLE) + line_end
    make_table(tmp_path, text.encode(encoding), images="b")
    save_image(tmp_path / "é 1.png")
    listing = read_dataset("csv", tmp_path)
    assert classes_of(listing) == {"é 1.png": "joyful", "b.png": "bored"}


@pytest.mark.parametrize(
    ("header", "first"),
    [
        ("File Name,Class Label", "a.png"),
        ("IMAGE_PATH;Emotion Label", "./a.png"),
        ("img_name,target", " a.png "),
        ('"ID","Labels"', '"a"'),
        ("Image-ID,CLASS", "a.PNG"),
        ("path,label", "source/a.png"),
        ("path,label", ".\\a.png"),
        ("path,label", "C:\\Users\\me\\source\\a.png"),
        ("path,label", "/home/me/faces/source/a.png"),
        ("path,label", "\\\\server\\share\\source\\a.png"),
        ("path,label", "../source/a.png"),
        ("path,label", "images/../a.png"),
    ],
)
def test_headers_and_paths_of_other_tools(tmp_path: Path, header: str, first: str) -> None:
    delimiter = ";" if ";" in header else ","
    make_table(tmp_path / "source", f"{header}\n{first}{delimiter}x\n")
    listing = read_dataset("csv", tmp_path / "source")
    assert classes_of(listing) == {"a.png": "x"}


def test_list_without_header_and_with_spaces_is_read(tmp_path: Path) -> None:
    """RAF-DB's list: names and codes, separated by a space; the images are in a folder next to it."""
    make_table(tmp_path, "train_1.png 5\ntest_1.png 4\n", "list_patition_label.txt", images="")
    for name in ("train_1.png", "test_1.png"):
        save_image(tmp_path / "original" / name)
    listing = read_dataset("csv", tmp_path, {"classes": "raf-db"})
    assert classes_of(listing) == {"train_1.png": "sad", "test_1.png": "happy"}


def test_quoted_cells_blank_rows_and_surplus_delimiters(tmp_path: Path) -> None:
    content = 'file;note;label;\r\n"a.png";"two\r\nlines; ""quoted""";x;\r\n;;;\r\n"b.png";;y;\r\n'
    make_table(tmp_path, content)
    listing = read_dataset("csv", tmp_path)
    assert classes_of(listing) == {"a.png": "x", "b.png": "y"}
    make_table(tmp_path, 'file;note;label\r\na.png;"two\r\nlines";x\r\nb.png;y\r\n')
    with pytest.raises(UserError, match="line 4: 2 cells, but the table has 3 columns"):
        read_dataset("csv", tmp_path)


def test_names_without_suffix_in_a_subfolder_are_found(tmp_path: Path) -> None:
    make_table(tmp_path, "id,label\n0001,x\n0002.5,y\n", images="")
    save_image(tmp_path / "Photos" / "0001.PNG")
    save_image(tmp_path / "Photos" / "0002.5.png")
    assert classes_of(read_dataset("csv", tmp_path)) == {"0001.PNG": "x", "0002.5.png": "y"}


def test_names_in_other_encodings_are_found(tmp_path: Path) -> None:
    # macOS stores accents as separate characters, an archive of Windows contains Windows-1252, a web page percents.
    make_table(tmp_path, "file,label\nÉté.png,x\nGröße.png,y\na%20b.png,z\nEXACT.png,x\nexact.png,y\n", images="")
    save_image(tmp_path / "E\u0301te\u0301.png")
    save_image(os.fsencode(tmp_path) + "/Größe.png".encode("cp1252"))
    for name in ("a b.png", "EXACT.png", "exact.png"):
        save_image(tmp_path / name)
    listing = read_dataset("csv", tmp_path)
    assert len(listing.records) == 5 and not listing.missing_files
    assert classes_of(listing)["EXACT.png"] == "x" and classes_of(listing)["exact.png"] == "y"


def test_path_outside_the_source_is_an_error(tmp_path: Path) -> None:
    save_image(tmp_path / "secret.png")
    for path in ("../secret.png", str(tmp_path / "secret.png")):
        make_table(tmp_path / "source", f"file,label\n{path},x\n")
        with pytest.raises(UserError, match="points outside"):
            read_dataset("csv", tmp_path / "source")


# -- celeba


def make_kaggle_celeba(source: Path, nested: bool) -> None:
    folder = source / "img_align_celeba" / ("img_align_celeba" if nested else ".")
    attributes, partition = ["image_id,Black_Hair,Smiling"], ["image_id,partition"]
    for number in range(1, 7):
        save_image(folder / f"{number:06d}.jpg")
        attributes.append(f"{number:06d}.jpg,{(-1, 1)[number % 2]},1")
        partition.append(f"{number:06d}.jpg,{0 if number < 4 else number - 3}")
    (source / "list_attr_celeba.csv").write_text("\r\n".join(attributes) + "\r\n")
    (source / "list_eval_partition.csv").write_text("\n".join(partition[:-1]) + "\n")


@pytest.mark.parametrize("nested", [True, False])
def test_celeba_of_kaggle_with_its_official_split(tmp_path: Path, nested: bool) -> None:
    make_kaggle_celeba(tmp_path, nested)
    listing = read_dataset("celeba", tmp_path)
    assert [(record.path.name, record.split) for record in listing.records] == [
        ("000001.jpg", "train"),
        ("000002.jpg", "train"),
        ("000003.jpg", "train"),
        ("000004.jpg", "validation"),
        ("000006.jpg", ""),  # not in the partition
    ]
    assert listing.skipped == {"test split": 1}
    assert listing.records[0].attributes == {"Black_Hair": 1, "Smiling": 1}


def test_celeba_list_with_windows_line_ends(tmp_path: Path) -> None:
    (tmp_path / "list_attr_celeba.txt").write_bytes(b"2\r\nMale Smiling \r\n000001.jpg -1  1\r\n000002.jpg  1 -1\r\n")
    for number in (1, 2):
        save_image(tmp_path / "images" / f"00000{number}.jpg")
    assert [record.attributes for record in read_dataset("celeba", tmp_path).records] == [
        {"Male": 0, "Smiling": 1},
        {"Male": 1, "Smiling": 0},
    ]


# -- file names and folders


STRANGE_NAMES = (
    b"Andr\xe9.png",
    b"two\nlines.png",
    b"tab\t.png",
    b"[/red].png",
    b"-rf.png",
    b"\x1b[31m.png",
    b"a..png",
)


def test_any_file_name_can_be_packed(tmp_path: Path) -> None:
    for label in (b"happy", b"sa\xe9d\n"):
        for number, name in enumerate(STRANGE_NAMES):
            save_image(os.fsencode(tmp_path / "source") + b"/" + label + b"/" + name, number)
    out = tmp_path / "shards"
    result = CliRunner().invoke(
        cli, ["pack", "folder", str(tmp_path / "source"), "--out", str(out), "--image-size", "16"]
    )
    assert result.exit_code == 0, result.output
    assert all(line.isprintable() for line in result.stdout.split("\n"))
    shards = ShardSet.open(out)
    assert sum(split.count for split in shards.manifest.splits.values()) == 2 * len(STRANGE_NAMES)
    assert all(name.isprintable() for name in shards.classes)
    json.loads((out / "manifest.json").read_text())
    for split, split_manifest in shards.manifest.splits.items():
        (out / f"{split}.index.npz").unlink()
        assert len(ShardSet.open(out).get_split(split)) == split_manifest.count


def test_missing_and_corrupted_files_with_strange_names_are_reported_in_one_line(tmp_path: Path) -> None:
    source = os.fsencode(tmp_path / "source")
    for number in range(5):
        save_image(source + f"/happy/{number}.png".encode())
    with open(source + b"/happy/Andr\xe9\n.png", "wb") as file:  # noqa: PTH123
        file.write(b"no image")
    arguments = ["pack", "folder", str(tmp_path / "source"), "--out", str(tmp_path / "shards"), "--image-size", "16"]
    result = CliRunner().invoke(cli, arguments)
    assert isinstance(result.exception, UserError)
    message = str(result.exception)
    assert message.isprintable() and "Andr" in message and "not an image" in message


def count_by_class(source: Path) -> dict[str, int]:
    listing = read_dataset("folder", source)
    return {
        name: sum(record.expression == code for record in listing.records) for code, name in enumerate(listing.classes)
    }


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    for number in range(3):
        save_image(tmp_path / "store" / "batch1" / f"{number}.png")
        save_image(tmp_path / "store" / "batch2" / "deep" / f"{number}.png")
    save_image(tmp_path / "data" / "cat" / "own.png")
    (tmp_path / "data" / "cat" / "batch1").symlink_to(tmp_path / "store" / "batch1")
    (tmp_path / "data" / "cat" / "batch2").symlink_to("../../store/batch2")
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "store" / "batch2")
    assert count_by_class(tmp_path / "data") == {"cat": 7, "dog": 3}


def test_loops_of_links_are_left_out(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        save_image(tmp_path / label / "a.png")
    (tmp_path / "cat" / "self").symlink_to(tmp_path / "cat")
    (tmp_path / "cat" / "parent").symlink_to(tmp_path)
    (tmp_path / "dog" / "broken").symlink_to(tmp_path / "none")
    (tmp_path / "dog" / "loop").symlink_to("loop")
    # Each of these folders contains two links to the next one: without a check, there are 2^30 paths.
    for number in range(30):
        (tmp_path / "store" / str(number)).mkdir(parents=True)
        for name in ("x", "y"):
            (tmp_path / "store" / str(number) / name).symlink_to(f"../{number + 1}")
    save_image(tmp_path / "store" / "30" / "b.png")
    (tmp_path / "dog" / "many").symlink_to(tmp_path / "store" / "0")
    shutil.move(tmp_path / "store", tmp_path.with_name(f"{tmp_path.name}-store"))
    (tmp_path / "dog" / "many").unlink()
    (tmp_path / "dog" / "many").symlink_to(tmp_path.with_name(f"{tmp_path.name}-store") / "0")
    assert count_by_class(tmp_path) == {"cat": 1, "dog": 2}


def test_files_of_operating_systems_are_ignored(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        for name in ("a.JPG", "b.Png", "._a.JPG", "Thumbs.db", ".DS_Store", "desktop.ini"):
            save_image(tmp_path / label / name)
        save_image(tmp_path / label / ".ipynb_checkpoints" / "a-checkpoint.png")
        save_image(tmp_path / "__MACOSX" / label / "._a.JPG")
    listing = read_dataset("folder", tmp_path)
    assert len(listing.records) == 4 and listing.skipped == {} and listing.classes == ("cat", "dog")


def test_names_that_differ_in_case_are_different_images(tmp_path: Path) -> None:
    for name in ("a.png", "A.png", "A.PNG", "a.jpg"):
        save_image(tmp_path / "cat" / name)
    keys = {record.key for record in read_dataset("folder", tmp_path).records}
    assert len(keys) == 4


def test_folder_around_the_split_folders_is_entered(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            save_image(tmp_path / "archive" / split / label / "a.png")
    listing = read_dataset("folder", tmp_path)
    assert listing.classes == ("cat", "dog") and {record.split for record in listing.records} == {"train", "validation"}


def test_split_folders_of_archives_are_recognized(tmp_path: Path) -> None:
    for folder in ("seg_train/seg_train", "seg_test/seg_test"):
        for label in ("sea", "street"):
            save_image(tmp_path / folder / label / "a.png")
    listing = read_dataset("folder", tmp_path)
    assert listing.classes == ("sea", "street")
    assert sorted(record.split for record in listing.records) == ["train", "train", "validation", "validation"]


def test_class_can_be_called_train(tmp_path: Path) -> None:
    for label in ("bus", "train", "plane"):
        save_image(tmp_path / label / "a.png")
    assert read_dataset("folder", tmp_path).classes == ("bus", "plane", "train")


def test_names_in_a_table_are_found_in_deep_folders(tmp_path: Path) -> None:
    """Kaggle's RAF-DB: a table of names, and images in DATASET/train/CLASS."""
    make_table(tmp_path, "image,label\na.png,1\nb.png,2\ntwice.png,2\n", "train_labels.csv", images="")
    for path in ("train/1/a.png", "train/2/b.png", "train/1/twice.png", "test/2/twice.png"):
        save_image(tmp_path / "DATASET" / path)
    listing = read_dataset("csv", tmp_path)
    assert classes_of(listing) == {"a.png": "1", "b.png": "2"}
    assert listing.missing_files == ["twice.png"]


def test_table_without_known_label_column_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_table(tmp_path, "id,breed\na,x\nb,y\n")
    read_dataset("csv", tmp_path)
    message = capsys.readouterr().err
    assert "no labels among the columns id, breed; name the column of the classes" in message
    assert message.count("\n") == 1


def test_summary_lists_what_was_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_table(tmp_path / "source", "file,label,Smiling,split\na.png,x,1,train\nb.png,y,0,train\nc.png,x,,val\n")
    print_summary(pack_csv(tmp_path / "source", tmp_path / "shards"))
    output = capsys.readouterr().out
    for text in ("x      │     1 │          1", "y      │     1 │          0", "attributes: Smiling", "skipped: none"):
        assert text in output
    assert "validation split: from the source" in output


@pytest.mark.parametrize(("image_size", "sizes"), [(50, "48 or 52"), (9, "8 or 12"), (1021, "1020 or 1024")])
def test_size_that_the_networks_cannot_handle_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], image_size: int, sizes: str
) -> None:
    make_table(tmp_path / "source", "file,label\na.png,x\nb.png,y\n")
    pack_shards("csv", tmp_path / "source", tmp_path / "shards", image_size=image_size, workers=1)
    message = capsys.readouterr().err.splitlines()[0]
    assert f"must be a multiple of 4; pack the images with --image-size {sizes}" in message


def test_record_with_unknown_attributes_has_no_labels() -> None:
    assert not Record("a", Path("a"), "", attributes={"Smiling": None}).has_labels
    assert Record("a", Path("a"), "", attributes={"Smiling": 0}).has_labels


# -- data sets as they are published


def test_images_inside_a_table_are_packed_with_their_splits(tmp_path: Path) -> None:
    usages = ("Training", "PublicTest", "PrivateTest")
    rows = [f"{n % 7},{' '.join([str(n)] * 144)},{usages[n // 14]}\n" for n in range(35)]
    source = tmp_path / "fer, 2013"
    source.mkdir()
    (source / "fer2013.csv").write_text("emotion,pixels,Usage\n" + "".join(rows))
    summary = pack_csv(source, tmp_path / "out", classes="fer2013")
    assert summary.num_images_by_split == {"train": 14, "validation": 14}
    assert summary.skipped == {"test split": 7}
    pixels = ShardSet.open(tmp_path / "out").get_split("train").decode(range(14))
    assert sorted(pixels.float().mean((1, 2, 3)).round().int().tolist()) == list(range(14))
    assert pack_csv(source, tmp_path / "out", classes="fer2013").already_packed
    (source / "fer2013.csv").write_text("emotion,pixels,Usage\n" + "".join(rows).replace("3 3 3", "4 4 4"))
    with pytest.raises(UserError, match="different images or labels"):
        pack_csv(source, tmp_path / "out", classes="fer2013")


@pytest.mark.parametrize("pixels", ["", "1 2 3", "300 " * 64, "a " * 64])
def test_pixels_that_are_no_square_image_are_one_line(tmp_path: Path, pixels: str) -> None:
    (tmp_path / "fer2013.csv").write_text(f"emotion,pixels,Usage\n3,{pixels},Training\n")
    with pytest.raises(UserError, match="line 2: the pixels are not those of a square image"):
        read_dataset("csv", tmp_path)


def test_raf_db_is_read_as_published(tmp_path: Path) -> None:
    names = [f"{'train' if n < 14 else 'test'}_{n:05d}" for n in range(21)]
    for number, name in enumerate(names):
        save_image(tmp_path / "Image" / "aligned" / f"{name}_aligned.jpg", number)
    (tmp_path / "EmoLabel").mkdir()
    rows = [f"{name}.jpg {n % 7 + 1}\n" for n, name in enumerate(names)]
    (tmp_path / "EmoLabel" / "list_patition_label.txt").write_text("".join(rows))
    listing = read_dataset("csv", tmp_path, {"classes": "raf-db"})
    assert classes_of(listing)["train_00003_aligned.jpg"] == "happy"
    assert {record.path.name[:4] for record in listing.records if record.split == "train"} == {"trai"}
    assert sum(record.split == "validation" for record in listing.records) == 7


def test_names_of_splits_are_used_only_if_every_file_has_one(tmp_path: Path) -> None:
    make_table(tmp_path, "file,label\ntrain_1.png,a\ntest_1.png,b\nother.png,a\n", images="train_1 test_1 other")
    assert {record.split for record in read_dataset("csv", tmp_path).records} == {""}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels.csv", "sep=;\r\nfile;label;valence\r\na.png;x;0,5\r\nb.png;y;-0,25\r\n"),
        ("labels.txt", '"file" "label" "valence"\n"1" "a.png" "x" 0.5\n"2" "b.png" "y" -0.25\n'),
        ("labels.tsv", '"file"\t"label"\t"valence"\n"1"\t"a.png"\t"x"\t0.5\n"2"\t"b.png"\t"y"\t-0.25\n'),
    ],
)
def test_tables_of_excel_and_r_are_read(tmp_path: Path, name: str, content: str) -> None:
    make_table(tmp_path, content, name)
    listing = read_dataset("csv", tmp_path)
    assert classes_of(listing) == {"a.png": "x", "b.png": "y"}
    assert [record.valence for record in listing.records] == [0.5, -0.25]


@pytest.mark.parametrize("wrapper", ["pets", "pets-20240101T000000Z-001/pets"])
def test_class_folders_inside_the_folder_of_an_archive_are_found(tmp_path: Path, wrapper: str) -> None:
    for name in ("cat", "dog"):
        save_image(tmp_path / wrapper / name / "a.png")
        save_image(tmp_path / "__MACOSX" / wrapper / name / "._a.png")
    assert read_dataset("folder", tmp_path).classes == ("cat", "dog")


def test_folder_of_one_class_stays_a_class(tmp_path: Path) -> None:
    save_image(tmp_path / "cat" / "a.png")
    save_image(tmp_path / "cat" / "more" / "b.png")
    assert classes_of(read_dataset("folder", tmp_path)) == {"a.png": "cat", "b.png": "cat"}


def test_split_folders_with_one_folder_of_images_have_no_classes(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        save_image(tmp_path / split / "images" / "a.png")
    assert read_dataset("folder", tmp_path).classes == ()


def test_class_names_with_composed_and_decomposed_accents_are_one_class(tmp_path: Path) -> None:
    save_image(tmp_path / "train" / "Gro\u0308\u00dfe" / "a.png", 1)
    save_image(tmp_path / "train" / "x" / "b.png", 2)
    save_image(tmp_path / "test" / "Gr\u00f6\u00dfe" / "c.png", 3)
    listing = read_dataset("folder", tmp_path)
    assert listing.classes == ("Gr\u00f6\u00dfe", "x")
    assert classes_of(listing)["a.png"] == classes_of(listing)["c.png"]


def test_class_names_that_differ_in_case_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, name in enumerate(("train/Cat", "train/Dog", "test/cat", "test/dog")):
        save_image(tmp_path / name / f"{number}.png", number)
    with caplog.at_level("WARNING"):
        listing = read_dataset("folder", tmp_path)
    assert "'Cat' and 'cat' differ in case" in caplog.text
    assert len(listing.records) == 4  # the test folder has labels
    joined = read_dataset("folder", tmp_path, {"classes": "Cat=cat,cat=cat,Dog=dog,dog=dog"})
    assert joined.classes == ("cat", "dog")


def test_shards_inside_the_source_are_not_a_class(tmp_path: Path) -> None:
    for number, name in enumerate(("cat/a", "cat/b", "zebra/a", "zebra/b")):
        save_image(tmp_path / f"{name}.png", number)
    out = tmp_path / "shards"
    packed = [pack_shards("folder", tmp_path, out, image_size=16, workers=1) for _ in range(2)]
    assert packed[1].already_packed and packed[1].manifest.classes == ("cat", "zebra")


@pytest.fixture
def without_privileges() -> Iterator[Path]:
    """Return a folder for a process that permissions apply to, also if the tests run as root."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o777)  # noqa: PTH101
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            os.seteuid(user)


@pytest.mark.parametrize("name", ["cat", "cat/more"])
def test_unreadable_folder_is_an_error(without_privileges: Path, name: str) -> None:
    save_image(without_privileges / "cat" / "more" / "a.png")
    save_image(without_privileges / "dog" / "b.png")
    (without_privileges / name).chmod(0)
    with pytest.raises(PermissionError) as error:
        read_dataset("folder", without_privileges)
    (without_privileges / name).chmod(0o755)
    assert f"{without_privileges / name}: permission denied" in str(describe_os_error(error.value))


@pytest.mark.parametrize("header", [",pth,label", "Unnamed: 0,pth,label", "pth,label"])
def test_row_numbers_are_not_an_attribute(tmp_path: Path, header: str) -> None:
    make_table(tmp_path, f"{header}\n0,a.png,x\n1,b.png,y\n")
    listing = read_dataset("csv", tmp_path)
    assert classes_of(listing) == {"a.png": "x", "b.png": "y"}
    assert {record.attributes is None for record in listing.records} == {True}


def test_single_class_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_image(tmp_path / "source" / "cat" / "a.png")
    with caplog.at_level("WARNING"):
        pack_shards("folder", tmp_path / "source", tmp_path / "out", image_size=16, workers=1)
    assert "only one class, 'cat'" in caplog.text

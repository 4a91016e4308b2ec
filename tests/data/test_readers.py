"""Tests of the layout readers: records, options, skipped images, and errors with file and line."""

import re
from pathlib import Path

import pytest

from featgan.cli.main import LAYOUT_NAMES
from featgan.data.readers.records import EXPRESSIONS, DatasetListing, Record
from featgan.data.readers.registry import LAYOUT_READERS, read_dataset
from featgan.errors import UserError


def write_file(path: Path, content: str | bytes = b"image") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def records_by_name(listing: DatasetListing) -> dict[str, Record]:
    keys = [record.key for record in listing.records]
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", key) for key in keys), keys
    return {record.path.name: record for record in listing.records}


# -- all layouts


def test_registered_layouts_are_the_documented_ones() -> None:
    assert list(LAYOUT_READERS) == [
        "affectnet-lists",
        "affectnet-csv",
        "affectnet",
        "affectnet-plus",
        "celeba",
        "folder",
        "csv",
    ]
    assert (*LAYOUT_READERS, "webdataset") == LAYOUT_NAMES


def test_unknown_layout_option_or_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'affectnett'.*affectnet-csv"):
        read_dataset("affectnett", tmp_path)
    for name in ("color", "source"):
        with pytest.raises(UserError, match=f"^--layout-option {name}: not an option of layout csv; its options are"):
            read_dataset("csv", tmp_path, {name: "red"})
    for name in LAYOUT_READERS:
        with pytest.raises(UserError, match="no such folder"):
            read_dataset(name, tmp_path / "missing")


@pytest.mark.parametrize("name", list(LAYOUT_READERS))
def test_error_for_an_empty_folder_names_the_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read_dataset(name, tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


# -- celeba


def make_celeba_source(source: Path, count: int = 3) -> None:
    rows = "000001.jpg -1  1\n000002.jpg  1 -1\n000003.jpg  1  1\n"
    write_file(source / "list_attr_celeba.txt", f"{count}\nBlack_Hair Smiling \n{rows}")
    for number in (1, 2, 3):
        write_file(source / "img_align_celeba" / f"00000{number}.jpg")


def test_celeba_with_partition_and_identities(tmp_path: Path) -> None:
    make_celeba_source(tmp_path)
    write_file(tmp_path / "Eval" / "list_eval_partition.txt", "000001.jpg 0\n000002.jpg 1\n000003.jpg 2\n")
    write_file(tmp_path / "Anno" / "identity_CelebA.txt", "000001.jpg 77\n")
    listing = read_dataset("celeba", tmp_path)
    records = records_by_name(listing)
    assert records["000001.jpg"].attributes == {"Black_Hair": 0, "Smiling": 1}
    assert (records["000001.jpg"].split, records["000002.jpg"].split) == ("train", "validation")
    assert (records["000001.jpg"].identity, records["000002.jpg"].identity) == ("77", None)
    assert listing.skipped == {"test split": 1} and listing.classes == ()


def test_celeba_without_partition_has_no_splits(tmp_path: Path) -> None:
    make_celeba_source(tmp_path)
    assert {record.split for record in read_dataset("celeba", tmp_path).records} == {""}


def test_truncated_celeba_list_is_an_error(tmp_path: Path) -> None:
    make_celeba_source(tmp_path, count=4)
    with pytest.raises(UserError, match="3 images, but the first line declares 4"):
        read_dataset("celeba", tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [("000001.jpg 1", "line 3: 1 values, but the list has 2"), ("000001.jpg 1 2", "line 3: attribute Smiling '2'")],
)
def test_invalid_celeba_rows_are_errors(line: str, message: str, tmp_path: Path) -> None:
    make_celeba_source(tmp_path)
    write_file(tmp_path / "list_attr_celeba.txt", f"1\nBlack_Hair Smiling\n{line}\n")
    with pytest.raises(UserError, match=message):
        read_dataset("celeba", tmp_path)


# -- folder


def test_expression_folders_get_affectnet_codes(tmp_path: Path) -> None:
    for name in ("angry", "contemptuous", "happy"):
        write_file(tmp_path / name / f"Rafd090_01_Caucasian_female_{name}_frontal.jpg")
    write_file(tmp_path / "happy" / "subfolder" / "Rafd090_02_x_frontal.JPEG")
    write_file(tmp_path / "happy" / "notes.txt")
    write_file(tmp_path / "uncertain" / "u.jpg")
    listing = read_dataset("folder", tmp_path)
    actual = sorted((record.path.parent.name, record.expression, record.identity) for record in listing.records)
    assert actual == [("angry", 6, "01"), ("contemptuous", 7, "01"), ("happy", 1, "01"), ("subfolder", 1, "02")]
    assert listing.classes == EXPRESSIONS
    assert listing.skipped == {"not an image suffix": 1, "uncertain": 1}
    assert {record.split for record in listing.records} == {""}


def test_other_class_folders_are_numbered_in_natural_order(tmp_path: Path) -> None:
    for name in ("class10", "class2", "class1"):
        write_file(tmp_path / name / "a.png")
    listing = read_dataset("folder", tmp_path)
    assert listing.classes == ("class1", "class2", "class10")
    assert {record.path.parent.name: record.expression for record in listing.records}["class10"] == 2


@pytest.mark.parametrize("validation", ["validation", "val", "test"])
def test_class_folders_can_be_in_split_folders(validation: str, tmp_path: Path) -> None:
    write_file(tmp_path / "train" / "cat" / "a.jpg")
    write_file(tmp_path / validation / "dog" / "a.jpg")
    listing = read_dataset("folder", tmp_path)
    assert {(record.split, record.expression) for record in listing.records} == {("train", 0), ("validation", 1)}


def test_folder_without_classes_has_images_without_labels(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.PNG", ".hidden.jpg", "notes.txt"):
        write_file(tmp_path / name)
    listing = read_dataset("folder", tmp_path)
    assert [(record.key, record.expression) for record in listing.records] == [("a", None), ("b", None)]
    assert listing.classes == () and listing.skipped == {"not an image suffix": 1}


def test_images_without_labels_can_be_in_split_folders(tmp_path: Path) -> None:
    write_file(tmp_path / "train" / "a.jpg")
    write_file(tmp_path / "val" / "a.jpg")
    listing = read_dataset("folder", tmp_path)
    assert {(record.split, record.expression) for record in listing.records} == {("train", None), ("validation", None)}


def test_images_outside_class_folders_are_counted(tmp_path: Path) -> None:
    write_file(tmp_path / "cat" / "a.jpg")
    write_file(tmp_path / "stray.jpg")
    listing = read_dataset("folder", tmp_path)
    assert len(listing.records) == 1 and listing.skipped == {"not in a class folder": 1}


def test_folder_without_images_is_an_error(tmp_path: Path) -> None:
    write_file(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="no images and no class folders"):
        read_dataset("folder", tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(UserError, match="no images in its 1 class folders"):
        read_dataset("folder", tmp_path)


def test_test_folder_is_skipped_if_there_is_a_validation_folder(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        write_file(tmp_path / split / "cat" / "a.jpg")
    listing = read_dataset("folder", tmp_path)
    assert [record.split for record in listing.records] == ["train", "validation"]
    assert listing.skipped == {"test split": 1}


def test_class_folder_next_to_split_folders_is_an_error(tmp_path: Path) -> None:
    write_file(tmp_path / "train" / "cat" / "a.jpg")
    write_file(tmp_path / "dog" / "a.jpg")
    with pytest.raises(UserError, match="not dog"):
        read_dataset("folder", tmp_path)


# -- csv


def make_csv_source(source: Path, content: str, name: str = "labels.csv") -> None:
    write_file(source / name, content)
    for image in ("a.jpg", "b.jpg", "c.jpg"):
        write_file(source / image)


def test_default_columns_are_found_by_name(tmp_path: Path) -> None:
    make_csv_source(
        tmp_path,
        "Image;Emotion;Valence;Arousal;Usage;Subject;Smiling;age\n"
        "a.jpg;Happiness;0.5;;Training;p1;1;30\nb.jpg;sad;-2;0;PublicTest;p2;0;40\nc.jpg;;nan;-1;;;1;1\n",
        "faces.csv",
    )
    records = records_by_name(read_dataset("csv", tmp_path))
    first, second, third = (records[name] for name in ("a.jpg", "b.jpg", "c.jpg"))
    assert (first.expression, first.valence, first.arousal, first.split, first.identity) == (
        1,
        0.5,
        None,
        "train",
        "p1",
    )
    assert (second.expression, second.valence, second.arousal, second.split) == (2, None, 0.0, "validation")
    assert (third.expression, third.valence, third.arousal, third.split, third.identity) == (None, None, -1.0, "", None)
    # Attributes keep the spelling of the header, which the configuration uses.
    assert first.attributes == {"Smiling": 1} and second.attributes == {"Smiling": 0}


def test_columns_table_and_folder_can_be_set_by_options(tmp_path: Path) -> None:
    write_file(tmp_path / "faces" / "a.jpg")
    write_file(tmp_path / "one.csv", "where,mood,v,Young\na.jpg,3,0.5,-1\n")
    write_file(tmp_path / "two.csv", "where\n")
    options = {"csv": "one.csv", "images": "faces", "file_column": "Where", "expression_column": "mood"}
    listing = read_dataset("csv", tmp_path, {**options, "valence_column": "v", "attribute_columns": "young"})
    (record,) = listing.records
    assert (record.expression, record.valence, record.attributes) == (0, 0.5, {"Young": 0})
    assert listing.classes == ("3",)
    with pytest.raises(UserError, match="one.csv, two.csv.*--layout-option csv=FILE"):
        read_dataset("csv", tmp_path)
    with pytest.raises(UserError, match="one.csv, line 1: no column gaze; the columns are where, mood, v, Young"):
        read_dataset("csv", tmp_path, {**options, "valence_column": "gaze"})


def test_bounding_boxes_and_quoted_cells_are_read(tmp_path: Path) -> None:
    make_csv_source(tmp_path, 'file,face_x,face_y,face_width,face_height,identity\n"a.jpg",1,2.4,30,40,"Last, First"\n')
    (record,) = read_dataset("csv", tmp_path).records
    assert record.bounding_box == (1, 2, 30, 40) and record.identity == "Last, First"


def test_codes_are_read_and_unusable_expressions_are_skipped(tmp_path: Path) -> None:
    make_csv_source(tmp_path, "file,expression\na.jpg,7\nb.jpg,10\nc.jpg,uncertain\n")
    listing = read_dataset("csv", tmp_path, {"classes": "affectnet"})
    assert [record.expression for record in listing.records] == [7]
    assert listing.skipped == {"no-face": 1, "uncertain": 1}


def test_other_classes_are_sorted_or_given_by_option(tmp_path: Path) -> None:
    make_csv_source(tmp_path, "file,class\na.jpg,zebra\nb.jpg,ant\n")
    listing = read_dataset("csv", tmp_path)
    assert listing.classes == ("ant", "zebra") and records_by_name(listing)["a.jpg"].expression == 1
    make_csv_source(tmp_path, "file,emotion\na.jpg,0\nb.jpg,sad\n")
    listing = read_dataset("csv", tmp_path, {"classes": "anger, disgust, sad"})
    assert listing.classes == ("anger", "disgust", "sad")
    assert [record.expression for record in listing.records] == [0, 2]


def test_duplicate_rows_have_the_same_key(tmp_path: Path) -> None:
    make_csv_source(tmp_path, "file,expression\na.jpg,1\na.jpg,1\na.jpg,2\n")
    keys = [record.key for record in read_dataset("csv", tmp_path).records]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "file,expression\na.jpg,1\nb.jpg,0.5\n",
            "labels.csv, line 3: unknown class '0.5'; a class is a word or a whole",
        ),
        ("file,valence\na.jpg,2\n", "line 2: valence 2 is not between -1 and 1"),
        ("file,split\na.jpg,holdout\n", "line 2: unknown split 'holdout'"),
        ("file,split\n,train\n", "line 2: the file name is empty"),
        ("mood,split\na.jpg,train\n", "line 1: no column of file names among mood, split"),
        ("file,file\na.jpg,a.jpg\n", "line 1: a column name occurs twice"),
        ("file,expression\n/etc/passwd,1\n", "line 2: the path '/etc/passwd' points outside"),
        ('file,expression\n"a.jpg,1\n', "line 2: not a table with separated values"),
        ("", "labels.csv: the file is empty"),
        ("file,expression\nmissing.jpg,1\n", "none of the 1 listed images exists, such as missing.jpg"),
    ],
)
def test_invalid_tables_are_errors(content: str, message: str, tmp_path: Path) -> None:
    make_csv_source(tmp_path, content)
    with pytest.raises(UserError, match=message):
        read_dataset("csv", tmp_path)


def test_binary_table_is_an_error(tmp_path: Path) -> None:
    write_file(tmp_path / "labels.csv", b"\xff\xd8\xff\xe0\0\x10JFIF\0" * 10)
    with pytest.raises(UserError, match="not a text file"):
        read_dataset("csv", tmp_path)


def test_selected_attribute_must_be_binary(tmp_path: Path) -> None:
    make_csv_source(tmp_path, "file,age\na.jpg,30\n")
    with pytest.raises(UserError, match="line 2: attribute age '30'"):
        read_dataset("csv", tmp_path, {"attribute_columns": "age"})


def test_non_ascii_names_get_unique_ascii_keys(tmp_path: Path) -> None:
    make_csv_source(tmp_path, "file\nŁ/é.jpg\nŁ/è.jpg\nx.y.jpg\n")
    for name in ("Ł/é.jpg", "Ł/è.jpg", "x.y.jpg"):
        write_file(tmp_path / name)
    assert len(records_by_name(read_dataset("csv", tmp_path))) == 3

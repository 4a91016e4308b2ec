"""Tests of the four AffectNet readers: records, skipped images, and errors with file and line."""

import io
import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featgan.data.readers.records import EXPRESSIONS, DatasetListing, Record
from featgan.data.readers.registry import read_dataset
from featgan.errors import UserError

HEADER = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"
LANDMARKS = ";".join(f"{number}.5" for number in range(136))


def write_file(path: Path, content: str | bytes = b"image") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def records_by_name(listing: DatasetListing) -> dict[str, Record]:
    keys = [record.key for record in listing.records]
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", key) for key in keys), keys
    return {record.path.name: record for record in listing.records}


# -- affectnet-lists


def make_list_source(source: Path) -> None:
    for name in ("train/a.jpg", "train/b.jpg", "validation/c.jpg"):
        write_file(source / name)
    write_file(source / "_affectnet_train_emotiw.txt", "a.jpg 3\nb.jpg 4\n")
    write_file(source / "_affectnet_test_emotiw.txt", "c.jpg 0\n")
    write_file(source / "_affectnet_train_va.txt", "a.jpg 0.5 -0.25\nb.jpg -2 -2\n")
    write_file(source / "64d_reg/test/images.txt", "c.jpg\n")
    write_file(source / "64d_reg/test/labels.txt", "-0.5 1\n")
    write_file(source / "64d_reg/test/predictions.txt", " ".join(["0.1"] * 64) + "\n")


def test_labels_of_several_lists_are_merged(tmp_path: Path) -> None:
    make_list_source(tmp_path)
    listing = read_dataset("affectnet-lists", tmp_path)
    records = records_by_name(listing)
    assert [listing.classes[records[name].expression or 0] for name in ("a.jpg", "b.jpg", "c.jpg")] == [
        "happy",
        "neutral",
        "anger",
    ]
    assert [records[name].split for name in ("a.jpg", "b.jpg", "c.jpg")] == ["train", "train", "validation"]
    assert (records["a.jpg"].valence, records["a.jpg"].arousal) == (0.5, -0.25)
    assert (records["b.jpg"].valence, records["b.jpg"].arousal) == (None, None)
    assert (records["c.jpg"].valence, records["c.jpg"].arousal) == (-0.5, 1.0)
    assert records["c.jpg"].path == tmp_path / "validation" / "c.jpg"


def test_one_list_can_be_selected(tmp_path: Path) -> None:
    make_list_source(tmp_path)
    records = records_by_name(read_dataset("affectnet-lists", tmp_path, {"labels": "va"}))
    assert set(records) == {"a.jpg", "b.jpg"} and records["a.jpg"].expression is None
    with pytest.raises(UserError, match="'vaa'.*emotiw"):
        read_dataset("affectnet-lists", tmp_path, {"labels": "vaa"})


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("_affectnet_train_emotiw.txt", "a.jpg 3\nb.jpg 7\n", r"emotiw.txt, line 2: class '7'.*0 \.\. 6"),
        ("_affectnet_train_va.txt", "a.jpg 0.5\n", "va.txt, line 1: 1 labels, but 2"),
        ("_affectnet_train_va.txt", "a.jpg 0.5 1.5\n", "va.txt, line 1: arousal 1.5"),
        ("_affectnet_train_va.txt", "../a.jpg 0.5 0.5\n", "line 1: the path '../a.jpg' points outside"),
        ("64d_reg/test/labels.txt", "0 0\n0 0\n", "labels.txt: 2 lines, but images.txt has 1"),
        ("64d_reg/test/labels.txt", "0 oops\n", "labels.txt, line 1: arousal 'oops' is not a number"),
    ],
)
def test_invalid_lists_are_errors(file: str, content: str, message: str, tmp_path: Path) -> None:
    make_list_source(tmp_path)
    write_file(tmp_path / file, content)
    with pytest.raises(UserError, match=message):
        read_dataset("affectnet-lists", tmp_path)


# -- affectnet-csv


def format_affectnet_row(
    name: str, expression: object = 1, valence: object = 0.5, bounding_box: str = "10,20,100,120"
) -> str:
    return f"{name},{bounding_box},{LANDMARKS},{expression},{valence},0.25"


def make_csv_source(source: Path, training: list[str], validation: list[str], folder: str = "") -> None:
    write_file(source / "training.csv", "\n".join([HEADER, *training]) + "\n")
    write_file(source / "validation.csv", "\n".join(validation) + "\n")
    for line in training + validation:
        write_file(source / folder / line.split(",")[0])


def test_csv_files_with_and_without_header_are_read(tmp_path: Path) -> None:
    make_csv_source(
        tmp_path,
        [
            format_affectnet_row("1/a.JPG", 0),
            format_affectnet_row("1/b.jpeg", 7, -2),
            format_affectnet_row("2/a.jpg", 3, 1),
        ],
        [format_affectnet_row("9/c.TIFF", 6, -0.5)],
        "Manually_Annotated_Images",
    )
    listing = read_dataset("affectnet-csv", tmp_path)
    records = records_by_name(listing)
    assert listing.classes == EXPRESSIONS and len(listing.records) == 4
    assert records["c.TIFF"].split == "validation" and records["c.TIFF"].expression == 6
    assert records["a.JPG"].bounding_box == (10, 20, 100, 120)
    assert records["b.jpeg"].valence is None and records["b.jpeg"].arousal == 0.25
    assert records["a.jpg"].path == tmp_path / "Manually_Annotated_Images" / "2" / "a.jpg"


def test_images_without_expression_are_counted_by_reason(tmp_path: Path) -> None:
    rows = [format_affectnet_row(f"{code}.jpg", code) for code in (1, 8, 9, 10, 10)]
    make_csv_source(
        tmp_path,
        [*rows[:4], format_affectnet_row("x.jpg", 10, -2, "NULL,NULL,NULL,NULL")],
        [format_affectnet_row("v.jpg")],
    )
    listing = read_dataset("affectnet-csv", tmp_path)
    assert listing.skipped == {"none": 1, "uncertain": 1, "no-face": 2}
    assert len(listing.records) == 2


def test_missing_files_are_counted(tmp_path: Path) -> None:
    make_csv_source(
        tmp_path, [format_affectnet_row("1/a.jpg"), format_affectnet_row("1/b.jpg")], [format_affectnet_row("c.jpg")]
    )
    (tmp_path / "1" / "b.jpg").unlink()
    listing = read_dataset("affectnet-csv", tmp_path)
    assert listing.skipped == {"missing file": 1} and listing.missing_files == ["1/b.jpg"]
    (tmp_path / "1" / "a.jpg").unlink()
    (tmp_path / "c.jpg").unlink()
    with pytest.raises(UserError, match="none of the 3 listed images"):
        read_dataset("affectnet-csv", tmp_path)


def test_file_names_are_matched_without_case(tmp_path: Path) -> None:
    make_csv_source(tmp_path, [format_affectnet_row("1/a.jpg")], [format_affectnet_row("c.jpg")])
    (tmp_path / "1" / "a.jpg").rename(tmp_path / "1" / "a.JPG")
    assert "a.JPG" in records_by_name(read_dataset("affectnet-csv", tmp_path))


def test_two_faces_of_one_image_have_different_keys(tmp_path: Path) -> None:
    rows = [
        format_affectnet_row("a.jpg", 1),
        format_affectnet_row("a.jpg", 2, bounding_box="50,50,30,30"),
        format_affectnet_row("a.png", 3),
    ]
    make_csv_source(tmp_path, rows, [format_affectnet_row("c.jpg")])
    keys = [record.key for record in read_dataset("affectnet-csv", tmp_path).records]
    assert len(set(keys)) == 4 and keys[0] == "a"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            format_affectnet_row("a.jpg", 11),
            r"training.csv, line 2: expression '11' is not a class code; use an integer in 0 \.\. 10",
        ),
        (format_affectnet_row("a.jpg", "1.5"), "line 2: expression '1.5'"),
        (format_affectnet_row("a.jpg", ""), "line 2: expression ''"),
        (format_affectnet_row("a.jpg", 1, -1.7), "line 2: valence -1.7 is not between -1 and 1"),
        (format_affectnet_row("a.jpg", 1, "inf"), "line 2: valence 'inf'"),
        (format_affectnet_row("/etc/passwd"), "line 2: the path '/etc/passwd' points outside"),
        (format_affectnet_row("x/../../b.jpg"), "line 2: the path .* points outside"),
        (format_affectnet_row(r"C:\faces\b.jpg"), "line 2: the path .* points outside"),
        (format_affectnet_row(r"..\b.jpg"), "line 2: the path .* points outside"),
        ("a.jpg,1,2", "line 2: 3 cells, but the table has 9 columns"),
    ],
)
def test_invalid_csv_rows_are_errors(row: str, message: str, tmp_path: Path) -> None:
    write_file(tmp_path / "a.jpg")
    write_file(tmp_path / "training.csv", f"{HEADER}\n{row}\n")
    with pytest.raises(UserError, match=message):
        read_dataset("affectnet-csv", tmp_path)


def test_error_names_the_missing_csv_column(tmp_path: Path) -> None:
    write_file(tmp_path / "training.csv", "subDirectory_filePath,expression,valence\na.jpg,1,0\n")
    with pytest.raises(UserError, match="training.csv, line 1: no column face_x"):
        read_dataset("affectnet-csv", tmp_path)


# -- affectnet (8-class release)


def npy_bytes(values: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(values), allow_pickle=False)
    return buffer.getvalue()


def add_labeled_image(
    source: Path, folder: str, name: str, expression: Any, valence: Any = 0.5, arousal: Any = -0.5
) -> None:
    write_file(source / folder / "images" / name)
    identifier = Path(name).stem
    for suffix, values in (("exp", expression), ("val", valence), ("aro", arousal), ("lnd", np.zeros(136))):
        write_file(source / folder / "annotations" / f"{identifier}_{suffix}.npy", npy_bytes(values))


def test_scalars_can_be_strings_bytes_or_numbers(tmp_path: Path) -> None:
    add_labeled_image(tmp_path, "train_set", "0.jpg", "3", "0.25", "-2")
    add_labeled_image(tmp_path, "train_set", "1.JPG", np.array(b"4"), np.array(["-0.75"]), np.float32(1))
    add_labeled_image(tmp_path, "train_set", "2.png", np.int64(5), -2.0, -2.0)
    add_labeled_image(tmp_path, "val_set", "0.jpg", "8")
    add_labeled_image(tmp_path, "val_set", "7.jpg", "7")
    listing = read_dataset("affectnet", tmp_path)
    records = records_by_name(listing)
    assert [records[name].expression for name in ("0.jpg", "1.JPG", "2.png", "7.jpg")] == [3, 4, 5, 7]
    assert (records["0.jpg"].valence, records["0.jpg"].arousal) == (0.25, None)
    assert (records["1.JPG"].valence, records["1.JPG"].arousal) == (-0.75, 1.0)
    assert records["2.png"].valence is None
    assert (records["0.jpg"].split, records["7.jpg"].split) == ("train", "validation")
    assert listing.skipped == {"none": 1} and listing.classes == EXPRESSIONS


def test_images_without_annotation_and_annotations_without_image_are_counted(tmp_path: Path) -> None:
    add_labeled_image(tmp_path, "train_set", "0.jpg", "3")
    write_file(tmp_path / "train_set" / "images" / "1.jpg")
    write_file(tmp_path / "train_set" / "annotations" / "2_exp.npy", npy_bytes("1"))
    listing = read_dataset("affectnet", tmp_path)
    assert listing.skipped == {"no annotation": 1, "missing file": 1}
    assert listing.missing_files == ["train_set/images/2"]


def test_factors_file_is_read(tmp_path: Path) -> None:
    add_labeled_image(tmp_path, "train_set", "0.jpg", "3")
    add_labeled_image(tmp_path, "train_set", "1.jpg", "3")
    write_file(
        tmp_path / "factors.csv", "id,split,expression,valence,arousal,smile,glasses\n0,train,3,0.5,-0.5,0.25,1\n"
    )
    records = records_by_name(read_dataset("affectnet", tmp_path))
    assert records["0.jpg"].factors == {"smile": 0.25, "glasses": 1.0}
    assert records["1.jpg"].factors is None


class MaliciousPickle:
    """Fails the test when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (pytest.fail, ("a pickle was loaded",))


def huge_npy_header() -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": (10**14,)})
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy_bytes("11"), "3_exp.npy: expression '11'"),
        (npy_bytes("hapy"), "3_exp.npy: unknown expression 'hapy'"),
        (npy_bytes([1, 2]), "3_exp.npy: 2 values, but one is required"),
        (huge_npy_header(), "3_exp.npy: not an npy file"),
        (npy_bytes("3")[:-4] + b"\xff" * 4, "3_exp.npy: .*expression"),
        (npy_bytes("3").replace(b"}", b"("), "3_exp.npy: not an npy file"),
        (npy_bytes("3")[:-3], "3_exp.npy: not an npy file"),
        (b"", "3_exp.npy: not an npy file"),
        (pickle.dumps(MaliciousPickle()), "3_exp.npy: not an npy file"),
        (b"\x93NUMPY" + b"0" * 70_000, "3_exp.npy: has .* bytes; at most"),
    ],
)
def test_invalid_npy_files_are_errors(content: bytes, message: str, tmp_path: Path) -> None:
    add_labeled_image(tmp_path, "train_set", "3.jpg", "3")
    write_file(tmp_path / "train_set" / "annotations" / "3_exp.npy", content)
    with pytest.raises(UserError, match=message):
        read_dataset("affectnet", tmp_path)


def test_pickled_npy_file_is_an_error(tmp_path: Path) -> None:
    add_labeled_image(tmp_path, "train_set", "3.jpg", "3")
    objects = np.empty((), dtype=object)
    objects[()] = MaliciousPickle()
    np.save(tmp_path / "train_set" / "annotations" / "3_exp.npy", objects, allow_pickle=True)
    with pytest.raises(UserError, match="3_exp.npy: not an npy file"):
        read_dataset("affectnet", tmp_path)


def test_missing_annotations_folder_is_an_error(tmp_path: Path) -> None:
    write_file(tmp_path / "train_set" / "images" / "0.jpg")
    with pytest.raises(UserError, match="train_set/annotations: no such folder"):
        read_dataset("affectnet", tmp_path)


# -- affectnet-plus


def test_json_keys_are_read_in_any_spelling_and_position(tmp_path: Path) -> None:
    full = {
        "Human-Label": 2,
        "Soft-Label": [0.1] * 8,
        "Subset": 1,
        "Metadata": {"Age": 30, "Valence": -0.5, "Arousal": "0.25"},
    }
    write_file(tmp_path / "train" / "1.json", json.dumps(full))
    write_file(tmp_path / "train" / "1.jpg")
    write_file(
        tmp_path / "validation" / "annotations" / "2.json", json.dumps({"human_label": "Surprise", "valence": -2})
    )
    write_file(tmp_path / "validation" / "images" / "2.PNG")
    write_file(tmp_path / "train" / "3.json", json.dumps({"Human-Label": [9]}))
    write_file(tmp_path / "train" / "4.json", json.dumps({"Human-Label": 1}))
    listing = read_dataset("affectnet-plus", tmp_path)
    records = records_by_name(listing)
    first, second = records["1.jpg"], records["2.PNG"]
    assert (first.expression, first.valence, first.arousal, first.split) == (2, -0.5, 0.25, "train")
    assert (second.expression, second.valence, second.split) == (3, None, "validation")
    assert listing.skipped == {"uncertain": 1, "missing file": 1} and listing.missing_files == ["train/4.jpg"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps({"Soft-Label": [1]}), "1.json: no key Human-Label; the keys are Soft-Label"),
        ("{", "1.json: not valid JSON"),
        ("[]", "1.json: not a JSON object"),
        ("[" * 100_000, "1.json: more than 64 nested levels"),
        (json.dumps({"Human-Label": 12}), "1.json, Human-Label: expression '12'"),
        (json.dumps({"Human-Label": {"a": 1}}), "1.json: Human-Label is .* must be one number or name"),
        (json.dumps({"Human-Label": 1, "Metadata": {"Valence": 3}}), "1.json: valence 3 is not between -1 and 1"),
    ],
)
def test_invalid_json_files_are_errors(content: str, message: str, tmp_path: Path) -> None:
    write_file(tmp_path / "train" / "1.json", content)
    write_file(tmp_path / "train" / "1.jpg")
    with pytest.raises(UserError, match=message):
        read_dataset("affectnet-plus", tmp_path)

"""AffectNet is read in each of its four forms, with the traps of its files; what is wrong is named with its place."""

import io
import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featgan.data.readers.registry import EXPRESSIONS, Layout, Record, read_layout
from featgan.errors import UserError

HEADER = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"
LANDMARKS = ";".join(f"{number}.5" for number in range(136))


def write(path: Path, content: str | bytes = b"image") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def by_name(layout: Layout) -> dict[str, Record]:
    keys = [record.key for record in layout.records]
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", key) for key in keys), keys
    return {record.path.name: record for record in layout.records}


# -- affectnet-lists


def make_lists(source: Path) -> None:
    for name in ("train/a.jpg", "train/b.jpg", "validation/c.jpg"):
        write(source / name)
    write(source / "_affectnet_train_emotiw.txt", "a.jpg 3\nb.jpg 4\n")
    write(source / "_affectnet_test_emotiw.txt", "c.jpg 0\n")
    write(source / "_affectnet_train_va.txt", "a.jpg 0.5 -0.25\nb.jpg -2 -2\n")
    write(source / "64d_reg/test/images.txt", "c.jpg\n")
    write(source / "64d_reg/test/labels.txt", "-0.5 1\n")
    write(source / "64d_reg/test/predictions.txt", " ".join(["0.1"] * 64) + "\n")


def test_lists_are_joined_over_expression_and_affect(tmp_path: Path) -> None:
    make_lists(tmp_path)
    layout = read_layout("affectnet-lists", tmp_path)
    records = by_name(layout)
    assert [layout.classes[records[name].expression or 0] for name in ("a.jpg", "b.jpg", "c.jpg")] == [
        "happy",
        "neutral",
        "anger",
    ]
    assert [records[name].split for name in ("a.jpg", "b.jpg", "c.jpg")] == ["train", "train", "validation"]
    assert (records["a.jpg"].valence, records["a.jpg"].arousal) == (0.5, -0.25)
    assert (records["b.jpg"].valence, records["b.jpg"].arousal) == (None, None)
    assert (records["c.jpg"].valence, records["c.jpg"].arousal) == (-0.5, 1.0)
    assert records["c.jpg"].path == tmp_path / "validation" / "c.jpg"


def test_one_kind_of_list_can_be_asked_for(tmp_path: Path) -> None:
    make_lists(tmp_path)
    records = by_name(read_layout("affectnet-lists", tmp_path, labels="va"))
    assert set(records) == {"a.jpg", "b.jpg"} and records["a.jpg"].expression is None
    with pytest.raises(UserError, match="'vaa'.*emotiw"):
        read_layout("affectnet-lists", tmp_path, labels="vaa")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("_affectnet_train_emotiw.txt", "a.jpg 3\nb.jpg 7\n", r"emotiw.txt, line 2: class '7'.*0 \.\. 6"),
        ("_affectnet_train_va.txt", "a.jpg 0.5\n", "va.txt, line 1: 1 labels where 2"),
        ("_affectnet_train_va.txt", "a.jpg 0.5 1.5\n", "va.txt, line 1: arousal 1.5"),
        ("_affectnet_train_va.txt", "../a.jpg 0.5 0.5\n", "line 1: the path '../a.jpg' leads out"),
        ("64d_reg/test/labels.txt", "0 0\n0 0\n", "labels.txt: 2 lines, but images.txt has 1"),
        ("64d_reg/test/labels.txt", "0 oops\n", "labels.txt, line 1: arousal 'oops' is not a number"),
    ],
)
def test_bad_lists(file: str, content: str, message: str, tmp_path: Path) -> None:
    make_lists(tmp_path)
    write(tmp_path / file, content)
    with pytest.raises(UserError, match=message):
        read_layout("affectnet-lists", tmp_path)


# -- affectnet-csv


def affectnet_row(name: str, expression: object = 1, valence: object = 0.5, box: str = "10,20,100,120") -> str:
    return f"{name},{box},{LANDMARKS},{expression},{valence},0.25"


def make_first_release(source: Path, training: list[str], validation: list[str], folder: str = "") -> None:
    write(source / "training.csv", "\n".join([HEADER, *training]) + "\n")
    write(source / "validation.csv", "\n".join(validation) + "\n")
    for line in training + validation:
        write(source / folder / line.split(",")[0])


def test_first_release_with_a_validation_list_without_header(tmp_path: Path) -> None:
    make_first_release(
        tmp_path,
        [affectnet_row("1/a.JPG", 0), affectnet_row("1/b.jpeg", 7, -2), affectnet_row("2/a.jpg", 3, 1)],
        [affectnet_row("9/c.TIFF", 6, -0.5)],
        "Manually_Annotated_Images",
    )
    layout = read_layout("affectnet-csv", tmp_path)
    records = by_name(layout)
    assert layout.classes == EXPRESSIONS and len(layout.records) == 4
    assert records["c.TIFF"].split == "validation" and records["c.TIFF"].expression == 6
    assert records["a.JPG"].face_box == (10, 20, 100, 120)
    assert records["b.jpeg"].valence is None and records["b.jpeg"].arousal == 0.25
    assert records["a.jpg"].path == tmp_path / "Manually_Annotated_Images" / "2" / "a.jpg"


def test_images_without_expression_are_counted_by_class(tmp_path: Path) -> None:
    rows = [affectnet_row(f"{code}.jpg", code) for code in (1, 8, 9, 10, 10)]
    make_first_release(
        tmp_path, rows[:4] + [affectnet_row("x.jpg", 10, -2, "NULL,NULL,NULL,NULL")], [affectnet_row("v.jpg")]
    )
    layout = read_layout("affectnet-csv", tmp_path)
    assert layout.skipped == {"none": 1, "uncertain": 1, "no-face": 2}
    assert len(layout.records) == 2


def test_listed_files_that_are_not_there_are_counted(tmp_path: Path) -> None:
    make_first_release(tmp_path, [affectnet_row("1/a.jpg"), affectnet_row("1/b.jpg")], [affectnet_row("c.jpg")])
    (tmp_path / "1" / "b.jpg").unlink()
    layout = read_layout("affectnet-csv", tmp_path)
    assert layout.skipped == {"missing file": 1} and layout.missing_files == ["1/b.jpg"]
    (tmp_path / "1" / "a.jpg").unlink()
    (tmp_path / "c.jpg").unlink()
    with pytest.raises(UserError, match="none of the 3 listed images"):
        read_layout("affectnet-csv", tmp_path)


def test_a_name_may_differ_in_case_from_the_file(tmp_path: Path) -> None:
    make_first_release(tmp_path, [affectnet_row("1/a.jpg")], [affectnet_row("c.jpg")])
    (tmp_path / "1" / "a.jpg").rename(tmp_path / "1" / "a.JPG")
    assert "a.JPG" in by_name(read_layout("affectnet-csv", tmp_path))


def test_two_faces_of_one_image_keep_their_own_keys(tmp_path: Path) -> None:
    rows = [affectnet_row("a.jpg", 1), affectnet_row("a.jpg", 2, box="50,50,30,30"), affectnet_row("a.png", 3)]
    make_first_release(tmp_path, rows, [affectnet_row("c.jpg")])
    keys = [record.key for record in read_layout("affectnet-csv", tmp_path).records]
    assert len(set(keys)) == 4 and keys[0] == "a"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (affectnet_row("a.jpg", 11), r"training.csv, line 2: expression '11' is not a whole number in 0 \.\. 10"),
        (affectnet_row("a.jpg", "1.5"), "line 2: expression '1.5'"),
        (affectnet_row("a.jpg", ""), "line 2: expression ''"),
        (affectnet_row("a.jpg", 1, -1.7), "line 2: valence -1.7 is outside"),
        (affectnet_row("a.jpg", 1, "inf"), "line 2: valence 'inf'"),
        (affectnet_row("/etc/passwd"), "line 2: the path '/etc/passwd' leads out"),
        (affectnet_row("x/../../a.jpg"), "line 2: the path .* leads out"),
        (affectnet_row(r"C:\faces\a.jpg"), "line 2: the path .* leads out"),
        (affectnet_row(r"..\a.jpg"), "line 2: the path .* leads out"),
        ("a.jpg,1,2", "line 2: 3 cells, but there are 9 columns"),
    ],
)
def test_bad_rows_of_the_first_release(row: str, message: str, tmp_path: Path) -> None:
    write(tmp_path / "a.jpg")
    write(tmp_path / "training.csv", f"{HEADER}\n{row}\n")
    with pytest.raises(UserError, match=message):
        read_layout("affectnet-csv", tmp_path)


def test_a_missing_column_of_the_first_release_is_named(tmp_path: Path) -> None:
    write(tmp_path / "training.csv", "subDirectory_filePath,expression,valence\na.jpg,1,0\n")
    with pytest.raises(UserError, match="training.csv, line 1: no column face_x"):
        read_layout("affectnet-csv", tmp_path)


# -- affectnet (8-label release)


def npy(values: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(values), allow_pickle=False)
    return buffer.getvalue()


def add_labelled(
    source: Path, folder: str, name: str, expression: Any, valence: Any = 0.5, arousal: Any = -0.5
) -> None:
    write(source / folder / "images" / name)
    identifier = Path(name).stem
    for suffix, values in (("exp", expression), ("val", valence), ("aro", arousal), ("lnd", np.zeros(136))):
        write(source / folder / "annotations" / f"{identifier}_{suffix}.npy", npy(values))


def test_scalars_may_be_strings_bytes_or_numbers(tmp_path: Path) -> None:
    add_labelled(tmp_path, "train_set", "0.jpg", "3", "0.25", "-2")
    add_labelled(tmp_path, "train_set", "1.JPG", np.array(b"4"), np.array(["-0.75"]), np.float32(1))
    add_labelled(tmp_path, "train_set", "2.png", np.int64(5), -2.0, -2.0)
    add_labelled(tmp_path, "val_set", "0.jpg", "8")
    add_labelled(tmp_path, "val_set", "7.jpg", "7")
    layout = read_layout("affectnet", tmp_path)
    records = by_name(layout)
    assert [records[name].expression for name in ("0.jpg", "1.JPG", "2.png", "7.jpg")] == [3, 4, 5, 7]
    assert (records["0.jpg"].valence, records["0.jpg"].arousal) == (0.25, None)
    assert (records["1.JPG"].valence, records["1.JPG"].arousal) == (-0.75, 1.0)
    assert records["2.png"].valence is None
    assert (records["0.jpg"].split, records["7.jpg"].split) == ("train", "validation")
    assert layout.skipped == {"none": 1} and layout.classes == EXPRESSIONS


def test_images_and_annotations_without_each_other_are_counted(tmp_path: Path) -> None:
    add_labelled(tmp_path, "train_set", "0.jpg", "3")
    write(tmp_path / "train_set" / "images" / "1.jpg")
    write(tmp_path / "train_set" / "annotations" / "2_exp.npy", npy("1"))
    layout = read_layout("affectnet", tmp_path)
    assert layout.skipped == {"no annotation": 1, "missing file": 1}
    assert layout.missing_files == ["train_set/images/2"]


def test_factors_beside_the_sets_are_picked_up(tmp_path: Path) -> None:
    add_labelled(tmp_path, "train_set", "0.jpg", "3")
    add_labelled(tmp_path, "train_set", "1.jpg", "3")
    write(tmp_path / "factors.csv", "id,split,expression,valence,arousal,smile,glasses\n0,train,3,0.5,-0.5,0.25,1\n")
    records = by_name(read_layout("affectnet", tmp_path))
    assert records["0.jpg"].factors == {"smile": 0.25, "glasses": 1.0}
    assert records["1.jpg"].factors is None


class Trap:
    """Unpickling it would be seen."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (pytest.fail, ("a pickle was loaded",))


def huge_header() -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": (10**14,)})
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy("11"), "3_exp.npy: expression '11'"),
        (npy("hapy"), "3_exp.npy: unknown expression 'hapy'"),
        (npy([1, 2]), "3_exp.npy: it holds 2 values"),
        (huge_header(), "3_exp.npy: it holds 1"),
        (npy("3")[:-3], "3_exp.npy: not a npy file"),
        (b"", "3_exp.npy: not a npy file"),
        (pickle.dumps(Trap()), "3_exp.npy: not a npy file"),
        (b"\x93NUMPY" + b"0" * 70_000, "3_exp.npy: larger than"),
    ],
)
def test_bad_npy_files(content: bytes, message: str, tmp_path: Path) -> None:
    add_labelled(tmp_path, "train_set", "3.jpg", "3")
    write(tmp_path / "train_set" / "annotations" / "3_exp.npy", content)
    with pytest.raises(UserError, match=message):
        read_layout("affectnet", tmp_path)


def test_a_npy_file_of_pickled_objects_is_refused(tmp_path: Path) -> None:
    add_labelled(tmp_path, "train_set", "3.jpg", "3")
    objects = np.empty((), dtype=object)
    objects[()] = Trap()
    np.save(tmp_path / "train_set" / "annotations" / "3_exp.npy", objects, allow_pickle=True)
    with pytest.raises(UserError, match="3_exp.npy: not a npy file"):
        read_layout("affectnet", tmp_path)


def test_a_set_without_annotations_folder_is_named(tmp_path: Path) -> None:
    write(tmp_path / "train_set" / "images" / "0.jpg")
    with pytest.raises(UserError, match="train_set/annotations: no such folder"):
        read_layout("affectnet", tmp_path)


# -- affectnet-plus


def test_plus_reads_keys_in_any_spelling_and_place(tmp_path: Path) -> None:
    full = {
        "Human-Label": 2,
        "Soft-Label": [0.1] * 8,
        "Subset": 1,
        "Metadata": {"Age": 30, "Valence": -0.5, "Arousal": "0.25"},
    }
    write(tmp_path / "train" / "1.json", json.dumps(full))
    write(tmp_path / "train" / "1.jpg")
    write(tmp_path / "validation" / "annotations" / "2.json", json.dumps({"human_label": "Surprise", "valence": -2}))
    write(tmp_path / "validation" / "images" / "2.PNG")
    write(tmp_path / "train" / "3.json", json.dumps({"Human-Label": [9]}))
    write(tmp_path / "train" / "4.json", json.dumps({"Human-Label": 1}))
    layout = read_layout("affectnet-plus", tmp_path)
    records = by_name(layout)
    first, second = records["1.jpg"], records["2.PNG"]
    assert (first.expression, first.valence, first.arousal, first.split) == (2, -0.5, 0.25, "train")
    assert (second.expression, second.valence, second.split) == (3, None, "validation")
    assert layout.skipped == {"uncertain": 1, "missing file": 1} and layout.missing_files == ["train/4.jpg"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps({"Soft-Label": [1]}), "1.json: no key Human-Label; there are Soft-Label"),
        ("{", "1.json: cannot be read as JSON"),
        ("[]", "1.json: it should hold an object"),
        ("[" * 100_000, "1.json: cannot be read as JSON"),
        (json.dumps({"Human-Label": 12}), "1.json, Human-Label: expression '12'"),
        (json.dumps({"Human-Label": {"a": 1}}), "1.json: Human-Label should be one number or name"),
        (json.dumps({"Human-Label": 1, "Metadata": {"Valence": 3}}), "1.json: valence 3 is outside"),
    ],
)
def test_bad_plus_files(content: str, message: str, tmp_path: Path) -> None:
    write(tmp_path / "train" / "1.json", content)
    write(tmp_path / "train" / "1.jpg")
    with pytest.raises(UserError, match=message):
        read_layout("affectnet-plus", tmp_path)

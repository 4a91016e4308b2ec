"""Every layout of face data sets is read as it is found in the wild, and what is wrong is named with its place."""

import re
from pathlib import Path

import pytest

from featgan.data.readers.registry import EXPRESSIONS, LAYOUTS, Layout, Record, read_layout
from featgan.errors import UserError


def write(path: Path, content: str | bytes = b"image") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def by_name(layout: Layout) -> dict[str, Record]:
    keys = [record.key for record in layout.records]
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", key) for key in keys), keys
    return {record.path.name: record for record in layout.records}


# -- all layouts


def test_the_layouts_are_the_documented_ones() -> None:
    assert list(LAYOUTS) == [
        "affectnet-lists",
        "affectnet-csv",
        "affectnet",
        "affectnet-plus",
        "celeba",
        "folder",
        "csv",
    ]


def test_unknown_layouts_options_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'affectnett'.*affectnet-csv"):
        read_layout("affectnett", tmp_path)
    with pytest.raises(UserError, match="no option colour"):
        read_layout("csv", tmp_path, colour="red")
    for name in LAYOUTS:
        with pytest.raises(UserError, match="no such folder"):
            read_layout(name, tmp_path / "nowhere")


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_an_empty_folder_is_a_clear_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_layout(name, tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


# -- celeba


def make_celeba(source: Path, count: int = 3) -> None:
    rows = "000001.jpg -1  1\n000002.jpg  1 -1\n000003.jpg  1  1\n"
    write(source / "list_attr_celeba.txt", f"{count}\nBlack_Hair Smiling \n{rows}")
    for number in (1, 2, 3):
        write(source / "img_align_celeba" / f"00000{number}.jpg")


def test_celeba_with_partition_and_identities(tmp_path: Path) -> None:
    make_celeba(tmp_path)
    write(tmp_path / "Eval" / "list_eval_partition.txt", "000001.jpg 0\n000002.jpg 1\n000003.jpg 2\n")
    write(tmp_path / "Anno" / "identity_CelebA.txt", "000001.jpg 77\n")
    layout = read_layout("celeba", tmp_path)
    records = by_name(layout)
    assert records["000001.jpg"].attributes == {"Black_Hair": 0, "Smiling": 1}
    assert (records["000001.jpg"].split, records["000002.jpg"].split) == ("train", "validation")
    assert (records["000001.jpg"].identity, records["000002.jpg"].identity) == ("77", None)
    assert layout.skipped == {"test split": 1} and layout.classes == ()


def test_celeba_alone_leaves_the_split_to_the_packer(tmp_path: Path) -> None:
    make_celeba(tmp_path)
    assert {record.split for record in read_layout("celeba", tmp_path).records} == {""}


def test_a_cut_off_celeba_list_is_noticed(tmp_path: Path) -> None:
    make_celeba(tmp_path, count=4)
    with pytest.raises(UserError, match="3 images, but its first line says 4"):
        read_layout("celeba", tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [("000001.jpg 1", "line 3: 1 values, but there are 2"), ("000001.jpg 1 2", "line 3: attribute Smiling '2'")],
)
def test_bad_celeba_rows(line: str, message: str, tmp_path: Path) -> None:
    make_celeba(tmp_path)
    write(tmp_path / "list_attr_celeba.txt", f"1\nBlack_Hair Smiling\n{line}\n")
    with pytest.raises(UserError, match=message):
        read_layout("celeba", tmp_path)


# -- folder


def test_expression_folders_get_affectnets_codes(tmp_path: Path) -> None:
    for name in ("angry", "contemptuous", "happy"):
        write(tmp_path / name / f"Rafd090_01_Caucasian_female_{name}_frontal.jpg")
    write(tmp_path / "happy" / "deeper" / "Rafd090_02_x_frontal.JPEG")
    write(tmp_path / "happy" / "notes.txt")
    write(tmp_path / "uncertain" / "u.jpg")
    layout = read_layout("folder", tmp_path)
    found = sorted((record.path.parent.name, record.expression, record.identity) for record in layout.records)
    assert found == [("angry", 6, "01"), ("contemptuous", 7, "01"), ("deeper", 1, "02"), ("happy", 1, "01")]
    assert layout.classes == EXPRESSIONS
    assert layout.skipped == {"not an image's suffix": 1, "uncertain": 1}
    assert {record.split for record in layout.records} == {""}


def test_other_class_folders_are_numbered_in_natural_order(tmp_path: Path) -> None:
    for name in ("class10", "class2", "class1"):
        write(tmp_path / name / "a.png")
    layout = read_layout("folder", tmp_path)
    assert layout.classes == ("class1", "class2", "class10")
    assert {record.path.parent.name: record.expression for record in layout.records}["class10"] == 2


@pytest.mark.parametrize("validation", ["validation", "val", "test"])
def test_folders_may_be_split(validation: str, tmp_path: Path) -> None:
    write(tmp_path / "train" / "cat" / "a.jpg")
    write(tmp_path / validation / "dog" / "a.jpg")
    layout = read_layout("folder", tmp_path)
    assert {(record.split, record.expression) for record in layout.records} == {("train", 0), ("validation", 1)}


def test_a_folder_without_classes_is_images_without_labels(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.PNG", ".hidden.jpg", "notes.txt"):
        write(tmp_path / name)
    layout = read_layout("folder", tmp_path)
    assert [(record.key, record.expression) for record in layout.records] == [("a", None), ("b", None)]
    assert layout.classes == () and layout.skipped == {"not an image's suffix": 1}


def test_images_without_labels_may_be_split(tmp_path: Path) -> None:
    write(tmp_path / "train" / "a.jpg")
    write(tmp_path / "val" / "a.jpg")
    layout = read_layout("folder", tmp_path)
    assert {(record.split, record.expression) for record in layout.records} == {("train", None), ("validation", None)}


def test_images_beside_class_folders_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "cat" / "a.jpg")
    write(tmp_path / "stray.jpg")
    layout = read_layout("folder", tmp_path)
    assert len(layout.records) == 1 and layout.skipped == {"in no class folder": 1}


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="no image is there, and no sub-folder with images of one class"):
        read_layout("folder", tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(UserError, match="no image is in its 1 class folders"):
        read_layout("folder", tmp_path)


def test_a_test_folder_beside_a_validation_folder_stays_unseen(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        write(tmp_path / split / "cat" / "a.jpg")
    layout = read_layout("folder", tmp_path)
    assert [record.split for record in layout.records] == ["train", "validation"]
    assert layout.skipped == {"test split": 1}


def test_classes_beside_splits_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train" / "cat" / "a.jpg")
    write(tmp_path / "dog" / "a.jpg")
    with pytest.raises(UserError, match="not dog"):
        read_layout("folder", tmp_path)


# -- csv


def make_table(source: Path, content: str, name: str = "labels.csv") -> None:
    write(source / name, content)
    for image in ("a.jpg", "b.jpg", "c.jpg"):
        write(source / image)


def test_usual_columns_are_found_by_name(tmp_path: Path) -> None:
    make_table(
        tmp_path,
        "Image;Emotion;Valence;Arousal;Usage;Subject;Smiling;age\n"
        "a.jpg;Happiness;0.5;;Training;p1;1;30\nb.jpg;sad;-2;0;PublicTest;p2;0;40\nc.jpg;;nan;-1;;;1;1\n",
        "faces.csv",
    )
    records = by_name(read_layout("csv", tmp_path))
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
    # The header's own spelling: that is what a configuration names.
    assert first.attributes == {"Smiling": 1} and second.attributes == {"Smiling": 0}


def test_columns_table_and_folder_can_be_named(tmp_path: Path) -> None:
    write(tmp_path / "pictures" / "a.jpg")
    write(tmp_path / "one.csv", "where,mood,v,Young\na.jpg,3,0.5,-1\n")
    write(tmp_path / "two.csv", "where\n")
    options = {"csv": "one.csv", "images": "pictures", "file_column": "Where", "expression_column": "mood"}
    layout = read_layout("csv", tmp_path, **options, valence_column="v", attribute_columns="young")
    (record,) = layout.records
    assert (record.expression, record.valence, record.attributes) == (3, 0.5, {"Young": 0})
    with pytest.raises(UserError, match="one.csv, two.csv.*option csv"):
        read_layout("csv", tmp_path)
    with pytest.raises(UserError, match="one.csv, line 1: no column gaze; there are where, mood, v, Young"):
        read_layout("csv", tmp_path, **options, valence_column="gaze")


def test_a_table_may_have_face_boxes_and_quoted_cells(tmp_path: Path) -> None:
    make_table(tmp_path, 'file,face_x,face_y,face_width,face_height,identity\n"a.jpg",1,2.4,30,40,"Last, First"\n')
    (record,) = read_layout("csv", tmp_path).records
    assert record.face_box == (1, 2, 30, 40) and record.identity == "Last, First"


def test_codes_and_unusable_names(tmp_path: Path) -> None:
    make_table(tmp_path, "file,expression\na.jpg,7\nb.jpg,10\nc.jpg,uncertain\n")
    layout = read_layout("csv", tmp_path)
    assert [record.expression for record in layout.records] == [7]
    assert layout.skipped == {"no-face": 1, "uncertain": 1}


def test_other_classes_are_numbered_or_named(tmp_path: Path) -> None:
    make_table(tmp_path, "file,class\na.jpg,zebra\nb.jpg,ant\n")
    layout = read_layout("csv", tmp_path)
    assert layout.classes == ("ant", "zebra") and by_name(layout)["a.jpg"].expression == 1
    make_table(tmp_path, "file,emotion\na.jpg,0\nb.jpg,sad\n")
    layout = read_layout("csv", tmp_path, classes="anger, disgust, sad")
    assert layout.classes == ("anger", "disgust", "sad")
    assert [record.expression for record in layout.records] == [0, 2]


def test_a_repeated_row_keeps_its_key_for_the_packer_to_see(tmp_path: Path) -> None:
    make_table(tmp_path, "file,expression\na.jpg,1\na.jpg,1\na.jpg,2\n")
    keys = [record.key for record in read_layout("csv", tmp_path).records]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,expression\na.jpg,happy\nb.jpg,hapy\n", "labels.csv, line 3: unknown expression 'hapy'"),
        ("file,expression\na.jpg,11\n", "line 2: expression '11'"),
        ("file,valence\na.jpg,2\n", "line 2: valence 2 is outside"),
        ("file,split\na.jpg,holdout\n", "line 2: unknown split 'holdout'"),
        ("file,split\n,train\n", "line 2: no file name"),
        ("mood,split\na.jpg,train\n", "line 1: no column of file names among mood, split"),
        ("file,file\na.jpg,a.jpg\n", "line 1: a column name occurs twice"),
        ("file,expression\n/etc/a.jpg,1\n", "line 2: the path '/etc/a.jpg' leads out"),
        ('file,expression\n"a.jpg,1\n', "line 2: not separated values"),
        ("", "labels.csv: empty"),
        ("file,expression\nmissing.jpg,1\n", "none of the 1 listed images is there, such as missing.jpg"),
    ],
)
def test_bad_tables(content: str, message: str, tmp_path: Path) -> None:
    make_table(tmp_path, content)
    with pytest.raises(UserError, match=message):
        read_layout("csv", tmp_path)


def test_a_table_that_is_no_text_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "labels.csv", b"\xff\xd8\xff\xe0" * 10)
    with pytest.raises(UserError, match="not UTF-8 text"):
        read_layout("csv", tmp_path)


def test_an_asked_attribute_must_be_binary(tmp_path: Path) -> None:
    make_table(tmp_path, "file,age\na.jpg,30\n")
    with pytest.raises(UserError, match="line 2: attribute age '30'"):
        read_layout("csv", tmp_path, attribute_columns="age")


def test_names_of_any_script_get_safe_unique_keys(tmp_path: Path) -> None:
    make_table(tmp_path, "file\nŁ/é.jpg\nŁ/è.jpg\nx.y.jpg\n")
    for name in ("Ł/é.jpg", "Ł/è.jpg", "x.y.jpg"):
        write(tmp_path / name)
    assert len(by_name(read_layout("csv", tmp_path))) == 3

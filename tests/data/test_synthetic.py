"""Tests of synthetic faces: visible factors, labels that follow from them, and reproducible files."""

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featgan.data.readers.registry import read_dataset
from featgan.data.synthetic import dataset
from featgan.data.synthetic.dataset import (
    EXPRESSION_FACTORS,
    EXPRESSION_PROTOTYPES,
    FACTOR_RANGES,
    FACTORS,
    NUISANCE_FACTORS,
    compute_valence_arousal,
    sample_factors,
    synthesize_faces,
)
from featgan.data.synthetic.drawing import draw_face, face_landmarks
from featgan.errors import UserError


def average_factors() -> dict[str, float]:
    return {name: (low + high) / 2 for name, (low, high) in FACTOR_RANGES.items()} | {"glasses": 0.0}


def hash_tree(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def synthetic_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "faces"
    synthesize_faces(out, count=130, seed=5, image_size=32, workers=1)
    return out


@pytest.mark.parametrize("image_size", [16, 64, 113, 200])
def test_face_has_the_requested_size(image_size: int) -> None:
    image = draw_face(average_factors(), image_size)
    assert image.shape == (image_size, image_size, 3)
    assert image.dtype == np.uint8


def test_face_is_the_same_at_every_size() -> None:
    large = Image.fromarray(draw_face(average_factors(), 256)).reduce(4)
    difference = np.abs(np.asarray(large, dtype=float) - draw_face(average_factors(), 64))
    assert difference.mean() < 3


@pytest.mark.parametrize("name", FACTORS)
def test_every_factor_is_visible_at_64_pixels(name: str) -> None:
    low, high = (draw_face(average_factors() | {name: value}, 64).astype(int) for value in FACTOR_RANGES[name])
    changed = np.abs(high - low).max(axis=2) > 20
    assert changed.sum() >= 30, f"{name} changes {changed.sum()} pixels"


def test_mouth_factors_change_only_the_lower_half() -> None:
    low, high = (draw_face(average_factors() | {"mouth_curvature": value}, 64).astype(int) for value in (-1, 1))
    rows = np.flatnonzero(np.abs(high - low).max(axis=(1, 2)))
    assert rows.min() > 32


def test_edges_are_anti_aliased() -> None:
    face = average_factors() | {"light_x": 0.0, "light_y": 0.0}
    assert len(np.unique(draw_face(face, 64).reshape(-1, 3), axis=0)) > 150


def test_landmarks_follow_the_pose() -> None:
    reference = face_landmarks(average_factors(), 100).reshape(68, 2)
    # A pose of 1 is a shift by 13 % of half the image.
    shifted = face_landmarks(average_factors() | {"pose_x": 1.0}, 100).reshape(68, 2)
    assert np.allclose(shifted - reference, [6.5, 0])
    assert reference.min() > 0 and reference.max() < 100
    chin, left_jaw, right_jaw = reference[8], reference[0], reference[16]
    assert left_jaw[0] < chin[0] < right_jaw[0] and chin[1] > reference[:, 1].max() - 1e-9
    assert reference[36, 0] < reference[39, 0] < reference[42, 0] < reference[45, 0]


def test_valence_and_arousal_match_their_definition() -> None:
    factors = {
        "mouth_curvature": 0.5,
        "mouth_opening": 0.4,
        "eye_opening": 0.75,
        "brow_height": -0.5,
        "brow_slant": 0.2,
    }
    valence, arousal = compute_valence_arousal(factors)
    assert valence == pytest.approx(0.4 - 0.06 - 0.05)
    assert arousal == pytest.approx(0.2 + 0.2 + 0.08)


def test_samples_are_in_range_and_contain_their_labels() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        sample = sample_factors(generator)
        assert set(sample) == {*FACTORS, "expression", "valence", "arousal"}
        assert all(FACTOR_RANGES[name][0] <= sample[name] <= FACTOR_RANGES[name][1] for name in FACTORS)
        assert (sample["valence"], sample["arousal"]) == compute_valence_arousal(sample)


def test_expressions_are_predictable_from_their_factors_only() -> None:
    generator = np.random.default_rng(0)
    samples = [sample_factors(generator) for _ in range(1500)]
    expressions = np.array([int(sample["expression"]) for sample in samples])
    assert np.bincount(expressions, minlength=8).min() > 100
    expression_factors = np.array([[sample[name] for name in EXPRESSION_FACTORS] for sample in samples])
    distances = np.linalg.norm((expression_factors[:, None] - EXPRESSION_PROTOTYPES) / dataset.FACTOR_STDS, axis=2)
    assert 0.8 < (distances.argmin(axis=1) == expressions).mean() < 0.99
    num_factors = expression_factors.shape[1]
    nuisance = np.array([[sample[name] for name in NUISANCE_FACTORS] for sample in samples])
    correlations = np.corrcoef(np.concatenate([expression_factors, nuisance], axis=1).T)[:num_factors, num_factors:]
    assert np.abs(correlations).max() < 0.12


def test_layout_is_that_of_affectnet(synthetic_folder: Path) -> None:
    assert sorted(path.name for path in synthetic_folder.iterdir()) == [
        "factors.csv",
        "synthetic.json",
        "train_set",
        "val_set",
    ]
    assert len(list((synthetic_folder / "train_set" / "images").glob("*.jpg"))) == 117
    assert len(list((synthetic_folder / "val_set" / "images").glob("*.jpg"))) == 13
    scalar = np.load(synthetic_folder / "train_set" / "annotations" / "1_val.npy", allow_pickle=False)
    assert scalar.shape == () and scalar.dtype.kind == "U"
    points = np.load(synthetic_folder / "train_set" / "annotations" / "1_lnd.npy", allow_pickle=False)
    assert points.shape == (136,) and points.dtype == np.float64
    assert Image.open(synthetic_folder / "train_set" / "images" / "1.jpg").size == (32, 32)


def test_true_factors_agree_with_the_annotations(synthetic_folder: Path) -> None:
    with (synthetic_folder / "factors.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "split", "expression", "valence", "arousal", *FACTORS]
    assert [row["split"] for row in rows[:11]] == ["validation", *["train"] * 9, "validation"]
    listing = read_dataset("affectnet", synthetic_folder)
    records = {record.path.stem: record for record in listing.records}
    assert len(records) == len(rows) == 130
    for row in rows:
        record = records[row["id"]]
        assert (record.split, record.expression) == (row["split"], int(row["expression"]))
        assert record.valence == float(row["valence"])
        assert record.factors == {name: float(row[name]) for name in FACTORS}


def test_files_do_not_depend_on_the_number_of_workers(synthetic_folder: Path, tmp_path: Path) -> None:
    synthesize_faces(tmp_path / "faces", count=130, seed=5, image_size=32, workers=2)
    assert hash_tree(tmp_path / "faces") == hash_tree(synthetic_folder)


def test_seed_changes_the_faces_and_a_larger_set_starts_with_the_smaller_one(
    synthetic_folder: Path, tmp_path: Path
) -> None:
    synthesize_faces(tmp_path / "other", count=3, seed=6, image_size=32)
    synthesize_faces(tmp_path / "fewer", count=3, seed=5, image_size=32)
    image = "train_set/images/1.jpg"
    assert hash_tree(tmp_path / "fewer")[image] == hash_tree(synthetic_folder)[image]
    assert hash_tree(tmp_path / "other")[image] != hash_tree(synthetic_folder)[image]


def test_complete_data_set_is_not_changed(synthetic_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in synthetic_folder.rglob("*")}
    synthesize_faces(synthetic_folder, count=130, seed=5, image_size=32)
    assert before == {path: path.stat().st_mtime_ns for path in synthetic_folder.rglob("*")}
    assert "alreadyexist" in "".join(capsys.readouterr().err.split())  # ignores line breaks


def test_different_arguments_are_an_error(synthetic_folder: Path) -> None:
    with pytest.raises(UserError, match="seed 5, not 7"):
        synthesize_faces(synthetic_folder, count=130, seed=7, image_size=32)


def test_folder_in_use_is_an_error_and_not_changed(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("my notes")
    with pytest.raises(UserError, match="in use"):
        synthesize_faces(tmp_path, count=3, seed=0, image_size=32)
    assert (tmp_path / "notes.txt").read_text() == "my notes"


@pytest.mark.parametrize(("argument", "value"), [("count", 1), ("seed", -1), ("image_size", 8)])
def test_arguments_out_of_range_are_errors(argument: str, value: int, tmp_path: Path) -> None:
    arguments = {"count": 3, "seed": 0, "image_size": 32} | {argument: value}
    with pytest.raises(UserError, match=str(value)):
        synthesize_faces(tmp_path / "faces", **arguments)
    assert not list(tmp_path.iterdir())


def test_failure_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dataset, "write_factors", raise_disk_full)
    with pytest.raises(UserError, match="disk is full"):
        synthesize_faces(tmp_path / "faces", count=3, seed=0, image_size=32)
    assert not list(tmp_path.iterdir())


def test_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    leftover = tmp_path / ".faces.partial" / "train_set" / "images"
    leftover.mkdir(parents=True)
    (leftover / "999.jpg").write_bytes(b"half")
    synthesize_faces(tmp_path / "faces", count=3, seed=0, image_size=32)
    assert [path.name for path in tmp_path.iterdir()] == ["faces"]
    assert not (tmp_path / "faces" / "train_set" / "images" / "999.jpg").exists()
    assert json.loads((tmp_path / "faces" / "synthetic.json").read_text())["count"] == 3

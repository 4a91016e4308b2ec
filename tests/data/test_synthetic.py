"""Drawn faces: factors that show, labels that follow from them, the same bytes from any number of workers."""

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featgan.data.readers.registry import read_layout
from featgan.data.synthetic import dataset
from featgan.data.synthetic.dataset import (
    EXPRESSION_FACTORS,
    FACTORS,
    NUISANCE_FACTORS,
    PROTOTYPES,
    RANGES,
    draw_face,
    sample_factors,
    synthesize,
    valence_arousal,
)
from featgan.data.synthetic.drawing import landmarks
from featgan.errors import UserError


def middle_face() -> dict[str, float]:
    return {name: (low + high) / 2 for name, (low, high) in RANGES.items()} | {"glasses": 0.0}


def hash_tree(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("drawn") / "faces"
    synthesize(out, count=130, seed=5, image_size=32, workers=1)
    return out


@pytest.mark.parametrize("image_size", [16, 64, 113, 200])
def test_a_face_has_the_size_asked_for(image_size: int) -> None:
    image = draw_face(middle_face(), image_size)
    assert image.shape == (image_size, image_size, 3)
    assert image.dtype == np.uint8


def test_a_face_is_the_same_at_every_size() -> None:
    large = Image.fromarray(draw_face(middle_face(), 256)).reduce(4)
    difference = np.abs(np.asarray(large, dtype=float) - draw_face(middle_face(), 64))
    assert difference.mean() < 3


@pytest.mark.parametrize("name", FACTORS)
def test_every_factor_shows_at_64_pixels(name: str) -> None:
    low, high = (draw_face(middle_face() | {name: value}, 64).astype(int) for value in RANGES[name])
    changed = np.abs(high - low).max(axis=2) > 20
    assert changed.sum() >= 30, f"{name} changes {changed.sum()} pixels"


def test_mouth_factors_move_the_mouth_only() -> None:
    low, high = (draw_face(middle_face() | {"mouth_curvature": value}, 64).astype(int) for value in (-1, 1))
    rows = np.flatnonzero(np.abs(high - low).max(axis=(1, 2)))
    assert rows.min() > 32


def test_edges_are_anti_aliased() -> None:
    face = middle_face() | {"light_x": 0.0, "light_y": 0.0}
    assert len(np.unique(draw_face(face, 64).reshape(-1, 3), axis=0)) > 150


def test_landmarks_follow_the_pose() -> None:
    still = landmarks(middle_face(), 100).reshape(68, 2)
    # A pose of 1 is 13 % of half the image.
    moved = landmarks(middle_face() | {"pose_x": 1.0}, 100).reshape(68, 2)
    assert np.allclose(moved - still, [6.5, 0])
    assert still.min() > 0 and still.max() < 100
    chin, left_jaw, right_jaw = still[8], still[0], still[16]
    assert left_jaw[0] < chin[0] < right_jaw[0] and chin[1] > still[:, 1].max() - 1e-9
    assert still[36, 0] < still[39, 0] < still[42, 0] < still[45, 0]


def test_valence_and_arousal_by_hand() -> None:
    factors = {
        "mouth_curvature": 0.5,
        "mouth_opening": 0.4,
        "eye_opening": 0.75,
        "brow_height": -0.5,
        "brow_slant": 0.2,
    }
    valence, arousal = valence_arousal(factors)
    assert valence == pytest.approx(0.4 - 0.06 - 0.05)
    assert arousal == pytest.approx(0.2 + 0.2 + 0.08)


def test_samples_stay_in_range_and_carry_their_labels() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        sample = sample_factors(generator)
        assert set(sample) == {*FACTORS, "expression", "valence", "arousal"}
        assert all(RANGES[name][0] <= sample[name] <= RANGES[name][1] for name in FACTORS)
        assert (sample["valence"], sample["arousal"]) == valence_arousal(sample)


def test_expressions_can_be_told_from_their_factors_but_not_from_the_rest() -> None:
    generator = np.random.default_rng(0)
    samples = [sample_factors(generator) for _ in range(1500)]
    expressions = np.array([int(sample["expression"]) for sample in samples])
    assert np.bincount(expressions, minlength=8).min() > 100
    meant = np.array([[sample[name] for name in EXPRESSION_FACTORS] for sample in samples])
    distances = np.linalg.norm((meant[:, None] - PROTOTYPES) / dataset.DEVIATIONS, axis=2)
    assert 0.8 < (distances.argmin(axis=1) == expressions).mean() < 0.99
    nuisance = np.array([[sample[name] for name in NUISANCE_FACTORS] for sample in samples])
    correlations = np.corrcoef(np.concatenate([meant, nuisance], axis=1).T)[: meant.shape[1], meant.shape[1] :]
    assert np.abs(correlations).max() < 0.12


def test_the_layout_is_affectnets(drawn: Path) -> None:
    assert sorted(path.name for path in drawn.iterdir()) == ["factors.csv", "synthetic.json", "train_set", "val_set"]
    assert len(list((drawn / "train_set" / "images").glob("*.jpg"))) == 117
    assert len(list((drawn / "val_set" / "images").glob("*.jpg"))) == 13
    scalar = np.load(drawn / "train_set" / "annotations" / "1_val.npy", allow_pickle=False)
    assert scalar.shape == () and scalar.dtype.kind == "U"
    points = np.load(drawn / "train_set" / "annotations" / "1_lnd.npy", allow_pickle=False)
    assert points.shape == (136,) and points.dtype == np.float64
    assert Image.open(drawn / "train_set" / "images" / "1.jpg").size == (32, 32)


def test_the_true_factors_agree_with_the_annotations(drawn: Path) -> None:
    with (drawn / "factors.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "split", "expression", "valence", "arousal", *FACTORS]
    assert [row["split"] for row in rows[:11]] == ["validation", *["train"] * 9, "validation"]
    layout = read_layout("affectnet", drawn)
    records = {record.path.stem: record for record in layout.records}
    assert len(records) == len(rows) == 130
    for row in rows:
        record = records[row["id"]]
        assert (record.split, record.expression) == (row["split"], int(row["expression"]))
        assert record.valence == float(row["valence"])
        assert record.factors == {name: float(row[name]) for name in FACTORS}


def test_any_number_of_workers_writes_the_same_bytes(drawn: Path, tmp_path: Path) -> None:
    synthesize(tmp_path / "faces", count=130, seed=5, image_size=32, workers=2)
    assert hash_tree(tmp_path / "faces") == hash_tree(drawn)


def test_another_seed_draws_other_faces_and_a_larger_set_starts_with_the_smaller(drawn: Path, tmp_path: Path) -> None:
    synthesize(tmp_path / "other", count=3, seed=6, image_size=32)
    synthesize(tmp_path / "fewer", count=3, seed=5, image_size=32)
    image = "train_set/images/1.jpg"
    assert hash_tree(tmp_path / "fewer")[image] == hash_tree(drawn)[image]
    assert hash_tree(tmp_path / "other")[image] != hash_tree(drawn)[image]


def test_a_finished_set_is_left_alone(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in drawn.rglob("*")}
    synthesize(drawn, count=130, seed=5, image_size=32)
    assert before == {path: path.stat().st_mtime_ns for path in drawn.rglob("*")}
    assert "therealready" in "".join(capsys.readouterr().err.split())  # however the line is broken


def test_another_recipe_is_refused(drawn: Path) -> None:
    with pytest.raises(UserError, match="seed 5, not 7"):
        synthesize(drawn, count=130, seed=7, image_size=32)


def test_a_folder_in_use_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(UserError, match="in use"):
        synthesize(tmp_path, count=3, seed=0, image_size=32)
    assert (tmp_path / "mine.txt").read_text() == "keep me"


@pytest.mark.parametrize(("argument", "value"), [("count", 1), ("seed", -1), ("image_size", 8)])
def test_bad_numbers_are_refused(argument: str, value: int, tmp_path: Path) -> None:
    arguments = {"count": 3, "seed": 0, "image_size": 32} | {argument: value}
    with pytest.raises(UserError, match=str(value)):
        synthesize(tmp_path / "faces", **arguments)
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dataset, "write_factors", no_space)
    with pytest.raises(UserError, match="disk is full"):
        synthesize(tmp_path / "faces", count=3, seed=0, image_size=32)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_is_cleared(tmp_path: Path) -> None:
    leftover = tmp_path / ".faces.partial" / "train_set" / "images"
    leftover.mkdir(parents=True)
    (leftover / "999.jpg").write_bytes(b"half")
    synthesize(tmp_path / "faces", count=3, seed=0, image_size=32)
    assert [path.name for path in tmp_path.iterdir()] == ["faces"]
    assert not (tmp_path / "faces" / "train_set" / "images" / "999.jpg").exists()
    assert json.loads((tmp_path / "faces" / "synthetic.json").read_text())["count"] == 3

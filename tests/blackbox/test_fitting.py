"""Tests of training a classifier: it learns, equal seeds give equal weights, OUT is never overwritten."""

import copy
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from featgan.blackbox.fitting import trainer
from featgan.blackbox.fitting.augmentation import augment_images
from featgan.blackbox.fitting.dataset import ClassifierDataset, load_classifier_dataset
from featgan.blackbox.fitting.fit import fit_blackbox
from featgan.blackbox.fitting.model_folder import METADATA_FILE, WEIGHTS_FILE
from featgan.blackbox.fitting.scores import build_scores_table, compute_scores, score_codes
from featgan.blackbox.fitting.trainer import balance_classes, lr_factor
from featgan.blackbox.loading import load_blackbox
from featgan.data.packing.pack import pack_shards
from featgan.data.shards.shard_set import ShardSet
from featgan.data.synthetic.dataset import synthesize_faces
from featgan.errors import UserError
from featgan.system.console import PlainConsole
from featgan.system.images import to_float
from featgan.system.json_files import parse_json

SIZE = 16
EXPRESSIONS = ("neutral", "happy", "sad")
SMALL_TRAINING: dict[str, Any] = {"epochs": 8, "batch_size": 16, "width": 0.5, "learning_rate": 5e-3}


def draw_stripes(code: int, generator: np.random.Generator) -> Image.Image:
    """Draw an image with horizontal, vertical or no stripes in random colors."""
    stripes = np.zeros((SIZE, SIZE, 1), np.float64)
    if code == 1:
        stripes[::4] = stripes[1::4] = 1
    elif code == 2:
        stripes[:, ::4] = stripes[:, 1::4] = 1
    colors = generator.uniform(0, 120, 3) + stripes * generator.uniform(80, 130)
    return Image.fromarray((colors + generator.normal(0, 5, (SIZE, SIZE, 3))).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pack 96 striped images for training and 24 for validation, with expression, valence and arousal."""
    source = tmp_path_factory.mktemp("source")
    generator = np.random.default_rng(0)
    with (source / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "split", "expression", "valence", "arousal"))
        for number in range(120):
            code = number % 3
            draw_stripes(code, generator).save(source / f"{number:03d}.png")
            split = "validation" if number % 5 == 4 else "train"
            writer.writerow((f"{number:03d}.png", split, EXPRESSIONS[code], code / 2 - 0.5, 0.5 if code == 1 else -0.5))
    out = tmp_path_factory.mktemp("packed") / "shards"
    pack_shards("csv", source, out, image_size=SIZE, workers=1)
    return out


@pytest.fixture(scope="module")
def fitted_classifier(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("classifiers") / "classifier"
    return out, fit_blackbox(shards, "expression", out, **SMALL_TRAINING)


def test_expression_classifier_learns_and_loads(shards: Path, fitted_classifier: tuple[Path, dict[str, Any]]) -> None:
    out, scores = fitted_classifier
    assert scores["split"] == "validation"
    assert scores["count"] == 24
    assert scores["accuracy"] >= 0.9
    assert scores["classes"]["contempt"] == {"count": 0, "recall": None}
    assert np.array(scores["confusion"]).sum() == 24
    blackbox = load_blackbox(str(out))
    split = ShardSet.open(shards).get_split("validation")
    _, outputs = blackbox(to_float(split.decode(range(24))))
    agreement = (outputs.argmax(1).numpy() == split.expression).mean()
    assert agreement == pytest.approx(scores["accuracy"], abs=1e-4)
    assert (blackbox.task, blackbox.feature_dim, blackbox.class_names[1]) == ("expression", 64, "happy")


def test_no_feature_is_dead(shards: Path, fitted_classifier: tuple[Path, dict[str, Any]]) -> None:
    images = ShardSet.open(shards).get_split("train").decode(range(96))
    features, _ = load_blackbox(str(fitted_classifier[0]))(to_float(images))
    assert (features.std(0) > 1e-3).all()


def test_equal_settings_are_not_trained_again_and_other_settings_are_rejected(
    shards: Path, fitted_classifier: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    out, scores = fitted_classifier
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert fit_blackbox(shards, "expression", out, **SMALL_TRAINING) == scores
    assert "already trained" in capsys.readouterr().err
    with pytest.raises(UserError, match="was trained with seed 0, not 7"):
        fit_blackbox(shards, "expression", out, seed=7, **SMALL_TRAINING)
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda scores: scores["confusion"].pop(),
        lambda scores: scores.pop("count"),
        lambda scores: scores.update(classes=3),
        lambda scores: scores.update(confusion=[["a"]]),
        lambda scores: scores["classes"].update(happy={"count": None}),
    ],
)
def test_damaged_scores_are_a_user_error(
    fitted_classifier: tuple[Path, dict[str, Any]], damage: Callable[[dict[str, Any]], object]
) -> None:
    scores = copy.deepcopy(fitted_classifier[1])
    damage(scores)
    with pytest.raises(UserError, match=r"classifier.json: the scores are damaged .*; remove the folder"):
        build_scores_table(scores)


def flip_bit(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))


@pytest.mark.parametrize("corrupt", [flip_bit, Path.unlink])
def test_fitting_again_repairs_a_corrupted_classifier(
    shards: Path, tmp_path: Path, corrupt: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    out, short = tmp_path / "classifier", {**SMALL_TRAINING, "epochs": 1}
    scores = fit_blackbox(shards, "expression", out, **short)
    (out / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    corrupt(out / WEIGHTS_FILE)
    with pytest.raises(
        UserError, match=r"classifier\.safetensors: .*repair it by running the same `featgan blackbox fit` again"
    ):
        load_blackbox(str(out))
    with pytest.raises(UserError, match="was trained with seed 0, not 7"):
        fit_blackbox(shards, "expression", out, seed=7, **short)
    assert fit_blackbox(shards, "expression", out, **short) == scores
    assert "training the classifier again" in " ".join(capsys.readouterr().err.split())
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_error_about_corrupted_metadata_names_the_folder_to_remove(shards: Path, tmp_path: Path) -> None:
    (tmp_path / METADATA_FILE).write_text("{")
    with pytest.raises(
        UserError, match=rf"classifier\.json: not valid JSON .*; remove {tmp_path} and train the classifier again"
    ):
        fit_blackbox(shards, "expression", tmp_path, **SMALL_TRAINING)


def test_equal_seeds_give_equal_weights_and_do_not_change_the_global_random_state(
    shards: Path, fitted_classifier: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    state = torch.get_rng_state()
    fit_blackbox(shards, "expression", tmp_path / "again", **SMALL_TRAINING)
    assert torch.equal(torch.get_rng_state(), state)
    first, again = (load_file(path / WEIGHTS_FILE) for path in (fitted_classifier[0], tmp_path / "again"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    fit_blackbox(shards, "expression", tmp_path / "other", seed=1, **{**SMALL_TRAINING, "epochs": 1})
    other = load_file(tmp_path / "other" / WEIGHTS_FILE)
    assert not torch.equal(first["output.weight"], other["output.weight"])


def test_images_that_do_not_fit_into_memory_give_the_same_classifier(
    shards: Path, fitted_classifier: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featgan.blackbox.fitting.dataset.MAX_BYTES_IN_MEMORY", 0)
    fit_blackbox(shards, "expression", tmp_path / "again", **SMALL_TRAINING)
    first, again = (load_file(path / WEIGHTS_FILE) for path in (fitted_classifier[0], tmp_path / "again"))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_valence_and_arousal(shards: Path, tmp_path: Path) -> None:
    scores = fit_blackbox(shards, "valence_arousal", tmp_path / "classifier", **{**SMALL_TRAINING, "epochs": 16})
    assert scores["ccc"] > 0.8
    assert scores["valence"]["rmse"] < 0.3
    assert scores["ccc"] == pytest.approx((scores["valence"]["ccc"] + scores["arousal"]["ccc"]) / 2, abs=1e-3)
    blackbox = load_blackbox(str(tmp_path / "classifier"))
    assert (blackbox.task, blackbox.class_names, blackbox.output_dim) == (
        "valence_arousal",
        ("valence", "arousal"),
        2,
    )


def test_factors_are_predicted_in_their_units(tmp_path: Path) -> None:
    synthesize_faces(tmp_path / "faces", 60, 3, image_size=32, workers=1)
    pack_shards("affectnet", tmp_path / "faces", tmp_path / "shards", image_size=32, workers=1)
    scores = fit_blackbox(tmp_path / "shards", "factors", tmp_path / "classifier", **{**SMALL_TRAINING, "epochs": 20})
    shards = ShardSet.open(tmp_path / "shards")
    assert tuple(scores["factors"]) == shards.factor_names
    split = shards.get_split("train")
    _, outputs = load_blackbox(str(tmp_path / "classifier"))(to_float(split.decode(range(len(split)))))
    column = shards.factor_names.index("background_brightness")
    assert np.abs(outputs[:, column].numpy() - split.factors[:, column]).mean() < 0.5 * split.factors[:, column].std()


def test_each_attribute_is_predicted_and_scored(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = ["file,split,bright,striped"]
    for number in range(96):
        bright, striped = number % 2, int(number % 8 == 1 or number % 8 == 4)  # one quarter of the images has stripes
        pixels = np.full((SIZE, SIZE, 3), 170.0 if bright else 70.0)
        pixels[::4] += 60 * striped
        noisy = (pixels + generator.normal(0, 8, pixels.shape)).clip(0, 255)
        Image.fromarray(noisy.astype(np.uint8)).save(tmp_path / f"{number:02d}.png")
        rows.append(f"{number:02d}.png,{'validation' if number % 6 == 5 else 'train'},{bright},{striped}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    shards = tmp_path / "shards"
    pack_shards(
        "csv", tmp_path, shards, image_size=SIZE, workers=1, layout_options={"attribute_columns": "bright,striped"}
    )
    scores = fit_blackbox(shards, "attributes", tmp_path / "classifier", **{**SMALL_TRAINING, "epochs": 16})
    assert scores["accuracy"] > 0.9 and scores["bright"]["accuracy"] > 0.9 and scores["striped"]["f1"] > 0.8
    assert build_scores_table(scores).row_count == 2
    blackbox = load_blackbox(str(tmp_path / "classifier"))
    assert (blackbox.task, blackbox.class_names) == ("attributes", ("bright", "striped"))


def test_torchvision_backbone_from_weights(shards: Path, tmp_path: Path) -> None:
    import torchvision

    weights = torchvision.models.mobilenet_v3_small(weights=None).state_dict()
    save_file(weights, tmp_path / "weights.safetensors")
    options: dict[str, Any] = {"network": "torchvision:mobilenet_v3_small", "epochs": 1, "image_size": 32}
    fit_blackbox(shards, "expression", tmp_path / "classifier", weights=tmp_path / "weights.safetensors", **options)
    blackbox = load_blackbox(str(tmp_path / "classifier"))
    assert (blackbox.feature_dim, blackbox.image_size, blackbox.layer) == (64, 32, "hidden")
    assert blackbox.preprocessing.mean == (0.485, 0.456, 0.406)
    with pytest.raises(UserError, match="was trained with weights"):
        fit_blackbox(shards, "expression", tmp_path / "classifier", **options)


def test_start_from_another_classifier_with_other_classes(
    shards: Path, fitted_classifier: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    tiny = {**SMALL_TRAINING, "epochs": 1, "learning_rate": 1e-9}
    fit_blackbox(
        shards, "valence_arousal", tmp_path / "classifier", weights=fitted_classifier[0] / WEIGHTS_FILE, **tiny
    )
    first, then = (load_file(path / WEIGHTS_FILE) for path in (fitted_classifier[0], tmp_path / "classifier"))
    torch.testing.assert_close(then["backbone.0.weight"], first["backbone.0.weight"], rtol=0, atol=1e-6)
    assert len(then["output.weight"]) == 2


BAD_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"task": "age"}, "--task age: unknown task; use one of expression, valence_arousal, attributes, factors"),
    ({"task": "factors"}, "the shards have no labels for the task factors"),
    ({"network": "resnet18"}, "--network resnet18: unknown network; use vgg or torchvision:NAME"),
    ({"network": "torchvision:resnet81"}, "--network torchvision:resnet81: no such torchvision classifier; did you"),
    ({"network": "torchvision:resnet18", "width": 2.0}, "--width 2.0: only the network vgg has a width"),
    ({"epochs": 0}, "epochs=0: input should be greater than or equal to 1"),
    ({"learning_rate": float("nan")}, "learning_rate=nan"),
    ({"image_size": 2}, "image_size=2"),
    ({"weights": "missing.pth"}, "--weights missing.pth: no such file"),
]


@pytest.mark.parametrize(("settings", "message"), BAD_SETTINGS)
def test_invalid_settings_give_one_line_and_write_nothing(
    shards: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        fit_blackbox(shards, **{"task": "expression", "out": tmp_path / "classifier", **settings})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_images_of_a_single_class_are_rejected(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(4):
        draw_stripes(1, np.random.default_rng(number)).save(source / f"{number}.png")
    (source / "labels.csv").write_text("file,expression\n" + "".join(f"{number}.png,happy\n" for number in range(4)))
    pack_shards("csv", source, tmp_path / "shards", image_size=SIZE, workers=1)
    with pytest.raises(UserError, match="all images of split train belong to class 'happy', but 2 classes are needed"):
        fit_blackbox(tmp_path / "shards", "expression", tmp_path / "classifier")


def test_folder_with_other_content_is_not_modified(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not a classifier of featgan; choose another --out"):
        fit_blackbox(shards, "expression", tmp_path, **SMALL_TRAINING)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_interrupted_fit_writes_nothing(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("featgan.blackbox.fitting.model_folder.sha256_of", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit_blackbox(shards, "expression", tmp_path / "classifier", **{**SMALL_TRAINING, "epochs": 1})
    assert not any(tmp_path.iterdir())


def test_metadata_contains_the_settings_and_scores(
    shards: Path, fitted_classifier: tuple[Path, dict[str, Any]]
) -> None:
    metadata = json.loads((fitted_classifier[0] / METADATA_FILE).read_text())
    assert metadata["settings"]["shards"] == ShardSet.open(shards).fingerprint
    assert (metadata["format"], metadata["task"]) == ("featgan-classifier", "expression")
    assert metadata["scores"] == fitted_classifier[1]
    assert metadata["preprocessing"]["image_size"] == SIZE


def test_class_weights_are_bounded_and_keep_the_scale_of_the_loss() -> None:
    codes = torch.tensor([0] * 1000 + [1] * 250 + [2])
    weights = balance_classes(codes, 4)
    assert float(weights[1] / weights[0]) == pytest.approx(2)
    assert float(weights[2] / weights[0]) == pytest.approx(trainer.MAX_CLASS_WEIGHT)
    assert weights[3] == 0
    assert float(weights[codes].sum()) == pytest.approx(len(codes), rel=1e-5)


def test_learning_rate_warms_up_and_decays_to_zero() -> None:
    factors = [lr_factor(step / 100) for step in range(101)]
    assert max(factors) == pytest.approx(1)
    assert factors[0] < 0.1
    assert factors[-1] == pytest.approx(0)
    assert factors[15:] == sorted(factors[15:], reverse=True)


def test_augmentation_translates_slightly_and_flips_half() -> None:
    images = torch.full((200, 3, 32, 32), -1.0)
    images[:, :, 12:20, 4:10] = 1
    changed = augment_images(images, torch.Generator().manual_seed(0))
    columns = (changed[:, 0] > 0).float().sum(1) @ torch.arange(32.0) / (changed[:, 0] > 0).sum((1, 2))
    flipped = columns > 16
    assert 70 < int(flipped.sum()) < 130
    assert columns[~flipped].mean() == pytest.approx(6.5, abs=1)
    assert columns[flipped].mean() == pytest.approx(24.5, abs=1)
    assert changed.min() >= -1
    assert changed.max() <= 1
    assert torch.equal(changed, augment_images(images, torch.Generator().manual_seed(0)))


def test_dataset_excludes_images_without_the_label(shards: Path) -> None:
    opened = ShardSet.open(shards)
    split = opened.get_split("train")
    split.expression = np.where(np.arange(len(split)) < 10, -1, split.expression)
    dataset = load_classifier_dataset(opened, "train", "expression", SIZE)
    assert len(dataset) == 86
    assert dataset.rows[0] == 10


def test_dataset_resizes_images(shards: Path) -> None:
    split = ShardSet.open(shards).get_split("train")
    images = ClassifierDataset(split, np.arange(3), torch.zeros(3), 32).images
    assert images is not None
    assert images.shape == (3, 3, 32, 32)
    assert images.float().mean() == pytest.approx(float(split.decode(range(3)).float().mean()), abs=2)


def test_scores_equal_hand_computed_values() -> None:
    logits = torch.tensor([[2.0, 0, 0], [2, 0, 0], [0, 2, 0], [2, 0, 0]])
    scores = compute_scores(logits, torch.tensor([0, 0, 1, 1]), "expression", ("a", "b", "c"))
    assert scores["accuracy"] == 0.75
    assert scores["balanced_accuracy"] == 0.75
    assert scores["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2, abs=1e-4)
    assert scores["confusion"] == [[2, 0, 0], [1, 1, 0], [0, 0, 0]]
    numbers = torch.tensor([[0.0, 0], [1, 1]])
    affect = compute_scores(numbers + torch.tensor([0.0, 1]), numbers, "valence_arousal", ("valence", "arousal"))
    assert affect["valence"] == {"ccc": 1.0, "rmse": 0.0}
    assert affect["arousal"] == {"ccc": pytest.approx(0.5 / 1.5, abs=1e-4), "rmse": 1.0}
    factors = compute_scores(numbers.flip(0), numbers, "factors", ("x", "y"))
    assert factors["factors"] == {"x": -3.0, "y": -3.0}
    for actual in (scores, affect, factors):
        assert build_scores_table({"split": "validation", **actual}).row_count in (2, 3)


@pytest.mark.parametrize("num_classes", [1000, 20_000])
def test_scores_of_many_classes_can_be_read_again(num_classes: int) -> None:
    names = [f"class {code}" for code in range(num_classes)]
    codes = torch.arange(num_classes).repeat_interleave(2)
    predicted = torch.stack([codes[::2], codes[::2].roll(1)], 1).flatten()
    scores = score_codes(codes, predicted, names)
    assert parse_json(json.dumps({"class_names": names, "scores": scores})) == {"class_names": names, "scores": scores}
    assert scores["accuracy"] == 0.5 and scores["classes"]["class 7"] == {"count": 2, "recall": 0.5}
    assert scores["wrong_predictions"][:2] == [[0, num_classes - 1, 1], [1, 0, 1]]
    table = build_scores_table({"split": "validation", "count": len(codes), **scores})
    assert table.row_count == num_classes and list(table.columns[-1].cells)[1] == "class 0 1"


@pytest.mark.parametrize(("num_classes", "count"), [(8, 99), (10, 99999), (11, 5), (40, 1000)])
def test_confusion_table_fits_80_columns(num_classes: int, count: int) -> None:
    names = [f"expression-{code}" for code in range(num_classes)]
    codes = torch.arange(num_classes)
    scores = compute_scores(torch.eye(num_classes).roll(1, 1), codes, "expression", names)
    scores |= {"split": "validation", "confusion": [[count * value for value in row] for row in scores["confusion"]]}
    console = PlainConsole(width=80, record=True, file=io.StringIO())
    console.print(build_scores_table(scores))
    text = console.export_text()
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    assert all(name in text for name in names) and str(count) in text

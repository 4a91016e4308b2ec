"""Fitting a box: it learns, equal seeds give equal weights, rare classes count, and OUT is never overwritten."""

import csv
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
from featgan.blackbox.fitting.augmentation import augment
from featgan.blackbox.fitting.dataset import Examples, load_examples
from featgan.blackbox.fitting.fit import fit_blackbox
from featgan.blackbox.fitting.model_folder import CARD, WEIGHTS
from featgan.blackbox.fitting.scores import compute_scores, scores_table
from featgan.blackbox.fitting.trainer import balance_classes, schedule
from featgan.blackbox.loading import load_blackbox
from featgan.data.packing.pack import pack
from featgan.data.shards.shard_set import ShardSet
from featgan.data.synthetic.dataset import synthesize
from featgan.errors import UserError
from featgan.system.images import to_float

SIZE = 16
EXPRESSIONS = ("neutral", "happy", "sad")
SMALL: dict[str, Any] = {"epochs": 8, "batch_size": 16, "width": 0.5, "learning_rate": 5e-3}


def draw_stripes(code: int, generator: np.random.Generator) -> Image.Image:
    """Horizontal, vertical or no stripes, of any colours."""
    stripes = np.zeros((SIZE, SIZE, 1), np.float64)
    if code == 1:
        stripes[::4] = stripes[1::4] = 1
    elif code == 2:
        stripes[:, ::4] = stripes[:, 1::4] = 1
    colours = generator.uniform(0, 120, 3) + stripes * generator.uniform(80, 130)
    return Image.fromarray((colours + generator.normal(0, 5, (SIZE, SIZE, 3))).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 striped images for training, 24 for validation, with expression, valence and arousal."""
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
    pack("csv", source, out, image_size=SIZE, workers=1)
    return out


@pytest.fixture(scope="module")
def fitted(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("boxes") / "box"
    return out, fit_blackbox(shards, "expression", out, **SMALL)


def test_expression_box_learns_and_loads(shards: Path, fitted: tuple[Path, dict[str, Any]]) -> None:
    out, scores = fitted
    assert scores["split"] == "validation"
    assert scores["count"] == 24
    assert scores["accuracy"] >= 0.9
    assert scores["classes"]["contempt"] == {"count": 0, "recall": None}
    assert np.array(scores["confusion"]).sum() == 24
    box = load_blackbox(str(out))
    split = ShardSet.open(shards).split("validation")
    _, outputs = box(to_float(split.decode(range(24))))
    agreement = (outputs.argmax(1).numpy() == split.expression).mean()
    assert agreement == pytest.approx(scores["accuracy"], abs=1e-4)
    assert (box.output_kind, box.feature_dim, box.class_names[1]) == ("expression", 64, "happy")


def test_no_feature_is_dead(shards: Path, fitted: tuple[Path, dict[str, Any]]) -> None:
    images = ShardSet.open(shards).split("train").decode(range(96))
    features, _ = load_blackbox(str(fitted[0]))(to_float(images))
    assert (features.std(0) > 1e-3).all()


def test_same_settings_again_are_done_and_others_are_refused(
    shards: Path, fitted: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    out, scores = fitted
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert fit_blackbox(shards, "expression", out, **SMALL) == scores
    assert "fitted already" in capsys.readouterr().err
    with pytest.raises(UserError, match="was fitted with seed 0, not 7"):
        fit_blackbox(shards, "expression", out, seed=7, **SMALL)
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


def flip_bit(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))


@pytest.mark.parametrize("harm", [flip_bit, Path.unlink])
def test_fitting_again_mends_a_damaged_box(
    shards: Path, tmp_path: Path, harm: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    out, short = tmp_path / "box", {**SMALL, "epochs": 1}
    scores = fit_blackbox(shards, "expression", out, **short)
    (out / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    harm(out / WEIGHTS)
    with pytest.raises(UserError, match=r"box\.safetensors: .*fit the box again"):
        load_blackbox(str(out))
    with pytest.raises(UserError, match="was fitted with seed 0, not 7"):
        fit_blackbox(shards, "expression", out, seed=7, **short)
    assert fit_blackbox(shards, "expression", out, **short) == scores
    assert "fitting it again" in " ".join(capsys.readouterr().err.split())
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_damaged_card_says_what_to_remove(shards: Path, tmp_path: Path) -> None:
    (tmp_path / CARD).write_text("{")
    with pytest.raises(UserError, match=rf"box\.json: damaged .*; remove {tmp_path} and fit the box again"):
        fit_blackbox(shards, "expression", tmp_path, **SMALL)


def test_equal_seeds_give_equal_weights_and_spare_the_global_state(
    shards: Path, fitted: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    state = torch.get_rng_state()
    fit_blackbox(shards, "expression", tmp_path / "again", **SMALL)
    assert torch.equal(torch.get_rng_state(), state)
    first, again = (load_file(path / WEIGHTS) for path in (fitted[0], tmp_path / "again"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    fit_blackbox(shards, "expression", tmp_path / "other", seed=1, **{**SMALL, "epochs": 1})
    other = load_file(tmp_path / "other" / WEIGHTS)
    assert not torch.equal(first["output.weight"], other["output.weight"])


def test_images_that_do_not_fit_into_memory_give_the_same_box(
    shards: Path, fitted: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featgan.blackbox.fitting.dataset.MOST_BYTES_IN_MEMORY", 0)
    fit_blackbox(shards, "expression", tmp_path / "again", **SMALL)
    first, again = (load_file(path / WEIGHTS) for path in (fitted[0], tmp_path / "again"))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_valence_and_arousal(shards: Path, tmp_path: Path) -> None:
    scores = fit_blackbox(shards, "valence_arousal", tmp_path / "box", **{**SMALL, "epochs": 16})
    assert scores["ccc"] > 0.8
    assert scores["valence"]["rmse"] < 0.3
    assert scores["ccc"] == pytest.approx((scores["valence"]["ccc"] + scores["arousal"]["ccc"]) / 2, abs=1e-3)
    box = load_blackbox(str(tmp_path / "box"))
    assert (box.output_kind, box.class_names, box.output_dim) == ("valence_arousal", ("valence", "arousal"), 2)


def test_factors_come_in_their_own_units(tmp_path: Path) -> None:
    synthesize(tmp_path / "faces", 60, 3, image_size=32, workers=1)
    pack("affectnet", tmp_path / "faces", tmp_path / "shards", image_size=32, workers=1)
    scores = fit_blackbox(tmp_path / "shards", "factors", tmp_path / "box", **{**SMALL, "epochs": 20})
    shards = ShardSet.open(tmp_path / "shards")
    assert tuple(scores["factors"]) == shards.factor_names
    split = shards.split("train")
    _, outputs = load_blackbox(str(tmp_path / "box"))(to_float(split.decode(range(len(split)))))
    column = shards.factor_names.index("background_brightness")
    assert np.abs(outputs[:, column].numpy() - split.factors[:, column]).mean() < 0.5 * split.factors[:, column].std()


def test_attributes_are_told_and_scored_one_by_one(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = ["file,split,bright,striped"]
    for number in range(96):
        bright, striped = number % 2, int(number % 8 == 1 or number % 8 == 4)  # one image in four has stripes
        pixels = np.full((SIZE, SIZE, 3), 170.0 if bright else 70.0)
        pixels[::4] += 60 * striped
        noisy = (pixels + generator.normal(0, 8, pixels.shape)).clip(0, 255)
        Image.fromarray(noisy.astype(np.uint8)).save(tmp_path / f"{number:02d}.png")
        rows.append(f"{number:02d}.png,{'validation' if number % 6 == 5 else 'train'},{bright},{striped}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    shards = tmp_path / "shards"
    pack("csv", tmp_path, shards, image_size=SIZE, workers=1, attribute_columns="bright,striped")
    scores = fit_blackbox(shards, "attributes", tmp_path / "box", **{**SMALL, "epochs": 16})
    assert scores["accuracy"] > 0.9 and scores["bright"]["accuracy"] > 0.9 and scores["striped"]["f1"] > 0.8
    assert scores_table(scores).row_count == 2
    box = load_blackbox(str(tmp_path / "box"))
    assert (box.output_kind, box.class_names) == ("attributes", ("bright", "striped"))


def test_torchvision_backbone_from_weights(shards: Path, tmp_path: Path) -> None:
    import torchvision

    weights = torchvision.models.mobilenet_v3_small(weights=None).state_dict()
    save_file(weights, tmp_path / "weights.safetensors")
    options: dict[str, Any] = {"network": "torchvision:mobilenet_v3_small", "epochs": 1, "image_size": 32}
    fit_blackbox(shards, "expression", tmp_path / "box", weights=tmp_path / "weights.safetensors", **options)
    box = load_blackbox(str(tmp_path / "box"))
    assert (box.feature_dim, box.image_size, box.layer) == (64, 32, "hidden")
    assert box.preprocessing.mean == (0.485, 0.456, 0.406)
    with pytest.raises(UserError, match="was fitted with weights"):
        fit_blackbox(shards, "expression", tmp_path / "box", **options)


def test_start_from_another_box_of_other_classes(
    shards: Path, fitted: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    tiny = {**SMALL, "epochs": 1, "learning_rate": 1e-9}
    fit_blackbox(shards, "valence_arousal", tmp_path / "box", weights=fitted[0] / WEIGHTS, **tiny)
    first, then = (load_file(path / WEIGHTS) for path in (fitted[0], tmp_path / "box"))
    torch.testing.assert_close(then["backbone.0.weight"], first["backbone.0.weight"], rtol=0, atol=1e-6)
    assert len(then["output.weight"]) == 2


BAD_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"target": "age"}, "target 'age': it can be expression, valence_arousal, attributes, factors"),
    ({"target": "factors"}, "the shards carry no factors"),
    ({"network": "resnet18"}, "unknown network 'resnet18'; use vgg or torchvision:NAME"),
    ({"network": "torchvision:resnet81"}, "unknown network torchvision:resnet81; did you mean"),
    ({"network": "torchvision:resnet18", "width": 2.0}, "width 2.0: only the network vgg has a width"),
    ({"network": "torchvision:squeezenet1_1"}, "has no linear layer to replace"),
    ({"epochs": 0}, "epochs 0: input should be greater than or equal to 1"),
    ({"learning_rate": float("nan")}, "learning rate nan"),
    ({"image_size": 2}, "image size 2"),
    ({"weights": "gone.pth"}, "gone.pth: no such weights file"),
]


@pytest.mark.parametrize(("settings", "message"), BAD_SETTINGS)
def test_bad_settings_get_one_line_and_leave_nothing(
    shards: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        fit_blackbox(shards, **{"target": "expression", "out": tmp_path / "box", **settings})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_images_of_one_class_teach_nothing(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(4):
        draw_stripes(1, np.random.default_rng(number)).save(source / f"{number}.png")
    (source / "labels.csv").write_text("file,expression\n" + "".join(f"{number}.png,happy\n" for number in range(4)))
    pack("csv", source, tmp_path / "shards", image_size=SIZE, workers=1)
    with pytest.raises(UserError, match="all images of train are 'happy'; a box learns from two classes"):
        fit_blackbox(tmp_path / "shards", "expression", tmp_path / "box")


def test_folder_of_something_else_is_left_alone(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is no fitted box; choose another --out"):
        fit_blackbox(shards, "expression", tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_interrupted_fit_leaves_nothing(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("featgan.blackbox.fitting.model_folder.sha256_of", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit_blackbox(shards, "expression", tmp_path / "box", **{**SMALL, "epochs": 1})
    assert not any(tmp_path.iterdir())


def test_card_says_how_the_box_was_made(shards: Path, fitted: tuple[Path, dict[str, Any]]) -> None:
    card = json.loads((fitted[0] / CARD).read_text())
    assert card["settings"]["shards"] == ShardSet.open(shards).fingerprint
    assert card["scores"] == fitted[1]
    assert card["preprocessing"]["image_size"] == SIZE


def test_class_weights_are_bounded_and_keep_the_scale_of_the_loss() -> None:
    codes = torch.tensor([0] * 1000 + [1] * 250 + [2])
    weights = balance_classes(codes, 4)
    assert float(weights[1] / weights[0]) == pytest.approx(2)
    assert float(weights[2] / weights[0]) == pytest.approx(trainer.LARGEST_CLASS_WEIGHT)
    assert weights[3] == 0
    assert float(weights[codes].sum()) == pytest.approx(len(codes), rel=1e-5)


def test_schedule_rises_and_falls_to_nothing() -> None:
    rates = [schedule(step / 100) for step in range(101)]
    assert max(rates) == pytest.approx(1)
    assert rates[0] < 0.1
    assert rates[-1] == pytest.approx(0)
    assert rates[15:] == sorted(rates[15:], reverse=True)


def test_augmentation_moves_a_little_and_mirrors_half() -> None:
    images = torch.full((200, 3, 32, 32), -1.0)
    images[:, :, 12:20, 4:10] = 1
    changed = augment(images, torch.Generator().manual_seed(0))
    columns = (changed[:, 0] > 0).float().sum(1) @ torch.arange(32.0) / (changed[:, 0] > 0).sum((1, 2))
    mirrored = columns > 16
    assert 70 < int(mirrored.sum()) < 130
    assert columns[~mirrored].mean() == pytest.approx(6.5, abs=1)
    assert columns[mirrored].mean() == pytest.approx(24.5, abs=1)
    assert changed.min() >= -1
    assert changed.max() <= 1
    assert torch.equal(changed, augment(images, torch.Generator().manual_seed(0)))


def test_examples_leave_out_images_without_the_label(shards: Path) -> None:
    opened = ShardSet.open(shards)
    split = opened.split("train")
    split.index.expression[:10] = -1
    examples = load_examples(opened, "train", "expression", SIZE)
    assert len(examples) == 86
    assert examples.rows[0] == 10


def test_examples_are_resized(shards: Path) -> None:
    split = ShardSet.open(shards).split("train")
    images = Examples(split, np.arange(3), torch.zeros(3), 32).images
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
    for found in (scores, affect, factors):
        assert scores_table({"split": "validation", **found}).row_count in (2, 3)

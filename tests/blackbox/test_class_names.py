"""Tests of the names of outputs: from the SPEC, a file or the labels, with synonyms, and of the agreement."""

import json
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from featgan.blackbox.agreement import find_class_order, measure_agreement
from featgan.blackbox.class_names import (
    format_class_names,
    match_names,
    parse_class_names,
    translate_names,
)
from featgan.data.packing.pack import pack_shards
from featgan.errors import UserError
from tests.blackbox.small_network import extract_features, load_blackbox

COLORS = {"blue": (40, 40, 220), "green": (40, 220, 40), "red": (220, 40, 40)}
"""Classes of the shards in this order, and the colors of their images."""

SIZE = 16


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pack 30 images of each color."""
    folder = tmp_path_factory.mktemp("colors")
    generator = np.random.default_rng(0)
    for name, color in COLORS.items():
        for split, count in (("train", 20), ("validation", 10)):
            (folder / "source" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(np.array(color) + generator.normal(0, 10, (SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / "source" / split / name / f"{number}.png")
    pack_shards("folder", folder / "source", folder / "shards", image_size=SIZE, workers=1)
    return folder / "shards"


@pytest.fixture
def color_spec(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[str]], str]:
    """Return a function that makes a SPEC of a classifier with one output for each of the given colors."""

    def register(order: Sequence[str]) -> str:
        head = nn.Linear(3, len(order))
        network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
        with torch.no_grad():
            channels = [["red", "green", "blue"].index(name) for name in order if name in COLORS]
            rows = torch.eye(3)[channels]
            head.weight.copy_(torch.cat([rows, torch.zeros(len(order) - len(rows), 3)]))
            head.bias.copy_(torch.tensor([0.0 if name in COLORS else -9.0 for name in order]))
        module = types.ModuleType("color_code")
        module.build = lambda: network  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return "color_code:build"

    return register


def read_log(capfd: pytest.CaptureFixture[str]) -> str:
    return " ".join(capfd.readouterr().err.split())


def test_outputs_get_the_names_of_the_shards_if_the_labels_agree(
    shards: Path, color_spec: Callable[[Sequence[str]], str], capfd: pytest.CaptureFixture[str]
) -> None:
    cache = extract_features(shards, color_spec(["blue", "green", "red"]), "named", task="expression")
    assert cache.class_names == ("blue", "green", "red")
    assert load_blackbox(cache.blackbox["spec"]).class_names == cache.class_names
    log = read_log(capfd)
    assert "the outputs are named after the shards' classes, because the predictions agree with the labels" in log
    assert "the label for 100.0 % of 30 labeled images" in log
    assert "of split validation" in log
    assert "warning" not in log
    again = extract_features(shards, color_spec(["blue", "green", "red"]), "named", task="expression")
    assert again.class_names == cache.class_names
    assert "already extracted" in read_log(capfd)


def test_outputs_in_another_order_are_not_named(
    shards: Path, color_spec: Callable[[Sequence[str]], str], capfd: pytest.CaptureFixture[str]
) -> None:
    cache = extract_features(shards, color_spec(["red", "blue", "green"]), "other-order", task="expression")
    assert cache.class_names == ()
    log = read_log(capfd)
    assert "the outputs have numbers instead of names" in log
    assert "they suggest classes=red,blue,green" in log
    assert "which is low" in log


def test_another_number_of_outputs_is_not_named(
    shards: Path, color_spec: Callable[[Sequence[str]], str], capfd: pytest.CaptureFixture[str]
) -> None:
    cache = extract_features(shards, color_spec(["blue", "green", "red", "more"]), "four", task="expression")
    assert cache.class_names == ()
    assert "the shards have 3 classes, the classifier has 4 outputs" in read_log(capfd)


def test_named_outputs_in_another_order_agree_with_the_labels(
    shards: Path, color_spec: Callable[[Sequence[str]], str], capfd: pytest.CaptureFixture[str]
) -> None:
    spec = color_spec(["red", "blue", "green", "more"]) + "?classes=Red,blue,green,more"
    extract_features(shards, spec, "given", task="expression")
    log = read_log(capfd)
    assert "the label for 100.0 % of 30 labeled images" in log
    assert "same classes under other names: Red = red" in log


def test_wrong_preprocessing_gives_a_warning(
    shards: Path, color_spec: Callable[[Sequence[str]], str], capfd: pytest.CaptureFixture[str]
) -> None:
    spec = color_spec(["blue", "green", "red"]) + "?classes=blue,green,red&channels=bgr"
    extract_features(shards, spec, "wrong", task="expression")
    log = read_log(capfd)
    assert "channels from the SPEC" in log
    assert "which is low; check the preprocessing (range, mean, std, channels)" in log
    assert "33.3 % of 30 labeled images" in log


def test_matching_outputs_are_compared_without_a_task(
    shards: Path, color_spec: Callable[[Sequence[str]], str], capfd: pytest.CaptureFixture[str]
) -> None:
    extract_features(shards, color_spec(["blue", "green", "red"]), "no-task")
    log = read_log(capfd)
    assert "the label for 100.0 % of 30 labeled images" in log
    assert "assuming that the outputs are the shards' classes" in log


SYNONYMS = [
    ("happy", "happiness"),
    ("sad", "Sadness"),
    ("surprise", "surprised"),
    ("anger", "Angry"),
    ("fear", "fearful"),
    ("fear", "afraid"),
    ("disgust", "disgusted"),
    ("neutral", "neutrality"),
    ("contempt", "contemptuous"),
]


@pytest.mark.parametrize(("name", "synonym"), SYNONYMS)
def test_synonyms_match(name: str, synonym: str) -> None:
    assert match_names([synonym, "x"], ["a", name]) == {0: 1}
    assert match_names([name], [synonym]) == {0: 0}


def test_names_match_in_another_order_and_count() -> None:
    assert match_names(["Anger", "Happiness", "Neutral"], ["neutral", "happy", "sad", "anger"]) == {0: 3, 1: 1, 2: 0}
    assert translate_names(["Anger", "smug"], ["neutral", "anger"]) == ("anger", "smug")


def test_names_with_two_synonyms_do_not_match() -> None:
    assert match_names(["fear", "afraid"], ["fearful"]) == {}
    assert match_names(["fear", "afraid"], ["afraid", "x"]) == {1: 0}


def test_names_in_other_scripts_match_only_themselves() -> None:
    assert match_names(["高兴", "愤怒"], ["愤怒", "高兴"]) == {0: 1, 1: 0}
    assert match_names(["高兴"], ["愤怒"]) == {}


def test_names_with_commas_and_symbols_survive_a_spec(color_spec: Callable[[Sequence[str]], str]) -> None:
    names = ("高兴", "Größe & C++, x", '<b>"bold"')
    assert parse_class_names(format_class_names(names)) == names
    spec = load_blackbox(color_spec(["blue", "green", "red"]), task="expression").spec
    from featgan.blackbox.spec import parse_spec

    named = load_blackbox(str(parse_spec(spec, classes=format_class_names(names))))
    assert named.class_names == names
    assert load_blackbox(named.spec).class_names == names


@pytest.mark.parametrize(
    ("file_name", "content"),
    [
        ("names.txt", "happy\nsad\n\nfear, great\n"),
        ("names.txt", "2 fear, great\n0: happy\n1\tsad\n"),
        ("names.json", json.dumps(["happy", "sad", "fear, great"])),
        ("names.json", json.dumps({"sad": 1, "happy": 0, "fear, great": 2})),
        ("names.json", json.dumps({"0": "happy", "1": "sad", "2": "fear, great"})),
        ("names.json", json.dumps({"id2label": {"0": "happy", "1": "sad", "2": "fear, great"}})),
        ("data.yaml", "names:\n  0: happy\n  1: sad\n  2: fear, great\n"),
    ],
)
def test_names_are_read_from_a_file(tmp_path: Path, file_name: str, content: str) -> None:
    (tmp_path / file_name).write_text(content)
    expected = ("happy", "sad", "fear, great")
    if content.startswith("2"):
        expected = ("happy", "sad", "fear  great")
    assert parse_class_names(str(tmp_path / file_name)) == expected


@pytest.mark.parametrize(("content", "message"), [("{", "not readable as json"), ("[]", "contains no class names")])
def test_invalid_file_of_names_gives_one_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "names.json").write_text(content)
    with pytest.raises(UserError, match=message):
        parse_class_names(str(tmp_path / "names.json"))
    with pytest.raises(UserError, match="missing.txt: "):
        parse_class_names(str(tmp_path / "missing.txt"))


def test_spec_contains_the_names_instead_of_their_file(
    tmp_path: Path, color_spec: Callable[[Sequence[str]], str]
) -> None:
    (tmp_path / "names.txt").write_text("blue\ngreen\nred\n")
    blackbox = load_blackbox(color_spec(["blue", "green", "red"]) + f"?classes={tmp_path / 'names.txt'}")
    assert blackbox.class_names == ("blue", "green", "red")
    assert blackbox.spec.endswith("?classes=blue,green,red")


def test_names_in_a_checkpoint_are_used(tmp_path: Path) -> None:
    import torchvision

    state = torchvision.models.squeezenet1_1(num_classes=3).state_dict()
    torch.save({"state_dict": state, "class_to_idx": {"c": 2, "a": 0, "b": 1}}, tmp_path / "weights.pth")
    spec = f"torchvision:squeezenet1_1:{tmp_path / 'weights.pth'}?image_size=64&task=expression"
    assert load_blackbox(spec).class_names == ("a", "b", "c")
    assert load_blackbox(spec + "&classes=x,y,z").class_names == ("x", "y", "z")


def test_agreement_has_an_interval_and_its_chance_counts_the_frequencies() -> None:
    labels = np.repeat([0, 1], [90, 10])
    constant = measure_agreement(np.zeros(100, np.int64), labels, 2)
    assert (constant.share, constant.chance) == (0.9, 0.9)
    assert constant.is_low
    perfect = measure_agreement(labels, labels, 2)
    assert perfect.high == pytest.approx(1)
    assert 0.95 < perfect.low < 1
    assert not perfect.is_low


def test_order_of_the_classes_is_found() -> None:
    labels = np.tile(np.arange(4), 25)
    order = np.array([2, 0, 3, 1])
    predicted = np.argsort(order)[labels]
    found, agreement = find_class_order(predicted, labels, 4)
    assert found.tolist() == order.tolist()
    assert agreement.share == 1

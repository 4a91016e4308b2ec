"""Tests of fitted classifiers on disk and of invalid SPECs: errors are one line, and code in files never runs."""

import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from featgan.blackbox.fitting.model_folder import (
    METADATA_FILE,
    WEIGHTS_FILE,
    read_classifier_metadata,
    write_classifier,
)
from featgan.blackbox.fitting.network import Architecture, build_network
from featgan.blackbox.preprocessing import Preprocessing
from featgan.blackbox.spec import suggest_names
from featgan.errors import UserError
from tests.blackbox.small_network import (
    OUTPUTS,
    SIZE,
    SmallNetwork,
    list_layers,
    load_blackbox,
    register_callable_spec,
    save_onnx,
)


@pytest.mark.parametrize("name", ["timm", "onnx", "onnxruntime"])
def test_missing_extra_is_named_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: SmallNetwork, name: str
) -> None:
    spec = "timm:resnet18" if name == "timm" else save_onnx(network, tmp_path / "classifier.onnx")
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"{name} is not installed; run `pip install 'featgan\[{name[:4]}\]'`"):
        load_blackbox(spec)


def make_fitted_classifier(folder: Path, seed: int = 0) -> tuple[nn.Module, Path]:
    architecture = Architecture(output_dim=OUTPUTS, width=0.5)
    torch.manual_seed(seed)
    network = build_network(architecture).eval()
    metadata = {
        "task": "expression",
        "class_names": tuple("abcdefgh"),
        "architecture": architecture,
        "preprocessing": Preprocessing(image_size=SIZE),
        "settings": {},
        "scores": {},
    }
    write_classifier(folder, network, metadata)
    return network, folder


def test_fitted_classifier_round_trip(tmp_path: Path, images: Tensor) -> None:
    network, folder = make_fitted_classifier(tmp_path / "classifier")
    blackbox = load_blackbox(str(folder))
    with torch.no_grad():
        torch.testing.assert_close(blackbox(images)[1], network(images))
    assert (blackbox.layer, blackbox.feature_dim, blackbox.task, blackbox.image_size) == (
        "hidden",
        64,
        "expression",
        SIZE,
    )
    assert blackbox.class_names == tuple("abcdefgh")
    assert sorted(path.name for path in folder.iterdir()) == [METADATA_FILE, WEIGHTS_FILE]
    assert load_blackbox(str(make_fitted_classifier(tmp_path / "other", 1)[1])).sha256 != blackbox.sha256


def test_fitted_classifier_with_other_weights_is_rejected(tmp_path: Path) -> None:
    _, folder = make_fitted_classifier(tmp_path / "classifier")
    _, other = make_fitted_classifier(tmp_path / "other", 1)
    (other / WEIGHTS_FILE).replace(folder / WEIGHTS_FILE)
    with pytest.raises(UserError, match=r"does not match the checksum in classifier\.json"):
        load_blackbox(str(folder))


def test_task_of_a_fitted_classifier_cannot_be_changed(tmp_path: Path) -> None:
    _, folder = make_fitted_classifier(tmp_path / "classifier")
    with pytest.raises(UserError, match="defines its own outputs; remove the option task"):
        load_blackbox(str(folder), task="valence_arousal")


def test_error_about_invalid_metadata_names_the_field(tmp_path: Path) -> None:
    _, folder = make_fitted_classifier(tmp_path / "classifier")
    text = (folder / METADATA_FILE).read_text()
    (folder / METADATA_FILE).write_text(text.replace('"hidden_dim": 64', '"hidden_dim": 64000'))
    with pytest.raises(UserError, match="architecture.hidden_dim"):
        read_classifier_metadata(folder)


class MaliciousPickle:
    """An object whose pickle creates a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_that_would_run_code_are_rejected(tmp_path: Path, zipped: bool) -> None:
    weights, created = tmp_path / "weights.pth", tmp_path / "created"
    if zipped:
        torch.save({"fc.weight": MaliciousPickle(created)}, weights)
    else:
        weights.write_bytes(pickle.dumps({"fc.weight": MaliciousPickle(created)}, protocol=2))
    with pytest.raises(UserError, match="weights.pth: not loaded|weights.pth: not a readable"):
        load_blackbox(f"torchvision:resnet18:{weights}")
    assert not created.exists()


def test_pickled_module_is_rejected_as_torchscript(tmp_path: Path, network: SmallNetwork) -> None:
    path, created = tmp_path / "model.pt", tmp_path / "created"
    torch.save({"model": MaliciousPickle(created)}, path)
    with pytest.raises(UserError, match="not a TorchScript file"):
        load_blackbox(str(path))
    assert not created.exists()


BAD_SPECS = {
    "": "empty SPEC: no such folder or file; SPEC must be",
    "nowhere": "nowhere: no such folder or file",
    "nowhere.onnx": "nowhere.onnx: no such file",
    "weights.pth": "weights alone are not a network",
    "torchvision:": "the network's name is missing",
    "torchvision:resnet81": "no such torchvision classifier; did you mean",
    "torchvision:nope": "no such torchvision classifier; the closest of ",
    "timm:zzz": "no such timm model; the closest of ",
    "torchvision:resnet18:missing.pth": "missing.pth: no such weights file",
    "timm:hf-hub:someone/something": "no such timm model",
    "no_such_package.module:build": "cannot import no_such_package.module",
    "os.path:no_such_name": "os.path has no no_such_name",
    "os.path:sep": "is a str and cannot be called",
    "os:getcwd": "returned str; it must return a torch module or a function",
    "math:sqrt": "raised TypeError when called",
    "torchvision:resnet18?size=3": "unknown option 'size'",
    "torchvision:resnet18?image_size": "write options as",
    "torchvision:resnet18?image_size=big": "image_size: input should be a valid integer",
    "torchvision:resnet18?mean=1,2": "mean: 2 numbers, but 1 or 3 are needed",
    "torchvision:resnet18?channels=gray": "mean: 3 numbers, but 1 is needed",
    "torchvision:resnet18?layout=nhwc": "cannot run on images 3 x 224 x 224 x 3",
    "torchvision:resnet18?task=age": "use one of expression, valence_arousal, attributes, other",
    "torchvision:resnet18?task=expression&image_size=32&classes=happy,sad": "2 names for 1000 outputs",
    "torchvision:resnet18?task=attributes&image_size=32": "no names for 1000 outputs",
    "torchvision:resnet18?task=valence_arousal&image_size=32": "2 names for 1000 outputs",
}


@pytest.mark.parametrize("spec", BAD_SPECS)
def test_invalid_spec_gives_one_clear_line(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if spec.startswith("timm"):
        pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        load_blackbox(spec)
    assert BAD_SPECS[spec] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_closest_names_are_listed_if_none_is_similar() -> None:
    many = [f"alexnet_{number}" for number in range(40)] + ["ronet", "zoonet"]
    assert suggest_names("zoo", many) == "did you mean zoonet?"
    assert suggest_names("nope", many).startswith("the closest of 42 names: ronet, ")
    assert suggest_names("zzzz", many).startswith("the closest of 42 names: zoonet, ")
    assert suggest_names("qqqq", ["fc1", "fc2"]) == "known names: fc1, fc2"


def test_error_about_an_unknown_layer_suggests_a_name(monkeypatch: pytest.MonkeyPatch, network: SmallNetwork) -> None:
    with pytest.raises(UserError, match=r"no layer 'hiden'; did you mean hidden"):
        load_blackbox(register_callable_spec(monkeypatch, network), "hiden")


def test_empty_folder_and_invalid_files_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "garbage.onnx").write_bytes(b"\x00garbage" * 10)
    (tmp_path / "garbage.pt").write_bytes(b"\x00garbage" * 10)
    pytest.importorskip("onnx")
    for spec, message in (
        (tmp_path, r"not a classifier of featgan \(no classifier\.json\)"),
        (tmp_path / "garbage.onnx", "not an ONNX"),
        (tmp_path / "garbage.pt", "not a"),
    ):
        with pytest.raises(UserError, match=message):
            load_blackbox(str(spec))


def test_too_wide_layer_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = nn.Sequential(nn.Flatten(), nn.Linear(3 * 112 * 112, 2))
    spec = register_callable_spec(monkeypatch, wide)
    with pytest.raises(UserError, match="has 37632 values; the maximum is 16384"):
        load_blackbox(spec)
    assert list_layers(spec) == [("1", 2)]

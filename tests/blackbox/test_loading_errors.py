"""Fitted boxes on disk, and SPECs that cannot be loaded: one line for each, and nothing in a file is ever run."""

import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from featgan.blackbox.fitting.model_folder import CARD, WEIGHTS, read_card, write_box
from featgan.blackbox.fitting.network import Architecture, build_network
from featgan.blackbox.loading import list_layers, load_blackbox
from featgan.blackbox.preprocessing import Preprocessing
from featgan.blackbox.spec import nearest
from featgan.errors import UserError
from tests.blackbox.test_loading import OUTPUTS, SIZE, SmallNetwork, named, save_onnx
from tests.blackbox.test_loading import images as images
from tests.blackbox.test_loading import network as network


@pytest.mark.parametrize("name", ["timm", "onnx", "onnxruntime"])
def test_missing_extra_is_named_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: SmallNetwork, name: str
) -> None:
    spec = "timm:resnet18" if name == "timm" else save_onnx(network, tmp_path / "box.onnx")
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"{name} is not installed; run `pip install 'featgan\[{name[:4]}\]'`"):
        load_blackbox(spec)


def fitted_box(folder: Path, seed: int = 0) -> tuple[nn.Module, Path]:
    architecture = Architecture(output_dim=OUTPUTS, width=0.5)
    torch.manual_seed(seed)
    network = build_network(architecture).eval()
    card = {
        "target": "expression",
        "class_names": tuple("abcdefgh"),
        "architecture": architecture,
        "preprocessing": Preprocessing(image_size=SIZE),
        "settings": {},
        "scores": {},
    }
    write_box(folder, network, card)
    return network, folder


def test_fitted_box_round_trip(tmp_path: Path, images: Tensor) -> None:
    network, folder = fitted_box(tmp_path / "box")
    box = load_blackbox(str(folder))
    with torch.no_grad():
        torch.testing.assert_close(box(images)[1], network(images))
    assert (box.layer, box.feature_dim, box.output_kind, box.image_size) == ("hidden", 64, "expression", SIZE)
    assert box.class_names == tuple("abcdefgh")
    assert sorted(path.name for path in folder.iterdir()) == [CARD, WEIGHTS]
    assert load_blackbox(str(fitted_box(tmp_path / "other", 1)[1])).sha256 != box.sha256


def test_fitted_box_with_other_weights_is_refused(tmp_path: Path) -> None:
    _, folder = fitted_box(tmp_path / "box")
    _, other = fitted_box(tmp_path / "other", 1)
    os.replace(other / WEIGHTS, folder / WEIGHTS)
    with pytest.raises(UserError, match="not the weights"):
        load_blackbox(str(folder))


def test_fitted_box_knows_its_outputs(tmp_path: Path) -> None:
    _, folder = fitted_box(tmp_path / "box")
    with pytest.raises(UserError, match="a fitted box knows its outputs; leave output_kind out"):
        load_blackbox(str(folder), output_kind="valence_arousal")


def test_damaged_card_names_the_field(tmp_path: Path) -> None:
    _, folder = fitted_box(tmp_path / "box")
    text = (folder / CARD).read_text()
    (folder / CARD).write_text(text.replace('"hidden_dim": 64', '"hidden_dim": 64000'))
    with pytest.raises(UserError, match="architecture.hidden_dim"):
        read_card(folder)


class Trap:
    """Its pickle makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_that_would_run_code_are_refused(tmp_path: Path, zipped: bool) -> None:
    weights, sprung = tmp_path / "weights.pth", tmp_path / "sprung"
    if zipped:
        torch.save({"fc.weight": Trap(sprung)}, weights)
    else:
        weights.write_bytes(pickle.dumps({"fc.weight": Trap(sprung)}, protocol=2))
    with pytest.raises(UserError, match="weights.pth: refused|weights.pth: not a readable"):
        load_blackbox(f"torchvision:resnet18:{weights}")
    assert not sprung.exists()


def test_pickled_module_is_no_torchscript(tmp_path: Path, network: SmallNetwork) -> None:
    path, sprung = tmp_path / "model.pt", tmp_path / "sprung"
    torch.save({"model": Trap(sprung)}, path)
    with pytest.raises(UserError, match="not a TorchScript file"):
        load_blackbox(str(path))
    assert not sprung.exists()


BAD_SPECS = {
    "": "empty SPEC: no such folder or file; a black box is",
    "nowhere": "nowhere: no such folder or file",
    "nowhere.onnx": "nowhere.onnx: no such file",
    "weights.pth": "weights alone are no network",
    "torchvision:": "the network's name is missing",
    "torchvision:resnet81": "no such torchvision classifier; did you mean",
    "torchvision:nope": "no such torchvision classifier; the nearest of ",
    "timm:zzz": "no such timm model; the nearest of ",
    "torchvision:resnet18:gone.pth": "gone.pth: no such weights file",
    "timm:hf-hub:someone/something": "no such timm model",
    "no_such_package.module:build": "cannot import no_such_package.module",
    "os.path:no_such_name": "os.path has no no_such_name",
    "os.path:sep": "is a str and cannot be called",
    "os:getcwd": "returned str; return a torch module or a function",
    "math:sqrt": "raised TypeError when called",
    "torchvision:resnet18?size=3": "unknown option 'size'",
    "torchvision:resnet18?image_size": "write options as",
    "torchvision:resnet18?image_size=big": "image_size: input should be a valid integer",
    "torchvision:resnet18?mean=1,2": "mean has 2 numbers where 1 or 3 are needed",
    "torchvision:resnet18?channels=grey": "mean has 3 numbers where 1 is needed",
    "torchvision:resnet18?layout=nhwc": "cannot run on images 3 x 224 x 224 x 3",
    "torchvision:resnet18?output_kind=age": "it can be expression, valence_arousal, attributes, other",
    "torchvision:resnet18?output_kind=expression&image_size=32": "8 names for 1000 outputs",
    "torchvision:resnet18?output_kind=valence_arousal&image_size=32": "2 names for 1000 outputs",
    "torchvision:squeezenet1_1?image_size=64": "no linear layer at the end",
}


@pytest.mark.parametrize("spec", BAD_SPECS)
def test_bad_spec_gets_one_clear_line(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if spec.startswith("timm"):
        pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        load_blackbox(spec)
    assert BAD_SPECS[spec] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_nearest_names_are_given_where_none_is_near() -> None:
    many = [f"alexnet_{number}" for number in range(40)] + ["ronet", "zoonet"]
    assert nearest("zoo", many) == "did you mean zoonet?"
    assert nearest("nope", many).startswith("the nearest of 42 are ronet, ")
    assert nearest("zzzz", many).startswith("the nearest of 42 are zoonet, ")
    assert nearest("qqqq", ["fc1", "fc2"]) == "known are fc1, fc2"


def test_unknown_layer_names_the_nearest(monkeypatch: pytest.MonkeyPatch, network: SmallNetwork) -> None:
    with pytest.raises(UserError, match=r"no layer 'hiden'; did you mean hidden"):
        load_blackbox(named(monkeypatch, network), "hiden")


def test_empty_folder_and_garbage_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "garbage.onnx").write_bytes(b"\x00garbage" * 10)
    (tmp_path / "garbage.pt").write_bytes(b"\x00garbage" * 10)
    pytest.importorskip("onnx")
    for spec, what in (
        (tmp_path, "no box.json"),
        (tmp_path / "garbage.onnx", "not an ONNX"),
        (tmp_path / "garbage.pt", "not a"),
    ):
        with pytest.raises(UserError, match=what):
            load_blackbox(str(spec))


def test_wide_layer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = nn.Sequential(nn.Flatten(), nn.Linear(3 * 112 * 112, 2))
    spec = named(monkeypatch, wide)
    with pytest.raises(UserError, match="has 37632 numbers; at most 16384"):
        load_blackbox(spec)
    assert list_layers(spec) == [("1", 2)]

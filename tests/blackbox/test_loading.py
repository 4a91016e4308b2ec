"""Tests of loading black boxes: features, outputs and layers of each kind of SPEC."""

import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from featgan.blackbox.loading import BlackBox
from featgan.blackbox.preprocessing import Preprocessing
from featgan.blackbox.spec import parse_spec
from tests.blackbox.small_network import (
    FEATURES,
    OUTPUTS,
    SIZE,
    SmallNetwork,
    list_layers,
    load_blackbox,
    register_callable_spec,
    save_onnx,
)


class SoftmaxNetwork(SmallNetwork):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).softmax(1)


def save_script(network: nn.Module, path: Path, trace: bool) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = torch.rand(1, 3, SIZE, SIZE)
        script = torch.jit.trace(network, example) if trace else torch.jit.script(network)
        script.save(str(path))
    return str(path)


def inner_features(network: SmallNetwork, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.tanh(network.hidden(F.relu(network.convolution(images)).mean((2, 3))))


def assert_matches_network(blackbox: BlackBox, network: SmallNetwork, images: Tensor, network_input: Tensor) -> None:
    """Check features and outputs for `images` against those of `network` for the preprocessed `network_input`."""
    features, outputs = blackbox(images)
    torch.testing.assert_close(features, inner_features(network, network_input), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(outputs, SmallNetwork.forward(network, network_input), rtol=1e-4, atol=1e-5)
    assert (blackbox.feature_dim, blackbox.output_dim) == (FEATURES, OUTPUTS)
    assert blackbox.head is not None
    torch.testing.assert_close(F.linear(features, *blackbox.head), outputs, rtol=1e-4, atol=1e-5)


def test_callable_that_returns_a_module(monkeypatch: pytest.MonkeyPatch, network: SmallNetwork, images: Tensor) -> None:
    blackbox = load_blackbox(register_callable_spec(monkeypatch, network))
    assert blackbox.layer == "classifier:input"
    assert_matches_network(blackbox, network, images, images)


def test_layer_given_by_name_has_the_same_head_as_by_default(
    monkeypatch: pytest.MonkeyPatch, network: SmallNetwork, images: Tensor
) -> None:
    spec = register_callable_spec(monkeypatch, network)
    default = load_blackbox(spec)
    again = load_blackbox(default.spec, default.layer)
    assert again.sha256 == default.sha256
    assert_matches_network(again, network, images, images)


def test_inner_map_is_averaged_before_it_is_changed_in_place(
    monkeypatch: pytest.MonkeyPatch, network: SmallNetwork, images: Tensor
) -> None:
    blackbox = load_blackbox(register_callable_spec(monkeypatch, network), "convolution")
    with torch.no_grad():
        maps = network.convolution(images)
    expected = maps.mean((2, 3))
    assert not torch.allclose(expected, maps.relu().mean((2, 3)))
    torch.testing.assert_close(blackbox(images)[0], expected)
    assert blackbox.head is None


def test_callable_that_returns_a_function(monkeypatch: pytest.MonkeyPatch, images: Tensor) -> None:
    blackbox = load_blackbox(
        register_callable_spec(monkeypatch, lambda batch: (batch.mean((2, 3)), batch.amax((1, 2, 3))[:, None]))
    )
    features, outputs = blackbox(images)
    torch.testing.assert_close(features, images.mean((2, 3)))
    torch.testing.assert_close(outputs, images.amax((1, 2, 3))[:, None])
    assert (blackbox.layer, blackbox.feature_dim, blackbox.output_dim, blackbox.task) == (
        "features",
        3,
        1,
        "other",
    )


def test_callable_in_a_file_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "classifier_in_folder.py").write_text(
        "def make():\n    return lambda x: (x.mean((2, 3)), x.mean((1, 2, 3)))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "classifier_in_folder", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert load_blackbox("classifier_in_folder:make").output_dim == 1


@pytest.mark.parametrize("trace", [True, False])
def test_torchscript(tmp_path: Path, network: SmallNetwork, images: Tensor, trace: bool) -> None:
    spec = save_script(network, tmp_path / "classifier.pt", trace) + "?range=-1,1"
    blackbox = load_blackbox(spec)
    assert_matches_network(blackbox, network, images, images)
    inner = next(name for name, width in list_layers(spec) if width == 4 and name.startswith("conv"))
    with torch.no_grad():
        torch.testing.assert_close(load_blackbox(spec, inner)(images)[0], network.convolution(images).mean((2, 3)))


@pytest.mark.parametrize("batch", ["N", 2])
def test_onnx(tmp_path: Path, network: SmallNetwork, images: Tensor, batch: object) -> None:
    blackbox = load_blackbox(save_onnx(network, tmp_path / "classifier.onnx", batch=batch))
    assert (blackbox.layer, blackbox.image_size) == ("features", SIZE)
    assert_matches_network(blackbox, network, images, (images + 1) / 2)


def test_onnx_inner_tensor_by_name(tmp_path: Path, network: SmallNetwork, images: Tensor) -> None:
    spec = save_onnx(network, tmp_path / "classifier.onnx")
    assert dict(list_layers(spec)) == {
        "maps": 4, "active": 4, "pooled": 4, "flat": 4, "hidden": 6, "features": 6, "product": 8, "logits": 8
    }  # fmt: skip
    before = Path(spec).read_bytes()
    with torch.no_grad():
        expected = network.convolution((images + 1) / 2).mean((2, 3))
    torch.testing.assert_close(load_blackbox(spec, "maps")(images)[0], expected, rtol=1e-4, atol=1e-5)
    assert Path(spec).read_bytes() == before


def test_onnx_channels_last_input_is_detected_from_its_shape(
    tmp_path: Path, network: SmallNetwork, images: Tensor
) -> None:
    blackbox = load_blackbox(save_onnx(network, tmp_path / "classifier.onnx", layout="nhwc"))
    assert blackbox.preprocessing.layout == "nhwc"
    assert_matches_network(blackbox, network, images, (images + 1) / 2)


def test_outputs_are_logits_if_the_network_ends_in_softmax(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: SmallNetwork, images: Tensor
) -> None:
    assert_matches_network(
        load_blackbox(save_onnx(network, tmp_path / "b.onnx", softmax=True)), network, images, (images + 1) / 2
    )
    torch.manual_seed(1)
    probabilities = SoftmaxNetwork().eval()
    assert_matches_network(load_blackbox(register_callable_spec(monkeypatch, probabilities)), network, images, images)


def test_torchvision_with_weights_of_another_class_count(tmp_path: Path, images: Tensor) -> None:
    import torchvision

    model = torchvision.models.mobilenet_v3_small(weights=None, num_classes=5).eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    blackbox = load_blackbox(f"torchvision:mobilenet_v3_small:{tmp_path / 'weights.safetensors'}?image_size=64")
    resized = F.interpolate(images, (64, 64), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = model(((resized + 1) / 2 - mean) / std)
    torch.testing.assert_close(blackbox(images)[1], expected, rtol=1e-3, atol=1e-4)
    assert (blackbox.layer, blackbox.feature_dim, blackbox.output_dim) == ("classifier.3:input", 1024, 5)


def test_random_weights_are_reproducible_and_cause_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.get_rng_state()
    first = load_blackbox("torchvision:squeezenet1_1?image_size=64", "features.3")
    assert "RANDOM" in capsys.readouterr().err
    assert first.sha256 == load_blackbox("torchvision:squeezenet1_1?image_size=64", "features.3").sha256
    assert torch.equal(torch.get_rng_state(), state)


def test_timm(images: Tensor) -> None:
    pytest.importorskip("timm")
    blackbox = load_blackbox("timm:resnet10t?image_size=32")
    assert blackbox.layer == "fc:input"
    assert blackbox.preprocessing.mean == (0.485, 0.456, 0.406)
    features, outputs = blackbox(images)
    assert blackbox.head is not None
    torch.testing.assert_close(F.linear(features, *blackbox.head), outputs)


def test_pth_file_with_tensors_is_loaded(tmp_path: Path) -> None:
    import torchvision

    state = torchvision.models.shufflenet_v2_x0_5(weights=None, num_classes=3).state_dict()
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 3}, path)
    blackbox = load_blackbox(f"torchvision:shufflenet_v2_x0_5:{path}?image_size=32")
    assert blackbox.head is not None
    assert torch.equal(blackbox.head[0], state["fc.weight"])


def test_options_of_the_call_are_added_to_the_spec(
    monkeypatch: pytest.MonkeyPatch, network: SmallNetwork, images: Tensor
) -> None:
    spec = register_callable_spec(monkeypatch, network)
    blackbox = load_blackbox(
        spec, preprocessing={"image_size": 8, "mean": (0.1, 0.2, 0.3), "channels": "bgr"}, task="expression"
    )
    again = load_blackbox(blackbox.spec, blackbox.layer)
    assert torch.equal(again(images)[0], blackbox(images)[0])
    assert again.sha256 == blackbox.sha256 != load_blackbox(spec).sha256
    assert again.task == "expression"
    assert again.class_names == ()


def test_preprocessing_equals_hand_computed_values() -> None:
    images = torch.tensor([-1.0, 0.0, 1.0])[None, :, None, None].expand(1, 3, 8, 8)
    caffe = Preprocessing.model_validate({"range": "0,255", "channels": "bgr", "mean": "104,117,123", "layout": "nhwc"})
    assert caffe(images).shape == (1, 8, 8, 3)
    torch.testing.assert_close(caffe(images)[0, 0, 0], torch.tensor([255 - 104, 127.5 - 117, 0 - 123]))
    gray = Preprocessing(range=(0, 1), channels="gray", std=(2,))
    torch.testing.assert_close(gray(images)[0, :, 0, 0], torch.tensor([(0.587 * 0.5 + 0.114) / 2]))
    assert Preprocessing(image_size=16)(images).shape == (1, 3, 16, 16)


def test_no_gradient_and_no_training_mode(monkeypatch: pytest.MonkeyPatch, images: Tensor) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * SIZE * SIZE, 4)).train()
    blackbox = load_blackbox(register_callable_spec(monkeypatch, network), preprocessing={"image_size": SIZE})
    features, outputs = blackbox(images.requires_grad_())
    assert not features.requires_grad and not outputs.requires_grad
    assert torch.equal(blackbox(images)[0], features)


def test_option_with_bytes_that_are_not_utf8_is_kept_in_the_spec(tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    path.touch()
    spec = parse_spec(f"{path}?classes=\udcffa.txt")
    assert spec.options == {"classes": "\udcffa.txt"} and parse_spec(str(spec)) == spec

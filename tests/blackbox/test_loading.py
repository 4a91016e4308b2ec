"""Black boxes from everywhere: what each kind of SPEC gives, and the layers it offers."""

import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from featgan.blackbox.loading import BlackBox, list_layers, load_blackbox
from featgan.blackbox.preprocessing import Preprocessing

SIZE = 16
FEATURES, OUTPUTS = 6, 8


class SmallNetwork(nn.Module):
    """Four layers, one of them changed in place by the next."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.activation = nn.ReLU(inplace=True)
        self.hidden = nn.Linear(4, FEATURES)
        self.classifier = nn.Linear(FEATURES, OUTPUTS)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.activation(self.convolution(images))
        logits: Tensor = self.classifier(torch.tanh(self.hidden(maps.mean((2, 3)))))
        return logits


class EndsInSoftmax(SmallNetwork):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).softmax(1)


@pytest.fixture
def network() -> SmallNetwork:
    torch.manual_seed(1)
    return SmallNetwork().eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3)) * 2 - 1


def named(monkeypatch: pytest.MonkeyPatch, made: object) -> str:
    """The SPEC of a callable that gives `made`."""
    module = types.ModuleType("some_users_code")
    module.build = lambda: made  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return "some_users_code:build"


def save_script(network: nn.Module, path: Path, trace: bool) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = torch.rand(1, 3, SIZE, SIZE)
        script = torch.jit.trace(network, example) if trace else torch.jit.script(network)
        script.save(str(path))
    return str(path)


def save_onnx(
    network: SmallNetwork, path: Path, softmax: bool = False, layout: str = "nchw", batch: object = "N"
) -> str:
    """The small network as an ONNX graph of its own."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper = onnx.helper
    shape = [batch, 3, SIZE, SIZE] if layout == "nchw" else [batch, SIZE, SIZE, 3]
    nodes = [] if layout == "nchw" else [helper.make_node("Transpose", ["images"], ["planes"], perm=[0, 3, 1, 2])]
    nodes += [
        helper.make_node(
            "Conv",
            ["images" if layout == "nchw" else "planes", "convolution.weight", "convolution.bias"],
            ["maps"],
            strides=[2, 2],
            pads=[1, 1, 1, 1],
        ),
        helper.make_node("Relu", ["maps"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "hidden.weight", "hidden.bias"], ["hidden"], transB=1),
        helper.make_node("Tanh", ["hidden"], ["features"]),
        helper.make_node("MatMul", ["features", "classifier.transposed"], ["product"]),
        helper.make_node("Add", ["product", "classifier.bias"], ["logits"]),
    ]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1))
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    state["classifier.transposed"] = np.ascontiguousarray(state.pop("classifier.weight").T)
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info(
                "probabilities" if softmax else "logits", onnx.TensorProto.FLOAT, [batch, OUTPUTS]
            )
        ],
        [onnx.numpy_helper.from_array(array, name) for name, array in state.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return str(path)


def inner_features(network: SmallNetwork, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.tanh(network.hidden(F.relu(network.convolution(images)).mean((2, 3))))


def assert_is_network(box: BlackBox, network: SmallNetwork, images: Tensor, seen: Tensor) -> None:
    """The box taps the input of the last layer of `network`, which sees `seen` where the box sees `images`."""
    features, outputs = box(images)
    torch.testing.assert_close(features, inner_features(network, seen), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(outputs, SmallNetwork.forward(network, seen), rtol=1e-4, atol=1e-5)
    assert (box.feature_dim, box.output_dim) == (FEATURES, OUTPUTS)
    assert box.head is not None
    torch.testing.assert_close(F.linear(features, *box.head), outputs, rtol=1e-4, atol=1e-5)


def test_callable_giving_a_module(monkeypatch: pytest.MonkeyPatch, network: SmallNetwork, images: Tensor) -> None:
    box = load_blackbox(named(monkeypatch, network))
    assert box.layer == "classifier:input"
    assert_is_network(box, network, images, images)


def test_layer_given_by_name_has_the_same_head_as_by_default(
    monkeypatch: pytest.MonkeyPatch, network: SmallNetwork, images: Tensor
) -> None:
    spec = named(monkeypatch, network)
    default = load_blackbox(spec)
    again = load_blackbox(default.spec, default.layer)
    assert again.sha256 == default.sha256
    assert_is_network(again, network, images, images)


def test_inner_map_is_averaged_before_it_is_changed_in_place(
    monkeypatch: pytest.MonkeyPatch, network: SmallNetwork, images: Tensor
) -> None:
    box = load_blackbox(named(monkeypatch, network), "convolution")
    with torch.no_grad():
        maps = network.convolution(images)
    expected = maps.mean((2, 3))
    assert not torch.allclose(expected, maps.relu().mean((2, 3)))
    torch.testing.assert_close(box(images)[0], expected)
    assert box.head is None


def test_callable_giving_a_function(monkeypatch: pytest.MonkeyPatch, images: Tensor) -> None:
    box = load_blackbox(named(monkeypatch, lambda batch: (batch.mean((2, 3)), batch.amax((1, 2, 3))[:, None])))
    features, outputs = box(images)
    torch.testing.assert_close(features, images.mean((2, 3)))
    torch.testing.assert_close(outputs, images.amax((1, 2, 3))[:, None])
    assert (box.layer, box.feature_dim, box.output_dim, box.output_kind) == ("features", 3, 1, "other")


def test_callable_in_a_file_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "box_beside_me.py").write_text(
        "def make():\n    return lambda x: (x.mean((2, 3)), x.mean((1, 2, 3)))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "box_beside_me", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert load_blackbox("box_beside_me:make").output_dim == 1


@pytest.mark.parametrize("trace", [True, False])
def test_torchscript(tmp_path: Path, network: SmallNetwork, images: Tensor, trace: bool) -> None:
    spec = save_script(network, tmp_path / "box.pt", trace) + "?range=-1,1"
    box = load_blackbox(spec)
    assert_is_network(box, network, images, images)
    inner = next(name for name, width in list_layers(spec) if width == 4 and name.startswith("conv"))
    with torch.no_grad():
        torch.testing.assert_close(load_blackbox(spec, inner)(images)[0], network.convolution(images).mean((2, 3)))


@pytest.mark.parametrize("batch", ["N", 2])
def test_onnx(tmp_path: Path, network: SmallNetwork, images: Tensor, batch: object) -> None:
    box = load_blackbox(save_onnx(network, tmp_path / "box.onnx", batch=batch))
    assert (box.layer, box.image_size) == ("features", SIZE)
    assert_is_network(box, network, images, (images + 1) / 2)


def test_onnx_inner_tensor_by_name(tmp_path: Path, network: SmallNetwork, images: Tensor) -> None:
    spec = save_onnx(network, tmp_path / "box.onnx")
    assert dict(list_layers(spec)) == {
        "maps": 4, "active": 4, "pooled": 4, "flat": 4, "hidden": 6, "features": 6, "product": 8, "logits": 8
    }  # fmt: skip
    before = Path(spec).read_bytes()
    with torch.no_grad():
        expected = network.convolution((images + 1) / 2).mean((2, 3))
    torch.testing.assert_close(load_blackbox(spec, "maps")(images)[0], expected, rtol=1e-4, atol=1e-5)
    assert Path(spec).read_bytes() == before


def test_onnx_channels_last_input_is_seen_from_its_shape(tmp_path: Path, network: SmallNetwork, images: Tensor) -> None:
    box = load_blackbox(save_onnx(network, tmp_path / "box.onnx", layout="nhwc"))
    assert box.preprocessing.layout == "nhwc"
    assert_is_network(box, network, images, (images + 1) / 2)


def test_outputs_are_logits_where_the_network_ends_in_softmax(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: SmallNetwork, images: Tensor
) -> None:
    assert_is_network(
        load_blackbox(save_onnx(network, tmp_path / "b.onnx", softmax=True)), network, images, (images + 1) / 2
    )
    torch.manual_seed(1)
    probabilities = EndsInSoftmax().eval()
    assert_is_network(load_blackbox(named(monkeypatch, probabilities)), network, images, images)


def test_torchvision_with_weights_of_another_class_count(tmp_path: Path, images: Tensor) -> None:
    import torchvision

    model = torchvision.models.mobilenet_v3_small(weights=None, num_classes=5).eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    box = load_blackbox(f"torchvision:mobilenet_v3_small:{tmp_path / 'weights.safetensors'}?image_size=64")
    resized = F.interpolate(images, (64, 64), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = model(((resized + 1) / 2 - mean) / std)
    torch.testing.assert_close(box(images)[1], expected, rtol=1e-3, atol=1e-4)
    assert (box.layer, box.feature_dim, box.output_dim) == ("classifier.3:input", 1024, 5)


def test_random_weights_are_said_to_be_random_and_are_always_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.get_rng_state()
    first = load_blackbox("torchvision:squeezenet1_1?image_size=64", "features.3")
    assert "RANDOM" in capsys.readouterr().err
    assert first.sha256 == load_blackbox("torchvision:squeezenet1_1?image_size=64", "features.3").sha256
    assert torch.equal(torch.get_rng_state(), state)


def test_timm(images: Tensor) -> None:
    pytest.importorskip("timm")
    box = load_blackbox("timm:resnet10t?image_size=32")
    assert box.layer == "fc:input"
    assert box.preprocessing.mean == (0.485, 0.456, 0.406)
    features, outputs = box(images)
    assert box.head is not None
    torch.testing.assert_close(F.linear(features, *box.head), outputs)


def test_pth_with_tensors_loads(tmp_path: Path) -> None:
    import torchvision

    state = torchvision.models.shufflenet_v2_x0_5(weights=None, num_classes=3).state_dict()
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 3}, path)
    box = load_blackbox(f"torchvision:shufflenet_v2_x0_5:{path}?image_size=32")
    assert box.head is not None
    assert torch.equal(box.head[0], state["fc.weight"])


def test_options_of_the_call_are_kept_in_the_spec(
    monkeypatch: pytest.MonkeyPatch, network: SmallNetwork, images: Tensor
) -> None:
    spec = named(monkeypatch, network)
    box = load_blackbox(
        spec, preprocessing={"image_size": 8, "mean": (0.1, 0.2, 0.3), "channels": "bgr"}, output_kind="expression"
    )
    again = load_blackbox(box.spec, box.layer)
    assert torch.equal(again(images)[0], box(images)[0])
    assert again.sha256 == box.sha256 != load_blackbox(spec).sha256
    assert again.output_kind == "expression"
    assert again.class_names[:2] == ("neutral", "happy")


def test_preprocessing_by_hand() -> None:
    images = torch.tensor([-1.0, 0.0, 1.0])[None, :, None, None].expand(1, 3, 8, 8)
    caffe = Preprocessing.model_validate({"range": "0,255", "channels": "bgr", "mean": "104,117,123", "layout": "nhwc"})
    assert caffe(images).shape == (1, 8, 8, 3)
    torch.testing.assert_close(caffe(images)[0, 0, 0], torch.tensor([255 - 104, 127.5 - 117, 0 - 123]))
    grey = Preprocessing(range=(0, 1), channels="grey", std=(2,))
    torch.testing.assert_close(grey(images)[0, :, 0, 0], torch.tensor([(0.587 * 0.5 + 0.114) / 2]))
    assert Preprocessing(image_size=16)(images).shape == (1, 3, 16, 16)


def test_no_gradient_and_no_training_mode(monkeypatch: pytest.MonkeyPatch, images: Tensor) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * SIZE * SIZE, 4)).train()
    box = load_blackbox(named(monkeypatch, network), preprocessing={"image_size": SIZE})
    features, outputs = box(images.requires_grad_())
    assert not features.requires_grad and not outputs.requires_grad
    assert torch.equal(box(images)[0], features)

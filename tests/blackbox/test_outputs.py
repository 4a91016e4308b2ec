"""Tests of networks with several outputs, feature maps in other layouts, and sizes that are fixed in a file."""

import logging
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from featgan.blackbox.adapters.base import summarize_error
from featgan.errors import UserError
from tests.blackbox.small_network import list_layers, load_blackbox, register_callable_spec

SIZE = 32


class DictionaryNetwork(nn.Module):
    """Returns a heat map first and then the outputs, as networks for faces do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.heat_map, self.head = nn.Conv2d(16, 20, 1), nn.Linear(16, 10)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.convolution(images).relu()
        values = self.head(maps.mean((2, 3)))
        return {
            "heat_map": self.heat_map(maps),
            "expression": values[:, :-2],
            "valence": values[:, -2],
            "arousal": values[:, -1],
        }


class TupleNetwork(DictionaryNetwork):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        found = super().forward(images)
        return found["expression"], found["heat_map"]


class InceptionOutputs(NamedTuple):
    logits: Tensor
    aux_logits: Tensor


class AuxiliaryNetwork(DictionaryNetwork):
    def forward(self, images: Tensor) -> InceptionOutputs:  # type: ignore[override]
        found = super().forward(images)
        return InceptionOutputs(found["expression"], found["expression"] * 2)


def save_trace(network: nn.Module, path: Path, count: int = 1, strict: bool = True) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(network.eval(), torch.rand(count, 3, SIZE, SIZE), strict=strict).save(str(path))
    return f"{path}?image_size={SIZE}&range=-1,1"


def make_spec(kind: str, network: nn.Module, path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if kind == "callable":
        return register_callable_spec(monkeypatch, network) + f"?image_size={SIZE}"
    return save_trace(network, path, strict=False)


@pytest.mark.parametrize("kind", ["callable", "torchscript"])
def test_several_outputs_are_listed_and_selected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    network = DictionaryNetwork().eval()
    spec = make_spec(kind, network, tmp_path / "model.pt", monkeypatch)
    listed = "4 outputs: heat_map (20 x 16 x 16), expression (8), valence (1), arousal (1); choose one"
    for function in (load_blackbox, list_layers):
        with pytest.raises(UserError) as caught:
            function(spec)
        assert listed in str(caught.value)
        assert "SPEC?output=expression" in str(caught.value)
    images = torch.rand(4, 3, SIZE, SIZE) * 2 - 1
    with torch.no_grad():
        expected = network(images)
    for choice, name in (("expression", "expression"), ("1", "expression"), ("valence", "valence")):
        blackbox = load_blackbox(f"{spec}&output={choice}")
        outputs = blackbox(images)[1]
        torch.testing.assert_close(outputs, expected[name].reshape(4, -1), rtol=1e-4, atol=1e-5)
        assert f"output={choice}" in blackbox.spec
    with pytest.raises(UserError, match="no output 'mouth'; the outputs are heat_map"):
        load_blackbox(f"{spec}&output=mouth")


@pytest.mark.parametrize("kind", ["callable", "torchscript"])
def test_items_of_a_tuple_have_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    spec = make_spec(kind, TupleNetwork().eval(), tmp_path / "model.pt", monkeypatch)
    with pytest.raises(UserError, match=r"2 outputs: 0 \(8\), 1 \(20 x 16 x 16\)"):
        load_blackbox(spec)
    assert load_blackbox(f"{spec}&output=0").output_dim == 8


def test_auxiliary_outputs_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    network = AuxiliaryNetwork().eval()
    blackbox = load_blackbox(register_callable_spec(monkeypatch, network))
    images = torch.rand(4, 3, SIZE, SIZE) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(blackbox(images)[1], network(images).logits)


@pytest.mark.slow
def test_scripted_inception_gives_its_logits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = torchvision.models.inception_v3(weights=None, init_weights=False, num_classes=4).eval()
    torch.jit.script(network).save(str(tmp_path / "inception.pt"))  # type: ignore[no-untyped-call]
    blackbox = load_blackbox(f"{tmp_path / 'inception.pt'}?image_size=96&range=-1,1")
    images = torch.rand(2, 3, 96, 96) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(blackbox(images)[1], network(images), rtol=1e-3, atol=1e-4)


def test_onnx_outputs_are_listed_and_selected(tmp_path: Path) -> None:
    spec = save_two_output_onnx(tmp_path / "model.onnx")
    with pytest.raises(UserError, match=r"2 outputs: age \(1\), expression \(4\); choose one"):
        load_blackbox(spec)
    images = torch.rand(3, 3, 8, 8) * 2 - 1
    expected = ((images + 1) / 2).mean((2, 3)) @ torch.ones(3, 4)
    torch.testing.assert_close(load_blackbox(f"{spec}?output=expression")(images)[1], expected)
    assert load_blackbox(f"{spec}?output=0").output_dim == 1


def save_two_output_onnx(path: Path) -> str:
    """Save a graph with the outputs age [N, 1], expression [N, 4] and the predicted class, an integer."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, types = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["pooled"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["pooled", "first"], ["age"]),
        helper.make_node("MatMul", ["pooled", "second"], ["expression"]),
        helper.make_node("ArgMax", ["expression"], ["label"], axis=1, keepdims=0),
    ]
    outputs = [
        helper.make_tensor_value_info("age", types.FLOAT, ["N", 1]),
        helper.make_tensor_value_info("expression", types.FLOAT, ["N", 4]),
        helper.make_tensor_value_info("label", types.INT64, ["N"]),
    ]
    weights = {"first": np.ones((3, 1), np.float32), "second": np.ones((3, 4), np.float32)}
    graph = helper.make_graph(
        nodes,
        "two",
        [helper.make_tensor_value_info("images", types.FLOAT, ["N", 3, 8, 8])],
        outputs,
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return str(path)


def save_reshaping_onnx(path: Path, batch: object, constants: bool) -> str:
    """Save a graph that reshapes its maps to a batch of one, with its weights in Constant nodes or initializers."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, types, generator = onnx.helper, onnx.TensorProto, np.random.default_rng(0)
    weights = {
        "kernel": generator.normal(size=(4, 1, 3, 3)).astype(np.float32),
        "matrix": generator.normal(size=(4 * 8 * 8, 5)).astype(np.float32),
        "bias": generator.normal(size=(1, 5)).astype(np.float32),
        "shape": np.array([1, 4 * 8 * 8], np.int64),
    }
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    nodes = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in tensors] if constants else []
    nodes += [
        helper.make_node("Conv", ["images", "kernel"], ["maps"], pads=[1, 1, 1, 1]),
        helper.make_node("Reshape", ["maps", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "reshaping",
        [helper.make_tensor_value_info("images", types.FLOAT, [batch, 1, 8, 8])],
        [helper.make_tensor_value_info("logits", types.FLOAT, [batch, 5])],
        [] if constants else tensors,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return str(path)


@pytest.mark.parametrize("batch", [1, "N"])
@pytest.mark.parametrize("constants", [True, False])
def test_onnx_with_a_fixed_batch_and_weights_in_constants(tmp_path: Path, batch: object, constants: bool) -> None:
    blackbox = load_blackbox(save_reshaping_onnx(tmp_path / "model.onnx", batch, constants))
    assert (blackbox.layer, blackbox.feature_dim, blackbox.output_dim) == ("flat", 256, 5)
    assert blackbox.head is not None
    images = torch.rand(4, 3, 8, 8) * 2 - 1
    together, separate = blackbox(images)[1], torch.cat([blackbox(image)[1] for image in images.split(1)])
    torch.testing.assert_close(together, separate)
    assert float(together.std(0).min()) > 0


class ShufflingNetwork(nn.Module):
    """Uses sizes as Python numbers, which a trace records."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 7)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.convolution(images).relu()
        batch, channels, height, width = (int(size) for size in maps.shape)
        maps = maps.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, -1, height, width)
        logits: Tensor = self.head(maps.mean((2, 3)))
        return logits


def test_trace_with_a_fixed_batch_runs_one_image_at_a_time(tmp_path: Path) -> None:
    network = ShufflingNetwork().eval()
    spec = save_trace(network, tmp_path / "model.pt")
    blackbox = load_blackbox(spec)
    images = torch.rand(4, 3, SIZE, SIZE) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(blackbox(images)[1], network(images), rtol=1e-4, atol=1e-5)
    assert ("linear.1:input", 8) in list_layers(spec)
    with pytest.raises(UserError, match="a size is fixed in the file: give the one that it was saved with"):
        load_blackbox(f"{tmp_path / 'model.pt'}?image_size=48")


class DeviceNetwork(nn.Module):
    """Creates a tensor on the device of its input, which a trace records."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 7)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.mean((2, 3)) + torch.ones(3, device=images.device))
        return logits


def test_device_that_a_trace_recorded_is_replaced(tmp_path: Path) -> None:
    """A trace that was saved on the meta device stands for one that was saved on a GPU."""
    network = DeviceNetwork().eval()
    trace = torch.jit.trace(network, torch.rand(1, 3, SIZE, SIZE))
    trace.save(str(tmp_path / "cpu.pt"))
    replace_in_archive(tmp_path / "cpu.pt", tmp_path / "gpu.pt", b'torch.device("cpu")', b'torch.device("cuda:0")')
    images = torch.rand(4, 3, SIZE, SIZE) * 2 - 1
    for name in ("cpu.pt", "gpu.pt"):
        with torch.no_grad():
            torch.testing.assert_close(load_blackbox(f"{tmp_path / name}?range=-1,1")(images)[1], network(images))


def replace_in_archive(source_path: Path, target_path: Path, old: bytes, new: bytes) -> None:
    """Copy a TorchScript file with other text in its code."""
    import zipfile

    num_replaced = 0
    with zipfile.ZipFile(source_path) as source, zipfile.ZipFile(target_path, "w") as target:
        for item in source.infolist():
            content = source.read(item)
            if item.filename.endswith(".py"):
                num_replaced += content.count(old)
                content = content.replace(old, new)
            if not item.filename.endswith(".debug_pkl"):
                name = item.filename.replace(f"{source_path.stem}/", f"{target_path.stem}/", 1)
                target.writestr(name, content)
    assert num_replaced


def test_network_saved_in_training_mode_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(network.train(), torch.rand(2, 3, SIZE, SIZE), check_trace=False).save(
            str(tmp_path / "model.pt")
        )
    logging.getLogger("featgan").addHandler(caplog.handler)
    try:
        load_blackbox(f"{tmp_path / 'model.pt'}?image_size={SIZE}")
    finally:
        logging.getLogger("featgan").removeHandler(caplog.handler)
    assert "depend on the other images of its batch" in caplog.text


def test_missing_external_weights_are_named(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(save_two_output_onnx(tmp_path / "model.onnx"))
    (tmp_path / "moved").mkdir()
    path = tmp_path / "moved" / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    (tmp_path / "moved" / "model.onnx.data").unlink()
    with pytest.raises(UserError, match=r"the file with its weights is missing .*model\.onnx\.data.*copy it"):
        load_blackbox(f"{path}?output=expression")


def test_end_of_a_long_error_is_kept() -> None:
    message = "[ONNXRuntimeError] : 6 : Non-zero status code. Status Message: /a/b.h:47 " + "x" * 400 + " shape:{3,4}"
    assert summarize_error(RuntimeError(message)).endswith("shape:{3,4}")
    assert len(summarize_error(RuntimeError(message))) < 260


POOLED: dict[str, tuple[str, int]] = {
    # Name => the last stage of feature maps, before the pooling of the network itself.
    "swin_t": ("norm", 64),
    "convnext_tiny": ("features", 64),
    "swin_v2_t": ("norm", 64),
}


@pytest.mark.parametrize("name", POOLED)
def test_stage_of_any_layout_is_averaged_over_space(name: str) -> None:
    """The mean of the last stage must be what the network pools by itself."""
    layer, size = POOLED[name]
    spec = f"torchvision:{name}?image_size={size}"
    blackbox = load_blackbox(spec, layer)
    module = blackbox.network.module  # type: ignore[attr-defined]
    pooled: list[Tensor] = []
    module.avgpool.register_forward_hook(lambda module, inputs, output: pooled.append(output.flatten(1)))
    features = blackbox(torch.rand(2, 3, size, size) * 2 - 1)[0]
    assert blackbox.feature_dim == 768
    torch.testing.assert_close(features, pooled[-1], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layer"), [("vit_b_32", "heads.head:input"), ("maxvit_t", "classifier.5:input")])
def test_default_layer_of_a_transformer_is_its_pooled_feature(name: str, layer: str) -> None:
    blackbox = load_blackbox(f"torchvision:{name}?image_size=224")
    images = torch.rand(2, 3, 224, 224) * 2 - 1
    module = blackbox.network.module  # type: ignore[attr-defined]
    inputs: list[Tensor] = []
    head = module.get_submodule(layer.removesuffix(":input"))
    head.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    assert blackbox.layer == layer
    torch.testing.assert_close(blackbox(images)[0], inputs[-1])


def test_timm_stage_with_channels_last_is_averaged_over_space() -> None:
    pytest.importorskip("timm")
    blackbox = load_blackbox("timm:swin_tiny_patch4_window7_224", "norm")
    module = blackbox.network.module  # type: ignore[attr-defined]
    pooled: list[Tensor] = []
    module.head.global_pool.register_forward_hook(lambda module, inputs, output: pooled.append(output))
    features = blackbox(torch.rand(1, 3, 224, 224) * 2 - 1)[0]
    torch.testing.assert_close(features, pooled[-1], rtol=1e-3, atol=1e-4)

"""A small network, and functions that make a SPEC of it."""

import sys
import types
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from featgan.blackbox import extraction, loading
from featgan.config.trusted_callables import ALL_CALLABLES

SIZE = 16
FEATURES, OUTPUTS = 6, 8


load_blackbox = partial(loading.load_blackbox, trusted=ALL_CALLABLES)
list_layers = partial(loading.list_layers, trusted=ALL_CALLABLES)
extract_features = partial(extraction.extract_features, trusted=ALL_CALLABLES)


class SmallNetwork(nn.Module):
    """A network with four layers; the activation changes the output of the convolution in place."""

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


def register_callable_spec(monkeypatch: pytest.MonkeyPatch, value: object) -> str:
    """Register a callable that returns `value`, and return its SPEC."""
    module = types.ModuleType("external_code")
    module.build = lambda: value  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return "external_code:build"


def save_onnx(
    network: SmallNetwork, path: Path, softmax: bool = False, layout: str = "nchw", batch: object = "N"
) -> str:
    """Save the small network as an ONNX graph."""
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

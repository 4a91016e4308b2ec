"""ONNX files as black boxes through onnxruntime: any inner tensor becomes an output of the graph, in memory."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featgan.blackbox.adapters.base import cannot_run, hash_parts, no_layer, reason, width_of
from featgan.blackbox.preprocessing import UNIT, Preprocessing
from featgan.blackbox.spec import Spec, nearest
from featgan.errors import UserError
from featgan.system.files import sha256_of

MOST_BYTES = 2 << 30
"""Largest file: that of the format itself."""

KNOWN_CHANNELS = {1: "grey", 3: "rgb"}


class OnnxNetwork:
    """One ONNX graph; its layers are its tensors."""

    def __init__(self, spec: Spec, device: torch.device) -> None:
        self.spec = spec
        self.device = device
        self.onnx, self.runtime = import_onnx(spec)
        self.model = self.load()
        self.sha256 = self.hash_files()
        self.input = self.find_input()
        self.preprocessing, self.batch_size, self.dtype = self.read_input()
        self.output = self.model.graph.output[0].name
        self.linear = find_linear(self.model.graph, self.onnx.numpy_helper)
        self.session: Any = None
        self.tapped = ""

    def load(self) -> Any:
        try:
            if Path(self.spec.where).stat().st_size > MOST_BYTES:
                raise UserError(f"{self.spec.name}: larger than {MOST_BYTES >> 30} GiB, which no ONNX file is")
            model = self.onnx.load(self.spec.where)
        except UserError:
            raise
        except Exception as error:  # protobuf's errors have no common base
            raise UserError(f"{self.spec.name}: not an ONNX file ({reason(error)}); export it again") from error
        if not model.graph.node or not model.graph.output:
            raise UserError(f"{self.spec.name}: not an ONNX file, or an empty one; export the network again")
        return model

    def hash_files(self) -> str:
        """Of the file and of those beside it that hold weights for it."""
        bare = self.onnx.load(self.spec.where, load_external_data=False)
        entries = [entry for tensor in bare.graph.initializer for entry in tensor.external_data]
        places = sorted({entry.value for entry in entries if entry.key == "location"})
        paths = [Path(self.spec.where), *(Path(self.spec.where).parent / place for place in places)]
        return hash_parts([bytes.fromhex(sha256_of(path)) for path in paths])

    def find_input(self) -> Any:
        weights = {tensor.name for tensor in self.model.graph.initializer}
        inputs = [value for value in self.model.graph.input if value.name not in weights]
        if len(inputs) != 1:
            names = ", ".join(value.name for value in inputs) or "none"
            raise UserError(f"{self.spec.name}: needs exactly one input, images, but has {names}; export it so")
        return inputs[0]

    def read_input(self) -> tuple[Preprocessing, int | None, np.dtype]:
        """Preprocessing as far as the input's shape tells it, its fixed batch size if any, and its number type."""
        kind = self.input.type.tensor_type
        sizes = [dimension.dim_value or None for dimension in kind.shape.dim]
        dtype = np.dtype(self.onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
        if len(sizes) != 4 or dtype.kind not in "fu":
            raise UserError(f"{self.spec.name}: input {self.input.name} is not a batch of images; export it so")
        nhwc = sizes[3] in KNOWN_CHANNELS and sizes[1] not in KNOWN_CHANNELS
        channels, height, width = (sizes[3], sizes[1], sizes[2]) if nhwc else (sizes[1], sizes[2], sizes[3])
        if height and width and height != width:
            raise UserError(f"{self.spec.name}: takes images of {width} x {height}; only square ones are supported")
        preprocessing = UNIT.changed(
            {
                "image_size": height or width,
                "layout": "nhwc" if nhwc else "nchw",
                "channels": KNOWN_CHANNELS.get(channels or 3, "rgb"),
                "range": (0, 255) if dtype.kind == "u" else (0, 1),
            },
            self.spec.name,
        )
        return preprocessing, sizes[0], dtype

    def open_session(self, names: list[str]) -> Any:
        """A session that gives the outputs and the tensors of these names."""
        model = self.onnx.ModelProto()
        model.CopyFrom(self.model)
        there = {value.name for value in model.graph.output}
        model.graph.output.extend(self.onnx.ValueInfoProto(name=name) for name in names if name not in there)
        options = self.runtime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = torch.get_num_threads()
        wanted = ["CUDAExecutionProvider"] if self.device.type == "cuda" else []
        providers = [name for name in wanted if name in self.runtime.get_available_providers()]
        try:
            return self.runtime.InferenceSession(
                model.SerializeToString(), options, providers=[*providers, "CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors have no common base
            raise UserError(f"{self.spec.name}: onnxruntime cannot open it ({reason(error)})") from error

    def run(self, session: Any, names: list[str], images: Tensor) -> list[np.ndarray]:
        """These tensors for images, one fixed batch after the other where the graph asks for it."""
        array = images.cpu().numpy()
        array = (array.round().clip(0, 255) if self.dtype.kind == "u" else array).astype(self.dtype)
        size = self.batch_size or len(array)
        batches = []
        try:
            for start in range(0, len(array), size):
                part = array[start : start + size]
                filled = np.resize(part, (size, *part.shape[1:]))
                found = session.run(names, {self.input.name: filled})
                batches.append([values[: len(part)] if values.ndim else values[None] for values in found])
        except Exception as error:  # onnxruntime's errors have no common base
            raise cannot_run(self.spec.name, images.shape, error) from error
        return [np.concatenate(parts) for parts in zip(*batches, strict=True)]

    def list_layers(self, images: Tensor) -> list[tuple[str, int]]:
        names = self.tensor_names()
        found = self.run(self.open_session(names), names, images)
        widths = [(name, width_of(values.shape)) for name, values in zip(names, found, strict=True)]
        floats = {name for name, values in zip(names, found, strict=True) if values.dtype.kind == "f"}
        return [(name, width) for name, width in widths if width and name in floats]

    def tensor_names(self) -> list[str]:
        return [name for node in self.model.graph.node if node.op_type != "Constant" for name in node.output if name]

    def default_layer(self, images: Tensor) -> str | None:
        return None if self.linear is None else self.linear[0]

    def take(self, layer: str) -> None:
        names = self.tensor_names()
        if layer not in names:
            raise no_layer(self.spec.name, layer, nearest(layer, names))
        self.tapped = layer
        self.session = self.open_session([layer])

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found = self.run(self.session, [self.tapped, self.output], images)
        features, outputs = (torch.from_numpy(np.ascontiguousarray(values, np.float32)) for values in found)
        return features.to(self.device), outputs.to(self.device)

    def last_linear(self) -> tuple[Tensor, Tensor] | None:
        return None if self.linear is None else self.linear[1:]


def import_onnx(spec: Spec) -> tuple[Any, Any]:
    try:
        import onnx
        import onnx.helper
        import onnx.numpy_helper
        import onnxruntime
    except ImportError as error:
        raise UserError(f"{spec.name}: {error.name} is not installed; run `pip install 'featgan[onnx]'`") from error
    return onnx, onnxruntime


def find_linear(graph: Any, numpy_helper: Any) -> tuple[str, Tensor, Tensor] | None:
    """What goes into the last linear operation (Gemm, or MatMul and Add), its weight [O, F] and its bias [O]."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for number, node in reversed(list(enumerate(graph.node))):
        if node.op_type not in ("Gemm", "MatMul") or node.input[1] not in constants:
            continue
        matrix = numpy_helper.to_array(constants[node.input[1]]).astype(np.float32)
        if matrix.ndim != 2:
            continue
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type == "MatMul" or not attributes.get("transB") or not attributes["transB"].i:
            matrix = matrix.T
        bias = constants.get(find_bias(node, graph.node[number + 1 :]))
        offset = np.zeros(len(matrix)) if bias is None else numpy_helper.to_array(bias).reshape(-1)
        weight = torch.from_numpy(np.ascontiguousarray(matrix))
        return node.input[0], weight, torch.from_numpy(offset.astype(np.float32))
    return None


def find_bias(node: Any, following: Any) -> str:
    """The name of what is added to the product: Gemm's third input, or the other input of the Add behind a MatMul."""
    if node.op_type == "Gemm":
        return node.input[2] if len(node.input) > 2 else ""
    for add in following:
        if add.op_type == "Add" and node.output[0] in add.input:
            return next((name for name in add.input if name != node.output[0]), "")
    return ""

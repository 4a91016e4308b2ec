"""Run ONNX files with onnxruntime: any inner tensor is added to the outputs of the graph in memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featgan.blackbox.adapters.base import (
    feature_width,
    forward_error,
    hash_byte_chunks,
    select_output_name,
    summarize_error,
    unknown_layer_error,
)
from featgan.blackbox.adapters.onnx_check import check_onnx_model
from featgan.blackbox.preprocessing import KIND_DEFAULTS, UNIT_RANGE, Preprocessing
from featgan.blackbox.spec import BlackBoxSpec, suggest_names
from featgan.errors import UserError
from featgan.system.files import open_regular_file, sha256_of
from featgan.system.limits import MAX_BATCH_PIXELS
from featgan.system.protobuf_files import check_message

MODEL_FIELDS = frozenset(bytes([number << 3 | wire_type]) for number in range(1, 16) for wire_type in (0, 2))
"""First bytes of a serialized model: the tag of one of its fields, which are numbers or messages."""

FATAL = 4
"""Severity of the messages that onnxruntime prints. Its errors are also raised, and reported in one line."""

CHANNELS_BY_COUNT = {1: "gray", 3: "rgb"}


class OnnxAdapter:
    """An ONNX graph; its layers are its tensors."""

    def __init__(self, spec: BlackBoxSpec, device: torch.device) -> None:
        self.spec = spec
        self.device = device
        self.onnx, self.runtime = import_onnx(spec)
        self.external_files: dict[str, str] = {}
        """Names of the files with the weights, in the folder of the model => sha256."""
        with convert_graph_errors(spec):
            self.model = self.load_model()
            self.sha256 = self.hash_files()
            self.input = self.find_input()
            self.preprocessing, self.batch_size, self.dtype = self.read_input()
            self.preprocessing_source = KIND_DEFAULTS["onnx"].source
            self.class_names: tuple[str, ...] = ()
            self.output = self.select_output()
            self.linear = find_last_linear(self.model.graph, self.onnx.numpy_helper)
        self.session: Any = None
        self.selected_layer = ""

    def load_model(self) -> Any:
        """Read the file; raises UserError if it is not an ONNX file, or contains what is not allowed."""
        path = Path(self.spec.location)
        with open_regular_file(path) as file:
            if file.read(1)[:1] not in MODEL_FIELDS:  # otherwise the whole file would be read before the first error
                raise UserError(f"{self.spec.name}: not an ONNX file; export the network again")
            file.seek(0)
            content = file.read()
        check_message(memoryview(content), self.onnx.ModelProto.DESCRIPTOR)
        model = self.onnx.load_model_from_string(content)
        if not model.graph.node or not model.graph.output:
            raise UserError(f"{self.spec.name}: not an ONNX file, or an empty graph; export the network again")
        locations = check_onnx_model(model, path, self.spec.name)
        self.external_files = {location: sha256_of(path.parent / location) for location in locations}
        if locations:
            self.onnx.load_external_data_for_model(model, str(path.parent))
        return model

    def hash_files(self) -> str:
        """Hash the file and the external files that contain its weights."""
        hashes = [sha256_of(Path(self.spec.location)), *self.external_files.values()]
        return hash_byte_chunks([bytes.fromhex(sha256) for sha256 in hashes])

    def find_input(self) -> Any:
        """Return the only input of the graph; raises UserError if there is not exactly one."""
        weights = {tensor.name for tensor in self.model.graph.initializer}
        inputs = [value for value in self.model.graph.input if value.name not in weights]
        if len(inputs) != 1:
            names = ", ".join(value.name for value in inputs) or "none"
            raise UserError(
                f"{self.spec.name}: expected exactly one input (images), found {names}; export it again with one input"
            )
        return inputs[0]

    def read_input(self) -> tuple[Preprocessing, int | None, np.dtype]:
        """Return the preprocessing inferred from the input's shape, its fixed batch size or None, and its data type."""
        tensor_type = self.input.type.tensor_type
        sizes = [dimension.dim_value or None for dimension in tensor_type.shape.dim]
        dtype = np.dtype(self.onnx.helper.tensor_dtype_to_np_dtype(tensor_type.elem_type))
        if len(sizes) != 4 or dtype.kind not in "fu":
            raise UserError(
                f"{self.spec.name}: input {self.input.name} is not a batch of images; "
                "export it with a 4-dimensional input"
            )
        nhwc = sizes[3] in CHANNELS_BY_COUNT and sizes[1] not in CHANNELS_BY_COUNT
        channels, height, width = (sizes[3], sizes[1], sizes[2]) if nhwc else (sizes[1], sizes[2], sizes[3])
        if height and width and height != width:
            raise UserError(
                f"{self.spec.name}: expects images of {width} x {height}, but only square images are supported; "
                "export it with a square input"
            )
        if (sizes[0] or 1) * (height or 1) ** 2 > MAX_BATCH_PIXELS:
            raise UserError(
                f"{self.spec.name}: expects batches of {sizes[0]:,} images of {height} pixels, which need too much"
                " memory; export it with a variable batch size"
            )
        preprocessing = UNIT_RANGE.with_options(
            {
                "image_size": height or width,
                "layout": "nhwc" if nhwc else "nchw",
                "channels": CHANNELS_BY_COUNT.get(channels or 3, "rgb"),
                "range": (0, 255) if dtype.kind == "u" else (0, 1),
            },
            self.spec.name,
        )
        return preprocessing, sizes[0], dtype

    def select_output(self) -> str:
        """Return the name of the output that the SPEC selects, or of the only one with real numbers."""
        floats = (self.onnx.TensorProto.FLOAT, self.onnx.TensorProto.FLOAT16, self.onnx.TensorProto.DOUBLE)
        outputs = {
            value.name: [dimension.dim_value or dimension.dim_param or "?" for dimension in sizes[1:]]
            for value in self.model.graph.output
            if value.type.tensor_type.elem_type in floats
            for sizes in [value.type.tensor_type.shape.dim]
        }
        if not outputs:
            raise UserError(f"{self.spec.name}: no output with real numbers; export the network with its logits")
        return select_output_name(self.spec, outputs)

    def open_session(self, names: list[str]) -> Any:
        """Create a session that returns the outputs and the tensors with these names."""
        model = self.onnx.ModelProto()
        model.CopyFrom(self.model)
        existing_outputs = {value.name for value in model.graph.output}
        model.graph.output.extend(self.onnx.ValueInfoProto(name=name) for name in names if name not in existing_outputs)
        options = self.runtime.SessionOptions()
        options.log_severity_level = FATAL
        options.intra_op_num_threads = torch.get_num_threads()
        preferred = ["CUDAExecutionProvider"] if self.device.type == "cuda" else []
        providers = [name for name in preferred if name in self.runtime.get_available_providers()]
        try:
            return self.runtime.InferenceSession(
                model.SerializeToString(), options, providers=[*providers, "CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors have no common base
            raise UserError(
                f"{self.spec.name}: onnxruntime cannot open it ({summarize_error(error)}); export it again"
            ) from error

    def run_session(self, session: Any, names: list[str], images: Tensor) -> list[np.ndarray]:
        """Compute these tensors for the images, in batches of a fixed size if the graph requires it."""
        array = images.cpu().numpy()
        array = (array.round().clip(0, 255) if self.dtype.kind == "u" else array).astype(self.dtype)
        size = self.batch_size or len(array)
        batches = []
        try:
            for start in range(0, len(array), size):
                batch = array[start : start + size]
                padded = np.resize(batch, (size, *batch.shape[1:]))
                arrays = session.run(names, {self.input.name: padded})
                batches.append([values[: len(batch)] if values.ndim else values[None] for values in arrays])
        except Exception as error:  # onnxruntime's errors have no common base
            raise forward_error(self.spec.name, images.shape, error) from error
        return [np.concatenate(chunks) for chunks in zip(*batches, strict=True)]

    def list_layers(self, images: Tensor) -> list[tuple[str, int]]:
        names = self.list_tensor_names()
        arrays = self.run_session(self.open_session(names), names, images)
        widths = [(name, feature_width(values.shape, len(images))) for name, values in zip(names, arrays, strict=True)]
        floats = {name for name, values in zip(names, arrays, strict=True) if values.dtype.kind == "f"}
        return [(name, width) for name, width in widths if width and name in floats]

    def list_tensor_names(self) -> list[str]:
        """List the tensors that the graph computes."""
        return [name for node in self.model.graph.node if node.op_type != "Constant" for name in node.output if name]

    def default_layer(self, images: Tensor) -> str | None:
        return find_last_convolution(self.model.graph) if self.linear is None else self.linear[0]

    def compute_outputs(self, images: Tensor) -> Tensor:
        if self.session is None:
            self.session = self.open_session([])
        return torch.from_numpy(np.asarray(self.run_session(self.session, [self.output], images)[0], np.float32))

    def select_layer(self, layer: str) -> None:
        names = self.list_tensor_names()
        if layer not in names:
            raise unknown_layer_error(self.spec.name, layer, suggest_names(layer, names))
        self.selected_layer = layer
        self.session = self.open_session([layer])

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        arrays = self.run_session(self.session, [self.selected_layer, self.output], images)
        features, outputs = (torch.from_numpy(np.ascontiguousarray(values, np.float32)) for values in arrays)
        return features.to(self.device), outputs.to(self.device)

    def last_linear(self) -> tuple[Tensor, Tensor] | None:
        return None if self.linear is None else self.linear[1:]


@contextmanager
def convert_graph_errors(spec: BlackBoxSpec) -> Iterator[None]:
    """Convert every error about a damaged graph to a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the errors of protobuf and onnx have no common base
        raise UserError(f"{spec.name}: not an ONNX file ({summarize_error(error)}); export it again") from error


def import_onnx(spec: BlackBoxSpec) -> tuple[Any, Any]:
    """Import onnx and onnxruntime; raises UserError if one is not installed."""
    try:
        import onnx
        import onnx.helper
        import onnx.numpy_helper
        import onnxruntime
    except ImportError as error:
        raise UserError(f"{spec.name}: {error.name} is not installed; run `pip install 'featgan[onnx]'`") from error
    onnxruntime.set_default_logger_severity(FATAL)
    return onnx, onnxruntime


def find_constants(graph: Any) -> dict[str, Any]:
    """Return the constant tensors of a graph by name: initializers, Constant nodes and what only passes them on."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            values = [attribute.t for attribute in node.attribute if attribute.name == "value"]
            constants |= dict(zip(node.output, values, strict=False))
        elif node.op_type == "Identity" and node.input[0] in constants:
            constants[node.output[0]] = constants[node.input[0]]
    return constants


def find_last_linear(graph: Any, numpy_helper: Any) -> tuple[str, Tensor, Tensor] | None:
    """Return the last linear operation (Gemm, or MatMul and Add): input name, weight [O, F], bias [O]; else None."""
    constants = find_constants(graph)
    for node_index, node in reversed(list(enumerate(graph.node))):
        if node.op_type not in ("Gemm", "MatMul") or node.input[1] not in constants:
            continue
        matrix = numpy_helper.to_array(constants[node.input[1]]).astype(np.float32)
        if matrix.ndim != 2:
            continue
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type == "MatMul" or not attributes.get("transB") or not attributes["transB"].i:
            matrix = matrix.T
        bias = constants.get(find_bias_name(node, graph.node[node_index + 1 :]))
        bias_values = np.zeros(len(matrix)) if bias is None else numpy_helper.to_array(bias).reshape(-1)
        weight = torch.from_numpy(np.ascontiguousarray(matrix))
        return node.input[0], weight, torch.from_numpy(bias_values.astype(np.float32))
    return None


def find_last_convolution(graph: Any) -> str | None:
    """Return the name of the input of the last convolution, or None."""
    return next((node.input[0] for node in reversed(graph.node) if node.op_type == "Conv"), None)


def find_bias_name(node: Any, following: Any) -> str:
    """Return the name of the bias: the third input of a Gemm, or the other input of the Add after a MatMul."""
    if node.op_type == "Gemm":
        return node.input[2] if len(node.input) > 2 else ""
    for add in following:
        if add.op_type == "Add" and node.output[0] in add.input:
            return next((name for name in add.input if name != node.output[0]), "")
    return ""

"""Run TorchScript files: hooks do not work inside them, so the layer is added to the outputs of the graph."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.jit._fuser import optimized_execution
from torch.jit._recursive import wrap_cpp_module

from featgan.blackbox.adapters.base import (
    INPUT_SUFFIX,
    feature_width,
    forward_error,
    select_output,
    summarize_error,
    unknown_layer_error,
)
from featgan.blackbox.adapters.torchscript_check import check_archive, check_operators
from featgan.blackbox.preprocessing import KIND_DEFAULTS, UNIT_RANGE
from featgan.blackbox.spec import BlackBoxSpec, suggest_names
from featgan.errors import UserError
from featgan.system.files import sha256_of

LINEAR_OPERATIONS = ("aten::linear", "aten::addmm")
CONVOLUTIONS = ("aten::_convolution", "aten::convolution", "aten::conv2d")


class TorchScriptAdapter:
    """A frozen graph; its layers are its operations, numbered by kind: `relu.3`, or `linear.1:input` for an input."""

    def __init__(self, spec: BlackBoxSpec, device: torch.device) -> None:
        self.spec = spec
        self.preprocessing = UNIT_RANGE
        self.preprocessing_source = KIND_DEFAULTS["torchscript"].source
        self.class_names: tuple[str, ...] = ()
        self.module, self.graph = load_graph(spec, device)
        self.sha256 = sha256_of(Path(spec.location))
        self.values, self.linear = collect_named_values(self.graph)
        self.layer_function: Any = None

    def build_function(self, names: list[str]) -> Any:
        """Build a function that returns the value of the network, in a tuple before the values with these names."""
        graph = self.graph.copy()
        values, _ = collect_named_values(graph)
        for name in names:
            graph.registerOutput(values[name])
        if names:
            graph.makeMultiOutputIntoTuple()
        return torch._C._create_function_from_graph("forward", graph)

    def call_function(self, function: Any, images: Tensor) -> Any:
        """Return the result of a function of the graph; raises UserError if it cannot run on these images."""
        try:
            # Optimization repeats for every batch shape, which costs more than it saves.
            with torch.no_grad(), optimized_execution(False):
                return function(self.module._c, images)
        except RuntimeError as error:
            raise forward_error(self.spec.name, images.shape, error) from error

    def list_layers(self, images: Tensor) -> list[tuple[str, int]]:
        names = list(self.values)
        _, *tensors = self.call_function(self.build_function(names), images)
        widths = [
            (name, feature_width(value.shape, len(images)))
            for name, value in zip(names, tensors, strict=True)
            if value.ndim
        ]
        return [(name, width) for name, width in widths if width]

    def default_layer(self, images: Tensor) -> str | None:
        return next((name for name in reversed(self.values) if name.endswith(INPUT_SUFFIX)), None)

    def select_layer(self, layer: str) -> None:
        if layer not in self.values:
            raise unknown_layer_error(self.spec.name, layer, suggest_names(layer, self.values))
        self.layer_function = self.build_function([layer])

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        value, features = self.call_function(self.layer_function, images)
        return features, select_output(self.spec, value)

    def compute_outputs(self, images: Tensor) -> Tensor:
        return select_output(self.spec, self.call_function(self.build_function([]), images))

    def last_linear(self) -> tuple[Tensor, Tensor] | None:
        return self.linear


def load_graph(spec: BlackBoxSpec, device: torch.device) -> tuple[Any, Any]:
    """Load the module and its graph: one flat list of operations without submodules and in-place operations."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            module = load_module(spec, device).eval()
            module = torch.jit.freeze(module, optimize_numerics=False)
    except UserError:
        raise
    except (RuntimeError, ValueError, OSError) as error:
        hint = "save one with torch.jit.trace(...).save(...), or use package.module:callable"
        raise UserError(f"{spec.name}: not a TorchScript file ({summarize_error(error)}); {hint}") from error
    graph = module.graph.copy()
    torch._C._jit_pass_remove_mutation(graph)
    replace_devices(graph, graph, device)
    return module, graph


def load_module(spec: BlackBoxSpec, device: torch.device) -> Any:
    """Load the module as torch.jit.load does; raises UserError if its code has an operator that is not allowed.

    Freezing the module runs parts of its code, so this check comes first.
    """
    check_archive(Path(spec.location), spec.name)
    code = torch._C.CompilationUnit()
    module = torch._C.import_ir_module(code, spec.location, device, {}, False)  # type: ignore[call-arg]
    check_operators(code, spec.name)
    return wrap_cpp_module(module)  # type: ignore[no-untyped-call]


def replace_devices(graph: Any, block: Any, device: torch.device) -> None:
    """Replace the devices that a trace recorded, such as cuda:0, by the one that runs the network."""
    for node in list(block.nodes()):
        for inner in node.blocks():
            replace_devices(graph, inner, device)
        if node.kind() == "prim::Constant" and str(node.output().type()) == "Device":
            with graph.insert_point_guard(node):
                node.output().replaceAllUsesWith(graph.insertConstant(device))


def collect_named_values(graph: Any) -> tuple[dict[str, Any], tuple[Tensor, Tensor] | None]:
    """Return the graph's tensors by name, in order, and weight [O, F] and bias [O] of its last linear operation.

    The inputs of linear operations are among the tensors; without one, the input of the last convolution is.
    """
    values: dict[str, Any] = {}
    counts: dict[str, int] = {}
    linear: tuple[Tensor, Tensor] | None = None
    last_convolution: tuple[str, Any] | None = None
    for node in graph.nodes():
        operation = node.kind().rpartition("::")[2].strip("_")
        if node.kind() == "prim::Constant" or node.outputsSize() != 1 or str(node.output().type()) != "Tensor":
            continue
        counts[operation] = counts.get(operation, 0) + 1
        name = f"{operation}.{counts[operation]}"
        if node.kind() in LINEAR_OPERATIONS:
            linear_parameters = read_linear_node(node)
            if linear_parameters is not None:
                values[name + INPUT_SUFFIX], *_ = linear_parameters
                linear = linear_parameters[1:]
        elif node.kind() in CONVOLUTIONS:
            last_convolution = (name + INPUT_SUFFIX, next(node.inputs()))
        values[name] = node.output()
    if linear is None and last_convolution is not None:
        values[last_convolution[0]] = last_convolution[1]
    return values, linear


def read_linear_node(node: Any) -> tuple[Any, Tensor, Tensor] | None:
    """Return the input of a linear operation, its weight [O, F] and its bias [O]; None if the weight is computed."""
    inputs = list(node.inputs())
    input_value, weight, bias = inputs[:3] if node.kind() == "aten::linear" else (inputs[1], inputs[2], inputs[0])
    matrix, bias_values = weight.toIValue(), bias.toIValue()
    if not isinstance(matrix, Tensor) or matrix.ndim != 2:
        return None
    matrix = matrix if node.kind() == "aten::linear" else matrix.T
    return input_value, matrix, matrix.new_zeros(len(matrix)) if bias_values is None else bias_values

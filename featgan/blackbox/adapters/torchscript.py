"""TorchScript files as black boxes: hooks do not reach into them, so the layer becomes an output of the graph."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.jit._fuser import optimized_execution

from featgan.blackbox.adapters.base import INPUT, cannot_run, first_tensor, no_layer, reason, width_of
from featgan.blackbox.preprocessing import UNIT
from featgan.blackbox.spec import Spec, nearest
from featgan.errors import UserError
from featgan.system.files import sha256_of

LINEAR = ("aten::linear", "aten::addmm")


class TorchScriptNetwork:
    """A frozen graph; layers are its operations, numbered by kind: `relu.3`, or `linear.1:input` for what goes in."""

    def __init__(self, spec: Spec, device: torch.device) -> None:
        self.spec = spec
        self.preprocessing = UNIT
        self.module, self.graph = load_graph(spec, device)
        self.sha256 = sha256_of(Path(spec.where))
        self.values, self.linear = name_values(self.graph)
        self.function: Any = None

    def run(self, names: list[str], images: Tensor) -> list[Any]:
        """The outputs, then the values of these names."""
        return self.call(self.tap(names), images)

    def tap(self, names: list[str]) -> Any:
        """A function that gives the outputs and the values of these names."""
        graph = self.graph.copy()
        values, _ = name_values(graph)
        for name in names:
            graph.registerOutput(values[name])
        graph.makeMultiOutputIntoTuple()
        return torch._C._create_function_from_graph("forward", graph)

    def call(self, function: Any, images: Tensor) -> list[Any]:
        try:
            # Optimising anew for every shape of batch costs more than it saves.
            with torch.no_grad(), optimized_execution(False):
                found = function(self.module._c, images)
        except RuntimeError as error:
            raise cannot_run(self.spec.name, images.shape, error) from error
        return list(found) if isinstance(found, tuple) else [found]

    def list_layers(self, images: Tensor) -> list[tuple[str, int]]:
        names = list(self.values)
        found = self.run(names, images)[1:]
        widths = [(name, width_of(value.shape)) for name, value in zip(names, found, strict=True) if value.ndim]
        return [(name, width) for name, width in widths if width]

    def default_layer(self, images: Tensor) -> str | None:
        return next((name for name in reversed(self.values) if name.endswith(INPUT)), None)

    def take(self, layer: str) -> None:
        if layer not in self.values:
            raise no_layer(self.spec.name, layer, nearest(layer, self.values))
        self.function = self.tap([layer])

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        outputs, features = self.call(self.function, images)
        outputs = first_tensor(outputs)
        if outputs is None:
            raise UserError(f"{self.spec.name}: the network returns no tensor; let its forward return one")
        return features, outputs

    def last_linear(self) -> tuple[Tensor, Tensor] | None:
        return self.linear


def load_graph(spec: Spec, device: torch.device) -> tuple[Any, Any]:
    """The module and its graph: one flat list of operations, without submodules and without changes in place."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            module = torch.jit.load(spec.where, map_location=device).eval()  # type: ignore[no-untyped-call]
            module = torch.jit.freeze(module, optimize_numerics=False)
    except (RuntimeError, ValueError, OSError) as error:
        hint = "save one with torch.jit.trace(...).save(...), or use package.module:callable"
        raise UserError(f"{spec.name}: not a TorchScript file ({reason(error)}); {hint}") from error
    graph = module.graph.copy()
    torch._C._jit_pass_remove_mutation(graph)
    return module, graph


def name_values(graph: Any) -> tuple[dict[str, Any], tuple[Tensor, Tensor] | None]:
    """Tensors of the graph by name, in order, and weight [O, F] and bias [O] of its last linear operation."""
    values: dict[str, Any] = {}
    counts: dict[str, int] = {}
    linear: tuple[Tensor, Tensor] | None = None
    for node in graph.nodes():
        kind = node.kind().rpartition("::")[2].strip("_")
        if node.kind() == "prim::Constant" or node.outputsSize() != 1 or str(node.output().type()) != "Tensor":
            continue
        counts[kind] = counts.get(kind, 0) + 1
        name = f"{kind}.{counts[kind]}"
        if node.kind() in LINEAR:
            found = read_linear(node)
            if found is not None:
                values[name + INPUT], *_ = found
                linear = found[1:]
        values[name] = node.output()
    return values, linear


def read_linear(node: Any) -> tuple[Any, Tensor, Tensor] | None:
    """What goes into a linear operation, its weight [O, F] and its bias [O]; None when these are computed."""
    inputs = list(node.inputs())
    source, weight, bias = inputs[:3] if node.kind() == "aten::linear" else (inputs[1], inputs[2], inputs[0])
    matrix, offset = weight.toIValue(), bias.toIValue()
    if not isinstance(matrix, Tensor) or matrix.ndim != 2:
        return None
    matrix = matrix if node.kind() == "aten::linear" else matrix.T
    return source, matrix, matrix.new_zeros(len(matrix)) if offset is None else offset

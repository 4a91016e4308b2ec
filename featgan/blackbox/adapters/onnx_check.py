"""Check an ONNX graph before onnxruntime reads it: domains of its operators, and the files that contain its weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from featgan.errors import UserError
from featgan.system.files import open_regular_file

ALLOWED_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"})
"""Domains whose operators are part of onnxruntime: the standard, and what onnxruntime writes when it optimizes."""

FORBIDDEN_OPERATORS = frozenset({"EPContext"})
"""Operators of these domains that read other files or run compiled code."""

EXTERNAL = 1
"""Value of `TensorProto.data_location` for a tensor whose values are in another file."""

MAX_NESTED_GRAPHS = 32


def check_onnx_model(model: Any, path: Path, name: str) -> list[str]:
    """Return the names of the files, in the folder of the model, that contain its weights.

    `model` was read without them. Raises UserError if an operator, also in a nested graph or function, is not part of
    onnxruntime, or if a tensor refers to a file outside of the folder or to more bytes than the file has.
    """
    locations: set[str] = set()
    for node, tensors in list_contents(model):
        if node is not None and (node.domain not in ALLOWED_DOMAINS or node.op_type in FORBIDDEN_OPERATORS):
            operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            raise UserError(
                f"{name}: contains the operator {operator}, which is not allowed; export the network with standard "
                "operators, or use package.module:callable"
            )
        locations |= {check_external_file(tensor, path.parent, name) for tensor in tensors if is_external(tensor)}
    return sorted(locations)


def is_external(tensor: Any) -> bool:
    """Return whether the values of a tensor are in another file."""
    return tensor.data_location == EXTERNAL or len(tensor.external_data) > 0


def list_contents(model: Any) -> Iterator[tuple[Any, list[Any]]]:
    """Yield each node with its tensors, and the tensors of each graph (with None), of all graphs and functions.

    Raises UserError if graphs are nested too deeply.
    """
    yield from list_graph(model.graph, 0)
    for function in model.functions:
        for node in function.node:
            yield from list_node(node, 0)
    for training in model.training_info:
        yield from list_graph(training.initialization, 0)
        yield from list_graph(training.algorithm, 0)


def list_graph(graph: Any, depth: int) -> Iterator[tuple[Any, list[Any]]]:
    """Yield the contents of a graph and of the graphs in its nodes."""
    if depth > MAX_NESTED_GRAPHS:
        raise UserError(f"an ONNX graph with more than {MAX_NESTED_GRAPHS} nested graphs; export it again")
    yield (
        None,
        [*graph.initializer, *(part for item in graph.sparse_initializer for part in (item.values, item.indices))],
    )
    for node in graph.node:
        yield from list_node(node, depth)


def list_node(node: Any, depth: int) -> Iterator[tuple[Any, list[Any]]]:
    """Yield a node with its tensors, then the contents of its graphs, such as the branches of If."""
    sparse = [tensor for item in node.attribute for tensor in (item.sparse_tensor, *item.sparse_tensors)]
    tensors = [tensor for item in node.attribute for tensor in (item.t, *item.tensors)]
    yield node, [*tensors, *(part for item in sparse for part in (item.values, item.indices))]
    for item in node.attribute:
        if item.HasField("g"):
            yield from list_graph(item.g, depth + 1)
        for graph in item.graphs:
            yield from list_graph(graph, depth + 1)


def check_external_file(tensor: Any, folder: Path, name: str) -> str:
    """Return the name of the file with the values of a tensor; raises UserError unless it is inside the folder."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    path = folder / location
    if not location or Path(location).is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"{name}: the weights of {tensor.name!r} are in {location!r}, outside of its folder; "
            "export the network again into one folder"
        )
    try:
        with open_regular_file(path) as file:
            size = file.seek(0, 2)
        end = int(entries.get("offset", 0)) + int(entries.get("length", 0))
    except FileNotFoundError:
        raise UserError(
            f"{name}: the file with its weights is missing ({location}); copy it to the same folder"
        ) from None
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{name}: the file with its weights cannot be read ({location}: {error})") from None
    if not 0 <= end <= size:
        raise UserError(f"{name}: {location} is shorter than the weights in it; copy the complete file")
    return location

"""Check a TorchScript file before any of its code runs: the members of the archive, then every operator in its code."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from featgan.blackbox.adapters.torchscript_operators import ALLOWED_OPERATORS, operator_error
from featgan.errors import UserError
from featgan.system.script_tensors import check_script_tensors
from featgan.system.torch_files import TorchFileError
from featgan.system.zip_files import ZipError, open_zip_archive

MAX_CODE_BYTES = 32 << 20
"""Size of all compressed members in bytes. Only the code is compressed; that of large networks has less than 5 MB."""

LEGACY_MEMBER = "model.json"
"""With a member of this name, torch reads an archive in another way, that of versions before 1.2."""

LOAD_HOOK = b"__setstate__"
"""A method of this name runs while the file is loaded, before its operators can be checked."""

NATIVE_CLASS = re.compile(rb"torch[.\n]classes[.\n]")
"""A reference to a class that is implemented in C++, whose methods are not in the file."""


def check_archive(path: Path, name: str) -> None:
    """Raise UserError unless the archive has the format of TorchScript files, and no code that runs during loading.

    torch's own reader returns the members, so that the checked text is the text that is loaded.
    """
    try:
        with open_zip_archive(path, MAX_CODE_BYTES) as archive:
            check_script_tensors(archive)
    except (ZipError, TorchFileError, OSError) as error:
        hint = "save one with torch.jit.trace(...).save(...), or use package.module:callable"
        raise UserError(f"{name}: not a TorchScript file ({error}); {hint}") from None
    reader = torch._C.PyTorchFileReader(str(path))
    for member in reader.get_all_records():
        if member.lower() == LEGACY_MEMBER:
            raise UserError(f"{name}: in the format of torch before 1.2; save the network with a newer version")
        if member.lower().endswith(".py") and LOAD_HOOK in reader.get_record(member):
            raise UserError(
                f"{name}: {member} defines {LOAD_HOOK.decode()}, which would run while the file is loaded; "
                "remove the method, or use package.module:callable if you trust the code"
            )
        if member.lower() in ("data.pkl", "constants.pkl") and NATIVE_CLASS.search(reader.get_record(member)):
            raise operator_error(name, "torch.classes", member)


def check_operators(code: Any, name: str) -> None:
    """Raise UserError if a function, method or hook in the loaded code has an operator that is not allowed.

    `code` is the compilation unit, which contains the methods of all modules and classes, also those that are not
    called. Reading a graph compiles it, which can load further functions.
    """
    checked: set[str] = set()
    while pending := [function for function in code.get_functions() if function.qualified_name not in checked]:
        for function in pending:
            checked.add(function.qualified_name)
            check_graph(function.graph, name, function.qualified_name)


def check_graph(graph: Any, name: str, function: str) -> None:
    """Raise UserError if a node of the graph, also in nested blocks and graphs, is not allowed."""
    for node in list_nodes(graph):
        if node.kind() not in ALLOWED_OPERATORS:
            raise operator_error(name, node.kind(), function)
        for value in (*node.inputs(), *node.outputs()):
            if "torch.classes." in str(value.type()):
                raise operator_error(name, str(value.type()), function)


def list_nodes(block: Any) -> Iterator[Any]:
    """Yield the nodes of a graph or block, and those of the blocks and graphs inside them."""
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from list_nodes(inner)
        for attribute in node.attributeNames():
            if node.kindOf(attribute) == "g":
                yield from list_nodes(node.g(attribute))
            elif node.kindOf(attribute) == "gs":
                for graph in node.gs(attribute):
                    yield from list_nodes(graph)

"""Check the tensors of a TorchScript file before PyTorch reads them.

PyTorch trusts the sizes in the file: a tensor that is larger than its values would contain other memory of the process.
"""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch.storage import _dtype_to_storage_type_map

from featgan.system.limits import MAX_PICKLE_BYTES, MAX_PICKLE_INSTRUCTIONS
from featgan.system.torch_files import LimitedReader, TorchFileError, read_instructions

PICKLES = ("data", "constants")
"""Names of the pickles; the values of their tensors are in folders of the same names."""

ITEM_BYTES = {f"torch {name}": dtype.itemsize for dtype, name in _dtype_to_storage_type_map().items()}
"""Name of a type of storage in a pickle => size of a value in bytes."""

TENSOR_FUNCTIONS = tuple(f"torch._utils _rebuild_{kind}" for kind in ("tensor", "tensor_v2", "qtensor"))
"""Functions whose first arguments are a storage, an offset, sizes and strides."""


@dataclass(frozen=True)
class Function:
    """A function or class that a pickle names."""

    name: str


@dataclass(frozen=True)
class StoredValues:
    """The values of tensors, which are a member of the archive."""

    count: int


MARK, OTHER = object(), object()
"""A mark on the stack, and a value whose content is not needed."""

VALUES = frozenset({"BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "BINFLOAT"})
"""Instructions that push their argument."""

CONSTANTS = {
    "NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "EMPTY_LIST": OTHER, "EMPTY_DICT": OTHER,
    "MARK": MARK,
}  # fmt: skip
"""Instruction => what it pushes."""

NUM_TAKEN = {"APPEND": 1, "SETITEM": 2, "NEWOBJ": 1}
"""Instruction => number of values that it takes from the stack."""

MARKED = {"TUPLE": [], "LIST": [OTHER], "DICT": [OTHER], "APPENDS": [], "SETITEMS": []}
"""Instructions that take the values after the last mark => what they push, except for tuples."""


def check_script_tensors(archive: zipfile.ZipFile) -> None:
    """Raise TorchFileError unless every tensor in the pickles of a TorchScript file is inside the values it refers to.

    Names are compared as PyTorch does: without case, and without the folder that contains all members.
    """
    members = {member.filename.lower().partition("/")[2]: member for member in archive.infolist()}
    if len({member.filename.partition("/")[0] for member in archive.infolist()}) != 1:
        raise TorchFileError("its members are not in one folder")
    for name in PICKLES:
        folder = f"{name}/"
        sizes = {key.removeprefix(folder): item.file_size for key, item in members.items() if key.startswith(folder)}
        if f"{name}.pkl" in members:
            with archive.open(members[f"{name}.pkl"]) as file:
                instructions = read_instructions(LimitedReader(file, MAX_PICKLE_BYTES))
                TensorCheck(sizes).run(list(islice(instructions, MAX_PICKLE_INSTRUCTIONS + 1)))


class TensorCheck:
    """Follows the instructions of a pickle as PyTorch's reader in C++ does, without creating any object."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        """`sizes` are those of the members with values in bytes, by name."""
        self.sizes = sizes
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, instructions: list[tuple[str, Any]]) -> None:
        """Follow the instructions. Raises TorchFileError for a tensor outside its values, and for unusual ones."""
        if len(instructions) > MAX_PICKLE_INSTRUCTIONS:
            raise TorchFileError(f"its list of tensors has more than {MAX_PICKLE_INSTRUCTIONS} instructions")
        try:
            for name, argument in instructions:
                self.follow(name, argument)
        except (IndexError, KeyError, TypeError) as error:
            raise TorchFileError(f"damaged list of tensors ({type(error).__name__})") from None

    def follow(self, name: str, argument: Any) -> None:
        """Follow one instruction."""
        if name in VALUES:
            self.stack.append(argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name == "GLOBAL":
            self.stack.append(Function(argument))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name == "BINPERSID":
            self.stack.append(self.find_values(self.stack.pop()))
        elif name in ("REDUCE", "BUILD"):
            check_call(*self.take(2))
            self.stack.append(OTHER)
        else:
            self.follow_container(name)

    def follow_container(self, name: str) -> None:
        """Follow an instruction that creates or fills a tuple, list or dictionary."""
        if name in MARKED:
            values = self.take_marked()
            self.stack += [tuple(values)] if name == "TUPLE" else MARKED[name]
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            self.stack.append(tuple(self.take(int(name[-1]))))
        elif name in NUM_TAKEN:
            self.take(NUM_TAKEN[name])
        elif name not in ("PROTO", "STOP"):
            raise TorchFileError(f"the instruction {name} in its list of tensors")

    def take(self, count: int) -> list[Any]:
        """Remove values from the end of the stack, and return them."""
        values = [self.stack.pop() for _ in range(count)]
        return values[::-1]

    def take_marked(self) -> list[Any]:
        """Remove the values after the last mark, and the mark; return the values."""
        values = []
        while (value := self.stack.pop()) is not MARK:
            values.append(value)
        return values[::-1]

    def find_values(self, reference: Any) -> StoredValues:
        """Return the values that a reference names. Raises TorchFileError if it declares more than the member has."""
        if not isinstance(reference, tuple) or len(reference) != 5:
            raise TorchFileError("a damaged reference in its list of tensors")
        kind, storage_type, key, _, count = reference
        if kind != "storage" or not isinstance(storage_type, Function) or storage_type.name not in ITEM_BYTES:
            raise TorchFileError("an unknown kind of values in its list of tensors")
        num_bytes = self.sizes.get(str(key).lower(), 0)
        if not isinstance(count, int) or not 0 <= count * ITEM_BYTES[storage_type.name] <= num_bytes:
            raise TorchFileError(f"{count} values are declared, but their member {key!r} has {num_bytes} bytes")
        return StoredValues(count)


def check_call(function: Any, arguments: Any) -> None:
    """Raise TorchFileError for a call that creates a tensor outside its values, or whose function is not named."""
    if not isinstance(function, Function):  # PyTorch would take a number for the index of a function
        raise TorchFileError("a call without a function in its list of tensors")
    if function.name in TENSOR_FUNCTIONS:
        values, offset, sizes, strides = arguments[:4]
        if not isinstance(values, StoredValues) or not is_inside(values.count, offset, sizes, strides):
            raise TorchFileError(f"a tensor of size {sizes} is larger than its values")
    elif function.name.startswith("torch._"):
        raise TorchFileError(f"a call of {function.name.replace(' ', '.')} in its list of tensors")


def is_inside(count: int, offset: int, sizes: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Return whether a tensor with these sizes and strides refers only to the first `count` values of its storage."""
    if len(sizes) != len(strides) or min((offset, *sizes, *strides)) < 0:
        return False
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    return offset <= count if 0 in sizes else last < count

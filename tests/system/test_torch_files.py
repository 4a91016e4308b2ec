"""Files of torch.save, in both formats: a small file cannot make PyTorch allocate gigabytes."""

import io
import os
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from featgan.blackbox.weights import read_checkpoint
from featgan.errors import UserError
from featgan.system.limits import MAX_PICKLE_BYTES
from featgan.system.torch_files import TorchFileError, check_torch_file
from tests.helpers.limits import measure_call

START = b"\x80\x02"
MAGIC_PICKLES = (
    START + b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.",
    START + b"M\xe9\x03.",
    START + b"}q\x00(X\x10\x00\x00\x00protocol_versionq\x01M\xe9\x03X\r\x00\x00\x00little_endianq\x02\x88u.",
)
"""The pickles before the list of tensors in a file of PyTorch before 1.6."""


def storage(numel: int) -> bytes:
    """Return the instructions for a tensor that declares a number of values."""
    number = numel.to_bytes(8, "little")
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
        b"X\x03\x00\x00\x00cpu\x8a\x08" + number + b"NtQK\x00\x8a\x08" + number + b"\x85K\x01\x85\x89}tR"
    )


def named(value: bytes) -> bytes:
    """Return the instructions for a state dict with one value."""
    return START + b"}X\x03\x00\x00\x00a.b" + value + b"s."


GIGABYTES = b"\x8a\x05\x00\x00\x00\x00\x02"  # 8 GiB
CALLS = b"c_codecs\nencode\nq\x01" + b"h\x01h\x00\x85R" * 20_000
DAMAGED_PICKLES = {
    "bytearray": named(b"cbuiltins\nbytearray\n" + GIGABYTES + b"\x85R"),
    "old bytearray": named(b"c__builtin__\nbytearray\n" + GIGABYTES + b"\x85R"),
    "scalar": named(b"cnumpy._core.multiarray\nscalar\ncnumpy\ndtype\nX\x0b\x00\x00\x00V2000000000\x85R\x85R"),
    "copies": START + b"X\x00\x00\x10\x00" + b"a" * (1 << 20) + b"q\x00" + CALLS + b".",
    "lists": START + b"]" * (MAX_PICKLE_BYTES - 3) + b".",
    "marks": START + b"(" * (MAX_PICKLE_BYTES - 3) + b".",
    "tensors": START + b"ctorch\nFloatTensor\nq\x00" + b"h\x00)R" * 1_900_000 + b".",
    "objects": START + b"ccollections\nOrderedDict\nq\x00" + b"h\x00)R" * 1_900_000 + b".",
    "memo": START + b"N" + b"".join(b"r" + n.to_bytes(4, "little") for n in range(1_600_000)) + b".",
    "large": START + b"N" * (MAX_PICKLE_BYTES + 1) + b".",
    "declared text": named(b"X\xff\xff\xff\x7f"),
    "declared values": named(storage(10**12)),
    "declared bytes": named(storage(2**33)),
    "truncated": START + b"}",
    "empty": b"",
    "text": b"<html>not found</html>",
    "not ASCII": START + b"c\xff\n\xff\n.",
}  # fmt: skip


def write_archive(path: Path, instructions: bytes) -> None:
    """Write a file of PyTorch since 1.6 with a list of tensors, and 16 bytes of values."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", instructions)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", bytes(16))
        archive.writestr("archive/version", "3\n")


def write_old_file(path: Path, instructions: bytes) -> None:
    """Write a file of PyTorch before 1.6 with a list of tensors, and 16 bytes of values."""
    keys = START + b"]X\x01\x00\x00\x000a."
    path.write_bytes(b"".join(MAGIC_PICKLES) + instructions + keys + (4).to_bytes(8, "little") + bytes(16))


OLD_FORMAT = ("bytearray", "lists", "tensors", "declared values", "text", "not ASCII")


@pytest.mark.parametrize(
    ("name", "is_archive"), [*((name, True) for name in DAMAGED_PICKLES), *((name, False) for name in OLD_FORMAT)]
)
def test_weights_beyond_a_limit_are_rejected_in_one_line_at_low_cost(
    name: str, is_archive: bool, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    write = write_archive if is_archive else write_old_file
    write(path, DAMAGED_PICKLES[name])
    setup = "from pathlib import Path\nimport torch\nfrom featgan.blackbox.weights import read_checkpoint"
    measured = measure_call(setup, f"read_checkpoint(Path({str(path)!r}))")
    assert measured.message and measured.message.startswith(f"{path}: ") and "\n" not in measured.message, measured
    assert measured.is_cheap(), measured


def test_files_of_torch_are_accepted_in_both_formats(tmp_path: Path) -> None:
    content = {
        "epoch": np.float64(3.5),
        "losses": [0.5] * 100_000,
        "names": ["a", "b"],
        "state_dict": OrderedDict((f"layer{number}.weight", torch.full((2, 3), number)) for number in range(3000)),
    }
    for is_archive in (True, False):
        path = tmp_path / f"weights{is_archive}.pth"
        torch.save(content, path, _use_new_zipfile_serialization=is_archive)
        loaded = read_checkpoint(path).state_dicts["state_dict"]
        assert len(loaded) == 3000 and torch.equal(loaded["layer7.weight"], torch.full((2, 3), 7))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_old_files_of_random_bytes_never_raise_other_errors(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"a.weight": torch.ones(3)}, buffer, _use_new_zipfile_serialization=False)
    content = buffer.getvalue()
    generator = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(content)
        for position in generator.integers(0, len(content), 3):
            damaged[position] = generator.integers(256)
        (tmp_path / "weights.pth").write_bytes(damaged)
        try:
            read_checkpoint(tmp_path / "weights.pth")
        except UserError as error:
            assert "\n" not in str(error)


def test_pipes_are_rejected_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "weights.pth")
    with pytest.raises(UserError, match="not a file"):
        check_torch_file(tmp_path / "weights.pth")
    (tmp_path / "short").write_bytes(b"PK")
    with pytest.raises(TorchFileError):
        check_torch_file(tmp_path / "short")


def test_archives_that_python_and_pytorch_read_differently_are_rejected(tmp_path: Path) -> None:
    """PyTorch ignores case, and reads the list of members at its offset instead of before the last record."""
    source, upper, twice = tmp_path / "a.pth", tmp_path / "upper.pth", tmp_path / "twice.pth"
    torch.save({"a.weight": torch.ones(3)}, source)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(upper, "w") as new:
        for member in old.infolist():
            is_pickle = member.filename.endswith("data.pkl")
            name = member.filename.replace("data.pkl", "DATA.PKL")
            new.writestr(name, DAMAGED_PICKLES["tensors"] if is_pickle else old.read(member))
    content = source.read_bytes()
    start = int.from_bytes(content[-6:-2], "little")
    size = int.from_bytes(content[-10:-6], "little")
    assert content[start : start + 4] == b"PK\x01\x02"
    # A second list of members follows the one at the offset.
    twice.write_bytes(content[: start + size] + content[start : start + size] + content[-22:])
    assert torch.load(twice)
    for path in (upper, twice):
        with pytest.raises(UserError, match="list of"):
            read_checkpoint(path)

"""Readers of JSON, YAML and arrays: limits hold before memory is allocated, and pipes and devices never block."""

import ast
import io
import json
import logging
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featgan.errors import UserError
from featgan.system.array_files import ArrayColumn, ArrayError, map_array, map_arrays, read_arrays, write_npz
from featgan.system.files import open_regular_file, read_regular_file, sha256_of
from featgan.system.json_files import (
    JsonError,
    parse_json,
    read_json,
    read_json_lines,
    read_json_object,
    read_side_file,
)
from featgan.system.limits import MAX_DEPTH, MAX_JSON_BYTES, MAX_JSON_VALUES, MAX_NUMBER_DIGITS, MAX_YAML_BYTES
from featgan.system.yaml_files import YamlError, parse_yaml, read_yaml, read_yaml_mapping
from tests.helpers.limits import measure_call

HUGE_JSON = {
    "nested lists": b"[" * MAX_JSON_BYTES,
    "nested mappings": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "digits": b"[" + b"1" * 5000 + b"]",
    "all digits": b"1" * MAX_JSON_BYTES,
    "strings": b'""' * (MAX_JSON_BYTES // 2),
    "escaped quotes": b'"' + b'\\"' * (MAX_JSON_BYTES // 2 - 1),
    "values": b"[" + b"{}," * (MAX_JSON_BYTES // 3 - 1) + b"{}]",
    "not UTF-8": b'{"a": "\xff"}',
    "half of a surrogate pair": b'"\\ud800"',
    "truncated": b'{"a": [1, 2',
    "empty": b"",
}


@pytest.mark.parametrize("name", HUGE_JSON)
def test_json_beyond_a_limit_is_rejected_in_one_line_at_low_cost(name: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(HUGE_JSON[name])
    setup = "from pathlib import Path; from featgan.system.json_files import read_json"
    measured = measure_call(setup, f"read_json(Path({str(path)!r}))")
    assert measured.message and measured.message.startswith(f"{path}: ") and "\n" not in measured.message
    assert measured.is_cheap(), measured


def test_usual_json_is_read() -> None:
    value = {"a": [1, -2.5e-300, None, True, '\\"[{\u00e9\U0001f600'], "b": {"c": {}}, "d": 10**99}
    assert parse_json(json.dumps(value)) == value
    assert parse_json(b"\xef\xbb\xbf" + json.dumps(value, ensure_ascii=False).encode()) == value
    deepest: Any = 1
    for _ in range(MAX_DEPTH - 1):
        deepest = [deepest]
    assert parse_json(json.dumps(deepest)) == deepest
    assert len(parse_json(json.dumps([0] * (MAX_JSON_VALUES - 10)))) == MAX_JSON_VALUES - 10


def test_brackets_and_digits_in_strings_do_not_count() -> None:
    text = "[" * 1000 + "\\" * 3 + '"' + "9" * 1000
    assert parse_json(json.dumps([text, {text: text}])) == [text, {text: text}]


def test_json_files_that_cannot_be_read_give_one_line_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing.json: missing; copy it"):
        read_json(tmp_path / "missing.json", remedy="copy it")
    with pytest.raises(UserError, match="is a folder, not a file"):
        read_json(tmp_path)
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UserError, match="list.json: not a JSON object; copy it"):
        read_json_object(tmp_path / "list.json", remedy="copy it")
    (tmp_path / "large.json").write_text(" " * 101)
    with pytest.raises(UserError, match="has 101 bytes; at most 100"):
        read_json(tmp_path / "large.json", max_bytes=100)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff", b"[]", b"1" * 5000])
def test_damaged_side_file_is_skipped_with_one_warning(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "side.json"
    assert read_side_file(path) is None and not caplog.records
    path.write_bytes(content)
    assert read_side_file(path) is None and read_side_file(path) is None
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [str(path)]
    path.write_text('{"a": 1}')
    assert read_side_file(path) == {"a": 1}


def test_damaged_lines_are_skipped_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "lines.jsonl"
    assert list(read_json_lines(path)) == []
    path.write_bytes(b'{"step": 1}\n\xff\xfe\n' + b"[" * 10_000 + b'\n[1]\n\n{"step": 2}\n{"step": 3')
    assert [entry["step"] for entry in read_json_lines(path)] == [1, 2]
    assert [record.getMessage() for record in caplog.records] == [f"{path}: skipped: 3 damaged lines"]


def test_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(f'{{"step": {step}}}\n' for step in range(1000)))
    assert [entry["step"] for entry in read_json_lines(path, max_bytes=40)] == [998, 999]


ALIAS_BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 10)
)

INVALID_YAML = {
    "aliases": ALIAS_BOMB,
    "recursive alias": "a: &a [*a]",
    "merged aliases": "a: &a {x: 1, y: 2}\nb:\n  <<: [" + ", ".join(["*a"] * 20_000) + "]",
    "nested lists": "[" * 100_000,
    "nested sequences": "- " * 100_000,
    "nested keys": "? " * 100_000,
    "digits": "1" * 5000,
    "hexadecimal digits": "0x" + "f" * 5000,
    "quoted digits": f'!!int "{"1" * 5000}"',
    "values": "- a\n" * 200_000,
    "documents": "---\n" * 200_000,
    "directives": "".join(f"%TAG !a{number}! x\n" for number in range(60_000)) + "--- 1",
    "date": "2024-99-99",
    "tag": "!!bool 2",
    "timestamp": "!!timestamp x",
    "integer": "!!int ''",
    "object": "!!python/object:os.system {}",
    "control character": "a: \x00",
    "key": "{[1]: 2}",
    "unclosed": "a: [",
}


@pytest.mark.parametrize("name", INVALID_YAML)
def test_yaml_beyond_a_limit_is_rejected_in_one_line_at_low_cost(name: str, tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(INVALID_YAML[name])
    setup = "from pathlib import Path; from featgan.system.yaml_files import read_yaml"
    measured = measure_call(setup, f"read_yaml(Path({str(path)!r}))")
    assert measured.message and measured.message.startswith(str(path)) and "\n" not in measured.message
    assert measured.is_cheap(), measured


def test_usual_yaml_is_read(tmp_path: Path) -> None:
    text = "a: &a {x: 1, y: [0x1f, 1.5, 1e-3, 2024-01-02]}\nb:\n  <<: *a\n  x: é\n"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "file.yaml").write_bytes(text.encode(encoding))
        value = read_yaml_mapping(tmp_path / "file.yaml")
        assert value["b"] == {"x": "é", "y": value["a"]["y"]} and value["a"]["y"][:2] == [31, 1.5]
    (tmp_path / "file.yaml").write_text("# nothing\n")
    assert read_yaml_mapping(tmp_path / "file.yaml") == {}
    long_text = "a" * 10_000 + " " + "1" * 10_000
    assert parse_yaml(f"- {long_text}") == [long_text]


def test_yaml_errors_name_the_line(tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_text("a: 1\nb: [\n")
    with pytest.raises(UserError, match=r"file.yaml:3: not valid YAML"):
        read_yaml(tmp_path / "file.yaml")
    (tmp_path / "file.yaml").write_text(" " * (MAX_YAML_BYTES + 1))
    with pytest.raises(UserError, match="at most"):
        read_yaml(tmp_path / "file.yaml")
    with pytest.raises(YamlError, match=str(MAX_NUMBER_DIGITS)):
        parse_yaml("1" * (MAX_NUMBER_DIGITS + 1))
    with pytest.raises(JsonError, match=str(MAX_NUMBER_DIGITS)):
        parse_json("1" * (MAX_NUMBER_DIGITS + 1))


@pytest.mark.parametrize("read", [open_regular_file, sha256_of, read_json, read_yaml, map_array])
def test_pipes_devices_and_folders_are_rejected_without_waiting(read: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), Path("/dev/tty"), tmp_path):
        with pytest.raises(UserError, match="not a file"):
            read(path)


def test_size_of_a_file_is_checked_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a sparse file of 1 TiB
    with pytest.raises(UserError, match=f"{path}: has {1 << 40} bytes; at most 10 are allowed"):
        read_regular_file(path, 10)
    path.write_bytes(b"0123456789")
    assert read_regular_file(path, 10) == b"0123456789"


def npy_bytes(header: str, values: bytes = b"") -> bytes:
    """Return a .npy file with any header."""
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + values


DAMAGED_ARRAYS = {
    "too large": npy_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}\n", b"0" * 8),
    "objects": npy_bytes("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n", b"0" * 8),
    "records": npy_bytes("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}\n", b"0" * 4),
    "no bytes": npy_bytes("{'descr': '|S0', 'fortran_order': False, 'shape': (1000000000000,)}\n"),
    "negative": npy_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}\n"),
    "not a shape": npy_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': 'abc'}\n"),
    "nested": npy_bytes("(" * 9000 + "\n"),
    "not a type": npy_bytes("{'descr': 'nothing', 'fortran_order': False, 'shape': (1,)}\n"),
    "truncated": npy_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}\n", b"0" * 8),
    "no header": b"\x93NUMPY\x01\x00",
    "version": b"\x93NUMPY\x09\x00",
    "empty": b"",
}


@pytest.mark.parametrize("name", DAMAGED_ARRAYS)
def test_damaged_array_is_rejected_before_allocation(name: str, tmp_path: Path) -> None:
    (tmp_path / "array.npy").write_bytes(DAMAGED_ARRAYS[name])
    with pytest.raises(ArrayError):
        map_array(tmp_path / "array.npy")
    with zipfile.ZipFile(tmp_path / "arrays.npz", "w") as archive:
        archive.writestr("a.npy", DAMAGED_ARRAYS[name])
    with pytest.raises(ArrayError):
        read_arrays(tmp_path / "arrays.npz", ["a"])


@pytest.mark.parametrize("array", [np.arange(6.0).reshape(2, 3), np.array([b"ab", b"c"]), np.empty((0, 4), "f4")])
def test_arrays_are_read_as_they_were_written(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "array.npy", array)
    np.save(tmp_path / "columns.npy", np.asfortranarray(array))
    np.savez(tmp_path / "arrays.npz", a=array, b=np.zeros(3))
    np.savez(tmp_path / "columns.npz", a=np.asfortranarray(array))
    arrays = [read(tmp_path / "arrays.npz", ["b", "a"])["a"] for read in (read_arrays, map_arrays)]
    arrays += [map_arrays(tmp_path / "columns.npz", ["a"])["a"]]
    for loaded in (map_array(tmp_path / "array.npy"), map_array(tmp_path / "columns.npy"), *arrays):
        assert loaded.dtype == array.dtype and np.array_equal(loaded, array)


@pytest.mark.parametrize("read", [read_arrays, map_arrays])
def test_damaged_archives_are_rejected(read: Any, tmp_path: Path) -> None:
    path = tmp_path / "arrays.npz"
    with pytest.raises(ArrayError, match="missing"):
        read(path, ["a"])
    np.savez_compressed(path, a=np.zeros(1_000_000))
    with pytest.raises(ArrayError, match="compressed"):
        read(path, ["a"])
    np.savez(path, a=np.zeros(1000))
    with pytest.raises(ArrayError, match="no array 'b'"):
        read(path, ["b"])
    content = bytearray(path.read_bytes())
    content[30] ^= 1  # the name in the header before the member
    for damaged in (content, content[:-30], content[:30], b""):
        path.write_bytes(damaged)
        with pytest.raises(ArrayError):
            read(path, ["a"])


def test_changed_value_of_an_archive_that_is_read_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "arrays.npz"
    np.savez(path, a=np.zeros(1000))
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArrayError):
        read_arrays(path, ["a"])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"(1000,)", b"(9999,)"),
        (b"(1000,)", b"(-100,)"),
        (b"(1000,)", b"(0000,)"),
        (b"'<f8'", b"'|O8'"),
        (b"'<f8'", b"'<f4'"),
        (b"PK\x03\x04", b"PK\x03\x05"),
    ],
)
def test_mapped_member_with_another_header_is_rejected(before: bytes, after: bytes, tmp_path: Path) -> None:
    path = tmp_path / "arrays.npz"
    np.savez(path, b=np.zeros(3), a=np.zeros(1000))
    content = path.read_bytes()
    start = content.index(before, content.index(b"a.npy") - 30)
    path.write_bytes(content[:start] + after + content[start + len(before) :])
    with pytest.raises(ArrayError):
        map_arrays(path, ["a"])


def test_local_header_cannot_move_a_mapped_member_outside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "arrays.npz"
    np.savez(path, a=np.zeros(10))
    content = bytearray(path.read_bytes())
    content[28:30] = b"\xff\xff"  # the length of the extra fields
    path.write_bytes(content)
    with pytest.raises(ArrayError):
        map_arrays(path, ["a"])


def test_arrays_written_in_chunks_are_those_of_numpy(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "keys": np.array([f"image-{number}".encode() for number in range(1000)]),
        "offset": rng.integers(0, 1 << 40, 1000),
        "expression": rng.integers(-1, 8, 1000).astype(np.int16),
        "attributes": rng.integers(-1, 2, (1000, 3)).astype(np.int8),
        "factors": np.zeros((1000, 0), np.float32),
    }
    np.savez(tmp_path / "numpy.npz", **arrays)  # type: ignore[arg-type]
    columns = {
        name: ArrayColumn(array.dtype, array.shape, [array[start : start + 300] for start in range(0, 1000, 300)])
        for name, array in arrays.items()
    }
    write_npz(tmp_path / "chunks.npz", columns)
    assert (tmp_path / "chunks.npz").read_bytes() == (tmp_path / "numpy.npz").read_bytes()
    mapped = map_arrays(tmp_path / "chunks.npz", list(arrays))
    assert not any(array.flags.writeable for array in mapped.values())
    for name, array in arrays.items():
        assert mapped[name].dtype == array.dtype and np.array_equal(mapped[name], array)
    with pytest.raises(ValueError, match="the chunks have 300 rows, not 1000"):
        write_npz(tmp_path / "short.npz", {"a": ArrayColumn(np.dtype("i8"), (1000,), [arrays["offset"][:300]])})
    with pytest.raises(ValueError, match="is not a part of"):
        write_npz(tmp_path / "short.npz", {"a": ArrayColumn(np.dtype("i4"), (1000,), [arrays["offset"]])})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chunks.npz", "numpy.npz"]


def test_archive_with_a_huge_list_of_members_is_rejected_at_low_cost(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.npy", b"")
    content = buffer.getvalue()
    directory_start = int.from_bytes(content[-6:-2], "little")
    entry = content[directory_start:-22]
    num_entries = (20 << 20) // len(entry)
    directory = entry * num_entries
    end = content[-22:-10] + len(directory).to_bytes(4, "little") + content[-6:]
    path = tmp_path / "arrays.npz"
    path.write_bytes(content[:directory_start] + directory + end)
    setup = (
        "from pathlib import Path; from featgan.errors import UserError\n"
        "from featgan.system.array_files import ArrayError, read_arrays"
    )
    call = f"read_arrays(Path({str(path)!r}), ['a'])\nexcept ArrayError as error:\n    message = str(error)"
    measured = measure_call(setup, call)
    assert measured.message and "list of members" in measured.message and measured.is_cheap(), measured


def test_side_files_are_reported_again_after_a_change(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "side.json"
    for time in (1, 2):
        path.write_text("{")
        os.utime(path, (time, time))
        with caplog.at_level(logging.WARNING):
            read_side_file(path)
    assert len(caplog.records) == 2


PARSERS = {
    "json.loads": "featgan.system.json_files",
    "json.load": "featgan.system.json_files",
    "yaml.safe_load": "featgan.system.yaml_files",
    "np.load": "featgan.system.array_files",
    "load_file": "featgan.system.tensor_files",
    "safetensors.torch.load_file": "featgan.system.tensor_files",
}
"""Function that parses a file without limits => the module to use instead."""

UNLIMITED_FILES = {
    "featgan/bench": "reads what it has just written",
    "featgan/system/json_files.py": "checks the limits",
    "featgan/data/packing/existing.py": "parses a text that it has just written",
    "launch/attempts.py": "imports only the standard library",
}
"""File or folder => why it may call a parser."""


def test_files_are_parsed_with_limits() -> None:
    root = Path(__file__).parent.parent.parent
    for path in [path for folder in ("featgan", "launch") for path in sorted((root / folder).rglob("*.py"))]:
        name = path.relative_to(root).as_posix()
        if not name.startswith(tuple(UNLIMITED_FILES)):
            calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            names = {ast.unparse(call) for call in calls if isinstance(call, ast.Name | ast.Attribute)}
            assert not names & set(PARSERS), f"{name}: use {[PARSERS[parser] for parser in names & set(PARSERS)]}"

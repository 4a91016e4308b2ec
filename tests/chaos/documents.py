"""Damage structured text: JSON, JSON lines, YAML and tables."""

import copy
import json
import random
from collections.abc import Callable
from typing import Any

import yaml

from tests.chaos.values import RAW_JSON, RAW_YAML, TEXTS, alias_bomb, choose_value, shorten

MARK = "REPLACED-BY-RAW-TEXT"

Damage = tuple[bytes, str]
"""The new content of a file, and a description of the change."""


def damage_bytes(content: bytes, rng: random.Random) -> Damage:
    """Change bytes without knowing the format."""
    kind = rng.choice(("flip", "flip", "cut", "cut", "repeat", "insert", "zero", "shuffle", "swap"))
    if not content:
        return bytes(rng.randrange(256) for _ in range(20)), "random bytes instead of an empty file"
    start, end = sorted((rng.randrange(len(content) + 1), rng.randrange(len(content) + 1)))
    if kind == "flip":
        changed = bytearray(content)
        count = rng.choice((1, 1, 2, 8, 64))
        for _ in range(count):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return bytes(changed), f"{count} bits flipped"
    if kind == "cut":
        return content[:start], f"cut after {start} of {len(content)} bytes"
    if kind == "repeat":
        return content[:end] + content[start:], f"bytes {start} to {end} repeated"
    if kind == "insert":
        inserted = rng.choice(
            (b"\0", b"\xff\xfe", b"\x80" * 9, b"\n", b"\x1b[2J", b"\r", b"A" * 5000, b'"', b"\xef\xbb\xbf")
        )
        return content[:start] + inserted + content[start:], f"{shorten(inserted)} inserted at {start}"
    if kind == "zero":
        end = min(end, start + 512)
        return content[:start] + bytes(end - start) + content[end:], f"bytes {start} to {end} set to zero"
    if kind == "shuffle":
        return content[end:] + content[start:end] + content[:start], f"parts exchanged at {start} and {end}"
    other = rng.choice(
        (b"{}", b"[]", b"null", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", b"", b"\n", b"GIF89a", b"%PDF", b"0")
    )
    return other, f"replaced by {other!r}"


def list_positions(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values of a document, including the document itself."""
    positions = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        positions += list_positions(item, (*path, key))
    return positions


def choose_position(value: Any, rng: random.Random) -> tuple[Any, ...]:
    """Choose a value; values near the root are as likely as the many values of long lists."""
    positions = list_positions(value)
    depth = rng.choice(sorted({len(path) for path in positions}))
    return rng.choice([path for path in positions if len(path) == depth])


def get_value(document: Any, path: tuple[Any, ...]) -> Any:
    """Return the value at a path."""
    for key in path:
        document = document[key]
    return document


def replace_value(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return the document with another value at a path."""
    if not path:
        return value
    get_value(document, path[:-1])[path[-1]] = value
    return document


def damage_value(document: Any, rng: random.Random, raw_texts: tuple[str, ...]) -> tuple[Any, str, str]:
    """Return a changed document, the raw text for MARK in it, and a description."""
    document = copy.deepcopy(document)
    path = choose_position(document, rng)
    where = "/".join(map(str, path)) or "the document"
    old = get_value(document, path)
    value: Any
    kind = rng.choice(("value", "value", "value", "type", "raw", "delete", "rename", "add", "swap", "grow", "number"))
    if kind == "raw":
        raw = rng.choice(raw_texts)
        return replace_value(document, path, MARK), raw, f"{where} = {shorten(raw)}"
    if kind == "delete" and path:
        parent = get_value(document, path[:-1])
        del parent[path[-1]]
        return document, "", f"{where} deleted"
    if kind in ("rename", "add") and isinstance(get_value(document, path[:-1]) if path else None, dict):
        parent, name = get_value(document, path[:-1]), rng.choice((*TEXTS, "format", "version", "count"))
        parent[name] = parent.pop(path[-1]) if kind == "rename" else choose_value(rng)
        return document, "", f"{where} {'renamed to' if kind == 'rename' else 'gets the neighbor'} {shorten(name)}"
    if kind == "swap":
        other = choose_position(document, rng)
        values = [copy.deepcopy(get_value(document, position)) for position in (path, other)]
        if path[: len(other)] != other and other[: len(path)] != path:
            document = replace_value(replace_value(document, path, values[1]), other, values[0])
            return document, "", f"{where} exchanged with {'/'.join(map(str, other))}"
    if kind == "grow" and isinstance(old, list | str):
        repeated = old * rng.choice((2, 100, 5000))
        if len(repeated) < 2_000_000:
            return replace_value(document, path, repeated), "", f"{where} repeated: {len(repeated)} parts"
    if kind == "type":
        value = {True: {"0": old}, False: [old]}[isinstance(old, list)] if rng.random() < 0.5 else str(old)
        return replace_value(document, path, value), "", f"{where} = {shorten(value)}"
    if kind == "number" and isinstance(old, int | float):
        value = rng.choice((old + 1, old - 1, -old, old * 1000, old * 10**9, old / 3, float(old), str(old), [old]))
        return replace_value(document, path, value), "", f"{where} = {shorten(value)}"
    value = choose_value(rng)
    return replace_value(document, path, value), "", f"{where} = {shorten(value)}"


def dump_json(document: Any, raw: str, indent: int | None = 1) -> bytes:
    """Return a document as JSON, with the raw text in place of MARK."""
    text = json.dumps(document, indent=indent)
    return text.replace(f'"{MARK}"', raw, 1).encode(errors="surrogatepass")


def damage_json(content: bytes, rng: random.Random) -> Damage:
    """Change a JSON document."""
    if rng.random() < 0.15:
        return damage_bytes(content, rng)
    document, raw, change = damage_value(json.loads(content), rng, RAW_JSON)
    return dump_json(document, raw), change


def damage_json_lines(content: bytes, rng: random.Random) -> Damage:
    """Change one line of a file of JSON lines."""
    lines = content.splitlines()
    if not lines or rng.random() < 0.2:
        return damage_bytes(content, rng)
    number = rng.randrange(len(lines))
    document, raw, change = damage_value(json.loads(lines[number]), rng, RAW_JSON)
    if rng.random() < 0.2:
        lines.insert(number, rng.choice((b"\xff\xfe", b"{", b"null", b"[]", b"1", b"", b'{"step": 1e999}')))
        return b"\n".join(lines) + b"\n", f"line {number + 1} inserted: {lines[number]!r}"
    lines[number] = dump_json(document, raw, None)
    return b"\n".join(lines) + b"\n", f"line {number + 1}: {change}"


def damage_padded_json(content: bytes, rng: random.Random) -> Damage:
    """Change a lease file: JSON that is padded with spaces."""
    changed, change = damage_json(content.rstrip(), rng)
    return changed.ljust(512 if rng.random() < 0.7 else 1), change


def damage_yaml(content: bytes, rng: random.Random) -> Damage:
    """Change a YAML document."""
    kind = rng.random()
    if kind < 0.12:
        return damage_bytes(content, rng)
    if kind < 0.16:
        return (content + alias_bomb().encode() if rng.random() < 0.5 else alias_bomb().encode()), "alias bomb"
    document, raw, change = damage_value(yaml.safe_load(content), rng, RAW_YAML)
    if kind < 0.5:
        return dump_json(document, raw), change
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    return text.replace(MARK, raw, 1).encode(errors="surrogatepass"), change


def damage_table(content: bytes, rng: random.Random) -> Damage:
    """Change a table of text: cells, rows, columns, separators, encoding."""
    if rng.random() < 0.15:
        return damage_bytes(content, rng)
    text = content.decode()
    separator = "," if "," in text else " "
    rows = [line.split(separator) for line in text.splitlines()]
    number = rng.choice((0, rng.randrange(len(rows))))
    row = rows[number]
    column = rng.randrange(len(row))
    actions: dict[str, Callable[[], Any]] = {
        "cell": lambda: row.__setitem__(column, str(choose_value(rng))),
        "cell of a row": lambda: rows[-1].__setitem__(column % len(rows[-1]), str(choose_value(rng))),
        "cell removed": lambda: row.pop(column),
        "cell added": lambda: row.insert(column, rng.choice(("", "1", "x"))),
        "row removed": lambda: rows.pop(number),
        "row repeated": lambda: rows.insert(number, list(row)),
        "rows repeated": lambda: rows.extend([list(row)] * 3000),
        "long cell": lambda: row.__setitem__(column, "x" * 300_000),
        "columns": lambda: row.extend(f"c{index}" for index in range(5000)),
        "quote": lambda: row.__setitem__(column, '"' + row[column]),
        "empty": rows.clear,
    }
    name = rng.choice(list(actions))
    actions[name]()
    joined = rng.choice(("\n", "\n", "\n", "\r\n", "\r")).join(separator.join(row) for row in rows) + "\n"
    if rng.random() < 0.1:
        joined = joined.replace(separator, rng.choice((";", "\t", "|", ",")))
    encoding = rng.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"))
    return joined.encode(encoding, errors="replace"), f"{name} in line {number + 1}, column {column + 1}, {encoding}"

"""Count the parts of a serialized protocol buffer message before it is parsed: an empty one has 2 bytes in the file."""

from typing import Any

MAX_MESSAGE_PARTS = 400_000
"""Messages and texts in an ONNX file. Each needs up to 650 bytes of memory; a network with 10,000 nodes has 200,000."""

MAX_MESSAGE_DEPTH = 100
"""Nested messages; protobuf has the same limit."""

VARINT, FIXED_64, BYTES, FIXED_32 = 0, 1, 2, 5
"""Wire types: how the value of a field is stored."""

FIXED_SIZES = {FIXED_64: 8, FIXED_32: 4}


class MessageError(ValueError):
    """A message that is damaged or exceeds a limit; the message is the problem."""


def check_message(data: memoryview, descriptor: Any) -> None:
    """Raise MessageError if a serialized message has too many parts. `descriptor` is the description of its type."""
    schemas: dict[str, dict[int, Any]] = {}
    pending = [(data, descriptor, 0)]
    num_parts = 0
    while pending:
        content, kind, depth = pending.pop()
        if depth > MAX_MESSAGE_DEPTH:
            raise MessageError(f"more than {MAX_MESSAGE_DEPTH} nested messages")
        fields = schemas.get(kind.full_name)
        if fields is None:
            fields = schemas[kind.full_name] = {field.number: field.message_type for field in kind.fields}
        position = 0
        while position < len(content):
            number, position, part = read_field(content, position)
            if part is None:
                continue
            num_parts += 1
            if num_parts > MAX_MESSAGE_PARTS:
                raise MessageError(f"more than {MAX_MESSAGE_PARTS} parts")
            if fields.get(number) is not None:
                pending.append((part, fields[number], depth + 1))


def read_field(content: memoryview, position: int) -> tuple[int, int, memoryview | None]:
    """Return the number of the field at a position, the position of the next one, and its bytes (None for a number)."""
    tag, position = read_number(content, position)
    number, wire_type = tag >> 3, tag & 7
    if wire_type == VARINT:
        return number, read_number(content, position)[1], None
    if wire_type in FIXED_SIZES:
        return number, position + FIXED_SIZES[wire_type], None
    if wire_type != BYTES:
        raise MessageError("damaged message")
    size, position = read_number(content, position)
    if size > len(content) - position:
        raise MessageError("truncated message")
    return number, position + size, content[position : position + size]


def read_number(content: memoryview, position: int) -> tuple[int, int]:
    """Return the number of variable length at a position, and the position after it."""
    value = shift = 0
    while position < len(content) and shift < 70:
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise MessageError("damaged message")

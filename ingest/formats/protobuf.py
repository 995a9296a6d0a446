"""Protocol buffers, read in place.

The wire format of a message is a list of fields: a number, and an integer or some bytes. :func:`fields` lists them and
does not copy the bytes, so that of a mapped file of any size only the requested parts are read. (The protobuf
library would copy every tensor of a graph into memory to parse it, and needs schemas that only TensorFlow ships.)

Wire format: https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from cnnfilterdb.ingest.formats import limits

__all__ = [
    "Field",
    "Fields",
    "MalformedError",
    "fields",
    "float32s",
    "integers",
    "message",
    "text_of",
    "varint",
]

Field: TypeAlias = int | memoryview
Fields: TypeAlias = dict[int, list[Field]]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class MalformedError(ValueError):
    """The bytes are not a message."""


def fields(data: memoryview, wanted: Iterable[int] | None = None) -> Fields:
    """The fields of a message: number -> values in order.

    Args:
        data: The message.
        wanted: Numbers of the fields to keep; all by default.

    Returns:
        Integers and fixed-size values as unsigned numbers; strings, messages and packed lists as the bytes themselves.

    Raises:
        MalformedError: It is not a message.

    >>> fields(memoryview(bytes([0x08, 0x96, 0x01])))
    {1: [150]}
    """
    kept = None if wanted is None else frozenset(wanted)
    found: Fields = {}
    for walked, (number, value) in enumerate(_walk(data)):
        if not walked % 256:
            limits.current().step(16)
        if kept is None or number in kept:
            found.setdefault(number, []).append(value)
    return found


def _walk(data: memoryview) -> Iterator[tuple[int, Field]]:
    position, end = 0, len(data)
    while position < end:
        key = data[position]
        position += 1
        if key > 127:
            key, position = varint(data, position - 1)
        kind = key & 7
        if kind == _BYTES:
            size, position = varint(data, position)
            stop = position + size
            if stop > end:
                raise MalformedError("a field that is longer than its message")
            yield key >> 3, data[position:stop]
            position = stop
        elif kind == _VARINT:
            value, position = varint(data, position)
            yield key >> 3, value
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
            if position + size > end:
                raise MalformedError("a field that is longer than its message")
            yield key >> 3, int.from_bytes(data[position : position + size], "little")
            position += size
        else:
            raise MalformedError(f"a field of the unknown wire type {kind}")


def varint(data: memoryview, position: int) -> tuple[int, int]:
    """A number of variable length, of 64 bits at most, and the position after it.

    >>> varint(memoryview(bytes([0xAC, 0x02])), 0)
    (300, 2)
    """
    value = shift = 0
    try:
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value & 0xFFFFFFFFFFFFFFFF, position
            shift += 7
            if shift > 63:
                raise MalformedError("a number of more than ten bytes")
    except IndexError:
        raise MalformedError("a number that is cut off") from None


def message(value: Field) -> memoryview:
    """The bytes of a message, a string or a packed list."""
    if isinstance(value, int):
        raise MalformedError("a number instead of a message")
    return value


def integers(values: Iterable[Field]) -> list[int]:
    """Signed integers of a repeated field, packed or not.

    >>> integers([memoryview(bytes([3, 5])), 7])
    [3, 5, 7]
    """
    numbers: list[int] = []
    for value in values:
        if isinstance(value, int):
            numbers.append(value)
        else:
            position = 0
            while position < len(value):
                number, position = varint(value, position)
                numbers.append(number)
    return [number - (1 << 64) if number >> 63 else number for number in numbers]


def float32s(values: Iterable[Field]) -> list[float]:
    """Float32 numbers of a repeated field, packed or not."""
    data = b"".join(struct.pack("<I", value) if isinstance(value, int) else bytes(value) for value in values)
    if len(data) % 4:
        raise MalformedError("a list of numbers that is cut off")
    return [number for (number,) in struct.iter_unpack("<f", data)]


def text_of(values: Iterable[Field] | None) -> str:
    """The last value of a string field, which is the one that counts; empty without one."""
    last: Field = b""  # type: ignore[assignment]
    for value in values or ():
        last = value
    if isinstance(last, int):
        raise MalformedError("a number instead of a string")
    return str(last, "utf-8", "replace")

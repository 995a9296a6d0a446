"""FlatBuffers, read in place.

A table is a place in the file with a list of offsets to its fields (https://flatbuffers.dev/internals). Every offset is
checked before it is followed, which the code that a schema compiler generates does not do. Many offsets may lead to one
place, so a small file could expand to a large one: all lists are accounted for
(:mod:`~cnnfilterdb.ingest.formats.limits`).
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from cnnfilterdb.ingest.formats import limits

__all__ = ["Table"]

# Memory in bytes of an element of a list, and of a text or list itself
_BYTES_PER_TABLE, _BYTES_PER_INTEGER, _BYTES_PER_LIST = 120, 40, 120


class Table:
    """A table: fields by the number that they have in its schema.

    Anything outside of the file raises ValueError.
    """

    __slots__ = ("_data", "_position")

    def __init__(self, data: memoryview, position: int) -> None:
        self._data, self._position = data, position

    @classmethod
    def root(cls, data: memoryview) -> Table:
        """The outermost table of a file."""
        return cls(data, _number(data, 0, "<I"))

    def _place(self, field: int) -> int | None:
        vtable = self._position - _number(self._data, self._position, "<i")
        slot = 4 + 2 * field
        if slot + 2 > _number(self._data, vtable, "<H"):
            return None
        offset = _number(self._data, vtable + slot, "<H")
        return self._position + offset if offset else None

    def number(self, field: int, format: str, default: int = 0) -> int:
        """An integer.

        Args:
            field: Number of the field.
            format: Its type, as :mod:`struct` spells it.
            default: Its value by the schema if it is absent.
        """
        place = self._place(field)
        return default if place is None else _number(self._data, place, format)

    def _target(self, field: int) -> int | None:
        place = self._place(field)
        return None if place is None else place + _number(self._data, place, "<I")

    def table(self, field: int) -> Table | None:
        """A table."""
        target = self._target(field)
        return None if target is None else Table(self._data, target)

    def tables(self, field: int) -> list[Table]:
        """A list of tables."""
        target = self._target(field)
        if target is None:
            return []
        offsets = _vector(self._data, target, np.dtype("<u4"))
        limits.current().allocate(_BYTES_PER_LIST + _BYTES_PER_TABLE * len(offsets))
        return [Table(self._data, target + 4 + 4 * i + int(offset)) for i, offset in enumerate(offsets)]

    def array(self, field: int, dtype: str) -> npt.NDArray[np.generic]:
        """A list of numbers, without a copy."""
        target = self._target(field)
        return np.empty(0, dtype) if target is None else _vector(self._data, target, np.dtype(dtype))

    def data(self, field: int) -> memoryview:
        """A list of bytes, without a copy."""
        return self.array(field, "u1").data

    def integers(self, field: int, dtype: str = "<i4") -> list[int]:
        """A list of integers."""
        values = self.array(field, dtype)
        limits.current().allocate(_BYTES_PER_LIST + _BYTES_PER_INTEGER * len(values))
        return [int(value) for value in values]

    def text(self, field: int) -> str:
        """A string; empty where it is absent."""
        content = self.array(field, "u1")
        limits.current().allocate(_BYTES_PER_LIST + 4 * len(content))
        return content.tobytes().decode("utf-8", "replace")

    def texts(self, field: int) -> list[str]:
        """A list of strings."""
        target = self._target(field)
        found = []
        for i, offset in enumerate([] if target is None else _vector(self._data, target, np.dtype("<u4"))):
            content = _vector(self._data, (target or 0) + 4 + 4 * i + int(offset), np.dtype("u1"))
            limits.current().allocate(_BYTES_PER_LIST + 4 * len(content))
            found.append(content.tobytes().decode("utf-8", "replace"))
        return found


def _number(data: memoryview, position: int, format: str) -> int:
    if not 0 <= position <= len(data) - struct.calcsize(format):
        raise ValueError("a number beyond the end of the file")
    value = struct.unpack_from(format, data, position)[0]
    return int(value)


def _vector(data: memoryview, position: int, dtype: np.dtype[np.generic]) -> npt.NDArray[np.generic]:
    count = _number(data, position, "<I")
    if count * dtype.itemsize > len(data) - position - 4:
        raise ValueError("a list beyond the end of the file")
    return np.frombuffer(data, dtype, count, position + 4)

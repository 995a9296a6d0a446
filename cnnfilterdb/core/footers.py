"""What the footers of Parquet files say, where pyarrow is too slow or not safe.

Opening hundreds of files only for their numbers of rows takes long. And pyarrow ends the process if one asks it for a
column of a row group that contradicts its schema (:meth:`pyarrow.parquet.RowGroupMetaData.column`, and what that
returns): one wrong bit in a footer is enough. So nothing else in this package does that.

A footer is FileMetaData of Apache Parquet in the compact protocol of Thrift.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["ColumnChunk", "RowGroup", "row_groups", "stated_rows", "unpacked_bytes"]

_MAGIC = b"PAR1"
# Bytes at the end of a file that are read at once; a footer is smaller unless there are many row groups
_TAIL = 64 << 10
_VARINT = 10  # bytes of a number at most


def stated_rows(path: str | os.PathLike[str], schema: pa.Schema) -> int | None:
    """The number of rows that a Parquet file states, if it has the columns of a schema and was written by pyarrow.

    A footer begins with the version and the schema, followed by the number of rows. So the files of one table begin
    their footers with the same bytes.

    Args:
        path: The file.
        schema: The schema.

    Returns:
        The number; None if its footer does not show it; a Parquet reader must then open the file.
    """
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError:
        return None
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            return None
        os.lseek(file, max(0, status.st_size - _TAIL), os.SEEK_SET)
        tail = os.read(file, _TAIL)
    except OSError:
        return None
    finally:
        os.close(file)
    length = int.from_bytes(tail[-8:-4], "little")
    beginning = _beginning(schema)
    if tail[-4:] != _MAGIC or not len(beginning) < length <= len(tail) - 8:
        return None
    footer = tail[len(tail) - 8 - length :]
    if not footer.startswith(beginning):
        return None
    try:
        number, _ = _number(footer[len(beginning) : len(beginning) + _VARINT], 0)
    except IndexError:  # it does not end
        return None
    return None if number < 0 else number


@cache
def _beginning(schema: pa.Schema) -> bytes:
    """What comes before the number of rows in the footers of files with a schema."""
    empty = pa.BufferOutputStream()
    pq.ParquetWriter(empty, schema).close()
    content: bytes = empty.getvalue().to_pybytes()
    footer = content[len(content) - 8 - int.from_bytes(content[-8:-4], "little") :]
    # Field 3, an i64, 0; field 4, a list of no structs. What follows them is text.
    place = footer.rindex(b"\x16\x00\x19\x0c")
    return footer[: place + 1]


@dataclass(frozen=True, slots=True)
class ColumnChunk:
    """A column of a row group.

    Attributes:
        values: Number of its values.
        unpacked: Bytes of its pages before compression.
        lowest: Its smallest value as Parquet stores it, and
        highest: its largest; None if they are not stated, or not exactly.
    """

    values: int
    unpacked: int
    lowest: bytes | None
    highest: bytes | None


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A row group.

    Attributes:
        rows: Number of its rows.
        chunks: Its columns, in the order of the schema.
    """

    rows: int
    chunks: tuple[ColumnChunk, ...]


def row_groups(metadata: pq.FileMetaData) -> list[RowGroup]:
    r"""The row groups of a Parquet file, as its footer states them; nothing of it needs to be true.

    Args:
        metadata: The footer. What is walked here is what pyarrow writes of it, so that it is well-formed.

    Raises:
        pyarrow.ArrowInvalid: A row group does not have all columns.

    >>> buffer = pa.BufferOutputStream()
    >>> pq.write_table(pa.table({"layer": pa.array([3, 5], pa.int32())}), buffer)
    >>> (group,) = row_groups(pq.read_metadata(pa.BufferReader(buffer.getvalue())))
    >>> group.rows, group.chunks[0].values, group.chunks[0].lowest
    (2, 2, b'\x03\x00\x00\x00')
    """
    written = pa.BufferOutputStream()
    metadata.write_metadata_file(written)
    groups, _ = _struct(written.getvalue().to_pybytes(), len(_MAGIC), _FILE)
    found = [RowGroup(group[3], tuple(map(_chunk, group[1]))) for group in groups.get(4, [])]
    if any(len(group.chunks) != metadata.num_columns for group in found):
        raise pa.ArrowInvalid("a row group without some of the columns")
    return found


def unpacked_bytes(groups: Iterable[RowGroup]) -> int:
    """Bytes that row groups take in memory by what their footer states: 8 for each value, or their pages."""
    values = unpacked = 0
    for group in groups:
        values += sum(max(chunk.values, group.rows) for chunk in group.chunks)
        unpacked += sum(chunk.unpacked for chunk in group.chunks)
    return max(8 * values, unpacked)


def _chunk(column: dict[int, Any]) -> ColumnChunk:
    facts = column.get(3)
    if facts is None:
        raise pa.ArrowInvalid("a column of a row group without any facts")
    statistics = facts.get(12, {})
    # A long text may be cut off, which other writers state (by a boolean).
    lowest = statistics.get(6) if statistics.get(8, True) else None
    highest = statistics.get(5) if statistics.get(7, True) else None
    return ColumnChunk(facts[5], facts[6], lowest, highest)


#: Reads a value at a place of a footer, and returns it with the place that follows.
_Reader = Callable[[bytes, int], tuple[Any, int]]


def _struct(footer: bytes, place: int, readers: Mapping[int, _Reader]) -> tuple[dict[int, Any], int]:
    """The fields of a struct that have a reader, and its booleans."""
    found: dict[int, Any] = {}
    field = 0
    while head := footer[place]:
        place += 1
        if head < 16:
            field, place = _number(footer, place)
        else:
            field += head >> 4
        kind = head & 15
        if kind <= 2:
            found[field] = kind == 1
        elif field in readers:
            found[field], place = readers[field](footer, place)
        else:
            place = _skip(footer, place, kind)
    return found, place + 1


def _list(footer: bytes, place: int, reader: _Reader) -> tuple[list[Any], int]:
    count, _, place = _size(footer, place)
    found = []
    for _ in range(count):
        value, place = reader(footer, place)
        found.append(value)
    return found, place


def _size(footer: bytes, place: int) -> tuple[int, int, int]:
    """How many items a list has, and of which kind."""
    head = footer[place]
    if head < 0xF0:
        return head >> 4, head & 15, place + 1
    count, place = _unsigned(footer, place + 1)
    return count, head & 15, place


def _unsigned(footer: bytes, place: int) -> tuple[int, int]:
    byte = number = footer[place]
    shift = 7
    while byte > 0x7F:
        place += 1
        byte = footer[place]
        number += (byte - 1) << shift  # less the bit that says that more follows
        shift += 7
    return number, place + 1


def _number(footer: bytes, place: int) -> tuple[int, int]:
    number, place = _unsigned(footer, place)
    return (number >> 1) ^ -(number & 1), place


def _bytes(footer: bytes, place: int) -> tuple[bytes, int]:
    length, place = _unsigned(footer, place)
    return footer[place : place + length], place + length


def _skip(footer: bytes, place: int, kind: int) -> int:
    """The place behind a value."""
    if kind <= 6:
        if kind > 3:  # an integer; below, a byte
            while footer[place] > 0x7F:
                place += 1
        return place + 1
    if kind == 8:
        length, place = _unsigned(footer, place)
        return place + length
    if kind == 12:
        return _struct(footer, place, {})[1]
    if kind in (9, 10):
        count, kind, place = _size(footer, place)
        for _ in range(count):
            place = _skip(footer, place, kind)
        return place
    return place + 8  # a double


# What is read of each struct, by the numbers of parquet.thrift: of Statistics max_value (5) and min_value (6), beside
# is_max_value_exact (7) and is_min_value_exact (8); of ColumnMetaData num_values (5), total_uncompressed_size (6) and
# statistics (12); of ColumnChunk meta_data (3); of RowGroup columns (1) and num_rows (3); of FileMetaData
# row_groups (4).
_STATISTICS = partial(_struct, readers={5: _bytes, 6: _bytes})
_COLUMN = partial(_struct, readers={3: partial(_struct, readers={5: _number, 6: _number, 12: _STATISTICS})})
_GROUP = partial(_struct, readers={1: partial(_list, reader=_COLUMN), 3: _number})
_FILE: dict[int, _Reader] = {4: partial(_list, reader=_GROUP)}

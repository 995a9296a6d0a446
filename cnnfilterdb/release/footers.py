"""Untrusted Parquet files: what their footers must say, and how to read them without running out of memory.

A Parquet file of some kilobytes can claim billions of rows, or a dictionary of one long text that each of them repeats.
So a file is read only if it has the columns of its table, as many rows as the manifest states, and no more content than
its size can account for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cnnfilterdb.core.errors import CnnFilterDbError, CorruptError
from cnnfilterdb.core.footers import row_groups, unpacked_bytes
from cnnfilterdb.core.reports import first_line
from cnnfilterdb.core.schema import release_schema
from cnnfilterdb.release.manifest import ReleaseFile

__all__ = ["check_footer", "open_shard", "open_table", "unpacked_limit"]

# Bytes of memory per byte of a file, and the bytes that any file may take. Filters and histograms may be many alike,
# such as those of dead layers, and are never all in memory at the same time.
_GROWTH = 200
_GROWTH_OF_MANY = 1000
_GROUND = 64 << 20
# Bytes of the weights of a row group of filters; the package writes at most 16 MiB, or one layer of one row.
_GROUP = 64 << 20


def unpacked_limit(file: ReleaseFile) -> int:
    """Bytes that the content of a file may unpack to."""
    many = file.table == "histograms" or file.table.startswith("filters_")
    return _GROUND + (_GROWTH_OF_MANY if many else _GROWTH) * file.bytes


def check_footer(shard: pq.ParquetFile, file: ReleaseFile, where: str) -> None:
    """Make sure that a file is a shard of its table, and that reading it is safe.

    Args:
        shard: The file, of which the footer is read.
        file: Its description in the manifest.
        where: Its address, for messages.

    Raises:
        CorruptError: It is not the shard that the manifest describes.
    """
    expected = release_schema(file.table)
    metadata, found = shard.metadata, shard.schema_arrow
    if not found.equals(expected):
        raise CorruptError(
            f"{where}: its columns are not those of {file.table}{_difference(found, expected)}; {_REMEDY}"
        )
    if metadata.num_rows != file.rows:
        raise CorruptError(f"{where}: {metadata.num_rows:,} rows, expected {file.rows:,}; {_REMEDY}")
    groups = row_groups(metadata)
    if any(group.rows < 0 for group in groups) or sum(group.rows for group in groups) != file.rows:
        raise CorruptError(f"{where}: its row groups do not add up to {file.rows:,} rows; {_REMEDY}")
    limit = unpacked_limit(file)
    needed = unpacked_bytes(groups)
    if needed > limit:
        raise CorruptError(
            f"{where}: a file of {file.bytes:,} bytes that unpacks to {needed:,}; at most {limit:,} are accepted; "
            f"{_REMEDY}"
        )
    if file.table.startswith("filters_"):
        row = 4 * (len(expected) - 4)
        largest = max((group.rows for group in groups), default=0)
        if largest > 1 and largest * row > _GROUP:
            raise CorruptError(f"{where}: a row group of {largest:,} filters; expected smaller ones; {_REMEDY}")


def open_shard(content: Any, file: ReleaseFile, where: str, **options: Any) -> pq.ParquetFile:
    """Open a shard and check its footer, unless that is given: it is one of an earlier call.

    Args:
        content: The file, as :class:`pyarrow.parquet.ParquetFile` takes it.
        file: Its description in the manifest.
        where: Its address, for messages.
        **options: Those of :class:`pyarrow.parquet.ParquetFile`.

    Raises:
        CorruptError: It is not the shard that the manifest describes.
    """
    with _reading(where):
        shard = pq.ParquetFile(content, **options)
        if options.get("metadata") is None:  # one that is known was checked: this is called for each row group
            check_footer(shard, file, where)
    return shard


def open_table(content: bytes, file: ReleaseFile, where: str) -> pq.ParquetFile:
    """Like :func:`open_shard`, for a small table whose text is measured as well.

    Raises:
        CorruptError: It is not the shard that the manifest describes, or unpacks to more than its size can account for.
    """
    shard = open_shard(pa.BufferReader(content), file, where)
    with _reading(where):
        _check_text(content, shard.metadata, file, where)
    return shard


@contextmanager
def _reading(where: str) -> Iterator[None]:
    try:
        yield
    except CnnFilterDbError:
        raise
    except (pa.ArrowException, OSError, ValueError, NotImplementedError) as error:
        raise CorruptError(f"{where}: cannot be read ({first_line(error, 200)}); {_REMEDY}") from error


def _check_text(content: bytes, metadata: pq.FileMetaData, file: ReleaseFile, where: str) -> None:
    """Measure the text of a file by its dictionaries, without unpacking it."""
    leaves = [metadata.schema.column(number) for number in range(len(metadata.schema))]
    text = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    if not text:
        return
    encoded = pq.ParquetFile(pa.BufferReader(content), read_dictionary=text)
    total, limit = 0, unpacked_limit(file)
    for batch in encoded.iter_batches(batch_size=4096, columns=text, use_threads=False):
        total += sum(_text_bytes(column) for column in batch.columns)
        if total > limit:
            raise CorruptError(
                f"{where}: a file of {file.bytes:,} bytes whose text unpacks to more than {limit:,}; {_REMEDY}"
            )


def _text_bytes(array: pa.Array) -> int:
    """Bytes of the text in an array, however deep; dictionaries are not unpacked."""
    if pa.types.is_dictionary(array.type):
        lengths = pc.binary_length(array.dictionary)
        return int(pc.sum(lengths.take(array.indices)).as_py() or 0)
    if pa.types.is_string(array.type) or pa.types.is_binary(array.type):
        return int(pc.sum(pc.binary_length(array)).as_py() or 0)
    return sum(_text_bytes(child) for child in _children(array))


def _children(array: pa.Array) -> Iterator[pa.Array]:
    if pa.types.is_list(array.type):
        yield array.flatten()
    elif pa.types.is_struct(array.type):
        yield from array.flatten()


_REMEDY = "do not use this release, or ask its publisher to rebuild it"


def _difference(found: pa.Schema, expected: pa.Schema) -> str:
    for name in expected.names:
        if name not in found.names:
            return f"{name} is missing"
    for name in found.names:
        if name not in expected.names or found.names.count(name) > 1:
            return "there are additional columns"
    for field in expected:
        if not found.field(field.name).equals(field):
            return f"{field.name} is {str(found.field(field.name).type)[:60]}, not {field.type}"
    return "they are in a different order"

"""Rows as text or bytes for other programs: CSV, JSON, Parquet and Arrow, without loss."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from cnnfilterdb.core.errors import SelectionError

__all__ = ["BINARY", "encoded", "plain_rows", "write"]

#: Formats that are no text.
BINARY = ("parquet", "arrow")

#: First characters of a text that a spreadsheet would interpret as a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")

#: Most rows, and about how many bytes, of a row group of Parquet and of a batch of Arrow.
_GROUP_ROWS, _GROUP_BYTES = 1 << 20, 1 << 27


def encoded(table: pa.Table, style: str) -> str | bytes:
    """A table as ``csv``, ``tsv``, ``json``, ``jsonl``, ``parquet`` or ``arrow``; every value is complete.

    NULL is an empty cell of CSV and an empty text is ``""``; lists and structs are JSON. Texts that a spreadsheet would
    execute are preceded by an apostrophe.

    Raises:
        SelectionError: The format cannot store a column.

    >>> encoded(pa.table({"name": ["a", None], "share": [0.5, 1.0]}), "csv")
    'name,share\\na,0.5\\n,1.0\\n'
    """
    target = io.BytesIO()
    write(table.to_reader(), style, target)
    data = target.getvalue()
    return data if style in BINARY else data.decode()


def write(rows: pa.RecordBatchReader, style: str, target: BinaryIO) -> None:
    """Write rows as :func:`encoded` returns them, batch by batch: memory does not grow with their number.

    Args:
        rows: The rows.
        style: The format.
        target: Where to write; each text that it is given ends at the end of a row.

    Raises:
        SelectionError: The format cannot store a column.
    """
    if style not in BINARY:
        for text in _texts(rows, style):
            target.write(text.encode())
        return
    try:
        if style == "arrow":
            with pa.ipc.new_file(target, rows.schema) as file:
                for table in _large(rows):
                    file.write_table(table)
        else:
            import pyarrow.parquet as pq

            with pq.ParquetWriter(target, rows.schema) as file:
                for table in _large(rows):
                    file.write_table(table)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SelectionError(f"{style} cannot store these columns: {error}; cast them or use another format") from error


def _texts(rows: pa.RecordBatchReader, style: str) -> Iterator[str]:
    """CSV, TSV, JSON or JSON lines, a batch at a time."""
    tables = (pa.Table.from_batches([batch]) for batch in rows)
    if style in ("csv", "tsv"):
        delimiter = "," if style == "csv" else "\t"
        yield delimiter.join(_quoted(_inert(name), delimiter) for name in rows.schema.names) + "\n"
        yield from (_separated(table, delimiter) for table in tables)
        return
    lines = (
        [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in plain_rows(table)]
        for table in tables
        if table.num_rows
    )
    if style == "jsonl":
        yield from ("\n".join([*batch, ""]) for batch in lines)
        return
    between = "[\n"
    for batch in lines:
        yield between + ",\n".join(batch)
        between = ",\n"
    yield "[\n]\n" if between == "[\n" else "\n]\n"


def _large(rows: pa.RecordBatchReader) -> Iterator[pa.Table]:
    """The rows in groups of a size that a file is read well in; one group at least."""
    waiting: list[pa.RecordBatch] = []
    count = size = groups = 0

    def group() -> pa.Table:
        nonlocal count, size, groups
        table = pa.Table.from_batches(waiting, rows.schema).combine_chunks()
        waiting.clear()
        count, size, groups = 0, 0, groups + 1
        return table

    for batch in rows:
        if waiting and count + batch.num_rows > _GROUP_ROWS:
            left = _GROUP_ROWS - count
            waiting.append(batch.slice(0, left))
            batch = batch.slice(left)
            yield group()
        waiting.append(batch)
        count, size = count + batch.num_rows, size + batch.nbytes
        if size >= _GROUP_BYTES:
            yield group()
    if waiting or not groups:
        yield group()


def _separated(table: pa.Table, delimiter: str) -> str:
    """Lines of CSV or TSV: NULL is an empty cell, an empty text is ``""``; lists and structs are JSON."""
    columns = []
    for column in table.columns:
        kind = column.type
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)
        columns.append(
            [
                "" if value is None else _quoted(_inert(value) if text else _text(value, kind), delimiter)
                for value in column.to_pylist()
            ]
        )
    return "".join(delimiter.join(row) + "\n" for row in zip(*columns, strict=True))


def _inert(text: str) -> str:
    """A text that no spreadsheet executes: what looks like a formula gets an apostrophe, as spreadsheets write it."""
    return "'" + text if text.startswith(_FORMULA) else text


def _quoted(text: str, delimiter: str) -> str:
    if text == "" or any(char in text for char in (delimiter, '"', "\n", "\r")) or text != text.strip():
        return '"' + text.replace('"', '""') + '"'
    return text


def _text(value: Any, kind: pa.DataType) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return _float(value, single=pa.types.is_float32(kind))
    plain = _plain(value, kind)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)


def _float(value: float, *, single: bool) -> str:
    """The shortest text that reads back as the same number."""
    return str(np.float32(value)) if single else repr(value)


def plain_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows of a table as JSON: NaN and infinity become None, dates and bytes text, maps and structs dicts.

    >>> list(plain_rows(pa.table({"x": [1.5, float("nan")]})))
    [{'x': 1.5}, {'x': None}]
    """
    kinds = table.schema.types
    columns = [[_plain(value, kind) for value in table.column(i).to_pylist()] for i, kind in enumerate(kinds)]
    for row in zip(*columns, strict=True):
        yield dict(zip(table.column_names, row, strict=True))


def _plain(value: Any, kind: pa.DataType) -> Any:
    """A value as JSON: NaN and infinity become null, dates and bytes text, maps and structs objects."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            return None
        return float(_float(value, single=pa.types.is_float32(kind)))
    if isinstance(value, Decimal):
        if value == value.to_integral_value():
            return int(value)
        return float(value) if Decimal(repr(float(value))) == value else str(value)
    if pa.types.is_map(kind):
        return {str(_plain(key, kind.key_type)): _plain(item, kind.item_type) for key, item in value}
    if isinstance(value, dict):
        return {name: _plain(item, kind.field(name).type) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, kind.value_type) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)

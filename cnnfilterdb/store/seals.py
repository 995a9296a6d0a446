"""Seals: files that contain a SHA-256 of all their other bytes, by which damage to small files is detected.

The hash of every file of a database is in one place that is written together with the file: the filters and layers of a
model in its models row; the models row, bases, histograms and the files without rows in their own footer; the marker
and ``init.sql`` in a separate line; the annotations, which users edit, in a file beside them. So every flipped or
missing byte is detected from the files alone. A manifest of all files would have to be written at the same time as each
of them, and could be out of step with them after a kill.

In a Parquet file the hash is in the footer, as key-value metadata, which other readers ignore.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["seal_text", "sealed", "text_sealed", "write_sealed"]

# Key of the seal in the footer of a Parquet file, and its placeholder while the hash is computed.
_SEAL = b"cnnfilterdb_sha256"
_OPEN = b"0" * 64

_COMMENT = "-- sha256 of the text above: "


def write_sealed(table: pa.Table, path: Path, **settings: Any) -> None:
    """Write a small table to a Parquet file with page checksums and a seal, and wait until it is on the disk.

    Args:
        table: The table.
        path: The file; it is written in place, so it must be a temporary one. Its folder is created.
        **settings: Those of :class:`pyarrow.parquet.ParquetWriter`, and ``row_group_size``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = settings.pop("row_group_size", None)
    buffer = pa.BufferOutputStream()
    options = {"compression": "zstd", "write_page_checksum": True} | settings
    with pq.ParquetWriter(buffer, table.schema, **options) as writer:
        writer.add_key_value_metadata({_SEAL.decode(): _OPEN.decode()})
        writer.write_table(table, row_group_size=rows)
    content = bytearray(buffer.getvalue())
    place = _place(content)
    assert place is not None, "the footer has the key of the seal"
    content[place] = hashlib.sha256(content).hexdigest().encode()
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sealed(path: Path) -> bool | None:
    """Whether the content of a file matches its seal; None for a file without a seal.

    Raises:
        OSError: It cannot be read.
    """
    content = bytearray(path.read_bytes())
    place = _place(content)
    if place is None:
        return None
    found = bytes(content[place])
    content[place] = _OPEN
    return hashlib.sha256(content).hexdigest().encode() == found


def seal_text(text: str) -> str:
    """A SQL text with a comment at its end that has the SHA-256 of the rest."""
    text = text if text.endswith("\n") else f"{text}\n"
    return f"{text}{_COMMENT}{hashlib.sha256(text.encode()).hexdigest()}\n"


def text_sealed(content: bytes) -> bool:
    """Whether the content of a file is what :func:`seal_text` returned.

    >>> text_sealed(seal_text("SELECT 1;").encode()), text_sealed(b"SELECT 1;")
    (True, False)
    """
    text, comment, digest = content.rpartition(_COMMENT.encode())
    return bool(comment) and digest == f"{hashlib.sha256(text).hexdigest()}\n".encode()


def _place(content: bytearray) -> slice | None:
    """Position of the hash: the footer is Thrift, in which the value follows its key, field header and length."""
    key = content.rfind(_SEAL)
    start = key + len(_SEAL) + 2
    return None if key < 0 or start + len(_OPEN) > len(content) else slice(start, start + len(_OPEN))

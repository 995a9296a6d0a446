"""Seals: small Parquet files that contain a SHA-256 of all their other bytes.

The hash stands in the footer, as key-value metadata. Every flipped or missing byte is found from the file alone, and a
seal can never be out of step with its file: there is no second file that has to be written or renamed at the same time.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["sealed", "write_sealed"]

# Key of the seal in the footer of a Parquet file, and what stands there while the hash is computed.
_SEAL = b"cnnfilterdb_sha256"
_OPEN = b"0" * 64


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
    """Whether the content of a file is what was sealed; None for a file without a seal.

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


def _place(content: bytearray) -> slice | None:
    """Where the hash stands: the footer is Thrift, in which the value follows its key, field header and length."""
    key = content.rfind(_SEAL)
    start = key + len(_SEAL) + 2
    return None if key < 0 or start + len(_OPEN) > len(content) else slice(start, start + len(_OPEN))

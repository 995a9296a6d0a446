"""The codecs of chunks of arrays, as Zarr, TensorStore and numcodecs write them, within the limits of a file.

Zstandard and LZ4 are read by PyArrow, gzip, zlib, bzip2 and xz by Python. Blosc needs the package numcodecs, which the
extra ``zarr`` installs. The headers of LZ4 and Blosc state how long the content is, which is checked beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np

from cnnfilterdb.ingest.formats import limits
from cnnfilterdb.ingest.formats.blob import Blob
from cnnfilterdb.ingest.formats.compression import decompressed

__all__ = ["Decoder", "decoder", "unzstandard"]

#: Undoes a codec: content of a chunk as stored -> as it was before.
Decoder = Callable[[bytes], bytes]

_PIECE = 1 << 20
_BLOSC_HEADER = 16


def decoder(codec: Mapping[str, Any]) -> Decoder | str:
    """What undoes a codec; or, for one that is not read, its name and what to do.

    Args:
        codec: Its description: ``id`` in version 2 of Zarr, ``name`` in version 3, and its configuration.

    >>> import gzip
    >>> decoder({"id": "gzip", "level": 5})(gzip.compress(b"abc"))
    b'abc'
    >>> decoder({"id": "zfpy"})
    'the codec zfpy, which is not read; save it with Zstandard or gzip'
    """
    name = str(codec.get("id", codec.get("name"))).removeprefix("numcodecs.")
    if name == "blosc":
        if find_spec("numcodecs") is None:
            return "the codec Blosc, which needs numcodecs: pip install 'cnnfilterdb[zarr]'"
        return _unblosc
    if name == "shuffle":
        size = {**codec, **codec.get("configuration", {})}.get("elementsize", 4)
        return lambda data: _unshuffled(data, size)
    known: dict[str, Decoder] = {
        "zstd": unzstandard,
        "lz4": _unlz4,
        **dict.fromkeys(("gzip", "zlib", "bz2", "lzma"), lambda data: decompressed(Blob.of(data)).read()),
        "crc32c": lambda data: data[:-4],
    }
    return known.get(name, f"the codec {name[:40]}, which is not read; save it with Zstandard or gzip")


def unzstandard(data: bytes) -> bytes:
    """The content of a stream of Zstandard.

    Raises:
        ValueError: It is damaged.
        WeightFileError: It is larger than the limits of the file permit.
    """
    import pyarrow as pa  # not on top: reading a file without compression needs none of it

    found = bytearray()
    try:
        with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
            while piece := stream.read(_PIECE):
                limits.current().allocate(len(piece))
                found += piece
    except OSError as error:
        raise ValueError(f"a damaged Zstandard stream ({error})") from error
    return bytes(found)


def _unlz4(data: bytes) -> bytes:
    """A block of LZ4 after its length, in four bytes."""
    import pyarrow as pa

    size = int.from_bytes(data[:4], "little")
    limits.current().allocate(size)
    try:
        return bytes(pa.decompress(data[4:], size, "lz4_raw", asbytes=True))
    except OSError as error:
        raise ValueError(f"a damaged LZ4 block ({error})") from error


def _unblosc(data: bytes) -> bytes:
    """A block of Blosc: its header states the lengths of the content and of the block."""
    from numcodecs import blosc

    content, length = (int.from_bytes(data[start : start + 4], "little") for start in (4, 12))
    if len(data) < _BLOSC_HEADER or length != len(data):
        raise ValueError(f"a block of Blosc of {len(data):,} bytes; its header states {length:,}: truncated")
    limits.current().allocate(content)
    try:
        return bytes(blosc.decompress(data))
    except RuntimeError as error:
        raise ValueError(f"a damaged block of Blosc ({error})") from error


def _unshuffled(data: bytes, size: Any) -> bytes:
    """Elements whose bytes were sorted: all first ones, all second ones, ..."""
    if type(size) is not int or not 0 < size <= len(data) or len(data) % size:
        raise ValueError(f"{len(data):,} shuffled bytes of elements of {str(size)[:20]}")
    return np.frombuffer(data, np.uint8).reshape(size, -1).T.tobytes()

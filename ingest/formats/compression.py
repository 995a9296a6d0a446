"""Compressed streams: gzip, zlib, bzip2, xz and lzma, as joblib and ``tar`` write them, within the limits of a file."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Protocol

from cnnfilterdb.ingest.formats import limits
from cnnfilterdb.ingest.formats.blob import Blob

__all__ = ["compression_of", "decompressed"]

_PIECE = 1 << 20
# A header of xz may ask for a dictionary of any size
_DICTIONARY = 256 << 20


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


_KINDS: tuple[tuple[tuple[bytes, ...], str, Callable[[], _Decompressor]], ...] = (
    ((b"\x1f\x8b\x08",), "gzip archive", lambda: zlib.decompressobj(31)),
    # The second byte is the level of compression
    ((b"x\x01", b"x\x5e", b"x\x9c", b"x\xda"), "zlib stream", zlib.decompressobj),
    ((b"BZh",), "bzip2 archive", bz2.BZ2Decompressor),
    ((b"\xfd7zXZ\x00",), "xz archive", lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, _DICTIONARY)),
    ((b"\x5d\x00\x00",), "lzma stream", lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE, _DICTIONARY)),
)


def compression_of(head: bytes) -> str | None:
    """The name of the compression of a stream, by its first bytes; None if it has none that is read.

    >>> compression_of(b"BZh91AY"), compression_of(b"PK")
    ('bzip2 archive', None)
    """
    return next((name for magic, name, _ in _KINDS if head.startswith(magic)), None)


def decompressed(blob: Blob) -> Blob:
    """The content of a compressed stream, in memory; that of all its members if there are several.

    Raises:
        ValueError: It is damaged or truncated.
        WeightFileError: It is larger than the limits of the file permit.

    >>> import gzip
    >>> decompressed(Blob.of(gzip.compress(b"abc") + gzip.compress(b"def"))).read()
    b'abcdef'
    """
    with blob.stream() as stream:
        data = stream.read(_PIECE)
        new = next(new for magic, _, new in _KINDS if data.startswith(magic))
        found = bytearray()
        current = new()
        while True:
            limits.current().step()
            try:
                piece = current.decompress(data, _PIECE)
            except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
                raise ValueError(f"a damaged compressed stream ({error})") from error
            limits.current().allocate(len(piece))
            found += piece
            if current.eof:
                data = current.unused_data or stream.read(_PIECE)
                if not data.strip(b"\0"):  # zeros may fill the last block
                    return Blob.of(bytes(found))
                current = new()
                continue
            # zlib returns what it has not consumed, the others keep it
            data = getattr(current, "unconsumed_tail", b"")
            if not data and getattr(current, "needs_input", True):
                data = stream.read(_PIECE)
                if not data and len(piece) < _PIECE:
                    raise ValueError("a compressed stream without its end: truncated")

"""Bytes that are read from anywhere: those of a file, of a part of one, or in memory."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from cnnfilterdb.ingest.formats import mapping

__all__ = ["Blob"]

T = TypeVar("T", bytes, memoryview)


# Bytes that are requested without a look at how many are left: pickles are read in a few at a time.
_FEW = 1 << 12
#: Bytes that are read at once instead of as a stream.
_SHORT = 1 << 22


class _Window(io.BufferedReader):
    """A stream that never allocates many more bytes than exist, whatever size is requested."""

    def __init__(self, file: io.RawIOBase, size: int) -> None:
        super().__init__(file)
        self._size = size

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and 0 <= size <= _FEW:
            return super().read(size)
        left = max(self._size - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))


class _Part(io.RawIOBase):
    """A part of a file as a separate file."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file, self._start, self._size, self._place = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        place = offset + (0, self._place, self._size)[whence]
        if place < 0:
            raise ValueError("a position before the beginning of the file")
        self._place = place
        return place

    def readinto(self, buffer: Any, /) -> int:
        self._file.seek(self._start + self._place)
        data = self._file.read(max(min(len(buffer), self._size - self._place), 0))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes that are read from anywhere: those of a file, of a part of one, or in memory.

    Attributes:
        open: Opens the file.
        start: Position of the first byte in it.
        size: Their number.
        path: The file, if it is one.
    """

    open: Callable[[], BinaryIO]
    start: int
    size: int
    path: Path | None = None

    @classmethod
    def of_file(cls, path: Path) -> Blob:
        """The bytes of a file."""
        return cls(lambda: path.open("rb"), 0, path.stat().st_size, path)

    @classmethod
    def of(cls, data: bytes) -> Blob:
        """Bytes in memory."""
        return cls(lambda: io.BytesIO(data), 0, len(data))

    def part(self, start: int, size: int) -> Blob:
        """Some of the bytes.

        Raises:
            ValueError: They end too early.

        >>> Blob.of(b"abcdef").part(1, 4).part(2, 2).read()
        b'de'
        """
        if start < 0 or size < 0 or start + size > self.size:
            raise ValueError(f"ends at byte {self.size:,} where bytes up to {start + size:,} are expected: truncated")
        return replace(self, start=self.start + start, size=size)

    def read(self) -> bytes:
        """All of the bytes.

        Raises:
            ValueError: The file has become shorter.
        """
        with self.open() as file:
            file.seek(self.start)
            return self._whole(file.read(self.size))

    def _whole(self, data: T) -> T:
        if len(data) != self.size:
            raise ValueError("has become shorter while it was read")
        return data

    def buffer(self) -> bytes | memoryview:
        """All of the bytes; those of a file are mapped where :mod:`cnnfilterdb.ingest.formats.mapping` is enabled.

        Raises:
            ValueError: The file has become shorter.
        """
        content = None if self.path is None or not self.size else mapping.kept(self.path)
        return self.read() if content is None else self._whole(content[self.start : self.start + self.size])

    def stream(self) -> BinaryIO:
        """The bytes as a file; close it after use."""
        if self.size <= _SHORT:
            return io.BytesIO(self.read())
        return _Window(_Part(self.open(), self.start, self.size), self.size)

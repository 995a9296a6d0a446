"""A read-through cache for remote files, in blocks that all readers share.

DuckDB opens the files of a view again for each query, and reads a few bytes at their ends and then some columns. fsspec
would read five megabytes ahead each time, which over a network takes most of the time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from glob import has_magic
from threading import Lock
from typing import Any

import fsspec

from cnnfilterdb.core.errors import RemoteError
from cnnfilterdb.release.remote import RangeFile, RequestBudget, reaching, read_range

__all__ = ["BLOCK", "CachedFileSystem", "RenamedFileSystem"]

#: Bytes per block.
BLOCK = 16 << 10

#: Bytes kept in memory.
_MEMORY = 64 << 20


class CachedFileSystem(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """A read-only view of a file system whose files do not change.

    Args:
        filesystem: The file system.
        memory: Bytes to keep; the least recently used blocks are dropped first.
    """

    cachable = False

    def __init__(self, filesystem: fsspec.AbstractFileSystem, memory: int = _MEMORY) -> None:
        super().__init__()
        self.protocol = filesystem.protocol
        self._filesystem = filesystem
        self._most = memory // BLOCK
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self._lock = Lock()

    def open(self, path: str, mode: str = "rb", **options: Any) -> RangeFile:
        """Open a file for reading."""
        # DuckDB writes paths with their protocol, which name the same file.
        path = str(self._filesystem._strip_protocol(path))
        return RangeFile(partial(self.fetch, path), self.size(path))

    def size(self, path: str) -> int:
        """Size of a file; requested once."""
        with self._lock:
            known = self._sizes.get(path)
        if known is None:
            with reaching(path):
                size = self.info(path).get("size")
            if not isinstance(size, int) or size < 0:
                raise RemoteError(f"{path}: the server does not state its size; copy the release to a folder")
            known = size
            with self._lock:
                self._sizes[path] = known
        return known

    def glob(self, path: str, **options: Any) -> list[str]:
        """Paths that match a pattern; a path without wildcards matches itself, whether or not the file exists."""
        if not has_magic(path):
            return [path]
        with reaching(path):
            found: list[str] = self._request(lambda: self._filesystem.glob(path, **options))
        if not found:
            raise RemoteError(f"{path}: no such files, though the release should have them; check that it is complete")
        return found

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        """Facts about a file."""
        found: dict[str, Any] = self._request(lambda: self._filesystem.info(path, **options))
        return found

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        """Contents of a folder."""
        found: list[Any] = self._request(lambda: self._filesystem.ls(path, detail=detail, **options))
        return found

    def exists(self, path: str, **options: Any) -> bool:
        """Whether there is a file."""
        return bool(self._request(lambda: self._filesystem.exists(path, **options)))

    def _request(self, request: Callable[[], Any]) -> Any:
        return RequestBudget.answer().spend(request)

    def modified(self, path: str) -> Any:
        """Time of the last change, by which DuckDB decides whether a cached footer is still valid."""
        return self._request(lambda: self._filesystem.modified(path))

    def fetch(self, path: str, start: int, stop: int) -> bytes:
        """The bytes from start to before stop; blocks that are missing are read in one request."""
        first, last = start // BLOCK, (stop - 1) // BLOCK
        with self._lock:
            known = {number: self._blocks.get((path, number)) for number in range(first, last + 1)}
            for number, data in known.items():
                if data is not None:
                    self._blocks.move_to_end((path, number))
        missing = [number for number, data in known.items() if data is None]
        if missing:
            begin = missing[0] * BLOCK
            end = min((missing[-1] + 1) * BLOCK, self.size(path))
            data = read_range(self._filesystem, path, begin, end)
            for number in range(missing[0], missing[-1] + 1):
                known[number] = data[number * BLOCK - begin : (number + 1) * BLOCK - begin]
            with self._lock:
                self._blocks.update({(path, number): known[number] or b"" for number in missing})
                while len(self._blocks) > self._most:
                    self._blocks.popitem(last=False)
        joined = b"".join(known[number] or b"" for number in range(first, last + 1))
        return joined[start - first * BLOCK : stop - first * BLOCK]


class RenamedFileSystem(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """A folder of a file system under another protocol.

    DuckDB finds a file system by the protocol of a path, so two releases on servers of one kind need two protocols.

    Args:
        filesystem: The file system.
        protocol: The protocol.
        root: The folder, in the file system; it has the path ``<protocol>://``.
    """

    cachable = False

    def __init__(self, filesystem: CachedFileSystem, protocol: str, root: str) -> None:
        super().__init__()
        self.protocol = protocol
        self._filesystem = filesystem
        self._root = root

    def _inner(self, path: str) -> str:
        return f"{self._root}/{path.partition('://')[2] if '://' in path else path}"

    def open(self, path: str, mode: str = "rb", **options: Any) -> RangeFile:
        """Open a file for reading."""
        return self._filesystem.open(self._inner(path), mode, **options)

    def glob(self, path: str, **options: Any) -> list[str]:
        """The path itself: the files of a release are listed by name."""
        return [path]

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        """Facts about a file."""
        return self._filesystem.info(self._inner(path), **options)

    def exists(self, path: str, **options: Any) -> bool:
        """Whether there is a file."""
        return self._filesystem.exists(self._inner(path), **options)

    def modified(self, path: str) -> Any:
        """Time of the last change."""
        return self._filesystem.modified(self._inner(path))

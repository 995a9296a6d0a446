"""A file system that remembers what was read of its files: blocks, shared by all who open a file.

DuckDB opens the files of a view anew for each query, and reads a few bytes at their ends and then some columns. fsspec
would read five megabytes ahead each time; over a network that is most of the waiting.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import fsspec

from cnnfilterdb.errors import CnnFilterDbError, RemoteError

__all__ = ["BLOCK", "CachedFileSystem", "reaching"]

#: Bytes of a block.
BLOCK = 16 << 10

#: Bytes that are remembered.
_MEMORY = 64 << 20


@contextmanager
def reaching(where: str) -> Iterator[None]:
    """Turn what a file system raises into a :class:`RemoteError` of one line.

    Args:
        where: What is being read.

    Raises:
        RemoteError: In the place of anything that is not an error of this package.
    """
    try:
        yield
    except CnnFilterDbError:
        raise
    except Exception as error:  # each file system has errors of its own
        raise RemoteError(f"{where}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401 or "401" in text[:40]:
        return "the server asks for a token, or refuses the one given; `hf auth login` stores one, or set HF_TOKEN"
    if status == 403 or isinstance(error, PermissionError):
        return "access is refused; ask its owner for it, and check whose token is in use"
    if status == 429:
        return "the server asks to wait; try again later"
    if isinstance(error, FileNotFoundError):
        return "is not there; check the address and the version, and for something private the token"
    return f"cannot be read ({text[:300] or type(error).__name__}); check the address and the network and try again"


class CachedFileSystem(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """A read-only view of a file system whose files do not change.

    Args:
        filesystem: The file system.
        memory: Bytes that are remembered; what was used least recently is forgotten first.
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

    def open(self, path: str, mode: str = "rb", **options: Any) -> io.BufferedIOBase:
        """Open a file."""
        # DuckDB spells paths with their protocol, which is the same file.
        path = str(self._filesystem._strip_protocol(path))
        return _File(self, path, self.size(path))

    def size(self, path: str) -> int:
        """Size of a file; asked for once."""
        with self._lock:
            known = self._sizes.get(path)
        if known is None:
            with reaching(path):
                known = int(self._filesystem.info(path)["size"])
            with self._lock:
                self._sizes[path] = known
        return known

    def glob(self, path: str, **options: Any) -> list[str]:
        """Paths that match a pattern."""
        with reaching(path):
            found: list[str] = self._filesystem.glob(path, **options)
        if not found:
            raise RemoteError(f"{path}: no such files, though the release should have them; check that it is whole")
        return found

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        """Facts about a file."""
        found: dict[str, Any] = self._filesystem.info(path, **options)
        return found

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        """What is in a folder."""
        found: list[Any] = self._filesystem.ls(path, detail=detail, **options)
        return found

    def exists(self, path: str, **options: Any) -> bool:
        """Whether there is a file."""
        return bool(self._filesystem.exists(path, **options))

    def modified(self, path: str) -> Any:
        """When a file was changed last, by which DuckDB knows whether a footer that it remembers is still good."""
        return self._filesystem.modified(path)

    def fetch(self, path: str, start: int, stop: int) -> bytes:
        """The bytes from start to before stop, which blocks hold that are missing in one request."""
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
            with reaching(path), self._filesystem.open(path, "rb", cache_type="none") as file:
                file.seek(begin)
                data = file.read(end - begin)
            for number in range(missing[0], missing[-1] + 1):
                known[number] = data[number * BLOCK - begin : (number + 1) * BLOCK - begin]
            with self._lock:
                self._blocks.update({(path, number): known[number] or b"" for number in missing})
                while len(self._blocks) > self._most:
                    self._blocks.popitem(last=False)
        joined = b"".join(known[number] or b"" for number in range(first, last + 1))
        return joined[start - first * BLOCK : stop - first * BLOCK]


class _File(io.BufferedIOBase):
    """A file out of blocks."""

    def __init__(self, filesystem: CachedFileSystem, path: str, size: int) -> None:
        self._filesystem = filesystem
        self._path = path
        self._place = 0
        self.size = size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self.size}[whence]
        self._place = base + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def read(self, size: int | None = -1) -> bytes:
        stop = self.size if size is None or size < 0 else min(self.size, self._place + size)
        if stop <= self._place:
            return b""
        data = self._filesystem.fetch(self._path, self._place, stop)
        self._place += len(data)
        return data

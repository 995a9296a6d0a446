"""Durable files: the only way in which the package writes files, with errors that users can act on.

:func:`replacing` writes a file beside its target and renames it when it is complete and on the disk. So the target is
always complete: the old file or the new one, even after a kill or a power failure at any time.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import socket
from collections.abc import Iterator
from concurrent.futures import Executor, Future, wait
from contextlib import contextmanager
from pathlib import Path

from cnnfilterdb.core.errors import DatabaseError
from cnnfilterdb.core.reports import first_line

__all__ = [
    "GrowingFile",
    "make_folder",
    "move",
    "replacing",
    "sha256",
    "sync",
    "sync_folder",
    "unwritable",
    "whole",
    "write_text",
    "writing",
]

_FULL = {errno.ENOSPC, errno.EDQUOT}


def unwritable(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is a full or read-only disk, which every further write would meet too."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL | {errno.EROFS}:
            return True
        error = error.__cause__
    return False


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an operating system error into a :class:`DatabaseError` of one line.

    Args:
        path: What is being written.

    Raises:
        DatabaseError: Replaces any OSError.
    """
    try:
        yield
    except DatabaseError:
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise DatabaseError(f"{path}: the disk is full; free some space and run it again") from error
        reason = os.strerror(error.errno) if error.errno else first_line(error)
        raise DatabaseError(f"{path}: cannot be written: {reason}; check the folder and its permissions") from error


@contextmanager
def replacing(target: Path, folder: Path | None = None) -> Iterator[Path]:
    """Write a file durably, so that it appears completely or not at all.

    The block writes to the path that it is given. Then the content is flushed to the disk, the file is renamed to its
    target, and the folder is flushed. After an error nothing is left behind; leftovers of a killed process beside a
    target are removed by the next write of that target on the same machine.

    Args:
        target: The file. Its folder must exist. An existing file is replaced in one step.
        folder: Where to write first: a staging folder on the same file system; by default beside the target.

    Yields:
        The path to write to.

    Raises:
        DatabaseError: The target is a folder, the disk is full or read-only, or any other error of the file system; one
            line that names the target.
    """
    with writing(target), whole(target, folder) as part:
        yield part


@contextmanager
def whole(target: Path, folder: Path | None = None) -> Iterator[Path]:
    """Like :func:`replacing`, but errors of the operating system are not converted."""
    if target.is_dir():
        raise DatabaseError(f"{target}: is a folder; expected the name of a file")
    if folder is None:
        # Only processes of this machine can be checked: those of another machine that shares the folder may be alive.
        stem = hashlib.sha256(f"{socket.gethostname()}/{target.name}".encode("utf-8", "surrogatepass")).hexdigest()
        for left in target.parent.glob(f".cnnfilterdb-{stem[:12]}-*.part"):
            if not _alive(left):
                left.unlink(missing_ok=True)
        part = target.with_name(f".cnnfilterdb-{stem[:12]}-{os.getpid()}-{secrets.token_hex(4)}.part")
    else:
        part = folder / f"{secrets.token_hex(8)}.part"
    try:
        yield part
        sync(part)
        part.replace(target)
        sync_folder(target.parent)
    finally:
        part.unlink(missing_ok=True)


def _alive(part: Path) -> bool:
    """Whether the process that made a temporary file is still running."""
    found = re.search(r"-(\d+)-[0-9a-f]+\.part$", part.name)
    if found is None or os.name == "nt":  # where a signal of 0 would end the process
        return True
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def write_text(target: Path, text: str, folder: Path | None = None) -> None:
    """Write a text in UTF-8 with unchanged line ends; see :func:`replacing`."""
    with replacing(target, folder) as part:
        part.write_text(text, encoding="utf-8", newline="")


def sync(path: Path) -> None:
    """Wait until the content of a file is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk. Windows cannot open folders, so nothing is done there."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """SHA-256 of the content of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class GrowingFile:
    """Hashes and flushes a file in a thread while it is written from beginning to end.

    When the file is complete, only what follows the last :meth:`grown` is left to do.

    Args:
        path: The file, which exists.
        aside: Reads it; one thread only.
    """

    #: Bytes after which what was written is flushed to the disk.
    _STEP = 1 << 23

    def __init__(self, path: Path, aside: Executor) -> None:
        self._file = path.open("rb", buffering=0)
        self._aside = aside
        self._digest = hashlib.sha256()
        self._flushed = 0
        self._reads: list[Future[None]] = []

    def grown(self) -> None:
        """Read what was written since the last time. Errors are raised by :meth:`sha256`."""
        self._reads.append(self._aside.submit(self._read))

    def _read(self) -> None:
        buffer = memoryview(bytearray(1 << 20))
        while count := self._file.readinto(buffer):
            self._digest.update(buffer[:count])
        if hasattr(os, "fdatasync") and self._file.tell() - self._flushed >= self._STEP:
            os.fdatasync(self._file.fileno())
            self._flushed = self._file.tell()

    def sha256(self) -> str:
        """The hash of all that was read, in hexadecimal digits.

        Raises:
            OSError: It could not be read, or not be flushed to the disk.
        """
        for read in self._reads:
            read.result()
        return self._digest.hexdigest()

    def close(self) -> None:
        """Wait until nothing reads it, and close it."""
        wait(self._reads)
        self._file.close()


def make_folder(path: Path) -> None:
    """Make a folder, and those that it is in, and wait until their names are on the disk; existing ones stay."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def move(source: Path, target: Path) -> None:
    """Rename a file, creating the folder that it goes to. An existing file is replaced in one step.

    :func:`sync_folder` has to follow for the folder that it goes to; the folder itself is on the disk.
    """
    make_folder(target.parent)
    source.replace(target)

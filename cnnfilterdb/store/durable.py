"""What the store asks of the file system: durable files, hashes, and errors that a person can act on."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cnnfilterdb.errors import DatabaseError

__all__ = ["move", "sha256", "sync", "sync_folder", "writing"]

_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an operating system error into a :class:`DatabaseError` of one line.

    Args:
        path: What is being written.

    Raises:
        DatabaseError: In the place of any OSError.
    """
    try:
        yield
    except DatabaseError:
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise DatabaseError(f"{path}: the disk is full; free some space and run it again") from error
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise DatabaseError(f"{path}: cannot be written: {reason}; check the folder and its permissions") from error


def sync(path: Path) -> None:
    """Wait until the content of a file is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk. Where folders cannot be opened (Windows) there is no way to."""
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


def move(source: Path, target: Path) -> None:
    """Rename a file, making the folder that it goes to. What was there is replaced in one step."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)

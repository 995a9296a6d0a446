"""What is checked of a file of a database before it is read: its kind, and the memory that it would take.

A named pipe or a device could block forever, and a link could lead elsewhere. A Parquet file of some kilobytes can
claim millions of rows.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq

from cnnfilterdb.core import paths
from cnnfilterdb.core.errors import CorruptError
from cnnfilterdb.core.footers import row_groups, unpacked_bytes
from cnnfilterdb.core.listing import entries

__all__ = ["Stamp", "check_regular", "check_size", "read_small", "regular_files", "require_regular", "stamp_of"]

#: Largest marker, ``init.sql`` or file of annotations that is read, in bytes.
_MOST = 64 << 20
# Bytes that a table may take in memory for each byte of its file, and in any case. Counts of dead layers are all alike.
_GROWTH = 1000
_GROUND = 64 << 20


#: What identifies a file that is replaced as a whole: inode, time of the last change in ns, and size.
Stamp = tuple[int, int, int]


def stamp_of(status: os.stat_result) -> Stamp:
    """The stamp of a file by its status."""
    return status.st_ino, status.st_mtime_ns, status.st_size


def require_regular(root: Path, path: Path, seen: set[Path] | None = None) -> os.stat_result:
    """Make sure that a file of a database may be read.

    Args:
        root: The folder of the database.
        path: A file in it.
        seen: Folders that were checked already; those of the file are added.

    Returns:
        Its status; that of a link if it is one to a regular file inside.

    Raises:
        UnsafePathError: It is not a regular file, or is reached by a link that leaves the folder.
        FileNotFoundError: It does not exist.
    """
    seen = set() if seen is None else seen
    for folder in path.parents:
        if folder == root or folder in seen:
            break
        if folder.is_symlink():
            paths.inside(root, folder.relative_to(root).as_posix())
        seen.add(folder)
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        paths.regular(root, path.relative_to(root).as_posix())
    return status


def regular_files(root: Path, pattern: str) -> Iterator[tuple[str, os.stat_result]]:
    """The files of a database that match a pattern, each of which may be read.

    Args:
        root: The folder of the database.
        pattern: See :func:`cnnfilterdb.core.listing.entries`.

    Yields:
        The path relative to the folder, and the status as in :func:`require_regular`.

    Raises:
        UnsafePathError: One of them is not a regular file, or is reached by a link that leaves the folder.
    """
    for path, entry, linked in entries(root, pattern):
        with suppress(FileNotFoundError):
            if linked:
                paths.inside(root, path)
            status = entry.stat(follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode):
                paths.regular(root, path)
            yield path, status


def check_regular(root: Path, pattern: str) -> None:
    """Make sure that each file of a database that matches a pattern may be read; see :func:`regular_files`.

    The folders say what is a regular file, so that the files themselves need not be looked at.
    """
    for path, entry, linked in entries(root, pattern):
        if linked or not entry.is_file(follow_symlinks=False):
            with suppress(FileNotFoundError):
                paths.regular(root, path)


def read_small(root: Path, name: str) -> bytes:
    """The content of a single file of a database, such as ``init.sql``.

    Args:
        root: The folder of the database.
        name: The file, relative to it.

    Raises:
        CorruptError: It is too large.
        UnsafePathError: It is not a regular file, or is a link that leaves the folder.
        OSError: It cannot be read.
    """
    path = paths.regular(root, name)
    if path.stat().st_size > _MOST:
        raise CorruptError(
            f"{path}: {path.stat().st_size:,} bytes, expected at most {_MOST:,}; remove it or restore it"
        )
    return path.read_bytes()


def check_size(file: pq.ParquetFile, path: Path) -> None:
    """Make sure that a small table does not take more memory than the size of its file can account for.

    Args:
        file: The table, of which only the footer has been read.
        path: Where it is.

    Raises:
        CorruptError: It would take too much memory.
    """
    size = path.stat().st_size
    if unpacked_bytes(row_groups(file.metadata)) > _GROUND + _GROWTH * size:
        raise CorruptError(
            f"{path}: {file.metadata.num_rows:,} rows in {size:,} bytes, more than a file of that size may have; "
            "remove the model and import it again"
        )

"""Files as memory, and where in a file the numbers of an array are.

Weights are often stored as they are used. A child process that reads an untrusted file then need not copy and send
them: it says where they are (:func:`stored_at`), and its parent reads these bytes of the file itself.
"""

from __future__ import annotations

import mmap
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.errors import WeightFileError

__all__ = ["enable", "forget", "mapped", "part", "stored_at"]

_paths: WeakKeyDictionary[mmap.mmap, Path] = WeakKeyDictionary()
_enabled = False


def mapped(path: Path) -> memoryview:
    """A file as memory-mapped bytes.

    Raises:
        WeightFileError: It cannot be opened, or is empty.
    """
    try:
        with path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise WeightFileError(f"{path}: cannot be read: {error}") from error
    _paths[content] = path
    return memoryview(content)


def enable() -> None:
    """Let :func:`part` map files, in a process that may end when a file becomes shorter while it is read."""
    global _enabled
    _enabled = True


_mapped_once = cache(mapped)
#: Unmap the files of :func:`part` of which nothing is in use.
forget = _mapped_once.cache_clear


def part(path: Path, start: int, size: int) -> bytes | memoryview:
    """Some bytes of a file: mapped where that is enabled, otherwise in memory.

    Raises:
        OSError: It cannot be read.
        ValueError: It is shorter.
    """
    if _enabled and size:
        data: bytes | memoryview = _mapped_once(path)[start : start + size]
    else:
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(size)
    if len(data) != size:
        raise ValueError(f"ends before byte {start + size:,}: truncated, or it became shorter while it was read")
    return data


def stored_at(array: npt.NDArray[Any]) -> tuple[Path, int] | None:
    """The file that an array is mapped from and its first byte there, if it is stored there as it is in memory.

    >>> stored_at(np.zeros(3)) is None
    True
    """
    if not array.size or not array.flags.c_contiguous:
        return None
    first = _address(array)
    for content, path in list(_paths.items()):
        start = _address(np.frombuffer(content, np.uint8))
        if start <= first and first + array.nbytes <= start + len(content):
            return path, first - start
    return None


def _address(array: npt.NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address

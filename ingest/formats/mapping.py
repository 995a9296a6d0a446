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

__all__ = ["enable", "forget", "kept", "mapped", "stored_at"]

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
    """Let parts of files be mapped, in a process that may end when a file becomes shorter while it is read."""
    global _enabled
    _enabled = True


_mapped_once = cache(mapped)
#: Unmap the files of :func:`kept` of which nothing is in use.
forget = _mapped_once.cache_clear


def kept(path: Path) -> memoryview | None:
    """A file as :func:`mapped`, the same until :func:`forget`; None where that is not enabled."""
    return _mapped_once(path) if _enabled else None


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

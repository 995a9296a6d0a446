"""Files by a pattern, faster than :meth:`pathlib.Path.glob`: a database has several files per model."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from fnmatch import translate
from functools import cache
from pathlib import Path

__all__ = ["entries"]


def entries(root: Path, pattern: str) -> Iterator[tuple[str, os.DirEntry[str], bool]]:
    """Files and folders that match a pattern, as :meth:`pathlib.Path.glob` finds them, in no particular order.

    Args:
        root: The folder.
        pattern: Relative, with ``/`` between its parts; ``*``, ``?`` and ``[...]`` match within a part.

    Yields:
        The path relative to the folder, the entry, and whether a folder on the way is a link.
    """
    yield from _entries(str(root), "", tuple(pattern.split("/")), False)


def _entries(
    folder: str, place: str, parts: Sequence[str], linked: bool
) -> Iterator[tuple[str, os.DirEntry[str], bool]]:
    matches, rest = _matcher(parts[0]), parts[1:]
    try:
        with os.scandir(folder) as found:
            chosen = [entry for entry in found if matches(entry.name)]
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return
    for entry in chosen:
        path = f"{place}{entry.name}"
        if rest:
            yield from _entries(entry.path, f"{path}/", rest, linked or entry.is_symlink())
        else:
            yield path, entry, linked


@cache
def _matcher(part: str) -> Callable[[str], object]:
    return re.compile(translate(part)).match

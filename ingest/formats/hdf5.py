"""Untrusted HDF5 files: only what a file itself contains is read, and no more than a file of its size can contain.

HDF5 does whatever a file says: it follows links into other files, reads datasets that are stored in or assembled from
other files, and believes sizes for which the file has no data. :func:`guard` walks through a file once and refuses all
of that. It is used by the Keras reader and by the import of the papers' data set.
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path
from typing import Any

import h5py

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest.formats import limits

__all__ = ["check_heaps", "guard", "guard_dataset", "link_type", "member", "texts"]

_MAX_OBJECTS = 1_000_000
_BYTES_PER_OBJECT = 1024  # of memory, for a group or a dataset that is remembered
_HEAP = b"GCOL\x01\0\0\0"
_HEAP_OBJECT = struct.Struct("<HHIQ")  # index, 0 for free space; uses; reserved; size


def guard(file: h5py.File, path: Path | str) -> None:
    """Refuse a file that would make HDF5 open other files, or decode more than a file of its size can contain.

    Links must be hard links, which lead to an object of the same file. Datasets must be stored in the file and must not
    be virtual; their sizes are accounted for (:mod:`~cnnfilterdb.ingest.formats.limits`).

    Args:
        file: The opened file.
        path: Its name in error messages.

    Raises:
        WeightFileError: The first object that is not acceptable, by name.
    """
    seen: set[int] = set()
    stack: list[tuple[str, h5py.Group]] = [("", file)]
    while stack:
        name, group = stack.pop()
        address = h5py.h5o.get_info(group.id).addr
        if address in seen:
            continue  # a group may contain itself
        seen.add(address)
        for key in group:
            limits.current().step()
            limits.current().create()
            limits.current().allocate(_BYTES_PER_OBJECT)
            inside = f"{name}/{key}"
            found = _linked(group, key, inside, path)
            if isinstance(found, h5py.Group):
                stack.append((inside, found))
            elif isinstance(found, h5py.Dataset):
                guard_dataset(found, path)


def guard_dataset(dataset: h5py.Dataset, path: Path | str) -> None:
    """Refuse a dataset that is stored in other files, or is larger than its file can account for.

    Raises:
        WeightFileError: It is virtual, stored in another file, or too large.
    """
    if dataset.is_virtual or dataset.external:
        raise WeightFileError(f"{path}: the numbers of {dataset.name} are stored in another file; refused")
    # A dataset whose numbers were never written has a size and a fill value only. HDF5 decodes whole chunks, which may
    # be larger than the dataset.
    sizes = [math.prod(dataset.shape or ())]
    if dataset.chunks is not None:
        sizes.append(math.prod(dataset.chunks))
    limits.current().allocate(max(sizes) * dataset.dtype.itemsize)


def member(group: Any, name: str, path: Path | str) -> Any:
    """The object at a path of names, if the file itself contains it.

    Raises:
        WeightFileError: It is missing, or a link to elsewhere.
    """
    for part in name.split("/"):
        if part:
            group = _linked(group, part, name, path)
    return group


def link_type(group: h5py.Group, key: str) -> int | None:
    """How a name in a group is linked, one of the types of :mod:`h5py.h5l`; None without such a name.

    It takes a part of the time of ``group.get(key, getlink=True)``.
    """
    name = key.encode("utf-8", "surrogateescape")
    links = group.id.links
    return links.get_info(name).type if links.exists(name) else None


def _linked(group: Any, key: str, name: str, path: Path | str) -> Any:
    kind = link_type(group, key) if isinstance(group, h5py.Group) else None
    if kind is None:
        raise WeightFileError(f"{path}: lists {name!r} but does not contain it; download the file again")
    if kind != h5py.h5l.TYPE_HARD:
        raise WeightFileError(f"{path}: {name!r} is a link to another file or object; refused")
    return group[key]


def texts(holder: Any, key: str, longest: int | None = None) -> list[str] | None:
    """An attribute that holds a string or a list of strings.

    HDF5 crashes on damaged attributes of other types, so the type is checked first.

    Args:
        holder: The group or dataset that has the attribute.
        key: Its name.
        longest: Length of the longest string of variable length in the file, if known: many elements may all refer
            to the same string.

    Returns:
        The strings; an empty list for an attribute of any other type, None where there is none.
    """
    if key not in holder.attrs:
        return None
    attribute = holder.attrs.get_id(key)
    stored = attribute.get_type()
    if not isinstance(stored, h5py.h5t.TypeStringID):
        return []
    count = math.prod(attribute.shape)
    each = stored.get_size()
    if stored.is_variable_str() and count > 1 and longest is not None:
        each += longest
    limits.current().allocate(count * each)
    values = holder.attrs[key]
    flat = [values] if isinstance(values, bytes | str) else list(getattr(values, "flat", ()))
    return [value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in flat]


def check_heaps(content: bytes | mmap.mmap) -> int:
    """Check the global heaps, which hold strings of any length: HDF5 runs forever in one whose sizes are damaged.

    Args:
        content: The bytes of the file.

    Returns:
        Size in bytes of the largest object in them; 0 if there are none.

    Raises:
        ValueError: An object in a heap has no size, or reaches beyond the heap; or there are too many.
    """
    start, objects, largest = content.find(_HEAP), 0, 0
    while start >= 0:
        head = content[start + 8 : start + 16]
        place, end = start + 16, min(start + int.from_bytes(head, "little"), len(content))
        while place + _HEAP_OBJECT.size <= end:
            index, _, _, size = _HEAP_OBJECT.unpack_from(content, place)
            # The size of free space counts its own head; that of an object neither head nor padding
            step = _HEAP_OBJECT.size + (size + 7) // 8 * 8 if index else size
            if step < _HEAP_OBJECT.size or place + step > end:
                raise ValueError(f"at byte {place:,}, an object of a global heap has an impossible size of {size:,}")
            place += step
            largest = max(largest, size if index else 0)
            objects += 1
            if objects > _MAX_OBJECTS:
                raise ValueError(f"more than {_MAX_OBJECTS:,} objects in global heaps")
        start = content.find(_HEAP, start + len(_HEAP))
    return largest

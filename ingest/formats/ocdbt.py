"""OCDBT, the store of TensorStore that Orbax uses: a B+ tree of keys in few files instead of a file for each key.

``manifest.ocdbt`` leads to the root of the newest version; a node lists keys, and for each its value or the place of it
in a file below ``d/``. Format: https://google.github.io/tensorstore/kvstore/ocdbt. Only one manifest, the default, is
read, and nodes that are plain or compressed by Zstandard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest.formats import limits
from cnnfilterdb.ingest.formats.blob import Blob
from cnnfilterdb.ingest.formats.codecs import unzstandard
from cnnfilterdb.ingest.formats.companions import companion
from cnnfilterdb.ingest.formats.protobuf import varint

__all__ = ["MANIFEST", "stored_values"]

MANIFEST = "manifest.ocdbt"

_MANIFEST, _NODE = 0x0CDB3A2A, 0x0CDB20DE
_HEADER, _CHECKSUM = 12, 4


def stored_values(manifest: Path) -> dict[str, Blob]:
    """The values of the newest version, by key.

    Args:
        manifest: Its ``manifest.ocdbt``.

    Raises:
        ValueError: A file is damaged.
        WeightFileError: A file is missing, or several manifests are used.
    """
    reader = _Reader(_body(manifest.read_bytes(), _MANIFEST))
    reader.take(16)  # identifies the store
    kind = reader.number()
    if kind:
        raise WeightFileError(f"{manifest}: a store of numbered manifests, which is not read; save it with Orbax again")
    reader.numbers(2)
    reader.take(1)
    if reader.number():
        reader.take(4)  # level of compression
    files = reader.files()
    count = reader.number()
    reader.numbers(count)
    heights, numbers, offsets, sizes = reader.bytes(count), *(reader.numbers(count) for _ in range(3))
    if not count:
        return {}
    opened: dict[str, Blob] = {}

    def part(name: str, start: int, size: int) -> Blob:
        if name not in opened:
            path = companion(manifest, name)
            limits.current().opened(path.stat().st_size)
            opened[name] = Blob.of_file(path)
        return opened[name].part(start, size)

    root = _Place(files[numbers[-1]], offsets[-1], sizes[-1])
    return dict(_walk(part, root, heights[-1], b""))


@dataclass(frozen=True, slots=True)
class _Place:
    """A place in a file."""

    file: str
    start: int
    size: int


_Part = Callable[[str, int, int], Blob]


def _walk(part: _Part, place: _Place, height: int, prefix: bytes) -> Iterator[tuple[str, Blob]]:
    limits.current().step()
    reader = _Reader(_body(part(place.file, place.start, place.size).read(), _NODE))
    if reader.take(1)[0] != height:
        raise ValueError("a node of the tree at another height than expected")
    files = reader.files()
    count = reader.number()
    limits.current().create(count)
    starts, ends = [0, *reader.numbers(count - 1)], reader.numbers(count)
    common = reader.numbers(count) if height else []
    keys, last = [], b""
    for start, size in zip(starts, ends, strict=True):
        last = last[:start] + reader.take(size)
        limits.current().allocate(len(last))
        keys.append(last)
    if height:
        numbers, offsets, sizes = (reader.numbers(count) for _ in range(3))
        for i, key in enumerate(keys):
            with limits.current().nested():
                inner = _Place(files[numbers[i]], offsets[i], sizes[i])
                yield from _walk(part, inner, height - 1, prefix + key[: common[i]])
        return
    sizes, kinds = reader.numbers(count), reader.bytes(count)
    outside = [i for i, kind in enumerate(kinds) if kind]
    numbers, offsets = reader.numbers(len(outside)), reader.numbers(len(outside))
    found = {i: part(files[n], at, sizes[i]) for i, n, at in zip(outside, numbers, offsets, strict=True)}
    for i, key in enumerate(keys):
        value = found[i] if i in found else Blob.of(reader.take(sizes[i]))
        yield (prefix + key).decode("utf-8", "replace"), value


def _body(data: bytes, magic: int) -> bytes:
    """The content of a manifest or a node, decompressed."""
    size = int.from_bytes(data[4:_HEADER], "little")
    if int.from_bytes(data[:4], "big") != magic or not _HEADER + _CHECKSUM < size <= len(data):
        raise ValueError("a part of the store without its header: truncated or damaged")
    view = memoryview(data)
    version, place = varint(view, _HEADER)
    compression, place = varint(view, place)
    if version or compression > 1:
        raise ValueError(f"version {version} of the store, or compression {compression}, is not known")
    body = data[place : size - _CHECKSUM]
    return unzstandard(body) if compression else body


class _Reader:
    """Reads the fields of a manifest or a node."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = memoryview(data), 0

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.place:
            raise ValueError("a part of the store that ends too early")
        self.place += size
        return bytes(self.data[self.place - size : self.place])

    def bytes(self, count: int) -> list[int]:
        return list(self.take(count))

    def number(self) -> int:
        value, self.place = varint(self.data, self.place)
        return value

    def numbers(self, count: int) -> list[int]:
        if count > len(self.data) - self.place:
            raise ValueError("a part of the store that ends too early")
        limits.current().step(max(count, 0))
        return [self.number() for _ in range(count)]

    def files(self) -> list[str]:
        """The table of files: parts of their paths that they share with the one before are left out."""
        count = self.number()
        starts, sizes = [0, *self.numbers(count - 1)], self.numbers(count)
        self.numbers(count)  # how much of a path is that of the folder of the store
        found, last = [], b""
        for start, size in zip(starts if count else [], sizes, strict=True):
            last = last[:start] + self.take(size)
            limits.current().allocate(len(last))
            found.append(last.decode("utf-8", "replace"))
        return found

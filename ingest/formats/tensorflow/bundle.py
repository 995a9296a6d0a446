"""TensorFlow checkpoints: the variables in ``name.index`` and ``name.data-00000-of-00001``.

The index is a sorted table in the file format of LevelDB (table_format.md of that project), which TensorFlow writes
uncompressed; its values are messages (tensor_bundle.proto) that say where in the data files a variable is stored. It is
read from there when its layer is read.

Since TensorFlow 2, keys are paths through the objects of the program, and a further entry has the names of the
variables in the program: the object graph (trackable_object_graph.proto). A variable that the program kept in several
slices has an entry for each of them, and is joined again.

The first version of the format, one file such as ``model.ckpt``, is a table of the same kind with the values in it
(saved_tensor_slice.proto).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest.formats import limits
from cnnfilterdb.ingest.formats.companions import companion
from cnnfilterdb.ingest.formats.mapping import mapped
from cnnfilterdb.ingest.formats.protobuf import MalformedError, fields, integers, message, text_of, varint
from cnnfilterdb.ingest.formats.tensorflow.graphdef import (
    DTYPES,
    array,
    tensor_shape,
    tensor_values,
    tensorflow_dtype_name,
)
from cnnfilterdb.ingest.network.layers import Skipped, Tensor

__all__ = ["MAGIC", "Bundle", "data_file", "first_version", "prefix_of"]

#: The last eight bytes of an index.
MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")

_FOOTER = 48
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
# Keys share their beginnings with the key before, so a small file could contain any number of long ones.
_MAX_KEY = 4096
_BYTES_PER_ENTRY = 1536  # of memory
_MAX_ENTRIES = 1_000_000
_PART = re.compile(r"\.(?:index|meta|data-\d{5}-of-\d{5})$")


def prefix_of(path: Path) -> Path:
    """The common beginning of the file names of a checkpoint.

    >>> prefix_of(Path("net/model.ckpt.data-00000-of-00001")).as_posix()
    'net/model.ckpt'
    """
    return path.with_name(_PART.sub("", path.name))


def data_file(prefix: Path, shard: int, shards: int) -> Path:
    """A data file of a checkpoint.

    >>> data_file(Path("net/model.ckpt"), 0, 2).name
    'model.ckpt.data-00000-of-00002'
    """
    return prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}")


#: Where a slice begins and how long it is along each dimension; a length of None reaches to the end.
_Slice: TypeAlias = tuple[tuple[int, int | None], ...]


@dataclass(frozen=True, slots=True)
class _Entry:
    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int
    slices: tuple[_Slice, ...]


class Bundle:
    """The variables of a checkpoint.

    Attributes:
        prefix: Common beginning of the names of its files.
        tensors: Its variables by key, in the order of the index, which is alphabetical.
        skipped: Variables that cannot be read, with the reason.
        checksums: Type, shape and checksum of each, which are those of another when the two hold the same.
        names: Key of a variable by its name in the program, where one variable only has that name.
    """

    def __init__(self, prefix: Path) -> None:
        """Read the index.

        Raises:
            WeightFileError: It is missing, damaged or of the first version of the format.
        """
        self.prefix = prefix
        self.tensors: dict[str, Tensor] = {}
        self.skipped: list[Skipped] = []
        self.checksums: dict[str, tuple[object, ...]] = {}
        self.names: dict[str, str] = {}
        self._shards: dict[int, memoryview] = {}
        index = prefix.with_name(f"{prefix.name}.index")
        try:
            self._read(index)
        except MalformedError as error:
            raise WeightFileError(f"{index}: a damaged checkpoint ({error}); download it again") from error

    def _read(self, index: Path) -> None:
        if not index.is_file():
            raise WeightFileError(
                f"{index}: missing; a checkpoint is this file and {data_file(self.prefix, 0, 1).name}"
            )
        entries = dict(_table(mapped(index)))
        header = fields(memoryview(entries.pop(b"", b"")))
        self._count = integers(header.get(1, [1]))[-1]
        if not 0 < self._count < 100_000:
            raise MalformedError(f"{self._count} data files")
        if integers(header.get(2, [0]))[-1]:
            raise WeightFileError(f"{index}: written on a big-endian machine; convert it with TensorFlow")
        parts: dict[str, dict[_Slice, _Entry]] = {}
        whole: dict[str, _Entry] = {}
        for key, value in entries.items():
            if key.startswith(b"\0"):
                name, part = _slice_of(key)
                parts.setdefault(name, {})[part] = _entry(memoryview(value))
            else:
                whole[key.decode("utf-8", "replace")] = _entry(memoryview(value))
        for name, entry in whole.items():
            if name == _OBJECT_GRAPH:
                self._read_objects(entry)
            elif entry.dtype not in DTYPES:
                continue
            elif not entry.slices:
                self.checksums[name] = (entry.dtype, entry.shape, entry.checksum)
                self._add(name, entry, self._reader(name, entry))
            elif all(part in parts.get(name, ()) for part in entry.slices):
                self._add(name, entry, self._joiner(name, entry, parts[name]))
            else:
                self.skipped.append(Skipped(name, "a variable in several slices, some of which are missing"))

    def _add(self, name: str, entry: _Entry, read: Callable[[], npt.NDArray[np.generic]]) -> None:
        self.tensors[name] = Tensor(name, entry.shape, tensorflow_dtype_name(entry.dtype), read)

    def _joiner(
        self, name: str, entry: _Entry, parts: Mapping[_Slice, _Entry]
    ) -> Callable[[], npt.NDArray[np.generic]]:
        def read() -> npt.NDArray[np.generic]:
            return joined_slices(name, entry.shape, [(part, self._reader(name, parts[part])) for part in entry.slices])

        return read

    def _reader(self, key: str, entry: _Entry) -> Callable[[], npt.NDArray[np.generic]]:
        def read() -> npt.NDArray[np.generic]:
            try:
                return array(key, self._bytes(entry), DTYPES[entry.dtype], entry.shape)
            except MalformedError as error:
                raise WeightFileError(
                    f"{self.prefix}.index: a damaged checkpoint ({error}); download it again"
                ) from error

        return read

    def _bytes(self, entry: _Entry) -> memoryview:
        path = data_file(self.prefix, entry.shard, self._count)
        if entry.shard not in self._shards:
            if not path.is_file():
                raise WeightFileError(f"{path}: missing; it contains variables of {self.prefix.name}.index")
            limits.current().opened(path.stat().st_size)
            self._shards[entry.shard] = mapped(companion(self.prefix.with_name(f"{self.prefix.name}.index"), path.name))
        data = self._shards[entry.shard]
        if entry.offset < 0 or entry.size < 0 or entry.offset + entry.size > len(data):
            raise WeightFileError(
                f"{path}: {len(data):,} bytes, but {self.prefix.name}.index places a variable at "
                f"{entry.offset:,} to {entry.offset + entry.size:,}; the file is truncated or of another checkpoint"
            )
        return data[entry.offset : entry.offset + entry.size]

    def _read_objects(self, entry: _Entry) -> None:
        """Names of variables: the object graph is a string tensor of one element."""
        data = self._bytes(entry)
        size, position = varint(data, 0)
        graph = data[position + 4 : position + 4 + size]  # after the length and its checksum
        names: dict[str, set[str]] = {}
        for node in fields(graph, (1,)).get(1, []):
            for attribute in fields(message(node), (2,)).get(2, []):
                parts = fields(message(attribute), (2, 3))
                names.setdefault(text_of(parts.get(2)), set()).add(text_of(parts.get(3)))
        self.names = {name: next(iter(keys)) for name, keys in names.items() if name and len(keys) == 1}


def _entry(data: memoryview) -> _Entry:
    parts = fields(data)

    def number(field: int) -> int:
        return integers(parts.get(field, [0]))[-1]

    shape = tensor_shape(message(parts[2][-1])) if 2 in parts else ()
    if shape is None or None in shape:
        raise MalformedError("a variable of unknown shape")
    sides = tuple(side or 0 for side in shape)
    slices = tuple(_slice(message(value)) for value in parts.get(7, []))
    return _Entry(number(1), sides, number(3), number(4), number(5), number(6), slices)


def _slice(data: memoryview) -> _Slice:
    """A TensorSliceProto."""
    extents = [fields(message(value), (1, 2)) for value in fields(data, (1,)).get(1, [])]
    return tuple(
        (integers(extent.get(1, [0]))[-1], integers(extent[2])[-1] if 2 in extent else None) for extent in extents
    )


def joined_slices(
    name: str, shape: tuple[int, ...], parts: Sequence[tuple[_Slice, Callable[[], npt.NDArray[np.generic]]]]
) -> npt.NDArray[np.generic]:
    """A variable of its slices.

    Raises:
        MalformedError: They do not cover it exactly.
    """
    limits.current().allocate(2 * 8 * math.prod(shape))
    found: npt.NDArray[np.generic] | None = None
    covered = 0
    for part, read in parts:
        values = read()
        if len(part) != len(shape) or any(start < 0 for start, _ in part):
            raise MalformedError(f"{name}: a slice of {len(part)} dimensions in shape {shape}")
        found = np.zeros(shape, values.dtype) if found is None else found
        place = tuple(slice(start, None if length is None else start + length) for start, length in part)
        if found[place].size != values.size:
            raise MalformedError(f"{name}: a slice of {values.size:,} numbers where {found[place].size:,} belong")
        found[place] = values.reshape(found[place].shape)
        covered += values.size
    if found is None or covered != found.size:
        raise MalformedError(f"{name}: its slices have {covered:,} numbers, its shape {shape} needs another number")
    return found


def _slice_of(key: bytes) -> tuple[str, _Slice]:
    """Name and slice in a key, which are encoded so that keys sort in their order (ordered_code.h of TensorFlow)."""
    try:
        end = key.index(b"\0\1", 1)
        name = key[1:end].replace(b"\0\xff", b"\0").replace(b"\xff\0", b"\xff").decode("utf-8", "replace")
        size = key[end + 2]
        rank = int.from_bytes(key[end + 3 : end + 3 + size], "big")
        position = end + 3 + size
        numbers = []
        for _ in range(2 * min(rank, 254)):
            number, position = _signed(key, position)
            numbers.append(number)
    except (ValueError, IndexError) as error:
        raise MalformedError("a damaged key of a slice") from error
    pairs = zip(numbers[::2], numbers[1::2], strict=True)
    return name, tuple((start, None if length < 0 else length) for start, length in pairs)


def _signed(data: bytes, position: int) -> tuple[int, int]:
    """A signed number: as many ones as it has bytes, then the number; all bits are turned when it is negative.

    >>> _signed(bytes([0x83]), 0), _signed(bytes([0x7F]), 0), _signed(bytes([0xC1, 0x00]), 0)
    ((3, 1), (-1, 1), (256, 2))
    """
    turned = 0 if data[position] & 0x80 else 0xFF
    head = bytes(byte ^ turned for byte in data[position : position + 10])
    bits = "".join(f"{byte:08b}" for byte in head[:2])
    size = len(bits) - len(bits.lstrip("1"))
    if not 0 < size <= len(head):
        raise ValueError("a number that is cut off")
    value = int.from_bytes(head[:size], "big") & ((1 << 7 * size) - 1)
    return (~value if turned else value), position + size


def first_version(path: Path) -> tuple[dict[str, Tensor], list[Skipped]] | None:
    """The variables of a checkpoint of the first version of the format, and those that are incomplete.

    Returns:
        None for a table that is not such a checkpoint, but the index of one of the second version, for example.

    Raises:
        MalformedError: It is damaged.
    """
    entries = dict(_table(mapped(path)))
    header = fields(memoryview(entries.pop(b"", b"")), (1,)).get(1)
    if header is None or isinstance(header[-1], int) or not all(key.startswith(b"\0") for key in entries):
        return None
    stored: dict[str, list[tuple[_Slice, memoryview]]] = {}
    for value in entries.values():
        for data in fields(memoryview(value), (2,)).get(2, []):
            one = fields(message(data), (1, 2, 3))
            if 3 in one:
                part = _slice(message(one[2][-1])) if 2 in one else ()
                stored.setdefault(text_of(one.get(1)), []).append((part, message(one[3][-1])))
    tensors: dict[str, Tensor] = {}
    skipped = []
    for described in fields(header[-1], (1,)).get(1, []):
        about = fields(message(described), (1, 2, 3))
        name, dtype = text_of(about.get(1)), integers(about.get(3, [0]))[-1]
        shape = tensor_shape(message(about[2][-1])) if 2 in about else ()
        if dtype not in DTYPES or shape is None or None in shape:
            continue
        sides = tuple(side or 0 for side in shape)
        if name in stored:
            tensors[name] = Tensor(
                name, sides, tensorflow_dtype_name(dtype), _slices_reader(name, sides, dtype, stored[name])
            )
        else:
            skipped.append(Skipped(name, "a variable whose numbers are missing in the checkpoint"))
    return tensors, skipped


def _slices_reader(
    name: str, shape: tuple[int, ...], dtype: int, parts: Sequence[tuple[_Slice, memoryview]]
) -> Callable[[], npt.NDArray[np.generic]]:
    def values(data: memoryview, part: _Slice) -> npt.NDArray[np.generic]:
        extents = zip(part, shape, strict=True)
        own = tuple(side - start if length is None else length for (start, length), side in extents)
        # The shape of a slice is not stored again beside its numbers
        return tensor_values(name, data, DTYPES[dtype], own)

    def read() -> npt.NDArray[np.generic]:
        if any(len(part) != len(shape) for part, _ in parts):
            raise MalformedError(f"{name}: a slice of other dimensions than shape {shape}")
        return joined_slices(name, shape, [(part, partial(values, data, part)) for part, data in parts])

    return read


def _table(data: memoryview) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a table."""
    if len(data) < _FOOTER or data[-8:] != MAGIC:
        raise MalformedError("its last bytes are not those of an index")
    footer = data[len(data) - _FOOTER :]
    _, position = varint(footer, 0)  # place and size of the index of filters, of which there are none
    _, position = varint(footer, position)
    count = 0
    for _, handle in _block(data, *_handle(footer[position:])):
        for key, value in _block(data, *_handle(memoryview(handle))):
            count += 1
            if count > _MAX_ENTRIES:
                raise MalformedError(f"more than {_MAX_ENTRIES:,} variables")
            limits.current().allocate(_BYTES_PER_ENTRY + len(key) + len(value))
            yield key, value


def _handle(data: memoryview) -> tuple[int, int]:
    offset, position = varint(data, 0)
    size, _ = varint(data, position)
    return offset, size


def _block(data: memoryview, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    # Entries, places where keys are spelt in full, their number (4 bytes), then compression (1 byte) and a checksum
    if offset + size + 5 > len(data) or size < 4:
        raise MalformedError("a block beyond the end of the file")
    if data[offset + size] != 0:
        raise MalformedError("a compressed block; load it in TensorFlow and save it again with tf.train.Saver")
    block = data[offset : offset + size]
    restarts = int.from_bytes(block[-4:], "little")
    end = size - 4 - 4 * restarts
    if end < 0:
        raise MalformedError("a block that is cut off")
    position, key = 0, b""
    while position < end:
        shared, position = varint(block, position)
        added, position = varint(block, position)
        length, position = varint(block, position)
        if shared > len(key) or shared + added > _MAX_KEY or position + added + length > end:
            raise MalformedError("an entry beyond the end of its block")
        key = key[:shared] + bytes(block[position : position + added])
        position += added
        yield key, bytes(block[position : position + length])
        position += length

"""TensorFlow checkpoints: the variables in ``name.index`` and ``name.data-00000-of-00001``.

The index is a sorted table in the file format of LevelDB (table_format.md of that project), which TensorFlow writes
uncompressed; its values are messages (tensor_bundle.proto) that say where in the data files a variable lies. A variable
is read from there when its layer is.

What variables are called in the program stands in a further entry since TensorFlow 2, whose keys are paths through the
objects of the program: the object graph (trackable_object_graph.proto).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cnnfilterdb.errors import WeightFileError
from cnnfilterdb.ingest.formats.protobuf import MalformedError, fields, integers, mapped, message, text, varint
from cnnfilterdb.ingest.formats.tensorflow.graphdef import DTYPES, array, dtype_name, tensor_shape
from cnnfilterdb.ingest.network.layers import Skipped, Tensor

__all__ = ["MAGIC", "Bundle", "data_file", "prefix_of"]

#: The last eight bytes of an index.
MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")

_FOOTER = 48
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
# Keys share their beginnings with the key before, so that a small file could spell out long ones without end.
_MAX_KEY = 4096
_MAX_ENTRIES = 1_000_000
_PART = re.compile(r"\.(?:index|meta|data-\d{5}-of-\d{5})$")


def prefix_of(path: Path) -> Path:
    """What the names of the files of a checkpoint begin with.

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


@dataclass(frozen=True, slots=True)
class _Entry:
    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int
    partitioned: bool


class Bundle:
    """The variables of a checkpoint.

    Attributes:
        prefix: What the names of its files begin with.
        tensors: Its variables by key, in the order of the index, which is alphabetical.
        skipped: Variables that cannot be read, with the reason.
        checksums: Type, shape and checksum of each, which are those of another when the two hold the same.
        names: Key of a variable by its name in the program, where the checkpoint tells that of one variable only.
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
            raise WeightFileError(f"{index}: a damaged checkpoint ({error}); bring it again") from error

    def _read(self, index: Path) -> None:
        if not index.is_file():
            raise WeightFileError(
                f"{index}: missing; a checkpoint is this file and {data_file(self.prefix, 0, 1).name}"
            )
        entries = dict(_table(mapped(index)))
        header = fields(memoryview(entries.pop("", b"")))
        self._count = integers(header.get(1, [1]))[-1]
        if not 0 < self._count < 100_000:
            raise MalformedError(f"{self._count} data files")
        if integers(header.get(2, [0]))[-1]:
            raise WeightFileError(f"{index}: written on a big-endian machine; convert it with TensorFlow")
        for key, value in entries.items():
            entry = _entry(memoryview(value))
            if key == _OBJECT_GRAPH:
                self._read_objects(entry)
            elif entry.partitioned:
                if len(entry.shape) == 4:
                    self.skipped.append(Skipped(key, "a variable in several slices; save it in one"))
            elif entry.dtype in DTYPES:
                self.checksums[key] = (entry.dtype, entry.shape, entry.checksum)
                self.tensors[key] = Tensor(key, entry.shape, dtype_name(entry.dtype), self._reader(key, entry))

    def _reader(self, key: str, entry: _Entry) -> Callable[[], npt.NDArray[np.generic]]:
        def read() -> npt.NDArray[np.generic]:
            try:
                return array(key, self._bytes(entry), DTYPES[entry.dtype], entry.shape)
            except MalformedError as error:
                raise WeightFileError(f"{self.prefix}.index: a damaged checkpoint ({error}); bring it again") from error

        return read

    def _bytes(self, entry: _Entry) -> memoryview:
        path = data_file(self.prefix, entry.shard, self._count)
        if entry.shard not in self._shards:
            if not path.is_file():
                raise WeightFileError(f"{path}: missing; it holds variables of {self.prefix.name}.index")
            self._shards[entry.shard] = mapped(path)
        data = self._shards[entry.shard]
        if entry.offset < 0 or entry.size < 0 or entry.offset + entry.size > len(data):
            raise WeightFileError(
                f"{path}: {len(data):,} bytes, but {self.prefix.name}.index places a variable at "
                f"{entry.offset:,} to {entry.offset + entry.size:,}; the file is cut off or of another checkpoint"
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
                names.setdefault(text(parts.get(2)), set()).add(text(parts.get(3)))
        self.names = {name: next(iter(keys)) for name, keys in names.items() if name and len(keys) == 1}


def _entry(data: memoryview) -> _Entry:
    parts = fields(data)

    def number(field: int) -> int:
        return integers(parts.get(field, [0]))[-1]

    shape = tensor_shape(message(parts[2][-1])) if 2 in parts else ()
    if shape is None or None in shape:
        raise MalformedError("a variable of unknown shape")
    sides = tuple(side or 0 for side in shape)
    return _Entry(number(1), sides, number(3), number(4), number(5), number(6), partitioned=7 in parts)


def _table(data: memoryview) -> Iterator[tuple[str, bytes]]:
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
            yield key.decode("utf-8", "replace"), value


def _handle(data: memoryview) -> tuple[int, int]:
    offset, position = varint(data, 0)
    size, _ = varint(data, position)
    return offset, size


def _block(data: memoryview, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    # Entries, places where keys are spelt in full, their number (4 bytes), then compression (1 byte) and a checksum
    if offset + size + 5 > len(data) or size < 4:
        raise MalformedError("a block beyond the end of the file")
    if data[offset + size] != 0:
        raise MalformedError("a compressed block, as in the first version of the format; save it anew")
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

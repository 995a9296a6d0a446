"""Flax checkpoints: nested dictionaries of arrays in MessagePack (flax.serialization).

Only the part of MessagePack that Flax writes is read: maps with text keys, numbers, texts, bytes and its extension 1,
an array as (shape, type, bytes). An array of more than a gigabyte is a map of parts.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest.formats import limits, register
from cnnfilterdb.ingest.formats.damage import undamaged
from cnnfilterdb.ingest.formats.mapping import mapped
from cnnfilterdb.ingest.network.contents import contents_of
from cnnfilterdb.ingest.network.judge import natural
from cnnfilterdb.ingest.network.layers import Skipped, Tensor, Weights
from cnnfilterdb.ingest.network.variables import is_training_state, layers_from_variables

__all__ = ["FlaxFormat"]

_WHAT = "Flax checkpoint"
_BYTES_PER_OBJECT = 256  # of memory
_ARRAY = 1  # type of extension
_PARTS = "__msgpack_chunked_array__"
# A map, then a short text as its first key
_HEAD = (0x81, 0x8F), (0xDE, 0xDF)
_COLLECTIONS = ("params", "batch_stats", "model", "target", "ema_params")
_TRAINING = ("opt_state", "optimizer", "step")


@register
class FlaxFormat:
    """``.msgpack`` files."""

    name = "flax"
    suffixes = (".msgpack",)

    def matches(self, path: Path, head: bytes) -> bool:
        """Whether the file begins with a map whose first key is a text."""
        begins = bool(head) and any(low <= head[0] <= high for low, high in _HEAD)
        start = {0xDE: 3, 0xDF: 5}.get(head[0], 1) if head else 0
        return begins and len(head) > start + 1 and (0xA1 <= head[start] <= 0xBF or head[start] == 0xD9)

    def read(self, path: Path) -> Weights:
        """Read the names and places of the arrays; an array when its layer is read.

        Raises:
            WeightFileError: The file is damaged, or not of Flax.
        """
        with undamaged(str(path), _WHAT):
            data = mapped(path)
            reader = _Reader(data)
            root = reader.value()
            if reader.place != len(data) or not isinstance(root, dict):
                raise ValueError("more than one value")
            arrays, skipped = [], []
            sizes: list[int] = []
            training: dict[str, Skipped] = {}
            for names, array in _arrays(root, ()):
                name = "/".join(names)
                sizes.append(math.prod(array.shape) if isinstance(array, _Array) else 0)
                if names[0] in _TRAINING or is_training_state(name):
                    if isinstance(array, _Array) and len(array.shape) > 2:
                        training[names[0]] = Skipped(names[0], "state of the training")
                    continue
                if isinstance(array, str):
                    skipped.append(Skipped(name, array))
                else:
                    arrays.append(array.tensor(path, "/".join(_plain(names))))
            if not arrays:
                raise WeightFileError(f"{path}: MessagePack without arrays; expected what flax.serialization writes")
            # Earlier versions of Flax sorted the names; numbers in them are compared as numbers
            arrays.sort(key=lambda tensor: natural(tensor.name))
            layers, more, count = layers_from_variables(arrays, ordered=False)
            skipped += [*training.values(), *more]
            contents = contents_of(arrays, layers, skipped, whole=(len(sizes), sum(sizes)))
            return Weights("flax", "jax", layers, count, tuple(skipped), contents=contents)


def _plain(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names without the collection that they are in: parameters and statistics of a layer belong together."""
    return tuple(name for place, name in enumerate(names) if place > 1 or name not in _COLLECTIONS) or names


def _arrays(value: Any, names: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], _Array | str]]:
    if isinstance(value, _Array):
        yield names, value
    elif isinstance(value, dict) and value.get(_PARTS):
        yield names, "an array in several parts; save it as safetensors"
    elif isinstance(value, dict):
        for key, child in value.items():
            yield from _arrays(child, (*names, str(key)))


@dataclass(frozen=True, slots=True)
class _Array:
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    content: memoryview

    def tensor(self, path: Path, name: str) -> Tensor:
        return Tensor(name, self.shape, self.dtype.name, self._reader(path))

    def _reader(self, path: Path) -> Callable[[], npt.NDArray[np.generic]]:
        def read() -> npt.NDArray[np.generic]:
            with undamaged(str(path), _WHAT):
                limits.current().allocate(4 * math.prod(self.shape))
                values = np.frombuffer(self.content, self.dtype).reshape(self.shape)
                floating = self.dtype.kind == "f" or self.dtype.name == "bfloat16"
                return values.astype(np.float32) if floating else values

        return read


class _Reader:
    """Reads MessagePack (https://msgpack.org)."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.place = data, 0

    def number(self, format: str) -> int:
        (value,) = struct.unpack_from(format, self.data, self.place)
        self.place += struct.calcsize(format)
        return int(value)

    def taken(self, size: int) -> memoryview:
        start, self.place = self.place, self.place + size
        if self.place > len(self.data):
            raise ValueError("ends within a value")
        return self.data[start : self.place]

    def value(self) -> Any:
        limits.current().step()
        limits.current().allocate(_BYTES_PER_OBJECT)
        kind = self.number("B")
        if kind < 0x80 or kind >= 0xE0:
            return kind if kind < 0x80 else kind - 256
        if kind < 0x90:
            return self.map(kind & 15)
        if kind < 0xA0:
            return self.list(kind & 15)
        if kind < 0xC0:
            return self.text(kind & 31)
        if kind in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[kind]
        if kind in (0xC4, 0xC5, 0xC6):
            return self.taken(self.number((">B", ">H", ">I")[kind - 0xC4]))
        if kind in (0xC7, 0xC8, 0xC9):
            return self.extension(self.number((">B", ">H", ">I")[kind - 0xC7]))
        if kind in (0xCA, 0xCB):
            return self.taken(4 if kind == 0xCA else 8)
        if 0xCC <= kind <= 0xD3:
            return self.number((">B", ">H", ">I", ">Q", ">b", ">h", ">i", ">q")[kind - 0xCC])
        if 0xD4 <= kind <= 0xD8:
            return self.extension(1 << (kind - 0xD4))
        if 0xD9 <= kind <= 0xDB:
            return self.text(self.number((">B", ">H", ">I")[kind - 0xD9]))
        if kind in (0xDC, 0xDD):
            return self.list(self.number(">H" if kind == 0xDC else ">I"))
        if kind in (0xDE, 0xDF):
            return self.map(self.number(">H" if kind == 0xDE else ">I"))
        raise ValueError(f"a value of the unknown type {kind}")

    def text(self, size: int) -> str:
        limits.current().allocate(4 * size)
        return bytes(self.taken(size)).decode("utf-8", "replace")

    def list(self, count: int) -> list[Any]:
        with limits.current().nested():
            return [self.value() for _ in range(count)]

    def map(self, count: int) -> dict[Any, Any]:
        found = {}
        with limits.current().nested():
            for _ in range(count):
                key = self.value()
                # The text of a container in containers can be exponentially longer than the file.
                if not isinstance(key, str | int):
                    raise ValueError("a key that is neither a text nor a number")
                found[key] = self.value()
        return found

    def extension(self, size: int) -> Any:
        kind = self.number("b")
        content = self.taken(size)
        if kind != _ARRAY:
            return None  # a complex number, or a scalar of NumPy
        inner = _Reader(content)
        parts = inner.value()
        if not isinstance(parts, list) or len(parts) != 3 or not isinstance(parts[2], memoryview):
            raise ValueError("an array that is not (shape, type, bytes)")
        shape, name, stored = parts
        if not isinstance(name, str):
            raise ValueError("an array whose type is not a text")
        if not isinstance(shape, list) or not all(type(side) is int and 0 <= side < 1 << 40 for side in shape):
            raise ValueError("an array of an impossible shape")
        dtype = np.dtype(ml_dtypes.bfloat16) if name in ("bfloat16", "V2") else np.dtype(name)
        if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(stored):
            raise ValueError(f"{len(stored):,} bytes for an array of shape {tuple(shape)}")
        return _Array(tuple(shape), dtype, stored)

"""GGUF files of ggml, in which stable-diffusion.cpp, whisper.cpp and llama.cpp keep networks, some with convolutions.

A header lists values and tensors; the sizes of a tensor are in the reverse of NumPy's order, so that the weight of a
convolution has the layout of PyTorch. Block-quantised tensors, which are hardly ever convolutions, are left out
(docs/gguf.md of ggml).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest.formats import limits, register
from cnnfilterdb.ingest.formats.damage import undamaged
from cnnfilterdb.ingest.formats.dtypes import by_code
from cnnfilterdb.ingest.formats.mapping import mapped
from cnnfilterdb.ingest.network.composition import parameters
from cnnfilterdb.ingest.network.contents import contents_of
from cnnfilterdb.ingest.network.extract import layers_from_tensors
from cnnfilterdb.ingest.network.layers import Skipped, Tensor, Weights

__all__ = ["GgufFormat"]

_WHAT = "GGUF file"
_MAGIC = b"GGUF"
_BYTES_PER_TENSOR, _BYTES_PER_VALUE = 1024, 128  # of memory
_DTYPES = by_code(
    {
        0: "float32",
        1: "float16",
        24: "int8",
        25: "int16",
        26: "int32",
        27: "int64",
        28: "float64",
        30: "bfloat16",
    }
)
# Sizes of the values of the header by type; 8 is a text, 9 a list
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_TEXT, _LIST = 8, 9


@register
class GgufFormat:
    """``.gguf`` files."""

    name = "gguf"
    suffixes = (".gguf",)

    def matches(self, path: Path, head: bytes) -> bool:
        """Whether the file has the magic number of GGUF."""
        return head.startswith(_MAGIC)

    def read(self, path: Path) -> Weights:
        """Read the header; the tensors when the layers are read.

        Raises:
            WeightFileError: The file is damaged, or of version 1.
        """
        with undamaged(str(path), _WHAT):
            tensors, packed, skipped = _Reader(path).tensors()
            layers, more = layers_from_tensors(tensors, ordered=True)
            contents = contents_of((*tensors, *packed), layers, (*skipped, *more))
            return Weights("gguf", None, layers, parameters(tensors), (*skipped, *more), contents=contents)


def _unread() -> npt.NDArray[np.generic]:
    raise WeightFileError("a tensor in quantised blocks, which are not read")


class _Reader:
    def __init__(self, path: Path) -> None:
        self.path, self.data, self.place = path, mapped(path), 4
        version = self.number("<I")
        if version not in (2, 3):
            raise WeightFileError(f"{path}: GGUF of version {version}; versions 2 and 3 are read")

    def number(self, format: str) -> int:
        (value,) = struct.unpack_from(format, self.data, self.place)
        self.place += struct.calcsize(format)
        return int(value)

    def skip(self, size: int) -> None:
        self.place += size
        if self.place > len(self.data):
            raise ValueError("ends within its header")

    def text(self) -> str:
        size = self.number("<Q")
        start = self.place
        self.skip(size)
        limits.current().allocate(_BYTES_PER_VALUE + 4 * size)
        return bytes(self.data[start : self.place]).decode("utf-8", "replace")

    def value(self) -> int | None:
        """One value of the header: a number of 32 bits, or None for anything else."""
        kind = self.number("<I")
        if kind == 4:
            return self.number("<I")
        self._pass_over(kind)
        return None

    def _pass_over(self, kind: int) -> None:
        with limits.current().nested():
            if kind == _TEXT:
                self.skip(self.number("<Q"))
            elif kind == _LIST:
                inner, count = self.number("<I"), self.number("<Q")
                if inner in _SIZES:
                    self.skip(_SIZES[inner] * count)
                else:
                    for _ in range(count):
                        limits.current().step()
                        self._pass_over(inner)
            else:
                self.skip(_SIZES[kind])

    def tensors(self) -> tuple[list[Tensor], list[Tensor], list[Skipped]]:
        """The tensors, those in quantised blocks, which are not read, and what of these is reported."""
        count, values = self.number("<Q"), self.number("<Q")
        alignment = 32
        for _ in range(values):
            limits.current().step()
            name = self.text()
            value = self.value()
            if name == "general.alignment" and value:
                alignment = value
        entries = []
        for _ in range(count):
            limits.current().step()
            limits.current().allocate(_BYTES_PER_TENSOR)
            name, rank = self.text(), self.number("<I")
            if rank > 8:
                raise ValueError(f"{name} has {rank} dimensions")
            sides = tuple(self.number("<Q") for _ in range(rank))
            entries.append((name, sides[::-1], self.number("<I"), self.number("<Q")))
        begin = -(-self.place // alignment) * alignment
        found, packed, skipped = [], [], []
        for name, shape, kind, offset in entries:
            dtype = _DTYPES.get(kind)
            if dtype is not None:
                found.append(Tensor(name, shape, dtype.name, self._reader(name, shape, dtype, begin + offset)))
                continue
            reason = f"a tensor of shape {shape} in quantised blocks (type {kind} of ggml)"
            packed.append(Tensor(name, shape, "qint8", _unread, unreadable=reason))
            if len(shape) in (3, 4, 5):
                skipped.append(Skipped(name, reason))
        return found, packed, skipped

    def _reader(
        self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], start: int
    ) -> Callable[[], npt.NDArray[np.generic]]:
        def read() -> npt.NDArray[np.generic]:
            with undamaged(str(self.path), _WHAT):
                limits.current().allocate(4 * math.prod(shape))
                if start + math.prod(shape) * dtype.itemsize > len(self.data):
                    raise ValueError(f"{name} reaches beyond the end of the file")
                values = np.frombuffer(self.data, dtype, math.prod(shape), start).reshape(shape)
                return values.astype(np.float32) if dtype.kind == "f" or dtype.name == "bfloat16" else values

        return read

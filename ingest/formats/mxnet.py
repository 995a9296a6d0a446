"""MXNet parameters: ``.params``, a list of arrays and their names (ndarray.cc of MXNet).

Names and shapes are all that the file has; the network is in a ``.json`` beside it or in code. Weights have the layout
of PyTorch.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cnnfilterdb.ingest.formats import limits, register
from cnnfilterdb.ingest.formats.damage import undamaged
from cnnfilterdb.ingest.formats.dtypes import by_code
from cnnfilterdb.ingest.formats.mapping import mapped
from cnnfilterdb.ingest.network.contents import contents_of
from cnnfilterdb.ingest.network.layers import Skipped, Tensor, Weights
from cnnfilterdb.ingest.network.variables import layers_from_variables

__all__ = ["MxnetFormat"]

_WHAT = "MXNet parameter file"
_MAGIC = struct.pack("<QQ", 0x112, 0)
# Versions of an array; before them it began with its number of dimensions
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_BYTES_PER_ARRAY = 1024  # of memory
_DTYPES = by_code(
    {
        0: "float32",
        1: "float64",
        2: "float16",
        3: "uint8",
        4: "int32",
        5: "int8",
        6: "int64",
    }
)


@register
class MxnetFormat:
    """``.params`` files."""

    name = "mxnet"
    suffixes = (".params",)

    def matches(self, path: Path, head: bytes) -> bool:
        """Whether the file has the magic number of a list of arrays."""
        return head.startswith(_MAGIC)

    def read(self, path: Path) -> Weights:
        """Read names and shapes; the arrays when the layers are read.

        Raises:
            WeightFileError: The file is damaged.
        """
        with undamaged(str(path), _WHAT):
            tensors, skipped = _Reader(path).tensors()
            layers, more, count = layers_from_variables(tensors, ordered=True, layout="OIHW")
            contents = contents_of(tensors, layers, more)
            return Weights("mxnet", "mxnet", layers, count, (*skipped, *more), contents=contents)


class _Reader:
    def __init__(self, path: Path) -> None:
        self.path, self.data, self.place = path, mapped(path), len(_MAGIC)

    def number(self, format: str) -> int:
        (value,) = struct.unpack_from(format, self.data, self.place)
        self.place += struct.calcsize(format)
        return int(value)

    def tensors(self) -> tuple[list[Tensor], list[Skipped]]:
        arrays = [self._array() for _ in range(self._count(4))]
        names = [self._name() for _ in range(self._count(8))]
        if len(names) != len(arrays):
            raise ValueError(f"{len(arrays)} arrays, but {len(names)} names")
        found, skipped = [], []
        for name, array in zip(names, arrays, strict=True):
            # Names of trained arrays begin with arg:, those of statistics with aux:
            plain = name.partition(":")[2] if name.startswith(("arg:", "aux:")) else name
            if isinstance(array, str):
                skipped.append(Skipped(plain, array))
            else:
                shape, dtype, start = array
                read = self._reader(shape, dtype, start)
                found.append(Tensor(plain, shape, dtype.name, read, False if name.startswith("aux:") else None))
        return found, skipped

    def _count(self, least: int) -> int:
        count = self.number("<Q")
        if count * least > len(self.data) - self.place:
            raise ValueError(f"{count:,} entries, which do not fit into the file")
        limits.current().allocate(_BYTES_PER_ARRAY * count)
        return count

    def _name(self) -> str:
        size = self.number("<Q")
        start, self.place = self.place, self.place + size
        if self.place > len(self.data):
            raise ValueError("ends within a name")
        return bytes(self.data[start : self.place]).decode("utf-8", "replace")

    def _array(self) -> tuple[tuple[int, ...], np.dtype[Any], int] | str:
        limits.current().step()
        magic = self.number("<I")
        if magic in (_V2, _V3):
            if self.number("<i") not in (0, -1):  # storage type: dense, or none
                raise ValueError("an array that is stored sparsely; convert it with MXNet's tostype('default')")
            rank, side = self.number("<I"), "<q"
        elif magic == _V1:
            rank, side = self.number("<I"), "<q"
        else:
            rank, side = magic, "<I"
        if rank > 32:
            raise ValueError(f"an array of {rank} dimensions")
        shape = tuple(self.number(side) for _ in range(rank))
        if any(not 0 <= one < 1 << 40 for one in shape):
            raise ValueError(f"an array of the impossible shape {shape}")
        if not shape:
            return "an array without numbers"
        self.place += 8  # the device that it was on
        kind = self.number("<i")
        if kind not in _DTYPES:
            raise ValueError(f"an array of the unknown type {kind}")
        start, dtype = self.place, _DTYPES[kind]
        self.place += math.prod(shape) * dtype.itemsize
        if self.place > len(self.data):
            raise ValueError("ends within an array")
        return shape, dtype, start

    def _reader(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], start: int
    ) -> Callable[[], npt.NDArray[np.generic]]:
        def read() -> npt.NDArray[np.generic]:
            limits.current().allocate(4 * math.prod(shape))
            values = np.frombuffer(self.data, dtype, math.prod(shape), start).reshape(shape)
            return values.astype(np.float32) if dtype.kind == "f" else values

        return read

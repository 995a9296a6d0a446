"""The part of an ExecuTorch program that XNNPACK computes: a graph of its own (schema.fbs of its backend, 1.5).

It is a FlatBuffer of nodes that name values by number, and values that name constants: in the bytes after it, or by
name in the program or beside it. A weight is (out, h, w, in / groups), that of a depthwise layer (1, h, w, out).
Quantised weights are dequantised. The numbers of the fields below are those of the schema.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cnnfilterdb.ingest.formats import limits
from cnnfilterdb.ingest.formats.damage import undamaged
from cnnfilterdb.ingest.formats.dtypes import by_code
from cnnfilterdb.ingest.formats.flatbuffer import Table
from cnnfilterdb.ingest.network.axes import turned
from cnnfilterdb.ingest.network.layers import ConvLayer, Skipped, Tensor

__all__ = ["Found", "XnnpackGraph", "dequantised", "part_of"]

_WHAT = "ExecuTorch program"
_BYTES_PER_VALUE = 1024  # of memory

# XNNGraph
_NODES, _VALUES, _INPUTS, _OUTPUTS, _BUFFERS, _CONSTANTS = 1, 2, 4, 5, 6, 8
# Types of nodes -> form of the layer, and the axes that make (out, in / groups, h, w)
_CONVOLUTIONS = {
    7: ("conv", (0, 3, 1, 2)),
    13: ("depthwise", (3, 0, 1, 2)),
    39: ("transposed", (0, 3, 1, 2)),
}
# Fields of a convolution
_SUBSAMPLING, _DILATION, _GROUP_INPUTS, _GROUPS, _FILTER = (6, 7), (8, 9), 10, 12, 16
# Fields of a node that are its inputs, and its output, by type of the node
_EDGES: dict[int, tuple[tuple[int, ...], int | None]] = {
    **dict.fromkeys((1, 8, 12, 15, 16, 26, 31, 37), ((0, 1), 2)),
    **dict.fromkeys((3, 4, 6, 17, 18, 19, 22, 23, 24, 27, 28, 30, 40, 41, 42, 43, 44, 45, 46, 47), ((0,), 1)),
    **dict.fromkeys((7, 13, 39), ((15,), 18)),
    **dict.fromkeys((11, 14), ((10,), 11)),
    32: ((1, 2), 5),
    33: ((1, 2, 3), 5),
    34: ((1, 2, 3, 4), 5),
    38: ((1, 2, 3, 4, 7), 5),
    **dict.fromkeys((25, 29), ((1,), 2)),
    2: ((0,), 3),
    5: ((2,), 3),
    9: ((2,), 3),
    10: ((3,), 4),
    20: ((2,), 3),
    21: ((6,), 7),
    35: ((3,), 4),
    36: ((0, 1, 2), 5),
}

# XNNDatatype
_DTYPES = by_code(
    {1: "float32", 2: "float16", 3: "int8", 4: "uint8", 5: "int32", 6: "int8", 7: "int32", 14: "bfloat16"}
)
_FLOATING = (1, 2, 14)
# Types of quantisation: of each channel, of a tensor
_BY_CHANNEL, _BY_TENSOR = 1, 2


@dataclass(frozen=True, slots=True)
class _Value:
    """A value of the graph.

    Attributes:
        type: Its data type.
        shape: Its shape.
        constant: Number of its constant; 0 if it is computed.
        rule: How it is quantised; None if it is not.
        parameters: The parameters of that.
    """

    type: int
    shape: tuple[int, ...]
    constant: int
    rule: int | None = None
    parameters: Table | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A layer of a program.

    Attributes:
        layer: The layer.
        depth: Longest path from an input; None where it is not known.
    """

    layer: ConvLayer
    depth: int | None


class XnnpackGraph:
    """A graph of XNNPACK.

    Attributes:
        inputs: Number of its inputs.
    """

    def __init__(self, path: Path, data: memoryview, named: Callable[[str], memoryview]) -> None:
        """Read nodes and values.

        Args:
            path: The program, for messages.
            data: What was compiled for the delegate.
            named: The bytes of a constant by name.

        Raises:
            ValueError: It is damaged.
        """
        self.path, self.named = path, named
        self.after = memoryview(b"")
        if bytes(data[4:8]) == b"XH00":
            start, size, constants, length = struct.unpack_from("<IIIQ", data, 10)
            if start + size > len(data) or constants + length > len(data):
                raise ValueError("a graph of XNNPACK beyond the end of its part: truncated")
            self.after, data = data[constants : constants + length], data[start : start + size]
        if bytes(data[4:6]) != b"XN":
            raise ValueError("a part for XNNPACK that is no graph of it")
        root = Table.root(data)
        self.buffers = root.tables(_BUFFERS)
        self.constants = root.tables(_CONSTANTS)
        self.nodes = root.tables(_NODES)
        stored = root.tables(_VALUES)
        limits.current().allocate(_BYTES_PER_VALUE * len(stored))
        self.values: dict[int, _Value] = {}
        for table in stored:
            self._add(table)
        self._externals = (root.integers(_INPUTS, "<u4"), root.integers(_OUTPUTS, "<u4"))
        self.inputs = len(self._externals[0])

    def _add(self, table: Table) -> None:
        value, quantised = table.table(1), table.number(0, "<B") == 2
        rule, parameters = None, None
        if value is not None and quantised:
            rule, parameters = value.number(1, "<B"), value.table(2)
            value = value.table(0)
        if value is None:
            raise ValueError("a value without a type")
        self.values[value.number(6, "<I")] = _Value(
            value.number(0, "<h"), tuple(value.integers(2, "<u4")), value.number(3, "<I"), rule, parameters
        )

    def stored(self) -> Iterable[Tensor]:
        """The constants."""
        return (self._tensor(value) for value in self.values.values() if value.constant)

    def _tensor(self, value: _Value) -> Tensor:
        """A constant as it is stored, to be counted."""
        dtype = _DTYPES[value.type].name if value.type in _DTYPES else f"number {value.type}"
        named = dtype if value.type in _FLOATING or value.rule is None else f"q{dtype}"
        return Tensor(part_of(self._bytes(value.constant)), value.shape, named, lambda: np.empty(0))

    def layers(self, before: Sequence[int | None]) -> tuple[list[Found | Skipped], list[int | None]]:
        """The layers in order, and the depths of the outputs.

        Args:
            before: Depths of the inputs.
        """
        reached = {
            number: depth for number, depth in zip(self._externals[0], before, strict=False) if depth is not None
        }
        found: list[Found | Skipped] = []
        used: set[int] = set()
        for node in self.nodes:
            limits.current().step()
            kind, table = node.number(0, "<B"), node.table(1)
            inputs, output = _EDGES.get(kind, ((), None))
            if table is None:
                raise ValueError("a node without its fields")
            depths = [reached[one] for one in (table.number(field, "<I") for field in inputs) if one in reached]
            depth = max(depths) + 1 if depths else None
            if depth is not None and output is not None:
                reached[table.number(output, "<I")] = depth
            if kind in _CONVOLUTIONS and (number := table.number(_FILTER, "<I")) not in used:
                used.add(number)
                found.append(self._layer(kind, table, depth))
        return found, [reached.get(number) for number in self._externals[1]]

    def _layer(self, kind: int, table: Table, depth: int | None) -> Found | Skipped:
        form, axes = _CONVOLUTIONS[kind]
        value = self.values.get(table.number(_FILTER, "<I"))
        if value is None or not value.constant:
            return Skipped("XNNPACK", "its weight is computed")
        if value.type not in _DTYPES or (value.type not in _FLOATING and value.rule not in (_BY_CHANNEL, _BY_TENSOR)):
            part = part_of(self._bytes(value.constant))
            return Skipped("XNNPACK", f"a weight of type {value.type} of XNNPACK, which is not read", (part,))
        along = 3 if form == "depthwise" else 0
        stored = self._tensor(value)

        def read() -> npt.NDArray[np.float32]:
            with undamaged(str(self.path), _WHAT):
                return self._numbers(value, along)

        groups, inputs = table.number(_GROUPS, "<I"), table.number(_GROUP_INPUTS, "<I")
        layer = turned(
            "",
            replace(stored, read=read),
            form=form,
            axes=axes,
            channels=groups * inputs,
            stride=_pair(table, _SUBSAMPLING),
            dilation=_pair(table, _DILATION),
        )
        if isinstance(layer, Skipped):
            return replace(layer, name="XNNPACK")
        if form == "transposed":
            layer = replace(layer, in_channels=groups * inputs, groups=groups)
        return Found(layer, depth)

    def _numbers(self, value: _Value, along: int) -> npt.NDArray[np.float32]:
        limits.current().allocate(16 * math.prod(value.shape))
        dtype, data = _DTYPES[value.type], self._bytes(value.constant)
        if math.prod(value.shape) * dtype.itemsize > len(data):
            raise ValueError(f"{len(data):,} bytes for a weight of shape {value.shape}: truncated")
        stored = np.frombuffer(data, dtype, math.prod(value.shape)).reshape(value.shape)
        if value.type in _FLOATING:
            return stored.astype(np.float32)
        rule = value.parameters
        if rule is None:
            raise ValueError("a quantised weight without its scale")
        if value.rule == _BY_TENSOR:
            scale = struct.unpack("<f", struct.pack("<I", rule.number(0, "<I")))[0]
            return dequantised(stored, np.array([scale]), np.array([rule.number(1, "<i")]), 0)
        scales: npt.NDArray[Any] = rule.array(0, "<f4")
        if not scales.size:
            scales = np.frombuffer(self._bytes(rule.number(2, "<I")), "<f4", rule.number(3, "<I"))
        return dequantised(stored, scales, np.zeros(1), along)

    def _bytes(self, number: int) -> memoryview:
        """A constant."""
        if not self.constants:  # of a graph before 2024
            if number >= len(self.buffers):
                raise ValueError(f"constant {number} of {len(self.buffers)}")
            return self.buffers[number].data(0)
        if number >= len(self.constants):
            raise ValueError(f"constant {number} of {len(self.constants)}")
        place = self.constants[number]
        name = place.text(2)
        if name:
            return self.named(name)
        start, size = place.number(0, "<Q"), place.number(1, "<Q")
        if start + size > len(self.after):
            raise ValueError("a constant beyond the end of its part: truncated")
        return self.after[start : start + size]


def part_of(data: memoryview) -> str:
    """A name of a constant by where its bytes are, which all views of them share."""
    return f"bytes at {np.frombuffer(data, np.uint8).ctypes.data if len(data) else 0}"


def dequantised(
    stored: npt.NDArray[Any], scale: npt.NDArray[Any], zero: npt.NDArray[Any], axis: int
) -> npt.NDArray[np.float32]:
    """The numbers that quantised ones stand for, (stored - zero point) x scale.

    Args:
        stored: Whole numbers.
        scale: One scale, or one of each index of the axis.
        zero: Zero points, likewise.
        axis: The axis.

    Raises:
        ValueError: The scales do not fit.

    >>> dequantised(np.array([[3], [4]], np.int8), np.array([0.5, 2.0]), np.array([1, 0]), 0).tolist()
    [[1.0], [8.0]]
    """
    if not -stored.ndim <= axis < stored.ndim or any(one.size not in (1, stored.shape[axis]) for one in (scale, zero)):
        raise ValueError(f"{scale.size} scales and {zero.size} zero points for shape {stored.shape}")
    along = [1] * stored.ndim
    along[axis] = -1
    # In float64, as the difference of the integers is exact there, and rounded once
    wide = [part.astype(np.float64).reshape(along if part.size > 1 else [1] * stored.ndim) for part in (scale, zero)]
    return ((stored.astype(np.float64) - wide[1]) * wide[0]).astype(np.float32)


def _pair(table: Table, fields: tuple[int, int]) -> tuple[int, int] | None:
    height, width = (table.number(field, "<I", 1) for field in fields)
    return (height, width) if 0 < height < 1 << 31 and 0 < width < 1 << 31 else None

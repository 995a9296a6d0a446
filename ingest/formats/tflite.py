"""TensorFlow Lite models.

A file is one FlatBuffer (schema.fbs of TensorFlow Lite): operators that name tensors by number, tensors that name
buffers. Quantised weights are dequantised, (stored - zero point) x scale, and sparse ones are expanded; if an operator
widens a weight before use, the stored weight is read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cnnfilterdb.ingest.formats import limits, register
from cnnfilterdb.ingest.formats.damage import undamaged
from cnnfilterdb.ingest.formats.dtypes import by_code
from cnnfilterdb.ingest.formats.flatbuffer import Table
from cnnfilterdb.ingest.formats.mapping import mapped
from cnnfilterdb.ingest.formats.tensorflow.dataflow import layer_name
from cnnfilterdb.ingest.network.axes import Pair, turned, unique_names
from cnnfilterdb.ingest.network.contents import contents_of
from cnnfilterdb.ingest.network.extract import conv_depths
from cnnfilterdb.ingest.network.layers import ConvLayer, Skipped, Tensor, Weights, stated

__all__ = ["TfliteFormat"]

_WHAT = "TensorFlow Lite file"
_BYTES_PER_TENSOR, _BYTES_PER_OPERATOR = 1536, 512  # of memory
_CONV_2D, _DEPTHWISE, _DEQUANTIZE, _CUSTOM, _TRANSPOSE, _DENSIFY = 3, 4, 6, 32, 67, 124
_CONV_3D, _CONV_3D_TRANSPOSE, _HLO_CONVOLUTION = 132, 141, 171
_SPACE_TO_BATCH = 38
_MEDIAPIPE_TRANSPOSE = "Convolution2DTransposeBias"
# Where the weight and the image are among the inputs, and where stride and dilation are in the options, each (w, h)
_CONVOLUTIONS = {
    _CONV_2D: ("conv", 1, 0, (1, 2), (4, 5)),
    _DEPTHWISE: ("depthwise", 1, 0, (1, 2), (5, 6)),
    _TRANSPOSE: ("transposed", 1, 2, (1, 2), None),
}
# Stored as (out, h, w, in), a depthwise weight as (1, h, w, in x multiplier)
_AXES = {"conv": (0, 3, 1, 2), "transposed": (0, 3, 1, 2), "depthwise": (3, 0, 1, 2)}

_DTYPES = by_code(
    {
        0: "float32",
        1: "float16",
        2: "int32",
        3: "uint8",
        4: "int64",
        7: "int16",
        9: "int8",
        10: "float64",
        17: "int4",
        18: "bfloat16",
    }
)
_INT4 = 17


@register
class TfliteFormat:
    """``.tflite`` files."""

    name = "tflite"
    suffixes = (".tflite", ".lite")

    def matches(self, path: Path, head: bytes) -> bool:
        """Whether the file has the identifier of TensorFlow Lite."""
        return head[4:8] == b"TFL3"

    def read(self, path: Path) -> Weights:
        """Read the operators; the buffers when the layers are read.

        Raises:
            WeightFileError: The file is damaged.
        """
        with undamaged(str(path), _WHAT):
            model = _Model(path, mapped(path))
            found, skipped = model.layers()
            metadata = stated([("description", model.description)])
            contents = contents_of(model.stored(), found, skipped)
            return Weights(
                self.name, "tensorflow", tuple(found), model.parameters(), tuple(skipped), None, metadata, contents
            )


@dataclass(frozen=True, slots=True)
class _Operator:
    code: int
    custom: str
    inputs: list[int]
    outputs: list[int]
    options: Table | None


class _Model:
    """The operators of a file."""

    def __init__(self, path: Path, data: memoryview) -> None:
        self.path, self.data = path, data
        root = Table.root(data)
        # Operators above 127 are in a later field only, those below in both or in the earlier one
        self.codes = [
            (max(code.number(0, "<b"), code.number(3, "<i")), code.text(1) if code.number(3, "<i") in (0, 32) else "")
            for code in root.tables(1)
        ]
        self.description = root.text(3)
        self.buffers = root.tables(4)
        self.graphs = [_Graph(self, table) for table in root.tables(2)]
        if not self.graphs:
            raise ValueError("without a graph")

    def layers(self) -> tuple[list[ConvLayer], list[Skipped]]:
        """Layers of the main graph in order, then those of the graphs that it calls, whose depth is not known."""
        found: list[ConvLayer] = []
        skipped: list[Skipped] = []
        for number, graph in enumerate(self.graphs):
            layers, depths, reasons = graph.layers()
            skipped += reasons
            if number == 0:
                for one, (rank, norm) in zip(layers, conv_depths(depths), strict=True):
                    source = None if rank is None else "graph"
                    found.append(replace(one, conv_depth=rank, conv_depth_norm=norm, depth_source=source))
            else:
                found += layers
        return unique_names(found, [one.name for one in found]), skipped

    def stored(self) -> list[Tensor]:
        """The tensors that are stored, each buffer once."""
        tensors = (tensor for graph in self.graphs for tensor in graph.tensors if tensor.stored)
        return list({one.buffer: one.tensor() for one in reversed(list(tensors))}.values())

    def parameters(self) -> int:
        """Numbers of parameters: stored tensors of floating or quantised type."""
        sizes = {}
        for graph in self.graphs:
            for tensor in graph.tensors:
                if tensor.stored and tensor.shape and (tensor.is_floating or tensor.scale.size):
                    sizes[tensor.buffer] = math.prod(tensor.shape)
        return sum(sizes.values())


class _Tensor:
    """A tensor of a graph."""

    def __init__(self, model: _Model, table: Table) -> None:
        limits.current().allocate(_BYTES_PER_TENSOR)
        self.path = model.path
        self.data = model.data
        self.shape = tuple(table.integers(0))
        self.type = table.number(1, "<b")
        self.buffer = table.number(2, "<I")
        self.name = table.text(3)
        quantisation = table.table(4)
        self.scale = quantisation.array(2, "<f4") if quantisation else np.empty(0, np.float32)
        self.zero = quantisation.array(3, "<i8") if quantisation else np.empty(0, np.int64)
        self.axis = quantisation.number(6, "<i") if quantisation else 0
        self.sparsity = table.table(6)
        self.source = model.buffers[self.buffer] if self.buffer < len(model.buffers) else None
        place = 0 if self.source is None else self.source.number(1, "<Q")
        self.stored = self.source is not None and (self.source.array(0, "u1").size > 0 or place > 1)

    @property
    def is_floating(self) -> bool:
        return self.type in (0, 1, 10, 18)

    def tensor(self) -> Tensor:
        dtype = _DTYPES[self.type].name if self.type in _DTYPES else f"type {self.type}"
        if not self.is_floating and self.scale.size:
            dtype = f"q{dtype}"
        return Tensor(self.name, self.shape, dtype, self.read)

    def read(self) -> npt.NDArray[np.float32]:
        with undamaged(str(self.path), _WHAT):
            return self._numbers()

    def _numbers(self) -> npt.NDArray[np.float32]:
        stored = self._stored()
        if self.is_floating:
            return stored.astype(np.float32)
        scale, zero = self.scale, self.zero if self.zero.size else np.zeros(1, np.int64)
        if scale.size > 1:
            if not 0 <= self.axis < len(self.shape) or scale.size != self.shape[self.axis]:
                raise ValueError(f"{self.name}: {scale.size} scales for shape {self.shape}")
            along = [1] * len(self.shape)
            along[self.axis] = -1
            scale = scale.reshape(along)
            zero = zero.reshape(along) if zero.size > 1 else zero
        # In float64, as the difference of the integers is exact there, and rounded once
        values = (stored.astype(np.float64) - zero.astype(np.float64)) * scale.astype(np.float64)
        return values.astype(np.float32)

    def _stored(self) -> npt.NDArray[np.generic]:
        assert self.source is not None
        limits.current().allocate(16 * math.prod(self.shape))
        raw: npt.NDArray[Any] = self.source.array(0, "u1")
        if not raw.size:  # in files of more than 2 GB the bytes follow the FlatBuffer
            start, size = self.source.number(1, "<Q"), self.source.number(2, "<Q")
            if start + size > len(self.data):
                raise ValueError(f"{self.name} reaches beyond the end of the file")
            raw = np.frombuffer(self.data, np.uint8, size, start)
        dtype = _DTYPES[self.type]
        if self.type == _INT4:  # two in a byte, the lower half first
            raw = np.stack([raw & 15, raw >> 4], -1).reshape(-1)
            signed = raw.astype(np.int8)
            values: npt.NDArray[np.generic] = np.where(signed > 7, signed - 16, signed)
        else:
            if raw.size % dtype.itemsize:
                raise ValueError(f"{self.name} has {raw.size:,} bytes of {dtype.name}")
            values = np.frombuffer(raw.tobytes() if not raw.flags.c_contiguous else raw, dtype)
        expected = math.prod(self.shape)
        if self.sparsity is not None:
            return _dense(values, self.shape, self.sparsity)
        if values.size != expected and not (self.type == _INT4 and values.size == expected + 1):
            raise ValueError(f"{self.name}: {values.size:,} numbers for shape {self.shape}")
        return values[:expected].reshape(self.shape)


def _dense(values: npt.NDArray[np.generic], shape: tuple[int, ...], sparsity: Table) -> npt.NDArray[np.generic]:
    """A sparse tensor with its zeros.

    It is stored as a tree: a level for each dimension, in a stored order, then for each dimension of the blocks.
    A dense level has all positions, a sparse one those that are listed.
    """
    order, blocked, levels = sparsity.integers(0), sparsity.integers(1), sparsity.tables(2)
    rank = len(shape)
    if len(blocked) > rank or sorted(order) != list(range(rank + len(blocked))) or len(levels) != len(order):
        raise ValueError(f"a sparse tensor of shape {shape} whose levels do not fit")
    if any(not 0 <= axis < rank for axis in blocked):
        raise ValueError("a sparse tensor with blocks along no dimension of it")
    node = np.zeros(1, np.int64)
    outer, inner, block = np.zeros((rank, 1), np.int64), np.zeros((rank, 1), np.int64), [1] * rank
    for axis, level in zip(order, levels, strict=True):
        if level.number(0, "<b") == 0:
            size = level.number(1, "<i")
            if not size > 0 or node.size * size > math.prod(shape):
                raise ValueError("a sparse tensor of more positions than its shape has")
            limits.current().allocate(24 * node.size * size)
            position = np.tile(np.arange(size), node.size)
            parent = np.repeat(np.arange(node.size), size)
            node = node[parent] * size + position
        else:
            segments, indices = _indices(level, 2), _indices(level, 4)
            if node.max(initial=0) + 1 >= segments.size:
                raise ValueError("a sparse tensor whose segments are too few")
            counts = segments[node + 1] - segments[node]
            if (counts < 0).any() or counts.sum() > math.prod(shape) or segments.max(initial=0) > indices.size:
                raise ValueError("a sparse tensor of more positions than its shape has")
            parent = np.repeat(np.arange(node.size), counts)
            first = np.cumsum(counts) - counts
            node = segments[node][parent] + np.arange(parent.size) - first[parent]
            position = indices[node]
        limits.current().allocate(16 * (rank + 2) * parent.size)
        outer, inner = outer[:, parent], inner[:, parent]
        if axis < rank:
            outer[axis] = position
        else:
            inner[blocked[axis - rank]] = position
            block[blocked[axis - rank]] = level.number(1, "<i")
    places = outer * np.array(block)[:, None] + inner
    if (places >= np.array(shape)[:, None]).any() or (places < 0).any() or node.max(initial=-1) >= values.size:
        raise ValueError("a sparse tensor with positions beyond its shape")
    dense = np.zeros(shape, values.dtype)
    dense[tuple(places)] = values[node]
    return dense


def _indices(level: Table, kind: int) -> npt.NDArray[np.int64]:
    dtype = {1: "<i4", 2: "<u2", 3: "u1"}.get(level.number(kind, "<B"))
    table = level.table(kind + 1)
    if dtype is None or table is None:
        raise ValueError("a sparse tensor without positions")
    return table.array(0, dtype).astype(np.int64)


class _Graph:
    """One graph of a file."""

    def __init__(self, model: _Model, table: Table) -> None:
        self.tensors = [_Tensor(model, entry) for entry in table.tables(0)]
        self.inputs = table.integers(1)
        self.operators = []
        for entry in table.tables(3):
            limits.current().allocate(_BYTES_PER_OPERATOR)
            code, custom = model.codes[entry.number(0, "<I")]
            self.operators.append(_Operator(code, custom, entry.integers(1), entry.integers(2), entry.table(4)))
        self.makers = {output: operator for operator in self.operators for output in operator.outputs}

    def layers(self) -> tuple[list[ConvLayer], list[int | None], list[Skipped]]:
        found: list[ConvLayer] = []
        depths: list[int | None] = []
        skipped: list[Skipped] = []
        seen: set[int] = set()
        reached: dict[int, int] = dict.fromkeys(self.inputs, -1)
        for operator in self.operators:
            before = [reached[number] for number in operator.inputs if number in reached]
            depth = max(before) + 1 if before else None
            if depth is not None:
                reached |= dict.fromkeys(operator.outputs, depth)
            one = self._layer(operator, seen)
            if isinstance(one, Skipped):
                skipped.append(one)
            elif one is not None:
                found.append(one)
                depths.append(depth)
        return found, depths, skipped

    def _layer(self, operator: _Operator, seen: set[int]) -> ConvLayer | Skipped | None:
        form, weight, image, stride, dilation = _CONVOLUTIONS.get(operator.code, ("", 1, 0, None, None))
        if operator.code == _CUSTOM and operator.custom == _MEDIAPIPE_TRANSPOSE:
            form = "transposed"
        name = self.tensors[operator.outputs[0]].name if operator.outputs else "?"
        if operator.code in (_CONV_3D, _CONV_3D_TRANSPOSE):
            return Skipped(name, "five dimensions, as in a three-dimensional convolution")
        if operator.code == _HLO_CONVOLUTION or (not form and "conv" in operator.custom.lower()):
            return Skipped(name, f"an operator of type {operator.custom or 'stablehlo.convolution'}")
        if not form:
            return None
        if len(operator.inputs) <= max(weight, image):
            raise ValueError(f"{name}: a convolution of {len(operator.inputs)} inputs")
        number = operator.inputs[weight]
        for _ in range(8):  # narrow or sparse weights are widened first
            maker = self.makers.get(number)
            if self.tensors[number].stored or maker is None or maker.code not in (_DEQUANTIZE, _DENSIFY):
                break
            number = maker.inputs[0]
        held = self.tensors[number]
        if not held.stored:
            return Skipped(name, "its weight is computed")
        if held.buffer in seen:
            return None
        seen.add(held.buffer)
        taken = self.tensors[operator.inputs[image]].shape
        one = turned(
            _layer_name(held.name) or name,
            held.tensor(),
            form=form,
            axes=_AXES[form],
            channels=taken[3] if len(taken) == 4 and taken[3] > 0 else None,
            stride=_pair(operator.options, stride),
            dilation=_pair(operator.options, dilation) if dilation else ((1, 1) if stride else None),
        )
        if isinstance(one, Skipped):
            return one
        names = [held.name, *(self.tensors[i].name for i in operator.inputs[2:3] if i >= 0 and form != "transposed")]
        folded = any("batch_norm" in text or "BatchNorm" in text for text in names)
        return replace(
            one,
            bn_folded=True if folded else None,
            dilation=self._block(operator.inputs[image]) or one.dilation,
        )

    def _block(self, image: int) -> Pair | None:
        """Dilation of a convolution whose pixels were moved into the batch."""
        maker = self.makers.get(image)
        if maker is None or maker.code != _SPACE_TO_BATCH or len(maker.inputs) < 2:
            return None
        block = self.tensors[maker.inputs[1]]
        values = block._stored() if block.stored and block.type == 2 and block.shape == (2,) else None
        return None if values is None else (int(values[0]), int(values[1]))


def _pair(options: Table | None, fields: Pair | None) -> Pair | None:
    if options is None or fields is None:
        return None
    width, height = (options.number(field, "<i", 1) for field in fields)
    return (height, width) if 0 < height < 1 << 31 and 0 < width < 1 << 31 else None


def _layer_name(tensor: str) -> str:
    """The name of a layer from that of its weight, which joins the operations that were fused by semicolons.

    >>> _layer_name("net/conv1/Conv2D;net/bn1/FusedBatchNormV3"), _layer_name("net/conv1/Conv2D_dequantize")
    ('net/conv1', 'net/conv1')
    """
    name = tensor.partition(";")[0].removesuffix("_densify").removesuffix("_dequantize")
    return layer_name(name, name)

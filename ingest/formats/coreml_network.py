"""Neural networks of Core ML, the content of ``.mlmodel`` files (NeuralNetwork.proto): layers with their weights.

A weight is (out, in / groups, h, w), that of a deconvolution (in, out / groups, h, w). Quantised weights are indices of
1 to 8 bits, packed from the highest bit of each byte on, with a scale and an offset of each output, or with a table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cnnfilterdb.ingest.formats import limits
from cnnfilterdb.ingest.formats.damage import undamaged
from cnnfilterdb.ingest.formats.explicit import explicit_layer
from cnnfilterdb.ingest.formats.protobuf import Fields, MalformedError, fields, integers, message, text_of
from cnnfilterdb.ingest.network.layers import ConvLayer, Skipped, Tensor

__all__ = ["NeuralNetwork"]

_WHAT = "Core ML model"
_BYTES_PER_LAYER = 2048  # of memory
_CONVOLUTION, _CONVOLUTION_3D = 100, 1471
_WEIGHT = 90
# Layers that contain networks: field, and fields of the networks
_NESTED = {605: (1, 2), 615: (3, 4)}
# Where layers hold other weights: the field of the layer and of messages in it -> fields of matrices, and of vectors
_HELD: Mapping[tuple[int, ...], tuple[tuple[int, ...], tuple[int, ...]]] = {
    (_CONVOLUTION,): ((), (91,)),
    (_CONVOLUTION_3D,): ((), (60, 61)),
    (130, 25): ((), (1,)),
    (130, 71): ((), (1, 2)),
    (140,): ((20,), (21,)),
    (150,): ((20,), (21,)),
    (160,): ((), (15, 16, 17, 18)),
    (245,): ((), (2, 5)),
    (250,): ((), (2,)),
    (290,): ((), (2,)),
    (400,): ((30, 31), (32,)),
    (410,): ((30, 31, 32, 50, 51, 52), (70, 71, 72)),
    (420, 20): ((1, 2, 3, 4, 20, 21, 22, 23), (40, 41, 42, 43, 60, 61, 62)),
    (430, 20): ((1, 2, 3, 4, 20, 21, 22, 23), (40, 41, 42, 43, 60, 61, 62)),
    (500,): ((), (20,)),
    (1040,): ((20,), (21,)),
    (1045,): ((8,), (9,)),
    (1070,): ((), (2,)),
    (1350,): ((), (3, 4)),
}
_STATISTICS = {(160, 17), (160, 18)}  # means and variances, which are not trained


class NeuralNetwork:
    """A neural network.

    Attributes:
        found: Its convolutions and what was left out, with their depths, the longest paths from an input.
        stored: Its tensors.
    """

    def __init__(self, path: Path, network: memoryview) -> None:
        """Read the layers; the weights when the layers are read.

        Args:
            path: The file, for messages.
            network: The message.

        Raises:
            MalformedError: It is damaged.
        """
        self.path = path
        self.found: list[tuple[ConvLayer | Skipped, int]] = []
        self.stored: list[Tensor] = []
        self._add(network, {}, "")

    def _add(self, network: memoryview, reached: dict[str, int], prefix: str) -> None:
        for value in fields(network, (1,)).get(1, []):
            limits.current().allocate(_BYTES_PER_LAYER)
            layer = fields(message(value))
            name = prefix + text_of(layer.get(1))
            depth = max((reached.get(text_of([one]), -1) for one in layer.get(2, [])), default=-1) + 1
            reached |= {text_of([one]): depth for one in layer.get(3, [])}
            if _CONVOLUTION_3D in layer:
                self.found.append((Skipped(name, "a three-dimensional convolution"), depth))
            elif _CONVOLUTION in layer:
                self.found.append((self._convolution(name, fields(message(layer[_CONVOLUTION][-1]))), depth))
            self.stored += _held(name, layer)
            for field, parts in _NESTED.items():
                for nested in layer.get(field, []):
                    for inner in fields(message(nested), parts).values():
                        with limits.current().nested():
                            self._add(message(inner[-1]), dict(reached), f"{name}/")

    def _convolution(self, name: str, given: Fields) -> ConvLayer | Skipped:
        def number(field: int, default: int) -> int:
            return (integers(given.get(field, [])) or [default])[-1] or default

        if _WEIGHT not in given:
            return Skipped(name, "a convolution whose weight is computed")
        stored = fields(message(given[_WEIGHT][-1]))
        size, dtype = _size(stored)
        key = f"{name}/{_WEIGHT}"
        sides = integers(given.get(20, [])) or [3, 3]
        transposed = any(integers(given.get(60, [])))
        out, per_group, groups = number(1, 0), number(2, 0), number(10, 1)
        # The channels of a deconvolution are those of its input, and its outputs are split into the groups
        first, second = (per_group, out // groups) if transposed else (out, per_group)
        if len(sides) != 2 or any(not 0 < side < 1 << 20 for side in (*sides, first, second)):
            self.stored.append(Tensor(key, (size,), dtype, lambda: np.empty(0)))
            return Skipped(name, f"a convolution of the impossible shape {(first, second, *sides)}", (key,))
        shape = (first, second, sides[0], sides[1])
        read = partial(_read, self.path, name, shape, stored, dtype, 1 if transposed else 0)
        weight = Tensor(key, shape, dtype, read)
        self.stored.append(weight)
        return explicit_layer(
            name,
            weight,
            transposed=transposed,
            groups=groups,
            stride=_pair(integers(given.get(30, []))),
            dilation=_pair(integers(given.get(40, []))),
        )


def _held(name: str, layer: Fields) -> Iterator[Tensor]:
    """The weights of a layer except those of its convolution. The file states how many numbers, not their shape."""
    for places, (matrices, vectors) in _HELD.items():
        holders = [layer]
        for field in places:
            holders = [fields(message(value)) for holder in holders for value in holder.get(field, [])]
        for number, holder in enumerate(holders):
            for field in (*matrices, *vectors):
                size, dtype = _size(fields(message(holder[field][-1]))) if field in holder else (0, "")
                if size:
                    shape = (1, size) if field in matrices else (size,)
                    trained = (*places, field) not in _STATISTICS
                    yield Tensor(f"{name}/{number}/{field}", shape, dtype, lambda: np.empty(0), parameter=trained)


# ---------------------------------------------------------------------------------------------------------------------
# Numbers: WeightParams

_FLOAT32, _FLOAT16, _PACKED, _INT8, _QUANTISATION = 1, 2, 30, 31, 40
_BITS, _LINEAR, _TABLE = 1, 101, 102  # of the quantisation


def _bytes(stored: Fields, field: int) -> bytes:
    return b"".join(one.to_bytes(4, "little") if isinstance(one, int) else bytes(one) for one in stored.get(field, []))


def _size(stored: Fields) -> tuple[int, str]:
    """How many numbers there are, and their type; for less than 8 bits up to 7 more, to the end of the last byte."""
    sizes = {
        field: sum(4 if isinstance(one, int) else len(one) for one in stored.get(field, []))
        for field in (_FLOAT32, _FLOAT16, _PACKED, _INT8)
    }
    if sizes[_FLOAT32]:
        return sizes[_FLOAT32] // 4, "float32"
    if sizes[_FLOAT16]:
        return sizes[_FLOAT16] // 2, "float16"
    return sizes[_PACKED] * 8 // _bits(_quantisation(stored)) + sizes[_INT8], "quint8"


def _quantisation(stored: Fields) -> Fields:
    return fields(message(stored[_QUANTISATION][-1])) if _QUANTISATION in stored else {}


def _bits(given: Fields) -> int:
    bits = (integers(given.get(_BITS, [])) or [8])[-1]
    if not 1 <= bits <= 8:
        raise MalformedError(f"weights of {bits} bits")
    return bits


def _read(
    path: Path, name: str, shape: tuple[int, ...], stored: Fields, dtype: str, axis: int
) -> npt.NDArray[np.float32]:
    """The numbers as float32; scales are those of an axis."""
    with undamaged(str(path), _WHAT):
        limits.current().allocate(16 * math.prod(shape))
        if dtype == "quint8":
            return _dequantised(name, shape, stored, axis)
        content = _bytes(stored, _FLOAT16 if dtype == "float16" else _FLOAT32)
        kind: np.dtype[Any] = np.dtype("<f2" if dtype == "float16" else "<f4")
        if len(content) != math.prod(shape) * kind.itemsize:
            raise MalformedError(f"{name}: {len(content):,} bytes for shape {shape}")
        return np.frombuffer(content, kind).reshape(shape).astype(np.float32)


def _dequantised(name: str, shape: tuple[int, ...], stored: Fields, axis: int) -> npt.NDArray[np.float32]:
    given = _quantisation(stored)
    bits, count = _bits(given), math.prod(shape)
    packed = np.frombuffer(_bytes(stored, _PACKED), np.uint8)
    if len(packed) != -(-count * bits // 8):
        raise MalformedError(f"{name}: {len(packed):,} bytes for {bits} bits of shape {shape}")
    limits.current().allocate(8 * bits * count)
    digits = np.unpackbits(packed)[: count * bits].reshape(count, bits)
    indices = (digits @ (1 << np.arange(bits))[::-1]).reshape(shape)
    if _TABLE in given:
        table = np.frombuffer(_bytes(fields(message(given[_TABLE][-1])), 1), "<f4")
        if indices.max(initial=0) >= len(table):
            raise MalformedError(f"{name}: an index beyond its table of {len(table)}")
        return table[indices].astype(np.float32)
    linear = fields(message(given[_LINEAR][-1])) if _LINEAR in given else {}
    along = [1] * len(shape)
    along[axis] = -1
    scale, offset = (np.frombuffer(_bytes(linear, field), "<f4").astype(np.float64) for field in (1, 2))
    if any(one.size not in (1, shape[axis]) for one in (scale, offset)):
        raise MalformedError(f"{name}: {scale.size} scales and {offset.size} offsets for shape {shape}")
    return (indices * scale.reshape(along) + offset.reshape(along)).astype(np.float32)


def _pair(numbers: list[int]) -> tuple[int, int]:
    return (numbers[0], numbers[1]) if len(numbers) == 2 and all(0 < one < 1 << 31 for one in numbers) else (1, 1)

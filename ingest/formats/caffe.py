"""Caffe models: ``.caffemodel``, a message with the layers of a network and their blobs (caffe.proto).

A weight is (out, in / groups, h, w), that of a deconvolution (in, out / groups, h, w). Files of both generations are
read: those whose layers have a name for their type, and those of 2014, which have a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest.formats import limits, register
from cnnfilterdb.ingest.formats.damage import undamaged
from cnnfilterdb.ingest.formats.explicit import explicit_layer, explicit_weights
from cnnfilterdb.ingest.formats.mapping import mapped
from cnnfilterdb.ingest.formats.protobuf import (
    Field,
    Fields,
    MalformedError,
    fields,
    integers,
    message,
    text_of,
)
from cnnfilterdb.ingest.network.layers import ConvLayer, Skipped, Tensor, Weights

__all__ = ["CaffeFormat"]

_WHAT = "Caffe model"
_BYTES_PER_LAYER = 2048  # of memory
# Fields of NetParameter: the layers of today and of 2014
_LAYER, _LAYER_V1 = 100, 2
# Fields of a layer: name, type, inputs, outputs, blobs, parameters of a convolution
_FIELDS = {_LAYER: (1, 2, 3, 4, 7, 106), _LAYER_V1: (4, 5, 2, 3, 6, 10)}
_TYPES_V1 = {4: "Convolution", 39: "Deconvolution", 5: "Data", 12: "HDF5Data", 17: "ImageData"}
_CONVOLUTIONS = {
    "Convolution": False,
    "DepthwiseConvolution": False,
    "ConvolutionDepthwise": False,
    "Deconvolution": True,
}
_STATISTICS = ("BatchNorm",)  # whose blobs are not trained


@register
class CaffeFormat:
    """``.caffemodel`` files."""

    name = "caffe"
    suffixes = (".caffemodel",)

    def matches(self, path: Path, head: bytes) -> bool:
        """Whether the suffix is that of Caffe and the file begins as a message; the format has no magic number."""
        return path.suffix == ".caffemodel" and head[:1] in (b"\x0a", b"\x12", b"\xa2")

    def read(self, path: Path) -> Weights:
        """Read the layers; the blobs when the layers are read.

        Raises:
            WeightFileError: The file is damaged, or contains no layers.
        """
        with undamaged(str(path), _WHAT):
            net = fields(mapped(path), (_LAYER, _LAYER_V1))
            generation = _LAYER if _LAYER in net else _LAYER_V1
            if generation not in net:
                raise WeightFileError(f"{path}: contains no layers; expected a .caffemodel written by Caffe")
            return _weights(path, [fields(message(value)) for value in net[generation]], generation)


def _weights(path: Path, entries: list[Fields], generation: int) -> Weights:
    name_field, type_field, bottom, top, blob_field, conv_field = _FIELDS[generation]
    found: list[tuple[ConvLayer | Skipped, int]] = []
    stored: list[Tensor] = []
    reached: dict[str, int] = {}
    for place, entry in enumerate(entries):
        limits.current().allocate(_BYTES_PER_LAYER)
        name = text_of(entry.get(name_field))
        kind = text_of(entry.get(type_field)) if generation == _LAYER else _type_v1(entry.get(type_field, [0]))
        inputs, outputs = ([text_of([value]) for value in entry.get(field, [])] for field in (bottom, top))
        depth = max((reached.get(one, -1) for one in inputs), default=-1) + 1
        reached |= dict.fromkeys(outputs, depth)
        blobs = [
            _blob(path, f"{place}/{name}/{number}", message(value), kind, is_kernel=number == 0)
            for number, value in enumerate(entry.get(blob_field, []))
        ]
        stored += blobs
        if kind not in _CONVOLUTIONS or not blobs:
            if blobs and (kind in _CONVOLUTIONS or "conv" in kind.lower()):
                found.append((Skipped(name, f"a layer of type {kind}", tuple(one.name for one in blobs)), depth))
            continue
        given = fields(message(entry[conv_field][-1])) if conv_field in entry else {}
        one = explicit_layer(
            name,
            blobs[0],
            transposed=_CONVOLUTIONS[kind],
            groups=(integers(given.get(5, [])) or [1])[-1],
            stride=_pair(given, 6, 13, 14),
            dilation=_pair(given, 18, None, None),
        )
        found.append((one, depth))
    return explicit_weights("caffe", "caffe", stored, found)


def _blob(path: Path, name: str, blob: memoryview, kind: str, *, is_kernel: bool) -> Tensor:
    shape = _shape(blob, is_kernel=is_kernel and kind in _CONVOLUTIONS)
    return Tensor(name, shape, "float32", _reader(path, name, blob, shape), parameter=kind not in _STATISTICS)


def _type_v1(values: list[Field]) -> str:
    number = integers(values)[-1]
    return _TYPES_V1.get(number, f"number {number}")


def _pair(given: Fields, both: int, vertical: int | None, horizontal: int | None) -> tuple[int, int] | None:
    """Stride or dilation: one number, one for each axis, or each in its own field; 1 by default."""
    numbers = integers(given.get(both, []))
    if vertical in given and horizontal in given and vertical is not None and horizontal is not None:
        numbers = [integers(given[vertical])[-1], integers(given[horizontal])[-1]]
    numbers = numbers or [1]
    pair = (numbers[0], numbers[-1])
    return pair if all(0 < number < 1 << 31 for number in pair) else None


def _shape(blob: memoryview, *, is_kernel: bool) -> tuple[int, ...]:
    """Shape of a blob. In files of 2014 vectors and matrices have four sides, too, of which the first are 1."""
    parts = fields(blob, (1, 2, 3, 4, 7))
    if 7 in parts:
        sides = integers(fields(message(parts[7][-1]), (1,)).get(1, []))
    else:
        sides = [integers(parts.get(number, [0]))[-1] for number in (1, 2, 3, 4)]
        while not is_kernel and sides[:1] == [1]:
            del sides[0]
    if any(not 0 <= side < 1 << 40 for side in sides):
        raise MalformedError(f"a blob of the impossible shape {tuple(sides)}")
    return tuple(sides)


def _reader(path: Path, name: str, blob: memoryview, shape: tuple[int, ...]) -> Callable[[], npt.NDArray[np.generic]]:
    def read() -> npt.NDArray[np.generic]:
        with undamaged(str(path), _WHAT):
            parts = fields(blob, (5, 8))
            dtype, values = ("<f4", parts[5]) if 5 in parts else ("<f8", parts.get(8, []))
            width = int(dtype[-1])
            limits.current().allocate(3 * width * math.prod(shape))
            content = b"".join(
                value.to_bytes(width, "little") if isinstance(value, int) else bytes(value) for value in values
            )
            if len(content) != width * math.prod(shape):
                raise MalformedError(f"{name}: {len(content):,} bytes for shape {shape}")
            return np.frombuffer(content, dtype).reshape(shape).astype(np.float32, copy=False)

    return read

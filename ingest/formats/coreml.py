"""Core ML models: ``.mlmodel``, a message with a neural network or a pipeline (Model.proto, NeuralNetwork.proto).

A weight is (out, in / groups, h, w), that of a deconvolution (in, out / groups, h, w). The network of a ``.mlpackage``
folder is a program (:mod:`~cnnfilterdb.ingest.formats.coreml_program`). Quantised weights of ``.mlmodel`` files are not
read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest.formats import limits, register
from cnnfilterdb.ingest.formats.coreml_program import program_layers
from cnnfilterdb.ingest.formats.damage import undamaged
from cnnfilterdb.ingest.formats.explicit import explicit_layer, placed
from cnnfilterdb.ingest.formats.protobuf import Fields, MalformedError, fields, integers, mapped, message, text_of
from cnnfilterdb.ingest.network.layers import ConvLayer, Skipped, Tensor, Weights

__all__ = ["CoremlFormat"]

_WHAT = "Core ML model"
_BYTES_PER_LAYER = 2048  # of memory
# Fields of Model: networks, pipelines of models, and programs
_NETWORKS, _PIPELINES, _PROGRAM = (500, 403, 303), (202, 200, 201), 502
_CONVOLUTION, _CONVOLUTION_3D = 100, 1471
# Fields of WeightParams: element type, and field of the numbers
_FLOAT32, _FLOAT16, _RAW, _QUANTISED = 1, 2, 30, 40


@register
class CoremlFormat:
    """``.mlmodel`` files, and those in ``.mlpackage`` folders."""

    name = "coreml"
    suffixes = (".mlmodel",)

    def matches(self, path: Path, head: bytes) -> bool:
        """Whether the suffix is that of Core ML and the file begins with a version and a description."""
        return path.suffix == ".mlmodel" and head[:1] == b"\x08" and head[1:2] < b"\x20" and head[2:3] == b"\x12"

    def read(self, path: Path) -> Weights:
        """Read the layers; the weights when the layers are read.

        Raises:
            WeightFileError: The file is damaged, or contains a model of another kind.
        """
        with undamaged(str(path), _WHAT):
            data = mapped(path)
            model = fields(data)
            networks = [_layers(path, network) for network in _networks(model)]
            networks += [program_layers(path, message(program)) for program in model.get(_PROGRAM, [])]
            if not networks:
                raise WeightFileError(f"{path}: a Core ML model without a neural network")
            found: list[ConvLayer] = []
            depths: list[int | None] = []
            skipped: list[Skipped] = []
            for network in networks:
                for one, depth in network:
                    if isinstance(one, Skipped):
                        skipped.append(one)
                    else:
                        found.append(one)
                        depths.append(depth if len(networks) == 1 else None)
            return Weights("coreml", "coreml", placed(found, depths), None, tuple(skipped))


def _networks(model: Fields) -> Iterator[memoryview]:
    """The networks of a model, and of the models of a pipeline."""
    for field in _NETWORKS:
        for value in model.get(field, []):
            yield message(value)
    for field in _PIPELINES:
        for value in model.get(field, []):
            # A pipeline for a task wraps a generic one
            pipeline = message(value) if field == 202 else message(fields(message(value), (1,))[1][-1])
            for inner in fields(pipeline, (1,)).get(1, []):
                with limits.current().nested():
                    yield from _networks(fields(message(inner)))


def _layers(path: Path, network: memoryview) -> Iterator[tuple[ConvLayer | Skipped, int]]:
    reached: dict[str, int] = {}
    for value in fields(network, (1,)).get(1, []):
        limits.current().allocate(_BYTES_PER_LAYER)
        layer = fields(message(value), (1, 2, 3, _CONVOLUTION, _CONVOLUTION_3D))
        name = text_of(layer.get(1))
        depth = max((reached.get(text_of([one]), -1) for one in layer.get(2, [])), default=-1) + 1
        reached |= {text_of([one]): depth for one in layer.get(3, [])}
        if _CONVOLUTION_3D in layer:
            yield Skipped(name, "a three-dimensional convolution"), depth
        elif _CONVOLUTION in layer:
            yield _layer(path, name, fields(message(layer[_CONVOLUTION][-1]))), depth


def _layer(path: Path, name: str, given: Fields) -> ConvLayer | Skipped:
    def number(field: int, default: int) -> int:
        return (integers(given.get(field, [])) or [default])[-1] or default

    if 90 not in given:
        return Skipped(name, "a convolution whose weight is computed")
    stored = fields(message(given[90][-1]))
    if _QUANTISED in stored and not any(field in stored for field in (_FLOAT32, _FLOAT16)):
        return Skipped(name, "a quantised weight; convert the model without quantisation")
    sides = integers(given.get(20, [])) or [3, 3]
    transposed = any(integers(given.get(60, [])))
    out, per_group, groups = number(1, 0), number(2, 0), number(10, 1)
    # The channels of a deconvolution are those of its input, and its outputs are split into the groups
    first, second = (per_group, out // groups) if transposed else (out, per_group)
    if len(sides) != 2 or any(not 0 < side < 1 << 20 for side in (*sides, first, second)):
        return Skipped(name, f"a convolution of the impossible shape {(first, second, *sides)}")
    shape = (first, second, sides[0], sides[1])
    dtype = "float16" if _FLOAT16 in stored and len(message(stored[_FLOAT16][-1])) else "float32"
    return explicit_layer(
        name,
        Tensor(name, shape, dtype, _reader(path, name, shape, stored, dtype)),
        transposed=transposed,
        groups=groups,
        stride=_pair(integers(given.get(30, []))),
        dilation=_pair(integers(given.get(40, []))),
    )


def _pair(numbers: list[int]) -> tuple[int, int]:
    return (numbers[0], numbers[1]) if len(numbers) == 2 and all(0 < one < 1 << 31 for one in numbers) else (1, 1)


def _reader(
    path: Path, name: str, shape: tuple[int, ...], stored: Fields, dtype: str
) -> Callable[[], npt.NDArray[np.generic]]:
    def read() -> npt.NDArray[Any]:
        with undamaged(str(path), _WHAT):
            values = stored.get(_FLOAT16 if dtype == "float16" else _FLOAT32, [])
            limits.current().allocate(8 * math.prod(shape))
            content = b"".join(one.to_bytes(4, "little") if isinstance(one, int) else bytes(one) for one in values)
            kind = np.dtype("<f2" if dtype == "float16" else "<f4")
            if len(content) != math.prod(shape) * kind.itemsize:
                raise MalformedError(f"{name}: {len(content):,} bytes for shape {shape}")
            return np.frombuffer(content, kind).reshape(shape).astype(np.float32)

    return read

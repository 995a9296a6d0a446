"""PaddlePaddle inference models: ``.pdmodel``, a program (framework.proto), and ``.pdiparams``, its parameters.

The parameters are in the order of their names, each with a header that states type and shape. A weight is
(out, in / groups, h, w), that of a transposed layer (in, out / groups, h, w), whatever the layout of the images.
``.pdparams`` files are pickles and are read as such.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest.formats import limits, register
from cnnfilterdb.ingest.formats.damage import undamaged
from cnnfilterdb.ingest.formats.dtypes import by_code
from cnnfilterdb.ingest.formats.explicit import explicit_layer, explicit_weights
from cnnfilterdb.ingest.formats.mapping import mapped
from cnnfilterdb.ingest.formats.protobuf import Fields, MalformedError, fields, integers, message, text_of
from cnnfilterdb.ingest.network.layers import ConvLayer, Skipped, Tensor, Weights

__all__ = ["PaddleFormat"]

_WHAT = "PaddlePaddle model"
_BYTES_PER_OPERATION = 2048  # of memory
# framework.proto: VarType.Type
_TYPES = by_code({
    0: "bool", 1: "int16", 2: "int32", 3: "int64", 4: "float16",
    5: "float32", 6: "float64", 20: "uint8", 21: "int8", 22: "bfloat16",
})  # fmt: skip
_DENSE_TENSOR = 7
_CONVOLUTIONS = {
    "conv2d": False,
    "depthwise_conv2d": False,
    "fused_conv2d": False,
    "conv2d_transpose": True,
    "depthwise_conv2d_transpose": True,
}
_OTHERS = {"conv3d": "a three-dimensional convolution", "conv3d_transpose": "a three-dimensional convolution"}


@register
class PaddleFormat:
    """``.pdmodel`` files with their ``.pdiparams``."""

    name = "paddle"
    suffixes = (".pdmodel",)

    def matches(self, path: Path, head: bytes) -> bool:
        """Whether the suffix is that of a program, or of its parameters, or the name is that of older versions."""
        return path.suffix in (".pdmodel", ".pdiparams") or (path.name == "__model__" and head[:1] == b"\x0a")

    def read(self, path: Path) -> Weights:
        """Read the operations; the weights when the layers are read.

        Raises:
            WeightFileError: One of the two files is missing or damaged.
        """
        program, stored = _files(path)
        with undamaged(str(path), _WHAT):
            blocks = [fields(message(one), (3, 4)) for one in fields(mapped(program), (1,)).get(1, [])]
            if not blocks:
                raise MalformedError("a program without operations")
            limits.current().opened(stored.stat().st_size)
            parameters = _parameters(stored, _persistent(blocks[0]))
            return explicit_weights("paddle", "paddle", parameters.values(), _layers(blocks[0], parameters))


def _files(path: Path) -> tuple[Path, Path]:
    """The program and the parameters that belong together."""
    program = path if path.suffix != ".pdiparams" else path.with_suffix(".pdmodel")
    parameters = path.with_name("__params__") if path.name == "__model__" else path.with_suffix(".pdiparams")
    for file in (program, parameters):
        if not file.is_file():
            raise WeightFileError(
                f"{path}: a PaddlePaddle inference model without {file.name}; put it beside {path.name}"
            )
    return program, parameters


def _persistent(block: Fields) -> dict[str, tuple[int, ...]]:
    """The parameters of a program, in the order of their names, with their shapes."""
    found = {}
    for value in block.get(3, []):
        limits.current().step()
        variable = fields(message(value), (1, 2, 3))
        kind = fields(message(variable[2][-1]), (1, 3)) if 2 in variable else {}
        if any(integers(variable.get(3, []))) and integers(kind.get(1, []))[-1:] == [_DENSE_TENSOR] and 3 in kind:
            tensor = fields(message(kind[3][-1]), (1,)).get(1, [])
            found[text_of(variable.get(1))] = _described(message(tensor[-1]))[0] if tensor else ()
    return dict(sorted(found.items()))


def _described(description: memoryview) -> tuple[tuple[int, ...], int]:
    """Shape and type of a TensorDesc."""
    tensor = fields(description, (1, 2))
    shape = tuple(integers(tensor.get(2, [])))
    if len(shape) > 16 or any(not -1 <= side < 1 << 40 for side in shape):
        raise MalformedError("a tensor of an impossible shape")
    return shape, (integers(tensor.get(1, [])) or [-1])[-1]


def _parameters(path: Path, names: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    data, place = mapped(path), 0

    def number(size: int) -> int:
        nonlocal place
        if place + size > len(data):
            raise MalformedError(f"{path.name} ends within a tensor: truncated")
        place += size
        return int.from_bytes(data[place - size : place], "little")

    found = {}
    for name, expected in names.items():
        limits.current().create()
        number(4)  # version
        for _ in range(number(8)):  # levels of detail, which parameters do not have
            limits.current().step()
            length = number(8)  # before the sum, as it moves the place
            place += length
        number(4)  # version of the tensor
        size = number(4)
        shape, code = _described(data[place : place + size])
        place += size
        dtype = _TYPES.get(code)
        if dtype is None or min(shape, default=0) < 0 or (expected and shape != expected):
            raise MalformedError(f"{path.name} is not that of the program: {name[:100]} has the shape {shape}")
        start, place = place, place + math.prod(shape) * dtype.itemsize
        if place > len(data):
            raise MalformedError(f"{path.name} ends within {name[:100]}: truncated")
        found[name] = Tensor(name, shape, dtype.name, _reader(path, data[start:place], dtype, shape))
    if place != len(data):
        raise MalformedError(f"{path.name} is not that of the program: {len(data) - place:,} bytes too long")
    return found


def _reader(path: Path, content: memoryview, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    def read() -> npt.NDArray[np.float32]:
        with undamaged(str(path), _WHAT):
            limits.current().allocate(4 * math.prod(shape))
            return np.frombuffer(content, dtype).reshape(shape).astype(np.float32, copy=False)

    return read


def _layers(block: Fields, parameters: Mapping[str, Tensor]) -> Iterator[tuple[ConvLayer | Skipped, int]]:
    reached: dict[str, int] = {}
    for value in block.get(4, []):
        limits.current().allocate(_BYTES_PER_OPERATION)
        operation = fields(message(value), (1, 2, 3, 4))
        kind = text_of(operation.get(3))
        inputs, outputs = _arguments(operation.get(1, [])), _arguments(operation.get(2, []))
        depth = max((reached.get(name, -1) for names in inputs.values() for name in names), default=-1) + 1
        reached |= {name: depth for names in outputs.values() for name in names}
        name = (inputs.get("Filter") or [kind])[0]
        if kind in _OTHERS:
            yield Skipped(name, _OTHERS[kind]), depth
        elif kind in _CONVOLUTIONS:
            yield _layer(name, kind, parameters.get(name), operation), depth


def _arguments(values: list[Any]) -> dict[str, list[str]]:
    found = {}
    for value in values:
        limits.current().step()
        variable = fields(message(value))
        found[text_of(variable.get(1))] = [text_of([one]) for one in variable.get(2, [])]
    return found


def _layer(name: str, kind: str, weight: Tensor | None, operation: Fields) -> ConvLayer | Skipped:
    if weight is None:
        return Skipped(name, "a convolution whose weight is computed")
    if not weight.dtype.startswith(("float", "bfloat")):
        return Skipped(name, f"elements of type {weight.dtype}")
    attributes = {}
    for value in operation.get(4, []):
        attribute = fields(message(value), (1, 3, 6))
        attributes[text_of(attribute.get(1))] = integers([*attribute.get(3, []), *attribute.get(6, [])])
    return explicit_layer(
        name,
        weight,
        transposed=_CONVOLUTIONS[kind],
        groups=(attributes.get("groups") or [1])[0],
        stride=_pair(attributes.get("strides", [])),
        dilation=_pair(attributes.get("dilations", [])),
    )


def _pair(numbers: list[int]) -> tuple[int, int]:
    return (numbers[0], numbers[1]) if len(numbers) == 2 and all(0 < one < 1 << 31 for one in numbers) else (1, 1)

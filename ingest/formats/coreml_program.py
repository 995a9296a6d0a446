"""Programs of Core ML: the network of a ``.mlpackage`` folder (MIL.proto), whose weights are in a file beside it.

A constant is in the program, or at an offset of ``weights/weight.bin``, after a header of 64 bytes: a mark, the element
type, the number of bytes and their offset (MILBlob of coremltools 9). Weights that were compressed are operations with
constants: affine quantisation, palettes and sparse weights are computed here, other kinds are reported.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cnnfilterdb.ingest.formats import limits
from cnnfilterdb.ingest.formats.companions import companion
from cnnfilterdb.ingest.formats.damage import undamaged
from cnnfilterdb.ingest.formats.dtypes import by_code
from cnnfilterdb.ingest.formats.explicit import explicit_layer
from cnnfilterdb.ingest.formats.mapping import mapped
from cnnfilterdb.ingest.formats.protobuf import Fields, MalformedError, fields, integers, message, text_of
from cnnfilterdb.ingest.network.layers import ConvLayer, Skipped, Tensor

__all__ = ["Program"]

_WHAT = "Core ML program"
_MARK = 0xDEADBEEF
_HEADER = struct.Struct("<IIQQ")
_BYTES_PER_OPERATION = 2048  # of memory
_FOLDER = "@model_path/"
# MIL.proto: DataType
_TYPES = by_code({
    1: "bool", 10: "float16", 11: "float32", 12: "float64",
    13: "bfloat16", 21: "int8", 22: "int16", 23: "int32",
    24: "int64", 31: "uint8", 32: "uint16", 33: "uint32", 34: "uint64",
})  # fmt: skip
_TEXT = 2
# Fields of TensorValue that hold numbers, and how they are written if they are not packed
_FLOATS, _INTEGERS, _BOOLEANS, _LONGS, _DOUBLES, _BYTES = 1, 2, 3, 5, 6, 7
_CONVOLUTIONS = {"conv": False, "conv_transpose": True}


class Program:
    """A program.

    Attributes:
        found: Its convolutions and what was left out, with their depths, the longest paths from an input.
    """

    def __init__(self, path: Path, program: memoryview) -> None:
        """Read the operations; the constants when the layers are read.

        Args:
            path: The ``model.mlmodel`` that contains it.
            program: The message.

        Raises:
            MalformedError: It is damaged.
        """
        self.path = path
        self.found: list[tuple[ConvLayer | Skipped, int]] = []
        self._stored: dict[str, Tensor] = {}
        for function, content in _entries(fields(program, (2,)).get(2, [])):
            for _, block in _entries(fields(content, (3,)).get(3, [])):
                self._add(function, block, {}, {})

    @property
    def stored(self) -> Iterable[Tensor]:
        """Its tensors; functions may share those of the file beside it."""
        return self._stored.values()

    def _add(self, prefix: str, block: memoryview, constants: dict[str, Tensor], reached: dict[str, int]) -> None:
        for operation in fields(block, (3,)).get(3, []):
            limits.current().allocate(_BYTES_PER_OPERATION)
            limits.current().create()
            given = fields(message(operation))
            kind = text_of(given.get(1))
            outputs = [fields(message(one)) for one in given.get(3, [])]
            names = [text_of(one.get(1)) for one in outputs]
            attributes = {key: fields(value) for key, value in _entries(given.get(5, []))}
            inputs = {key: _argument(value) for key, value in _entries(given.get(2, []))}
            name = names[0] if names else kind
            if kind == "const" and "val" in attributes and names:
                constants[name] = self._constant(f"{prefix}/{name}", attributes["val"])
                continue
            if kind.startswith("constexpr_") and names:
                shape, _ = _type(fields(message(outputs[0][2][-1]))) if 2 in outputs[0] else ((), 0)
                own = {key: self._constant(f"{prefix}/{name}/{key}", value) for key, value in attributes.items()}
                own |= {key: constants[one] for key, one in inputs.items() if one in constants}
                constants[name] = _computed(self.path, kind, name, shape, own)
                continue
            depth = max((reached.get(one, -1) for one in inputs.values()), default=-1) + 1
            reached |= dict.fromkeys(names, depth)
            if kind in _CONVOLUTIONS:
                self.found.append((_layer(name, kind, inputs, constants), depth))
            for number, inner in enumerate(given.get(4, [])):
                with limits.current().nested():
                    self._add(f"{prefix}/{name}/{number}", message(inner), dict(constants), dict(reached))

    def _constant(self, name: str, value: Fields) -> Tensor:
        """A constant, which is noted unless it is a text."""
        constant, code = _constant(self.path, name, value)
        if code != _TEXT:
            self._stored.setdefault(constant.parts[0], constant)
        return constant


def _layer(name: str, kind: str, inputs: dict[str, str], constants: dict[str, Tensor]) -> ConvLayer | Skipped:
    weight = constants.get(inputs.get("weight", ""))
    if weight is None:
        return Skipped(name, "a convolution whose weight is computed")
    if weight.unreadable is not None:
        return Skipped(name, weight.unreadable, weight.parts)

    def numbers(key: str) -> list[int]:
        constant = constants.get(inputs.get(key, ""))
        if constant is None or math.prod(constant.shape) > 16 or constant.unreadable is not None:
            return []
        return [int(number) for number in constant.read().reshape(-1)]

    return explicit_layer(
        name,
        weight,
        transposed=_CONVOLUTIONS[kind],
        groups=(numbers("groups") or [1])[0],
        stride=_pair(numbers("strides")),
        dilation=_pair(numbers("dilations")),
    )


def _pair(numbers: list[int]) -> tuple[int, int]:
    return (numbers[0], numbers[1]) if len(numbers) == 2 and all(0 < one < 1 << 31 for one in numbers) else (1, 1)


def _entries(values: list[Any]) -> Iterator[tuple[str, memoryview]]:
    """The entries of a map."""
    for value in values:
        limits.current().step()
        entry = fields(message(value), (1, 2))
        if 2 in entry:
            yield text_of(entry.get(1)), message(entry[2][-1])


def _argument(value: memoryview) -> str:
    """The name that an argument is bound to; empty for a value or a list."""
    bindings = fields(value, (1,)).get(1, [])
    return text_of(fields(message(bindings[0]), (1,)).get(1)) if len(bindings) == 1 else ""


def _type(value: Fields) -> tuple[tuple[int, ...], int]:
    """Shape and element type of a ValueType; a side that is not fixed is 0, and so is the type of what is no tensor."""
    if 1 not in value:
        return (), 0
    tensor = fields(message(value[1][-1]))
    sides = []
    for dimension in tensor.get(3, []):
        constant = fields(message(dimension), (1,)).get(1, [])
        sides += integers(fields(message(constant[-1]), (1,)).get(1, [])) if constant else [0]
    if len(sides) > 16 or any(not 0 <= side < 1 << 40 for side in sides):
        raise MalformedError("a tensor of an impossible shape")
    return tuple(sides), (integers(tensor.get(1, [])) or [0])[-1]


def _constant(path: Path, name: str, value: Fields) -> tuple[Tensor, int]:
    """A constant, whose part is its place in the file beside the program, if it is there; and its type."""
    shape, code = _type(fields(message(value[2][-1]))) if 2 in value else ((), 0)
    blob = fields(message(value[5][-1])) if 5 in value else {}
    place = integers(blob.get(2, [])) or [0]
    parts = (f"{text_of(blob.get(1))}: {place[-1]}",) if blob else (name,)
    dtype = _TYPES.get(code)
    if dtype is None:
        why = f"elements of the type number {code}, which are not read"
        return Tensor(name, shape, f"number {code}", lambda: np.zeros(0), unreadable=why, parts=parts), code
    size = math.prod(shape) * dtype.itemsize

    def read() -> npt.NDArray[Any]:
        with undamaged(str(path), _WHAT):
            limits.current().allocate(size + 4 * math.prod(shape))
            content = _blob(path, blob, size) if blob else _immediate(value, dtype)
            if len(content) != size:
                raise MalformedError(f"{len(content):,} bytes for a tensor of {size:,}")
            return np.frombuffer(content, dtype).reshape(shape)

    stands = f"q{dtype.name}" if dtype.name in ("int8", "uint8") else dtype.name
    return Tensor(name, shape, stands, read, parts=parts), code


def _blob(path: Path, blob: Fields, size: int) -> memoryview:
    name = text_of(blob.get(1))
    data = mapped(companion(path, name.removeprefix(_FOLDER)))
    start = (integers(blob.get(2, [])) or [0])[-1]
    if not 0 <= start <= len(data) - _HEADER.size:
        raise MalformedError(f"a constant after the end of {name[:100]}: truncated")
    mark, _, stored, place = _HEADER.unpack_from(data, start)
    if mark != _MARK or stored != size or place + size > len(data):
        raise MalformedError(f"a constant that is not at its place in {name[:100]}")
    return data[place : place + size]


def _immediate(value: Fields, dtype: np.dtype[Any]) -> bytes:
    """The bytes of a constant that is in the program."""
    outer = fields(message(value[3][-1]), (1,)) if 3 in value else {}
    held = fields(message(outer[1][-1])) if 1 in outer else {}
    for field, width in ((_FLOATS, 4), (_DOUBLES, 8), (_BYTES, 0)):
        if field in held:
            inner = fields(message(held[field][-1]), (1,)).get(1, [])
            raw = b"".join(one.to_bytes(width, "little") if isinstance(one, int) else bytes(one) for one in inner)
            if not width:
                return raw
            return np.frombuffer(raw, "<f4" if width == 4 else "<f8").astype(dtype).tobytes()
    for field in (_INTEGERS, _BOOLEANS, _LONGS):
        if field in held:
            return np.asarray(integers(fields(message(held[field][-1]), (1,)).get(1, []))).astype(dtype).tobytes()
    return b""


def _computed(path: Path, kind: str, name: str, shape: tuple[int, ...], given: dict[str, Tensor]) -> Tensor:
    """A weight that is computed from compressed constants."""
    given = {key: one for key, one in given.items() if key != "name"}
    parts = tuple(part for one in given.values() for part in one.parts)
    lost = any(one.unreadable for one in given.values())
    compute = _COMPUTED.get(kind)
    if compute is None or lost or 0 in shape:
        why = f"a compressed weight ({kind.removeprefix('constexpr_')}), which is not read; convert without compression"
        return Tensor(name, shape, "", lambda: np.zeros(0), unreadable=why, parts=parts)

    def read() -> npt.NDArray[Any]:
        with undamaged(str(path), _WHAT):
            limits.current().allocate(16 * math.prod(shape))
            values = compute(shape, {key: one.read() for key, one in given.items()})
            if values.shape != shape:
                raise MalformedError(f"a compressed weight of shape {values.shape} for {shape}")
            return values

    return Tensor(name, shape, "qint8" if compute is _affine else "float32", read, parts=parts)


def _affine(shape: tuple[int, ...], given: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
    # scale (q - zero point), both numbers or one for each index of the axis
    stored, axis = given["quantized_data"], int(given["axis"].reshape(-1)[0])
    along = [1] * stored.ndim
    along[axis] = -1
    scale, zero = (
        given[key].reshape(along) if given[key].size > 1 else given[key].reshape(-1)[0]
        for key in ("scale", "zero_point")
    )
    return np.asarray(
        (stored.astype(np.float32) - np.asarray(zero, np.float32)) * np.asarray(scale, np.float32), np.float32
    )


def _palette(shape: tuple[int, ...], given: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
    # Indices of few bits, packed from the lowest bit of each byte on
    table = given["lut"].astype(np.float32).reshape(-1)
    width, count = max(int(table.size).bit_length() - 1, 1), math.prod(shape)
    bits = np.unpackbits(given["indices"].reshape(-1), bitorder="little")[: width * count].reshape(count, width)
    return np.asarray(table[bits @ (1 << np.arange(width))].reshape(shape), np.float32)


def _sparse(shape: tuple[int, ...], given: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
    # One bit for each number that is not zero, from the lowest bit of each byte on
    there = np.unpackbits(given["mask"].reshape(-1), bitorder="little")[: math.prod(shape)].astype(bool)
    found = np.zeros(math.prod(shape), np.float32)
    found[there] = given["nonzero_data"].reshape(-1)
    return found.reshape(shape)


_COMPUTED = {
    "constexpr_affine_dequantize": _affine,
    "constexpr_lut_to_dense": _palette,
    "constexpr_sparse_to_dense": _sparse,
}

"""TensorFlow graphs as protocol buffers: GraphDef, MetaGraphDef, SavedModel.

Field numbers are those of TensorFlow's published schemas (graph.proto, node_def.proto, attr_value.proto, tensor.proto,
function.proto, op_def.proto, meta_graph.proto, saved_model.proto). Nothing is copied: a node keeps the place of its
attributes in the mapped file, and a constant is read when its layer is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import ml_dtypes
import numpy as np
import numpy.typing as npt

from cnnfilterdb.ingest.formats import limits
from cnnfilterdb.ingest.formats.dtypes import by_code
from cnnfilterdb.ingest.formats.protobuf import (
    Field,
    Fields,
    MalformedError,
    fields,
    float32s,
    integers,
    message,
    text_of,
)
from cnnfilterdb.ingest.formats.tensorflow.dataflow import Function, GraphDefinition
from cnnfilterdb.ingest.network.layers import Tensor

__all__ = ["DTYPES", "array", "definition", "meta_graphs", "tensor_shape", "tensor_values", "tensorflow_dtype_name"]

#: Element types by their number in types.proto, those that weights and shapes have.
DTYPES = by_code(
    {
        1: "float32",
        2: "float64",
        3: "int32",
        4: "uint8",
        5: "int16",
        6: "int8",
        9: "int64",
        10: "bool",
        14: "bfloat16",
        17: "uint16",
        19: "float16",
        22: "uint32",
        23: "uint64",
    }
)

_BYTES_PER_NODE, _BYTES_PER_INPUT = 640, 64  # of memory


def tensorflow_dtype_name(number: int) -> str:
    """Name of an element type.

    >>> tensorflow_dtype_name(14), tensorflow_dtype_name(20)
    ('bfloat16', 'type 20')
    """
    return DTYPES[number].name if number in DTYPES else f"type {number}"


def meta_graphs(data: memoryview) -> list[Fields]:
    """The MetaGraphDefs of a SavedModel, each with its GraphDef in field 2.

    Raises:
        MalformedError: It is not a SavedModel.
    """
    return [fields(message(value)) for value in fields(data, (2,)).get(2, [])]


def definition(graph: memoryview) -> GraphDefinition:
    """The graph of a GraphDef.

    Raises:
        MalformedError: It is not a GraphDef.
    """
    parts = fields(graph, (1, 2))
    nodes = [_ProtoNode(message(value)) for value in parts.get(1, [])]
    library: dict[str, memoryview] = {}
    for value in parts.get(2, []):
        for function in fields(message(value), (1,)).get(1, []):
            signature = fields(_last(fields(message(function), (1,)), 1), (1,))
            library[text_of(signature.get(1))] = message(function)
    parsed: dict[str, Function] = {}

    def find(name: str) -> Function | None:
        if name in library and name not in parsed:
            parsed[name] = _function(library[name])
        return parsed.get(name)

    return GraphDefinition(nodes, find)


def _function(data: memoryview) -> Function:
    parts = fields(data, (1, 3, 4))
    signature = fields(_last(parts, 1), (2, 3))
    arguments = tuple(text_of(fields(message(value), (1,)).get(1)) for value in signature.get(2, []))
    names = [text_of(fields(message(value), (1,)).get(1)) for value in signature.get(3, [])]
    results = {}
    for value in parts.get(4, []):
        entry = fields(message(value), (1, 2))
        results[text_of(entry.get(1))] = text_of(entry.get(2))
    nodes = [_ProtoNode(message(value)) for value in parts.get(3, [])]
    return Function(arguments, tuple(results.get(name, "") for name in names), nodes)


class _ProtoNode:
    """A NodeDef."""

    def __init__(self, data: memoryview) -> None:
        parts = fields(data, (1, 2, 3, 5))
        self.name = text_of(parts.get(1))
        self.op = text_of(parts.get(2))
        self.inputs: Sequence[str] = [text_of([value]) for value in parts.get(3, [])]
        self._places = parts.get(5, [])
        limits.current().allocate(_BYTES_PER_NODE + _BYTES_PER_INPUT * len(self.inputs))

    @cached_property
    def _attributes(self) -> dict[str, memoryview]:
        found = {}
        for place in self._places:
            entry = fields(message(place), (1, 2))
            found[text_of(entry.get(1))] = _last(entry, 2)
        return found

    def _attribute(self, key: str, number: int, in_list: int = 0) -> list[Field]:
        """Values of one kind: the attribute itself, or what is in its list."""
        if key not in self._attributes:
            return []
        value = fields(self._attributes[key])
        found = value.get(number, [])
        for part in value.get(1, []) if in_list else []:
            found = found + fields(message(part), (in_list,)).get(in_list, [])
        return found

    def integers(self, key: str) -> tuple[int, ...]:
        return tuple(integers(self._attribute(key, 3, 3) or self._attribute(key, 5)))

    def numbers(self, key: str) -> tuple[float, ...]:
        return tuple(float32s(self._attribute(key, 4, 4)))

    def text(self, key: str) -> str:
        return text_of(self._attribute(key, 2))

    def functions(self, key: str) -> tuple[str, ...]:
        return tuple(text_of(fields(message(value), (1,)).get(1)) for value in self._attribute(key, 10, 9))

    def shape(self, key: str) -> tuple[int | None, ...] | None:
        values = self._attribute(key, 7)
        return tensor_shape(message(values[-1])) if values else None

    @cached_property
    def _value(self) -> memoryview | None:
        values = self._attribute("value", 8)
        return message(values[-1]) if values else None

    @cached_property
    def _constant(self) -> Tensor | None:
        return None if self._value is None else _tensor(self.name, self._value)

    def constant(self) -> Tensor | None:
        return self._constant

    def strings(self) -> tuple[str, ...]:
        return () if self._value is None else tuple(text_of([v]) for v in fields(self._value, (8,)).get(8, []))


def tensor_shape(data: memoryview) -> tuple[int | None, ...] | None:
    """A TensorShapeProto: sides that are not known are None, as is a shape of unknown rank."""
    parts = fields(data, (2, 3))
    if any(parts.get(3, [])):
        return None
    sides = [integers(fields(message(value), (1,)).get(1, [0]))[-1] for value in parts.get(2, [])]
    return tuple(side if 0 <= side < 1 << 48 else None for side in sides)


def _tensor(name: str, data: memoryview) -> Tensor | None:
    """A TensorProto, unless it holds strings or a resource."""
    parts = fields(data, (1, 2))
    number = integers(parts.get(1, [0]))[-1]
    shape = tensor_shape(_last(parts, 2)) if 2 in parts else ()
    if number not in DTYPES or shape is None:
        return None
    sides = tuple(side or 0 for side in shape)
    return Tensor(name, sides, DTYPES[number].name, lambda: tensor_values(name, data, DTYPES[number], sides))


def tensor_values(
    name: str, data: memoryview, dtype: np.dtype[np.generic], shape: tuple[int, ...]
) -> npt.NDArray[np.generic]:
    """The numbers of a TensorProto of a known type and shape.

    Raises:
        MalformedError: They do not fit the shape.
    """
    parts = fields(data)
    size = math.prod(shape)
    content = _last(parts, 4)
    if len(content):
        return array(name, content, dtype, shape)
    # Otherwise in lists of numbers, the last one repeated as often as needed
    values: npt.NDArray[np.generic]
    if 13 in parts:  # float16 and bfloat16 as the integers of the same bits
        values = np.array(integers(parts[13]), np.uint16).view(dtype)
    elif 5 in parts:
        values = np.array(float32s(parts[5]), np.float32).astype(dtype)
    elif 6 in parts:
        packed = b"".join(v.to_bytes(8, "little") if isinstance(v, int) else bytes(v) for v in parts[6])
        values = np.frombuffer(packed, "<f8").astype(dtype)
    else:
        listed = next((parts[key] for key in (7, 10, 11, 16, 17) if key in parts), [])
        values = np.array(integers(listed), np.int64).astype(dtype)
    if len(values) < size:
        limits.current().allocate(2 * size * dtype.itemsize)  # one number that is repeated
        last = values[-1] if len(values) else np.zeros((), dtype)[()]
        values = np.concatenate([values, np.full(size - len(values), last, dtype)])
    return widened(values[:size].reshape(shape))


def array(
    name: str, content: memoryview, dtype: np.dtype[np.generic], shape: tuple[int, ...]
) -> npt.NDArray[np.generic]:
    """An array of raw bytes: as stored, but floating types of another width as float32.

    Raises:
        MalformedError: The number of bytes does not match.
    """
    expected = math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise MalformedError(f"{name}: expected {expected:,} bytes for {dtype.name} {shape}, found {len(content):,}")
    return widened(np.frombuffer(content, dtype).reshape(shape))


def widened(values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Floating types of another width as float32, everything else unchanged."""
    floating = values.dtype.kind == "f" or values.dtype == ml_dtypes.bfloat16
    return values.astype(np.float32) if floating and values.dtype != np.float32 else values


def _last(parts: Fields, number: int) -> memoryview:
    return message(parts[number][-1]) if number in parts else memoryview(b"")

"""OpenVINO models: an ``.xml`` with the graph, and a ``.bin`` with its constants (versions 10 and 11 of the format).

The XML lists operations, each with its attributes, and the edges between their ports; a constant gives its place in the
``.bin``. Weights are traced back through conversions, reshapes and the arithmetic of compressed models, which stores
integers with a scale and a zero point. The XML must not declare entities, which could expand without end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest.formats import limits, register
from cnnfilterdb.ingest.formats.companions import companion
from cnnfilterdb.ingest.formats.damage import undamaged
from cnnfilterdb.ingest.formats.dtypes import by_code
from cnnfilterdb.ingest.formats.explicit import explicit_layer, explicit_weights
from cnnfilterdb.ingest.formats.mapping import mapped
from cnnfilterdb.ingest.network.judge import is_floating
from cnnfilterdb.ingest.network.layers import ConvLayer, Skipped, Tensor, Weights

__all__ = ["OpenvinoFormat"]

_WHAT = "OpenVINO model"
_DTYPES = by_code(
    {
        "f32": "float32",
        "f16": "float16",
        "f64": "float64",
        "bf16": "bfloat16",
        "i8": "int8",
        "u8": "uint8",
        "i16": "int16",
        "i32": "int32",
        "i64": "int64",
        "FP32": "float32",
        "FP16": "float16",
    }
)
# Operation -> (transposed, whether the groups are the first axis of the weight)
_CONVOLUTIONS = {
    "Convolution": (False, False),
    "GroupConvolution": (False, True),
    "ConvolutionBackpropData": (True, False),
    "GroupConvolutionBackpropData": (True, True),
    "DeformableConvolution": (False, False),
}
# What constants are counted as: integers of few bits stand for numbers, others are shapes and indices
_COUNTED = {code: dtype.name for code, dtype in _DTYPES.items()} | {
    "i4": "qint8", "u4": "quint8", "nf4": "float4", "i8": "qint8", "u8": "quint8"
}  # fmt: skip
_BYTES_PER_OPERATION = 2048  # of memory
_MAX_STEPS = 64  # operations between a weight and its constant


@register
class OpenvinoFormat:
    """``.xml`` files with their ``.bin``."""

    name = "openvino"
    suffixes = (".xml",)

    def matches(self, path: Path, head: bytes) -> bool:
        """Whether it is XML whose outermost element is a net."""
        return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"<?xml", b"<net")) and b"<net " in head

    def read(self, path: Path) -> Weights:
        """Read the graph; the constants when the layers are read.

        Raises:
            WeightFileError: The XML is damaged or of a version before 10, or the ``.bin`` is missing.
        """
        with undamaged(str(path), _WHAT):
            return _Model(path).weights()


@dataclass(eq=False, slots=True)
class _Operation:
    name: str
    kind: str
    attributes: dict[str, str] = field(default_factory=dict)
    inputs: dict[int, _Operation] = field(default_factory=dict)  # by the order of its ports


class _Model:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.operations: dict[str, _Operation] = {}
        self._ports: dict[str, list[str]] = {}
        self._current: str | None = None
        self._in_input = False
        self._bodies = 0
        self._inside: _Operation | None = None
        self._constants_inside: list[_Operation] = []
        self._edges: list[tuple[str, str, str]] = []
        content = path.read_bytes()
        parser = expat.ParserCreate()
        parser.StartDoctypeDeclHandler = self._refuse
        parser.EntityDeclHandler = self._refuse
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.Parse(content, True)
        for source, target, port in self._edges:
            ports = self._ports.get(target, [])
            if source in self.operations and target in self.operations and port in ports:
                self.operations[target].inputs[ports.index(port)] = self.operations[source]
        data = companion(path, f"{path.stem}.bin")
        limits.current().opened(data.stat().st_size)
        self.data = mapped(data)

    def _refuse(self, *_: Any) -> None:
        raise WeightFileError(f"{self.path}: declares a document type or entities, which OpenVINO never does; refused")

    def _start(self, tag: str, attributes: Mapping[str, str]) -> None:
        limits.current().step()
        if tag == "net":
            version = attributes.get("version", "")
            if not version.isdecimal() or int(version) < 10:
                raise WeightFileError(
                    f"{self.path}: an OpenVINO model of version {version or 'unknown'}; versions 10 and 11 are read, "
                    "convert it again with a newer Model Optimizer"
                )
        elif tag.endswith("body"):
            self._bodies += 1  # of a loop or a condition, with its own numbering
        elif self._bodies:
            self._start_inside(tag, attributes)
        elif tag == "layer":
            limits.current().allocate(_BYTES_PER_OPERATION)
            self._current = attributes["id"]
            self.operations[self._current] = _Operation(attributes.get("name", ""), attributes.get("type", ""))
            self._ports[self._current] = []
        elif tag == "data" and self._current is not None:
            self.operations[self._current].attributes = dict(attributes)
        elif tag == "input":
            self._in_input = True
        elif tag == "port" and self._in_input and self._current is not None:
            self._ports[self._current].append(attributes["id"])
        elif tag == "edge":
            self._edges.append((attributes["from-layer"], attributes["to-layer"], attributes["to-port"]))

    def _start_inside(self, tag: str, attributes: Mapping[str, str]) -> None:
        """A part of a body, whose constants are noted below the name of the operation that it belongs to."""
        if tag == "layer":
            limits.current().allocate(_BYTES_PER_OPERATION)
            owner = "" if self._current is None else self.operations[self._current].name
            self._inside = _Operation(f"{owner}/{attributes.get('name', '')}", attributes.get("type", ""))
        elif tag == "data" and self._inside is not None and self._inside.kind == "Const":
            self._inside.attributes = dict(attributes)
            self._constants_inside.append(self._inside)

    def _end(self, tag: str) -> None:
        if tag.endswith("body"):
            self._bodies -= 1
        elif tag == "input":
            self._in_input = False

    # -----------------------------------------------------------------------------------------------------------------

    def weights(self) -> Weights:
        depths = self._depths()
        found: list[tuple[ConvLayer | Skipped, int | None]] = []
        for operation in self.operations.values():
            if operation.kind in _CONVOLUTIONS:
                found.append((self._layer(operation), depths.get(operation)))
            elif operation.kind.endswith("Convolution") or operation.kind in ("TensorIterator", "Loop", "If"):
                why = f"an operation of type {operation.kind}"
                weight = operation.inputs.get(1)
                found.append((Skipped(operation.name, why, () if weight is None else self._sources(weight)), None))
        found.sort(key=lambda item: (item[1] is None, item[1] or 0))
        return explicit_weights("openvino", "openvino", self._stored(), found)

    def _stored(self) -> list[Tensor]:
        """The constants, those at one place of the ``.bin`` once."""
        at: dict[tuple[str | None, str | None], list[_Operation]] = {}
        for operation in (*self.operations.values(), *self._constants_inside):
            if operation.kind == "Const":
                at.setdefault((operation.attributes.get("offset"), operation.attributes.get("size")), []).append(
                    operation
                )
        return [
            replace(self._constant(uses[0]), parts=tuple(operation.name for operation in uses)) for uses in at.values()
        ]

    def _constant(self, operation: _Operation) -> Tensor:
        """A constant to be counted."""
        code = operation.attributes.get("element_type", "")
        return Tensor(operation.name, _shape(operation), _COUNTED.get(code, code), read=lambda: np.empty(0))

    def _depths(self) -> dict[_Operation, int]:
        """Longest path from an input."""
        readers: dict[_Operation, list[_Operation]] = {}
        waiting = {}
        for operation in self.operations.values():
            waiting[operation] = len(operation.inputs)
            for source in operation.inputs.values():
                readers.setdefault(source, []).append(operation)
        depths = {one: 0 for one in self.operations.values() if one.kind == "Parameter"}
        ready = [operation for operation, count in waiting.items() if not count]
        while ready:
            operation = ready.pop()
            for reader in readers.get(operation, ()):
                if operation in depths:
                    depths[reader] = max(depths.get(reader, 0), depths[operation] + 1)
                waiting[reader] -= 1
                if not waiting[reader]:
                    ready.append(reader)
        return depths

    def _layer(self, operation: _Operation) -> ConvLayer | Skipped:
        transposed, grouped = _CONVOLUTIONS[operation.kind]
        weight = operation.inputs.get(2 if operation.kind == "DeformableConvolution" else 1)
        if weight is None:
            return Skipped(operation.name, "a convolution without a weight")
        traced, sources = self._traced(weight), self._sources(weight)
        if isinstance(traced, str):
            return Skipped(operation.name, f"its weight is {traced}", sources)
        shape = traced.shape
        groups = 1
        if grouped:
            groups, shape = shape[0], (shape[0] * shape[1], *shape[2:]) if len(shape) > 1 else shape
        tensor = Tensor(
            operation.name, shape, traced.dtype, lambda: self._guarded(traced.read).reshape(shape), parts=sources
        )
        stride, dilation = (_pair(operation.attributes.get(key)) for key in ("strides", "dilations"))
        return explicit_layer(
            operation.name, tensor, transposed=transposed, groups=groups, stride=stride, dilation=dilation
        )

    def _guarded(self, read: Callable[[], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        with undamaged(str(self.path), _WHAT):
            return read()

    def _sources(self, weight: _Operation) -> tuple[str, ...]:
        """Names of the constants that a weight is computed from, without shapes; none if it depends on an input."""
        seen, queue = {weight}, [weight]
        while queue:
            operation = queue.pop()
            limits.current().step()
            if operation.kind != "Const" and not operation.inputs:
                return ()
            new = [one for one in operation.inputs.values() if one not in seen]
            seen.update(new)
            queue += new
        constants = (one for one in seen if one.kind == "Const")
        return tuple(sorted(one.name for one in constants if is_floating(self._constant(one))))

    def _traced(self, operation: _Operation, steps: int = _MAX_STEPS) -> Tensor | str:
        """A constant after the operations on it; or why it cannot be read."""
        if steps <= 0:
            return f"computed by more than {_MAX_STEPS} operations"
        limits.current().step()
        kind, inputs = operation.kind, operation.inputs
        if kind == "Const":
            code = operation.attributes.get("element_type", "")
            dtype = _DTYPES.get(code)
            if dtype is None:
                return f"of type {code}, which is not read"
            return Tensor(operation.name, _shape(operation), dtype.name, lambda: self._numbers(operation, dtype))
        if kind in ("Convert", "Reshape", "Subtract", "Multiply", "FakeQuantize", "Transpose") and 0 in inputs:
            parts = [self._traced(inputs[number], steps - 1 if number == 0 else 8) for number in sorted(inputs)]
            for part in parts:
                if isinstance(part, str):
                    return part
            known = [part for part in parts if not isinstance(part, str)]
            first = known[0]
            if kind == "Convert":
                return first
            if kind == "Reshape":
                target = _sides(known[1].read(), first.shape)
                return replace(first, shape=target, read=lambda: first.read().reshape(target))
            if kind == "Transpose":
                order = tuple(int(axis) for axis in known[1].read().reshape(-1))
                turned = tuple(first.shape[axis] for axis in order)
                return replace(first, shape=turned, read=lambda: first.read().transpose(order))
            if np.broadcast_shapes(*(part.shape for part in known)) != first.shape:
                return f"computed by a {kind} that changes its shape"
            # The integers of a compressed model represent numbers
            stands = f"q{first.dtype}" if first.dtype in ("int8", "uint8") else first.dtype
            return replace(first, dtype=stands, read=lambda: _computed(operation, [part.read() for part in known]))
        return f"computed by {kind}"

    def _numbers(self, operation: _Operation, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        shape = _shape(operation)
        start, size = int(operation.attributes["offset"]), int(operation.attributes["size"])
        limits.current().allocate(8 * math.prod(shape))
        if start < 0 or size != math.prod(shape) * dtype.itemsize or start + size > len(self.data):
            raise ValueError(f"{operation.name}: {size:,} bytes at {start:,} of {len(self.data):,} for shape {shape}")
        values: npt.NDArray[Any] = np.frombuffer(self.data, dtype, math.prod(shape), start).reshape(shape)
        return values.astype(np.float32) if dtype.kind == "f" or dtype.name == "bfloat16" else values


def _computed(operation: _Operation, values: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    first, *others = (value.astype(np.float32) for value in values)
    limits.current().allocate(8 * first.size)
    if operation.kind == "Subtract":
        return np.asarray(first - others[0])
    if operation.kind == "Multiply":
        return np.asarray(first * others[0])
    low, high, bottom, top = others
    levels = float(operation.attributes.get("levels", 256)) - 1
    with np.errstate(all="ignore"):
        inside = np.round((np.clip(first, low, high) - low) / (high - low) * levels) / levels * (top - bottom) + bottom
    return np.where(first <= np.minimum(low, high), bottom, np.where(first > np.maximum(low, high), top, inside))


def _shape(operation: _Operation) -> tuple[int, ...]:
    text = operation.attributes.get("shape", "")
    sides = tuple(int(side) for side in text.split(",") if side.strip())
    if any(not 0 <= side < 1 << 40 for side in sides):
        raise ValueError(f"{operation.name} has the impossible shape {text}")
    return sides


def _sides(target: npt.NDArray[Any], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a reshape produces, in which one side may be left open."""
    sides = [int(side) for side in target.reshape(-1)]
    sides = [shape[place] if side == 0 and place < len(shape) else side for place, side in enumerate(sides)]
    known = math.prod(side for side in sides if side > 0)
    return tuple(math.prod(shape) // max(known, 1) if side < 0 else side for side in sides)


def _pair(text: str | None) -> tuple[int, int] | None:
    numbers = [int(part) for part in (text or "").split(",") if part.strip().isdecimal()]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else None

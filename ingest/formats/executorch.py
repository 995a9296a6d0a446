"""ExecuTorch programs (``.pte``) and their separate weights (``.ptd``).

A program is a FlatBuffer (program.fbs of ExecuTorch 1.5) of calls of kernels and of delegates, and segments of bytes
after it. Convolutions of the portable kernels name their weight among the values of the plan; those that were lowered
to XNNPACK are in a graph of its own (:mod:`~cnnfilterdb.ingest.formats.xnnpack`). Other delegates compile weights into
a form that only they read: these are reported. Constants are in the FlatBuffer, in a segment, or in a ``.ptd`` beside
the program. The numbers of the fields below are those of the schema.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest.formats import limits, register
from cnnfilterdb.ingest.formats.companions import companion
from cnnfilterdb.ingest.formats.damage import undamaged
from cnnfilterdb.ingest.formats.dtypes import by_code
from cnnfilterdb.ingest.formats.explicit import explicit_layer, explicit_weights
from cnnfilterdb.ingest.formats.flatbuffer import Table
from cnnfilterdb.ingest.formats.mapping import mapped
from cnnfilterdb.ingest.formats.xnnpack import Found, XnnpackGraph, dequantised, part_of
from cnnfilterdb.ingest.network.axes import unique_names
from cnnfilterdb.ingest.network.composition import parameters
from cnnfilterdb.ingest.network.contents import contents_of
from cnnfilterdb.ingest.network.extract import layers_from_tensors
from cnnfilterdb.ingest.network.folding import BatchNorm, paired
from cnnfilterdb.ingest.network.layers import Skipped, Tensor, Weights

__all__ = ["ExecutorchFormat"]

_WHAT = "ExecuTorch program"
_BYTES_PER_VALUE = 512  # of memory
_MAX_DIMENSIONS = 32

# Program
_PLANS, _BUFFERS, _INLINE, _SEGMENTS, _CONSTANTS, _NAMED = 1, 2, 3, 4, 5, 7
# ExecutionPlan, Chain
_PLAN_NAME, _VALUES, _INPUTS, _CHAINS, _OPERATORS, _DELEGATES = 0, 2, 3, 5, 6, 7
_INSTRUCTIONS = 2
# Unions: field of the type, field of the table, and the types that are read
_TYPE, _TABLE = 0, 1
_INT, _BOOL, _DOUBLE, _TENSOR, _INT_LIST, _TENSOR_LISTS = 2, 3, 4, 5, 7, (10, 11)
_KERNEL_CALL, _DELEGATE_CALL = 1, 2
# Tensor, ExtraTensorInfo
_SCALAR_TYPE, _SIZES, _ORDER, _BUFFER, _ALLOCATION, _EXTRA = 0, 2, 3, 5, 6, 9
_QUALIFIED_NAME, _LOCATION = 1, 2

_DTYPES = by_code(
    {
        0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 7: "float64",
        11: "bool", 15: "bfloat16", 23: "float8_e5m2", 24: "float8_e4m3fn", 25: "float8_e5m2fnuz",
        26: "float8_e4m3fnuz", 27: "uint16", 28: "uint32", 29: "uint64",
    }
)  # fmt: skip

_CONVOLUTION = "aten::convolution"
_NORMALISATION = "aten::_native_batch_norm_legit_no_training"
_DEQUANTIZE = "quantized_decomposed::dequantize_per_"


@register
class ExecutorchFormat:
    """``.pte`` and ``.ptd`` files."""

    name = "executorch"
    suffixes = (".pte",)  # a .ptd is read with its program

    def matches(self, path: Path, head: bytes) -> bool:
        """Whether the file has an identifier of ExecuTorch."""
        return head[4:6] in (b"ET", b"FT") and head[6:8].isdigit()

    def read(self, path: Path) -> Weights:
        """Read the plans; the constants when the layers are read.

        Raises:
            WeightFileError: The file is damaged, or the file of its weights is missing.
        """
        with undamaged(str(path), _WHAT):
            data = mapped(path)
            if bytes(data[4:6]) == b"FT":
                return _Weights(path, data).weights()
            return _Program(path, data).weights()


def _segments(data: memoryview, listed: Sequence[Table], base: int) -> list[memoryview]:
    """The bytes after a FlatBuffer, as its list divides them."""
    found = []
    for one in listed:
        start, size = base + one.number(0, "<Q"), one.number(1, "<Q")
        if start + size > len(data):
            raise ValueError("a segment beyond the end of the file: truncated")
        found.append(data[start : start + size])
    return found


def _named(listed: Sequence[Table], segments: Sequence[memoryview]) -> dict[str, memoryview]:
    return {one.text(0): segments[one.number(1, "<I")] for one in listed}


class _Weights:
    """A ``.ptd`` file (flat_tensor.fbs): bytes by name, those of tensors with type and shape."""

    def __init__(self, path: Path, data: memoryview) -> None:
        self.path = path
        if bytes(data[8:12]) != b"FH01":
            raise ValueError("without its header")
        root = Table.root(data)
        self.entries = root.tables(2)
        segments = _segments(data, root.tables(1), struct.unpack_from("<Q", data, 32)[0])
        self.named = _named(self.entries, segments)

    def weights(self) -> Weights:
        tensors, opaque, skipped = [], [], []
        for entry in self.entries:
            limits.current().allocate(_BYTES_PER_VALUE)
            name, layout = entry.text(0), entry.table(2)
            if layout is None:
                skipped.append(Skipped(name, "bytes for a delegate; pass the .pte file beside it"))
                opaque.append(Tensor(name, (len(self.named[name]),), "uint8", lambda: np.empty(0)))
                continue
            constant = _Constant(
                name, layout.number(0, "<b"), layout.integers(1), layout.integers(2, "u1"), self.named[name]
            )
            tensors.append(constant.tensor(self.path))
        layers, more = layers_from_tensors(tensors, ordered=False)
        left_out = (*skipped, *more)
        contents = contents_of((*tensors, *opaque), layers, left_out)
        return Weights("executorch", "pytorch", layers, parameters(tensors), left_out, contents=contents)


@dataclass(eq=False, slots=True)
class _Constant:
    """A tensor of a plan.

    Attributes:
        name: Its name in the network, if the file states it.
        type: Its scalar type.
        shape: Its shape.
        order: Its dimensions, from the outermost in memory to the innermost.
        data: Its bytes.
    """

    name: str
    type: int
    shape: list[int]
    order: list[int]
    data: memoryview

    def tensor(self, path: Path) -> Tensor:
        shape = tuple(self.shape)
        if len(shape) > _MAX_DIMENSIONS or any(side < 0 for side in shape):
            raise ValueError(f"a tensor of the impossible shape {shape}")
        order = self.order or list(range(len(shape)))
        if sorted(order) != list(range(len(shape))):
            raise ValueError(f"dimensions in the impossible order {order}")
        dtype = _DTYPES.get(self.type)

        def read() -> npt.NDArray[np.generic]:
            with undamaged(f"{path}: {self.name}", _WHAT):
                if dtype is None:
                    raise ValueError(f"elements of type {self.type}")
                limits.current().allocate(8 * math.prod(shape))
                if math.prod(shape) * dtype.itemsize > len(self.data):
                    raise ValueError(f"{len(self.data):,} bytes for shape {shape}: truncated")
                values = np.frombuffer(self.data, dtype, math.prod(shape)).reshape([shape[axis] for axis in order])
                turned = values.transpose(np.argsort(order)) if order else values
                return turned.astype(np.float32) if dtype.name.startswith(("float", "bfloat")) else turned

        named = f"number {self.type}" if dtype is None else "qint8" if dtype.name == "int8" else dtype.name
        return Tensor(self.name, shape, named, read, parts=(part_of(self.data),))


class _Program:
    """A ``.pte`` file."""

    def __init__(self, path: Path, data: memoryview) -> None:
        self.path = path
        base = 0
        if bytes(data[8:12]) == b"eh00":
            base = struct.unpack_from("<Q", data, 24)[0]
        root = Table.root(data)
        self.segments = _segments(data, root.tables(_SEGMENTS), base)
        self.named = _named(root.tables(_NAMED), self.segments)
        self.buffers = [one.data(0) for one in root.tables(_BUFFERS)]
        self.inline = [one.data(0) for one in root.tables(_INLINE)]
        stored = root.table(_CONSTANTS)
        offsets = [] if stored is None else stored.integers(1, "<u8")
        if stored is not None and len(offsets) > 1:
            whole = self.segments[stored.number(0, "<I")]
            if any(offset > len(whole) for offset in offsets):
                raise ValueError("a constant beyond the end of its segment: truncated")
            self.buffers = [whole[offset:] for offset in offsets]
        self._beside: dict[str, memoryview] | None = None
        plans = [_Plan(self, table) for table in root.tables(_PLANS)]
        self.plans = sorted(plans, key=lambda plan: plan.name != "forward")
        if not self.plans:
            raise ValueError("without a plan")

    def by_name(self, name: str) -> memoryview:
        """The bytes of a name: of this file, or of a ``.ptd`` beside it."""
        if name in self.named:
            return self.named[name]
        if self._beside is None:
            self._beside = {}
            for file in sorted(self.path.parent.glob("*.ptd")):
                beside = companion(self.path, file.name)
                limits.current().opened(beside.stat().st_size)
                for key, value in _Weights(beside, mapped(beside)).named.items():
                    self._beside.setdefault(key, value)
        if name not in self._beside:
            raise WeightFileError(
                f"{self.path}: its weight {name[:100]!r} is in another file, which is missing; put the .ptd file that "
                "was exported with it beside it"
            )
        return self._beside[name]

    def delegated(self, reference: Table | None) -> memoryview:
        """What was compiled for a delegate."""
        if reference is None:
            raise ValueError("a delegate without its data")
        held = self.segments if reference.number(0, "<b") else self.inline
        return held[reference.number(1, "<I")]

    def weights(self) -> Weights:
        found: list[Found] = []
        skipped: list[Skipped] = []
        taken: set[tuple[str, ...]] = set()
        for number, plan in enumerate(self.plans):
            layers, more = plan.layers()
            skipped += more
            # Another entry point may be a part of the same network, or have depths of its own
            new = [one for one in layers if one.layer.tensors not in taken]
            found += new if number == 0 else [replace(one, depth=None) for one in new]
            taken |= {one.layer.tensors for one in new}
        numbered = [
            one.layer if one.layer.name else replace(one.layer, name=f"conv{number}")
            for number, one in enumerate(found)
        ]
        named = unique_names(numbered, [one.name for one in numbered])
        placed = zip(named, [one.depth for one in found], strict=True)
        stored = {tensor.parts: tensor for plan in self.plans for tensor in plan.stored()}
        return explicit_weights("executorch", "pytorch", stored.values(), [*placed, *((one, None) for one in skipped)])


@dataclass(eq=False, slots=True)
class _Call:
    """A call of a kernel.

    Attributes:
        operator: Name of the kernel.
        arguments: Values, by number.
    """

    operator: str
    arguments: list[int]


class _Plan:
    """An entry point of a program."""

    def __init__(self, program: _Program, table: Table) -> None:
        self.program = program
        self.name = table.text(_PLAN_NAME)
        self.values = table.tables(_VALUES)
        limits.current().allocate(_BYTES_PER_VALUE * len(self.values))
        self.inputs = table.integers(_INPUTS)
        self.operators = [one.text(0) for one in table.tables(_OPERATORS)]
        self.delegates = table.tables(_DELEGATES)
        self.chains = table.tables(_CHAINS)
        self.graphs: list[XnnpackGraph] = []
        self.opaque: list[Tensor] = []  # bytes of other delegates
        self._constants: dict[int, _Constant] = {}
        self._used: set[int] = set()

    # -----------------------------------------------------------------------------------------------------------------
    # Values

    def _value(self, number: int, *kinds: int) -> Table | None:
        if not 0 <= number < len(self.values):
            raise ValueError(f"value {number} of {len(self.values)}")
        value = self.values[number]
        return value.table(_TABLE) if value.number(_TYPE, "<B") in kinds else None

    def integer(self, number: int) -> int:
        """A value that is a whole number or a truth value."""
        stored = self._value(number, _INT)
        if stored is not None:
            return stored.number(0, "<q")
        stored = self._value(number, _BOOL)
        return 0 if stored is None else stored.number(0, "<B")

    def real(self, number: int) -> float:
        """A value that is a number."""
        stored = self._value(number, _DOUBLE)
        bits = 0 if stored is None else stored.number(0, "<Q")
        return float(struct.unpack("<d", struct.pack("<Q", bits))[0])

    def integers(self, number: int) -> list[int]:
        """A value that is a list of whole numbers."""
        stored = self._value(number, _INT_LIST)
        return [] if stored is None else [self.integer(one) for one in stored.integers(0, "<i8")]

    def tensors(self, numbers: Sequence[int]) -> list[int]:
        """The tensors among values, those of lists included."""
        found = []
        for number in numbers:
            if self._value(number, _TENSOR) is not None:
                found.append(number)
            elif (listed := self._value(number, *_TENSOR_LISTS)) is not None:
                found += [one for one in listed.integers(0) if one >= 0 and self._value(one, _TENSOR) is not None]
        return found

    def constant(self, number: int) -> _Constant | None:
        """A tensor whose numbers the file states."""
        if number in self._constants:
            return self._constants[number]
        stored = self._value(number, _TENSOR)
        if stored is None:
            return None
        extra, buffer = stored.table(_EXTRA), stored.number(_BUFFER, "<I")
        name = "" if extra is None else extra.text(_QUALIFIED_NAME)
        if extra is not None and extra.number(_LOCATION, "<b") == 1:
            data = self.program.by_name(name)
        elif buffer and stored.table(_ALLOCATION) is None:
            if buffer >= len(self.program.buffers):
                raise ValueError(f"constant {buffer} of {len(self.program.buffers)}")
            data = self.program.buffers[buffer]
        else:
            return None
        found = _Constant(
            name, stored.number(_SCALAR_TYPE, "<b"), stored.integers(_SIZES), stored.integers(_ORDER, "u1"), data
        )
        self._constants[number] = found
        return found

    def stored(self) -> Iterator[Tensor]:
        """The constants, after the layers were read."""
        for number in range(len(self.values)):
            constant = self.constant(number)
            if constant is not None:
                tensor = constant.tensor(self.program.path)
                yield replace(tensor, name=tensor.name or tensor.parts[0])
        for graph in self.graphs:
            yield from graph.stored()
        yield from self.opaque

    # -----------------------------------------------------------------------------------------------------------------
    # Calls

    def layers(self) -> tuple[list[Found], list[Skipped]]:
        """The layers in the order of the calls, and what was left out."""
        found: list[tuple[Found | Skipped, int]] = []
        depths: dict[int, int] = dict.fromkeys(self.inputs, -1)
        made, makers = set(self.inputs), dict[int, _Call]()
        readers: dict[int, list[_Call]] = {}
        for instruction in (one for chain in self.chains for one in chain.tables(_INSTRUCTIONS)):
            kind, call = instruction.number(_TYPE, "<B"), instruction.table(_TABLE)
            if call is None or kind not in (_KERNEL_CALL, _DELEGATE_CALL):
                continue
            number, arguments = call.number(0, "<i"), call.integers(1)
            tensors = self.tensors(arguments)
            limits.current().step(1 + len(tensors))
            before = [depths[one] for one in tensors if one in depths]
            depth = max(before) + 1 if before else None
            if kind == _DELEGATE_CALL:
                found += [(one, -1) for one in self._delegated(number, tensors, depths)]
                made |= set(tensors)
                continue
            # What is written is an argument, too
            written = set(self.tensors(arguments[-1:]))
            written |= {one for one in tensors if one not in made and self.constant(one) is None}
            one_call = _Call(self.operators[number], arguments)
            for one in set(tensors) - written:
                readers.setdefault(one, []).append(one_call)
            makers |= dict.fromkeys(written, one_call)
            made |= written
            if depth is not None:
                depths |= dict.fromkeys(written, depth)
            if "conv" in one_call.operator.lower() and (layer := self._layer(one_call, makers, depth)):
                found.append((layer, arguments[-1] if arguments else -1))
        layers: list[Found] = []
        skipped: list[Skipped] = []
        for part, output in found:
            if isinstance(part, Skipped):
                skipped.append(part)
                continue
            follows = readers.get(output, [])
            norm = self._normalisation(follows[0]) if len(follows) == 1 else None
            layers.append(part if norm is None else replace(part, layer=paired(part.layer, norm, known=True)))
        return layers, skipped

    def _layer(self, call: _Call, makers: Mapping[int, _Call], depth: int | None) -> Found | Skipped | None:
        """The layer of a convolution; None for another use of a weight that was seen."""
        if call.operator != _CONVOLUTION:
            return Skipped(self.name, f"an operator {call.operator[:100]}, whose weight has an unknown layout")
        if len(call.arguments) < 10:
            raise ValueError(f"a convolution of {len(call.arguments)} arguments")
        _, weight, _, stride, _, dilation, transposed, _, groups = call.arguments[:9]
        if weight in self._used:
            return None
        self._used.add(weight)
        traced = self._weight(weight, makers)
        if isinstance(traced, str):
            return Skipped(self.name, traced)
        layer = explicit_layer(
            traced.name.removesuffix(".weight"),
            traced,
            transposed=bool(self.integer(transposed)),
            groups=self.integer(groups),
            stride=_pair(self.integers(stride)),
            dilation=_pair(self.integers(dilation)),
        )
        if isinstance(layer, Skipped):
            return replace(layer, name=layer.name or self.name)
        return Found(layer, depth)

    def _weight(self, number: int, makers: Mapping[int, _Call]) -> Tensor | str:
        """The weight of a convolution; or why it cannot be read."""
        constant, call = self.constant(number), makers.get(number)
        if constant is None and call is None:
            return "its weight is an input"
        if call is not None and call.operator.startswith(_DEQUANTIZE) and len(call.arguments) > 5:
            constant = self.constant(call.arguments[0])
        if constant is None:
            return f"its weight is computed by {'another operation' if call is None else call.operator[:100]}"
        if constant.type not in _DTYPES:
            return f"elements of type {constant.type}, which are not read"
        tensor = constant.tensor(self.program.path)
        if call is None:
            return tensor
        _, scale, zero, axis = call.arguments[:4]
        held = [self.constant(one) for one in (scale, zero)] if call.operator.endswith("channel") else []
        by_channel = [one for one in held if one is not None]
        if len(by_channel) < len(held):
            return "its scales or zero points are computed"

        def read() -> npt.NDArray[np.generic]:
            if by_channel:
                scales, zeros = (one.tensor(self.program.path).read() for one in by_channel)
                return dequantised(tensor.read(), scales, zeros, self.integer(axis))
            return dequantised(tensor.read(), np.array([self.real(scale)]), np.array([self.integer(zero)]), 0)

        parts = (*tensor.parts, *(part_of(one.data) for one in by_channel))
        return replace(tensor, dtype=f"q{tensor.dtype.removeprefix('q')}", read=read, parts=parts)

    def _normalisation(self, call: _Call) -> BatchNorm | None:
        if call.operator != _NORMALISATION or len(call.arguments) < 7:
            return None
        _, gamma, _, mean, variance, _, epsilon = call.arguments[:7]
        parts = [None if (held := self.constant(one)) is None else held for one in (variance, gamma, mean)]
        tensors = [None if one is None else one.tensor(self.program.path) for one in parts]
        if tensors[0] is None or len(tensors[0].shape) != 1:
            return None
        return BatchNorm(self.name, tensors[0], tensors[1], tensors[2], self.real(epsilon))

    def _delegated(self, number: int, tensors: Sequence[int], depths: dict[int, int]) -> list[Found | Skipped]:
        """The layers that a delegate computes."""
        delegate = self.delegates[number]
        backend, blob = delegate.text(0), self.program.delegated(delegate.table(1))
        if backend != "XnnpackBackend":
            reason = (
                f"a part compiled for {backend[:100]}, whose weights are not read; export it for XNNPACK, or pass the "
                "checkpoint or the .pt2 file of torch.export"
            )
            name = f"{self.name}: delegate {number}"
            self.opaque.append(Tensor(name, (len(blob),), "uint8", lambda: np.empty(0)))
            return [Skipped(name, reason)]
        graph = XnnpackGraph(self.program.path, blob, self.program.by_name)
        self.graphs.append(graph)
        found, outputs = graph.layers([depths.get(one) for one in tensors])
        depths |= {one: at for one, at in zip(tensors[graph.inputs :], outputs, strict=False) if at is not None}
        return found


def _pair(numbers: Sequence[int]) -> tuple[int, int] | None:
    return (numbers[0], numbers[1]) if len(numbers) == 2 and all(0 < one < 1 << 31 for one in numbers) else None

"""The constants of an ONNX model: tensors in the file or beside it, and what nodes compute from them.

Exporters and quantisers do not always leave a weight as one tensor: it may pass through ``Cast`` and ``Transpose``, be
stored as integers with a scale, or be standardised by a handful of arithmetic nodes. All of them are evaluated, one at
a time, by the reference implementation of the ONNX library, and only when a weight is read. Operators are limited to
those whose result has a size known beforehand, which is accounted for (:mod:`~cnnfilterdb.ingest.formats.limits`):
a few bytes could otherwise ask for gigabytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import SparseTensorProto, TensorProto, helper, numpy_helper

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest.formats import limits
from cnnfilterdb.ingest.formats.companions import companion
from cnnfilterdb.ingest.formats.damage import reason_of
from cnnfilterdb.ingest.formats.onnx.graph import Step, Value

__all__ = ["Constants", "UnknownConstantError", "onnx_dtype_name"]

_Array = npt.NDArray[Any]

#: No constant may have more elements (1 GiB as float32); the largest weights of convolutions have a hundredth.
_MAX_ELEMENTS = 1 << 28
_MAX_STEPS = 10_000  # nodes behind one weight

_DTYPES = {
    "FLOAT": "float32",
    "DOUBLE": "float64",
    "FLOAT8E4M3FN": "float8_e4m3fn",
    "FLOAT8E4M3FNUZ": "float8_e4m3fnuz",
    "FLOAT8E5M2": "float8_e5m2",
    "FLOAT8E5M2FNUZ": "float8_e5m2fnuz",
    "FLOAT8E8M0": "float8_e8m0fnu",
    "FLOAT4E2M1": "float4_e2m1fn",
}


class UnknownConstantError(Exception):
    """A constant that cannot be computed; the message says why, and is shown with the name of its layer."""


def onnx_dtype_name(tensor: Any) -> str:
    """Element type of a stored tensor, as written in the database.

    >>> onnx_dtype_name(TensorProto(data_type=TensorProto.BFLOAT16))
    'bfloat16'
    """
    stored = tensor.values if isinstance(tensor, SparseTensorProto) else tensor
    try:
        name = TensorProto.DataType.Name(stored.data_type)
    except ValueError:
        return f"type {stored.data_type}"
    return str(_DTYPES.get(name, name.lower()))


class Constants:
    """Reads the constants of one model."""

    def __init__(self, path: Path) -> None:
        """Prepare reading; nothing is read yet.

        Args:
            path: The model; external data is searched for in the same folder.
        """
        self.path = path
        self._keys: dict[Any, int] = {}
        self._opened: set[Path] = set()

    def sources(self, value: Value) -> list[Value]:
        """The stored tensors that a constant is computed from, the largest first."""
        stored = [value] if value.tensor is not None else []
        for step in self._steps(value):
            stored += [source for source in step.inputs if source is not None and source.tensor is not None]
        return sorted(dict.fromkeys(stored), key=lambda source: -math.prod(_dims(source.tensor)))

    def operators(self, value: Value) -> set[str]:
        """Names of the operators that a constant is computed by."""
        return {step.op for step in self._steps(value)}

    def key(self, value: Value) -> int:
        """A number that two constants share if they are the same computation on the same tensors."""
        keys: dict[Value, int] = {}

        def known(source: Value | None) -> int:
            if source is None:
                return -1
            if source.maker is None:
                return self._keys.setdefault(id(source), len(self._keys))
            return keys[source]

        for step in self._steps(value):
            if step.op in _SAME:
                keys[step.outputs[0]] = known(step.input(0))
                continue
            attributes = tuple(sorted((name, a.SerializeToString()) for name, a in step.attributes.items()))
            limits.current().step(sum(len(text) for _, text in attributes) // 64)
            signature = (step.domain, step.op, attributes, *map(known, step.inputs))
            for position, output in enumerate(step.outputs):
                keys[output] = self._keys.setdefault((position, signature), len(self._keys))
        return known(value)

    def shape(self, value: Value) -> tuple[int, ...]:
        """Shape of a constant; it is computed where it does not follow from the stored tensor.

        Raises:
            UnknownConstantError: It cannot be computed.
        """
        if value.tensor is not None:
            dims = _dims(value.tensor)
            _check_size(dims)
            self._check_stored(value)
            return dims
        step = value.maker
        if step is not None and (step.op in _SAME or step.op in _SAME_SHAPE) and (source := step.input(0)) is not None:
            return self.shape(source)
        if step is not None and step.op == "Transpose" and (source := step.input(0)) is not None:
            before = self.shape(source)
            order = step.integers("perm") or tuple(reversed(range(len(before))))
            if sorted(order) == list(range(len(before))):
                return tuple(before[axis] for axis in order)
        return self.read(value).shape

    def read(self, value: Value) -> _Array:
        """Compute a constant.

        Raises:
            UnknownConstantError: It cannot be computed: an operator that is not evaluated, a tensor that is missing.
        """
        arrays: dict[Value, _Array] = {}

        def get(source: Value | None) -> _Array | None:
            if source is None:
                return None
            if source not in arrays:
                if source.tensor is None:
                    raise UnknownConstantError("its weight is not in the file")
                arrays[source] = self._decode(source)
            return arrays[source]

        for step in self._steps(value):
            limits.current().step()
            arrays.update(zip(step.outputs, _evaluate(step, [get(source) for source in step.inputs]), strict=False))
        found = get(value)
        assert found is not None  # value is one
        return found

    def _steps(self, value: Value) -> list[Step]:
        """The nodes behind a constant, in order of execution."""
        found: dict[Step, None] = {}
        stack = [value]
        while stack:
            maker = stack.pop().maker
            if maker is not None and maker not in found:
                found[maker] = None
                limits.current().step(1 + len(maker.inputs))
                if len(found) > _MAX_STEPS:
                    raise UnknownConstantError(f"its weight is computed by more than {_MAX_STEPS:,} nodes")
                stack += [source for source in maker.inputs if source is not None]
        return sorted(found, key=lambda step: step.number)

    # -----------------------------------------------------------------------------------------------------------------
    # Stored tensors

    def _decode(self, value: Value) -> _Array:
        tensor = value.tensor
        dims = _dims(tensor)
        _check_size(dims)
        if isinstance(tensor, SparseTensorProto):
            return self._decode_sparse(value.name, tensor, dims)
        self._check_stored(value)
        return self._array(value.name, tensor)

    def _array(self, name: str, tensor: Any) -> _Array:
        limits.current().allocate(2 * (_bytes_needed(tensor) or 0))
        if tensor.data_location == TensorProto.EXTERNAL:
            stored = TensorProto(dims=tensor.dims, data_type=tensor.data_type, raw_data=self._external(name, tensor))
        else:
            stored = tensor
        try:
            return np.asarray(numpy_helper.to_array(stored))
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise UnknownConstantError(f"its tensor {name} is damaged ({reason_of(error)})") from error

    def _decode_sparse(self, name: str, tensor: Any, dims: tuple[int, ...]) -> _Array:
        values, indices = self._array(name, tensor.values), self._array(name, tensor.indices)
        limits.current().allocate(math.prod(dims) * values.dtype.itemsize + 8 * indices.size)
        dense = np.zeros(dims, values.dtype)
        try:
            if indices.ndim == 1:
                dense.reshape(-1)[indices] = values
            else:
                dense[tuple(indices.T)] = values
        except (IndexError, ValueError) as error:
            raise UnknownConstantError(f"its sparse tensor {name} is damaged ({reason_of(error)})") from error
        return dense

    def _check_stored(self, value: Value) -> None:
        """Whether a tensor holds as many bytes as its shape needs, without decoding it."""
        tensor = value.tensor
        if isinstance(tensor, SparseTensorProto):
            return
        expected = _bytes_needed(tensor)
        if expected is None:
            raise UnknownConstantError(f"elements of type {onnx_dtype_name(tensor)}")
        if tensor.HasField("segment"):
            raise UnknownConstantError("its tensor is stored in segments, which ONNX no longer supports")
        if tensor.data_location == TensorProto.EXTERNAL:
            self._locate(value.name, tensor)
        elif tensor.HasField("raw_data") and len(tensor.raw_data) != expected:
            raise UnknownConstantError(
                f"its tensor {value.name} should have {expected:,} bytes and has {len(tensor.raw_data):,}"
            )

    def _locate(self, name: str, tensor: Any) -> tuple[Path, int, int]:
        """File, offset and length of a tensor that is stored outside of the model.

        Raises:
            WeightFileError: The file is missing, too short, or outside of the folder of the model.
        """
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        path = companion(self.path, location)
        size = path.stat().st_size
        if path not in self._opened:
            self._opened.add(path)
            limits.current().opened(size)
        needed = _bytes_needed(tensor) or 0
        offset, length = (_whole(entries.get(key), default) for key, default in (("offset", 0), ("length", needed)))
        if offset < 0 or length != needed or offset + length > size:
            raise WeightFileError(
                f"{self.path}: {name} should be {needed:,} bytes at {offset:,} of {location!r}, which has {size:,} "
                f"(length {entries.get('length', 'not given')}); the two files do not belong together"
            )
        return path, offset, length

    def _external(self, name: str, tensor: Any) -> bytes:
        path, offset, length = self._locate(name, tensor)
        try:
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read(length)
        except OSError as error:
            raise WeightFileError(f"{path}: cannot be read: {error.strerror}") from error
        if len(data) != length:
            raise WeightFileError(f"{path}: ends before the data of {name}; download it again")
        return data


def _dims(tensor: Any) -> tuple[int, ...]:
    return tuple(tensor.dims)


def _whole(text: str | None, default: int) -> int:
    if text is None:
        return default
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else -1


_BITS = {
    **dict.fromkeys(("UINT2", "INT2"), 2),
    **dict.fromkeys(("UINT4", "INT4", "FLOAT4E2M1"), 4),
    **dict.fromkeys(("UINT8", "INT8", "BOOL"), 8),
    **dict.fromkeys(("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0"), 8),
    **dict.fromkeys(("UINT16", "INT16", "FLOAT16", "BFLOAT16"), 16),
    **dict.fromkeys(("UINT32", "INT32", "FLOAT"), 32),
    **dict.fromkeys(("UINT64", "INT64", "DOUBLE"), 64),
}


def _bytes_needed(tensor: Any) -> int | None:
    """Bytes that the elements of a tensor take, None for strings and unknown types."""
    try:
        bits = _BITS.get(TensorProto.DataType.Name(tensor.data_type))
    except ValueError:
        return None
    return None if bits is None else (math.prod(tensor.dims) * bits + 7) // 8


def _check_size(shape: Sequence[int]) -> None:
    if any(side < 0 for side in shape) or math.prod(shape) > _MAX_ELEMENTS:
        raise UnknownConstantError(f"a tensor of shape {tuple(shape)} on the way to its weight, which is too large")


# ---------------------------------------------------------------------------------------------------------------------
# Operators

_SAME = frozenset({"Identity", "Cast", "CastLike", "Dropout"})  # do not change the numbers
_SAME_SHAPE = frozenset({"DequantizeLinear", "QuantizeLinear"})


def _broadcast(*arrays: _Array) -> tuple[int, ...]:
    return np.broadcast_shapes(*(array.shape for array in arrays))


def _first(*arrays: _Array) -> tuple[int, ...]:
    return arrays[0].shape


def _product(a: _Array, b: _Array) -> tuple[int, ...]:
    return (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), *a.shape[-2:-1], *b.shape[-1:])


def _joined(*arrays: _Array) -> tuple[int, ...]:
    return (sum(array.size for array in arrays),)


def _gathered(data: _Array, indices: _Array) -> tuple[int, ...]:
    return (indices.size, data.size)


# Upper bounds of the shape of an operator's result, given its inputs.
_LIMITS: dict[str, Callable[..., tuple[int, ...]]] = {
    **dict.fromkeys(("Identity", "Cast", "CastLike", "Dropout", "QuantizeLinear", "DequantizeLinear"), _first),
    **dict.fromkeys(("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split", "Shape"), _first),
    **dict.fromkeys(("Neg", "Abs", "Sqrt", "Exp", "Log", "Reciprocal", "Sign", "Floor", "Ceil", "Round"), _first),
    **dict.fromkeys(("Tanh", "Sigmoid", "Erf", "Relu", "Clip", "Softmax"), _first),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2"), _first),
    **dict.fromkeys(("ReduceMax", "ReduceMin", "ReduceProd"), _first),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization", "LayerNormalization"), _first),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Where", "Equal", "Greater", "Less"), _broadcast),
    "MatMul": _product,
    "Concat": _joined,
    "Gather": _gathered,
    "Expand": lambda data, shape: np.broadcast_shapes(data.shape, tuple(shape.tolist())),
    "ConstantOfShape": lambda shape: tuple(shape.tolist()),
}


def _evaluate(step: Step, inputs: Sequence[_Array | None]) -> Sequence[_Array]:
    """Compute one node on arrays."""
    standard = not step.domain or (step.domain == "com.microsoft" and step.op in _SAME_SHAPE)
    limit = _LIMITS.get(step.op) if standard else None
    given = [array for array in inputs if array is not None]
    if limit is None or (not given and step.op != "Constant"):
        operator = f"{step.domain}.{step.op}" if step.domain else step.op
        raise UnknownConstantError(f"its weight is computed by {operator}, which is not evaluated")
    if step.op in ("Identity", "Dropout"):
        return given[:1]
    try:
        shape = limit(*given)
        _check_size(shape)
        # The library needs the same amount again temporarily
        limits.current().allocate(2 * math.prod(shape) * max(array.itemsize for array in given))
        return _run(step, inputs)
    except (UnknownConstantError, WeightFileError):
        raise
    except Exception as error:  # numbers and attributes come from the file, and the library checks few of them
        raise UnknownConstantError(f"its weight is computed by {step.op}, which fails ({reason_of(error)})") from error


def _run(step: Step, inputs: Sequence[_Array | None]) -> Sequence[_Array]:
    from onnx.reference import ReferenceEvaluator

    names = ["" if array is None else f"i{number}" for number, array in enumerate(inputs)]
    outputs = [f"o{number}" for number in range(len(step.outputs))]
    node = helper.make_node(step.op, names, outputs)
    for name, attribute in step.attributes.items():
        node.attribute.add().CopyFrom(attribute)
        node.attribute[-1].name = name
    graph = helper.make_graph(
        [node],
        "constant",
        [helper.make_empty_tensor_value_info(name) for name in names if name],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
    )
    # The library knows these since version 19 and 21; the older versions of them are special cases
    version = 21 if step.domain or not step.version or step.op in _SAME_SHAPE else step.version
    feeds = {name: array for name, array in zip(names, inputs, strict=True) if name}
    with np.errstate(all="ignore"):
        return [np.asarray(result) for result in ReferenceEvaluator(graph, opsets={"": version}).run(None, feeds)]

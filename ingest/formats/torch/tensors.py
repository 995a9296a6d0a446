"""Storages and tensors of PyTorch files, before their numbers are read.

A pickle of PyTorch contains a tensor as a call of a function (``torch._utils._rebuild_tensor_v2`` and similar) with a
storage, an offset, a shape and strides. :data:`CONSTRUCTORS` replace these functions. They return the place of the
numbers in the file; :meth:`StoredTensor.read` reads them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cnnfilterdb.ingest.formats import limits
from cnnfilterdb.ingest.formats.blob import Blob
from cnnfilterdb.ingest.formats.dtypes import NAMED
from cnnfilterdb.ingest.formats.pickled_arrays import Array
from cnnfilterdb.ingest.network.objects import Global, Object

__all__ = [
    "CONSTRUCTORS",
    "MAX_DIMENSIONS",
    "StoredTensor",
    "TensorStorage",
    "as_storage",
    "byte_count",
    "rebuilt",
    "storage_type",
]

MAX_DIMENSIONS = 32

_STORAGE_MODULES = ("torch", "torch.cuda", "torch.storage", "torch.xpu", "torch.sparse", "torch.cuda.sparse")
_STORAGES = {
    "BFloat16Storage": "bfloat16",
    "BoolStorage": "bool",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "QInt32Storage": "qint32",
    "QInt8Storage": "qint8",
    "QUInt2x4Storage": "quint2x4",
    "QUInt4x2Storage": "quint4x2",
    "QUInt8Storage": "quint8",
    "ShortStorage": "int16",
    "UntypedStorage": "uint8",
    "_UntypedStorage": "uint8",
}
_DTYPES = {**NAMED, "qint8": NAMED["int8"], "quint8": NAMED["uint8"], "qint32": NAMED["int32"]}
_ALIASES = {
    "float": "float32", "double": "float64", "half": "float16", "long": "int64", "int": "int32", "short": "int16",
}  # fmt: skip


@dataclass(eq=False, slots=True)
class TensorStorage:
    """A block of numbers in the file, of which tensors are views.

    Attributes:
        key: Identifies it in the file.
        dtype: Element type.
        size: Number of bytes.
        blob: Provides the bytes; None until their place is known. Storages of the same bytes share it.
        byteorder: ``little`` or ``big``.
    """

    key: Any
    dtype: str
    size: int
    blob: Callable[[], Blob] | None = None
    byteorder: str = "little"
    start: int = 0

    def bytes(self, start: int, size: int) -> npt.NDArray[np.uint8]:
        """Some of its bytes."""
        if self.blob is None:
            raise ValueError(f"storage {self.key} is missing")
        return np.frombuffer(self.blob().part(self.start + start, size).buffer(), np.uint8)


@dataclass(eq=False, slots=True)
class StoredTensor:
    """A tensor of the file.

    Attributes:
        storage: The numbers; None for a tensor without data.
        dtype: Element type.
        offset: First element in the storage.
        shape: Its shape.
        strides: Steps in elements.
        parameter: True if the file says that it is a parameter, False for a buffer.
        scale: Of a quantised tensor: scale and zero point, each a number, or one for each index of the axis.
        zero_point: See scale.
        axis: See scale; None where there is one scale.
        negative: Whether the numbers are stored with the other sign: PyTorch's negative bit.
        dense: Returns the numbers of a tensor that is not stored as a block of numbers.
        unreadable: Why its numbers cannot be read.
    """

    storage: TensorStorage | None
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    parameter: bool | None = None
    scale: Any = None
    zero_point: Any = None
    axis: int | None = None
    negative: bool = False
    dense: Callable[[], npt.NDArray[Any]] | None = None
    unreadable: str | None = None

    def __post_init__(self) -> None:
        sizes = (self.shape, self.strides)
        if not all(
            isinstance(numbers, tuple)
            and len(numbers) <= MAX_DIMENSIONS
            and all(type(n) is int and 0 <= n < 1 << 48 for n in numbers)
            for numbers in (*sizes, (self.offset,))
        ) or len(self.shape) != len(self.strides):
            raise ValueError("a tensor of an impossible shape")
        if self.storage is not None and self.dtype in _DTYPES and self.elements:
            end = (self.offset + self.span) * _DTYPES[self.dtype].itemsize
            if end > self.storage.size:
                raise ValueError(f"a tensor of {end:,} bytes in a storage of {self.storage.size:,}")

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def span(self) -> int:
        """Elements of the storage from its first to its last."""
        return 1 + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True)) if self.elements else 0

    @property
    def identity(self) -> Any:
        """The same for two tensors that are the same data."""
        if self.storage is None or not self.elements:
            return id(self)
        return (id(self.storage.blob), self.storage.key, self.storage.start, self.offset, self.shape, self.strides)

    def read(self) -> npt.NDArray[np.generic]:
        """The numbers, floating types as float32, quantised ones dequantised.

        Raises:
            ValueError: There are none, or more than the storage contains.
        """
        array = self._stored() if self.dense is None else self.dense()
        if self.negative:
            array = -array
        if self.dtype.startswith("q"):
            return self._dequantised(array)
        if self.dtype.startswith(("float", "bfloat")):
            with np.errstate(over="ignore"):  # what float32 cannot represent becomes infinite, and is refused later
                # ascontiguousarray gives a number without axes one
                return np.ascontiguousarray(array, np.float32).reshape(self.shape)
        return np.ascontiguousarray(array).reshape(self.shape)

    def _stored(self) -> npt.NDArray[Any]:
        dtype = _DTYPES.get(self.dtype)
        if self.storage is None or dtype is None:
            raise ValueError("no data is stored" if dtype else f"elements of type {self.dtype} cannot be read")
        # An expanded tensor has more elements than its storage; the limits count all of them
        limits.current().allocate(self.span * dtype.itemsize + 4 * self.elements)
        raw = self.storage.bytes(self.offset * dtype.itemsize, self.span * dtype.itemsize)
        # NumPy supports strides for its own types only, so those of ml_dtypes are passed as plain bytes
        flat = _swapped(raw, dtype, self.storage.byteorder).view(f"V{dtype.itemsize}")
        strides = [step * dtype.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(flat, self.shape, strides, writeable=False).view(dtype)

    def _dequantised(self, array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        scale, zero_point = _numbers(self.scale), _numbers(self.zero_point)
        if self.axis is not None:
            along = [1] * len(self.shape)
            along[self.axis] = self.shape[self.axis]
            scale, zero_point = scale.reshape(along), zero_point.reshape(along)
            return np.asarray((array.astype(np.float64) - zero_point) * scale, np.float32)
        # With one scale in float32, as PyTorch does it
        centred = np.asarray(array.astype(np.int64) - zero_point, np.float32)
        return np.asarray(centred * scale.astype(np.float32), np.float32)


def _numbers(value: Any) -> npt.NDArray[Any]:
    return value._stored() if isinstance(value, StoredTensor) else np.asarray(value)


def _swapped(raw: npt.NDArray[np.uint8], dtype: np.dtype[Any], byteorder: str) -> npt.NDArray[np.uint8]:
    if byteorder == sys.byteorder:
        return raw
    size = dtype.itemsize // (2 if dtype.kind == "c" else 1)
    return np.ascontiguousarray(raw.reshape(-1, size)[:, ::-1]).reshape(-1)


def rebuilt(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    _grad: Any = None,
    _hooks: Any = None,
    bits: Any = None,
    *_: Any,
) -> StoredTensor:
    """A tensor of the type of its storage.

    Raises:
        ValueError: It does not fit in its storage.
    """
    found = StoredTensor(as_storage(storage), as_storage(storage).dtype, offset, _sizes(shape), _sizes(strides))
    found.negative = _is_negative(bits)
    return found


def _rebuilt_with_type(
    storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, dtype: Any, bits: Any = None, *_: Any
) -> StoredTensor:
    found = StoredTensor(as_storage(storage), _dtype(dtype), offset, _sizes(shape), _sizes(strides))
    found.negative = _is_negative(bits)
    return found


def _is_negative(bits: Any) -> bool:
    return isinstance(bits, dict) and bits.get("neg") is True


def _rebuilt_quantised(storage: Any, offset: Any, shape: Any, strides: Any, quantizer: Any, *_: Any) -> StoredTensor:
    tensor = rebuilt(storage, offset, shape, strides)
    _scheme, scale, zero_point, *axis = quantizer
    tensor.axis = axis[0] if axis else None
    values = [scale, zero_point]
    if tensor.axis is None:
        fits = all(type(value) in (int, float) for value in values)
    else:
        fits = (
            type(tensor.axis) is int
            and 0 <= tensor.axis < len(tensor.shape)
            and all(_length(value) == tensor.shape[tensor.axis] for value in values)
        )
    if not fits or not tensor.dtype.startswith("q"):
        raise ValueError("a quantised tensor whose scales do not fit")
    tensor.scale, tensor.zero_point = values
    return tensor


def _length(values: Any) -> int | None:
    if isinstance(values, StoredTensor):
        return values.shape[0] if len(values.shape) == 1 and values.dtype in _DTYPES else None
    numbers = isinstance(values, list | tuple) and all(type(value) in (int, float) for value in values)
    return len(values) if numbers else None


def _rebuilt_without_data(dtype: Any, shape: Any, strides: Any, *_: Any) -> StoredTensor:
    found = StoredTensor(None, _dtype(dtype), 0, _sizes(shape), _sizes(strides))
    found.unreadable = "on PyTorch's meta device, without numbers"
    return found


def _lazy(*_: Any) -> StoredTensor:
    reason = "a lazy layer that was never initialised; run the network once and save it again"
    return StoredTensor(None, "float32", 0, (), (), unreadable=reason)


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _rebuilt_sparse(layout: Any, data: Any, *_: Any) -> StoredTensor:
    name = layout.name if isinstance(layout, Global) else _name(layout)
    if name != "sparse_coo" or len(data) < 3:
        values = next((part for part in data if isinstance(part, StoredTensor)), None)
        shape = next((_sizes(part) for part in reversed(data) if isinstance(part, list | tuple)), ())
        dtype = values.dtype if values else "float32"
        reason = f"a tensor of the layout {name}; save it as a dense one (to_dense())"
        return StoredTensor(None, dtype, 0, shape, _strides(shape), unreadable=reason)
    indices, values, shape = data[0], data[1], _sizes(data[2])
    if not isinstance(indices, StoredTensor) or not isinstance(values, StoredTensor):
        raise ValueError("a sparse tensor without indices or values")
    found = StoredTensor(None, values.dtype, 0, shape, _strides(shape))
    found.dense = lambda: _densified(indices, values, shape)
    return found


def _densified(indices: StoredTensor, values: StoredTensor, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    places, numbers = indices._stored(), values.read()
    sparse = len(places)
    if places.ndim != 2 or numbers.shape != (places.shape[1], *shape[sparse:]):
        raise ValueError("a sparse tensor whose indices and values do not fit")
    limits.current().allocate(math.prod(shape) * numbers.itemsize)
    array = np.zeros(shape, numbers.dtype)
    # Entries of the same place are added
    np.add.at(array, tuple(places), numbers)
    return array


def _rebuilt_from_array(array: Any, *_: Any) -> StoredTensor:
    # Devices other than those that PyTorch is built for store their tensors as arrays of NumPy
    if not isinstance(array, Array):
        raise ValueError("a tensor without its array")
    found = StoredTensor(None, array.dtype.name, 0, array.shape, _strides(array.shape))
    found.dense = array.read
    return found


def _rebuilt_subclass(cls: Any, dtype: Any, shape: Any, *_: Any) -> StoredTensor:
    found = StoredTensor(None, _dtype(dtype), 0, _sizes(shape), _strides(_sizes(shape)))
    found.unreadable = (
        f"a tensor of the class {_name(cls)}, whose numbers are not stored as one array; save a plain tensor"
    )
    return found


def _persistent_object(meta: Any = None, *_: Any) -> Object:
    # StyleGAN stores each module as its class name, its source code and its attributes
    if not isinstance(meta, dict) or not isinstance(meta.get("state"), dict):
        raise ValueError("a persistent object without a state")
    return Object(Global("torch_utils.persistence", _name(meta.get("class_name"))), attributes=dict(meta["state"]))


def _graph_module(attributes: Any = None, *_: Any) -> Object:
    # torch.fx stores a module as its attributes and its source code
    if not isinstance(attributes, dict):
        raise ValueError("a module of torch.fx without attributes")
    return Object(Global("torch.fx", "GraphModule"), attributes=dict(attributes))


def _parameter(data: Any = None, *_: Any) -> Any:
    return replace(data, parameter=True) if isinstance(data, StoredTensor) else data


def _rebuilt_from_type(function: Any, _cls: Any, args: Any, state: Any = None, *_: Any) -> Any:
    constructor = CONSTRUCTORS.get((function.module, function.name)) if isinstance(function, Global) else None
    found = constructor(*args) if constructor else Object(Global("", "?"), (function, args))
    # A distributed tensor: its part of this process, which may be all of it
    for part in state if isinstance(state, tuple) else (state,):
        local = part.get("_local_tensor") if isinstance(part, dict) else None
        if isinstance(found, StoredTensor) and isinstance(local, StoredTensor):
            if local.shape == found.shape:
                return local
            found.unreadable = "a part of a distributed tensor; save a full state dict"
    return found


def as_storage(value: Any) -> TensorStorage:
    """A value that must be a storage.

    Raises:
        ValueError: It is not a storage.
    """
    if not isinstance(value, TensorStorage):
        raise ValueError("a tensor without a storage")
    return value


def _sizes(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, list | tuple) else value


def _dtype(value: Any) -> str:
    if isinstance(value, int):
        raise ValueError("an element type by number")
    if not isinstance(value, Global) or value.module != "torch":
        raise ValueError("a tensor without an element type")
    return _ALIASES.get(value.name, value.name)


def _layout(name: Any = None, *_: Any) -> Global:
    return Global("torch", _name(name).rpartition(".")[2])


def _name(value: Any) -> str:
    """A name that a file gives. The text of a container in containers can be exponentially longer than the file."""
    return str(value)[:200] if isinstance(value, str | Global) else "unknown"


CONSTRUCTORS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch", "Size"): lambda sizes=(): tuple(sizes),
    ("torch", "device"): lambda *args: ":".join(str(arg) for arg in args if isinstance(arg, str | int)),
    ("torch._utils", "_rebuild_tensor"): rebuilt,
    ("torch._utils", "_rebuild_tensor_v2"): rebuilt,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuilt_with_type,
    ("torch._utils", "_rebuild_qtensor"): _rebuilt_quantised,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): _rebuilt_without_data,
    ("torch._utils", "_rebuild_sparse_tensor"): _rebuilt_sparse,
    ("torch._utils", "_rebuild_sparse_csr_tensor"): _rebuilt_sparse,
    ("torch.serialization", "_get_layout"): _layout,
    ("torch.fx.graph_module", "reduce_graph_module"): _graph_module,
    ("torch._utils", "_rebuild_device_tensor_from_numpy"): _rebuilt_from_array,
    ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): _parameter,
    ("torch._utils", "_rebuild_xla_tensor"): _rebuilt_from_array,
    ("torch._utils", "_rebuild_mlc_tensor"): _rebuilt_from_array,
    ("torch._utils", "_rebuild_wrapper_subclass"): _rebuilt_subclass,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent_object,
    ("torch.nn.parameter", "UninitializedParameter"): _lazy,
    ("torch.nn.parameter", "UninitializedBuffer"): _lazy,
    ("torch._tensor", "_rebuild_from_type"): _rebuilt_from_type,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuilt_from_type,
    ("torch.tensor", "_rebuild_from_type"): _rebuilt_from_type,
    ("torch.nn.parameter", "Parameter"): _parameter,
    ("torch.nn.parameter", "Buffer"): lambda data=None, *_: data,
    ("torch.autograd.variable", "Variable"): lambda data=None, *_: data,
    ("torch.autograd", "Variable"): lambda data=None, *_: data,
    ("torch.jit._pickle", "build_intlist"): lambda values=(): list(values),
    ("torch.jit._pickle", "build_doublelist"): lambda values=(): list(values),
    ("torch.jit._pickle", "build_boollist"): lambda values=(): list(values),
    ("torch.jit._pickle", "build_tensorlist"): lambda values=(): list(values),
    ("torch.jit._pickle", "restore_type_tag"): lambda value=None, *_: value,
}


def storage_type(value: Any) -> str:
    """Element type of a class of storages, by its exact name.

    Raises:
        ValueError: It is not a class of storages.

    >>> storage_type(Global("torch", "HalfStorage"))
    'float16'
    """
    if isinstance(value, Global) and value.module in _STORAGE_MODULES and value.name in _STORAGES:
        return _STORAGES[value.name]
    raise ValueError(f"an unknown type of storage ({_name(value)})")


def byte_count(count: Any, dtype: str) -> int:
    """Number of bytes of a number of elements.

    Raises:
        ValueError: The number is impossible.

    >>> byte_count(3, "bfloat16")
    6
    """
    if type(count) is not int or not 0 <= count < 1 << 48:
        raise ValueError(f"a storage of {count} elements")
    return count * (_DTYPES[dtype].itemsize if dtype in _DTYPES else 1)

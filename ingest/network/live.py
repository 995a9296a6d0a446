"""Tensors in memory, of PyTorch, NumPy or anything that converts to an array, as tensors that are read later."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.errors import WeightFileError
from cnnfilterdb.ingest.network.layers import Tensor

__all__ = ["KERAS", "identity_of", "is_array", "is_keras", "is_torch", "named_tensor", "shape_of"]

#: The packages that have models of Keras.
KERAS = ("keras", "tf_keras", "tensorflow")

_LAZY = ("UninitializedParameter", "UninitializedBuffer")
_DISTRIBUTED = ("DTensor", "ShardedTensor", "AsyncCollectiveTensor")


def is_array(value: Any) -> bool:
    """Whether a value is a tensor or an array."""
    # A lazy parameter raises an error when its shape is read
    no_shape = type(value).__name__ in _LAZY or getattr(value, "is_nested", False) is True
    return no_shape or (hasattr(value, "dtype") and shape_of(value) is not None)


def is_torch(value: Any) -> bool:
    """Whether a value is a tensor of PyTorch, whose layout is known."""
    return any(cls.__module__.partition(".")[0] == "torch" for cls in type(value).__mro__)


def is_keras(value: Any) -> bool:
    """Whether an object is a model or a layer of Keras, without importing it."""
    packages = {cls.__module__.partition(".")[0] for cls in type(value).__mro__}
    return not packages.isdisjoint(KERAS) and hasattr(value, "_flatten_layers") and hasattr(value, "weights")


def shape_of(value: Any) -> tuple[int, ...] | None:
    """Its shape; None if it has none."""
    try:
        return tuple(int(side) for side in value.shape)
    except Exception:  # lazy and nested tensors, symbolic sizes: each raises a different error
        return None


def named_tensor(name: str, value: Any, parameter: bool | None) -> Tensor:
    """A tensor or an array under a name."""
    dtype = getattr(value.dtype, "name", None) or str(value.dtype).removeprefix("torch.")
    unreadable = _unreadable(value)
    return Tensor(name, shape_of(value) or (), dtype, lambda: _to_numpy(name, value), parameter, unreadable)


def identity_of(value: Any) -> Any:
    """The same for two tensors that are the same data."""
    try:
        if value.device.type != "meta":
            return (value.untyped_storage().data_ptr(), value.storage_offset(), tuple(value.shape), value.stride())
    except Exception:  # not a dense tensor of PyTorch
        pass
    return id(value)


def _unreadable(value: Any) -> str | None:
    if type(value).__name__ in _LAZY:
        return "a lazy layer that was never initialised; run the network once before you save it"
    if type(value).__name__ in _DISTRIBUTED:
        return "a part of a distributed tensor; gather it (full_tensor(), or a full state dict) before you save it"
    if type(value).__name__ == "FakeTensor":
        return "a fake tensor of PyTorch, without numbers; load the weights first"
    if type(value).__name__ == "MaskedTensor":
        return "a masked tensor; pass its numbers, get_data()"
    if getattr(value, "is_nested", False) is True:
        return "a nested tensor, of parts with different shapes"
    if getattr(getattr(value, "device", None), "type", None) == "meta":
        return "on PyTorch's meta device, without numbers; load the weights first"
    return None


def _to_numpy(name: str, value: Any) -> npt.NDArray[np.generic]:
    """A copy, so that stored weights do not change if training continues."""
    try:
        return _copied(value)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise WeightFileError(
            f"{name}: its numbers cannot be read from memory ({reason}); pass a dense array"
        ) from error


def _copied(value: Any) -> npt.NDArray[np.generic]:
    if hasattr(value, "detach"):
        value = value.detach()
        if getattr(value, "is_quantized", False):
            value = value.dequantize()
        if str(value.layout) != "torch.strided":  # sparse, or of mkldnn
            value = value.to_dense()
        value = value.cpu().resolve_conj().resolve_neg()
        if value.is_floating_point():
            value = value.float()
        return np.array(value.numpy())
    array = np.array(np.asarray(value))  # __array__ of some libraries does not know the argument copy
    if array.dtype.kind not in "biufc" and not array.dtype.name.startswith(("bf", "float")):
        raise TypeError(f"{type(value).__name__} gives no numbers")
    return (
        array.astype(np.float32) if array.dtype.kind == "f" or array.dtype.name.startswith(("bf", "float")) else array
    )

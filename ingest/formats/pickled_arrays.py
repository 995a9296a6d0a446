"""NumPy arrays in pickles: what ``ndarray.__reduce__`` and its relatives write, as bytes with a shape and a type."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from cnnfilterdb.ingest.network.objects import Global

__all__ = ["ARRAY_CONSTRUCTORS", "Array", "ElementType"]


@dataclass(eq=False, slots=True)
class Array:
    """A NumPy array of a pickle. Arrays of records or dates stay empty, as they are not needed here.

    Attributes:
        shape: Its shape.
        dtype: Its element type, byte order included.
        order: ``C`` or ``F``.
        data: Its bytes; for an array of Python objects the list of them, in C order.
    """

    shape: tuple[int, ...] = ()
    dtype: np.dtype[Any] = np.dtype("V0")  # noqa: RUF009 (a dtype is immutable)
    order: str = "C"
    data: bytes | list[Any] = b""

    def build(self, state: Any) -> None:
        """Set the state that ``ndarray.__reduce__`` writes: ([version,] shape, dtype, is_fortran, bytes)."""
        shape, dtype, fortran, data = state[-4:]
        self.fill(data, dtype, shape, "F" if fortran else "C")

    def fill(self, data: Any, dtype: Any, shape: Any, order: str) -> None:
        """Set the content, after checking its size.

        Raises:
            ValueError: The size does not match, or the elements are neither numbers nor listed.
        """
        if isinstance(data, str):
            data = data.encode("latin-1")  # written by Python 2
        if not isinstance(dtype, ElementType):
            raise ValueError("an array without an element type")
        if dtype.dtype is None:
            return
        if not isinstance(data, list if dtype.dtype.hasobject else bytes | bytearray):
            raise ValueError("an array whose elements are not in it")
        if (
            not isinstance(shape, tuple)
            or len(shape) > 32
            or not all(isinstance(n, int) and 0 <= n < 1 << 48 for n in shape)
        ):
            raise ValueError("an array of an impossible shape")
        elements = math.prod(shape)
        if isinstance(data, list):
            if elements != len(data):
                raise ValueError(f"an array of shape {shape} with {len(data)} objects")
            self.shape, self.dtype, self.order, self.data = shape, dtype.dtype, "C", data
            return
        if elements * dtype.dtype.itemsize != len(data):
            raise ValueError(f"an array of shape {shape} and {dtype.dtype} with {len(data)} bytes")
        self.shape, self.dtype, self.order, self.data = shape, dtype.dtype, order, bytes(data)

    def read(self) -> npt.NDArray[Any]:
        """The array, read-only and without a copy unless it holds Python objects."""
        if isinstance(self.data, list):
            objects = np.empty(len(self.data), object)
            for number, element in enumerate(self.data):  # at once, NumPy would look into lists among them
                objects[number] = element
            return objects.reshape(self.shape)
        return np.frombuffer(self.data, self.dtype).reshape(self.shape, order="F" if self.order == "F" else "C")


@dataclass(eq=False, slots=True)
class ElementType:
    """An element type; None for one that is neither numbers, text nor objects."""

    dtype: np.dtype[Any] | None

    def build(self, state: Any) -> None:
        """Set the state that ``dtype.__reduce__`` writes."""
        # (version, byte order, subdtype, names, fields, ...): the last three are set for record types only
        if len(state) > 4 and any(part is not None for part in state[2:5]):
            self.dtype = None
        elif self.dtype is not None and state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


@dataclass(eq=False, slots=True)
class _MaskedArray(Array):
    """An array of ``numpy.ma``, with its numbers, whatever its mask is, as ``numpy.asarray`` returns them."""

    def build(self, state: Any) -> None:
        """Set the state that ``MaskedArray.__reduce__`` writes: the fill value and the mask come last."""
        _, shape, dtype, fortran, data, _mask, _fill = state
        self.fill(data, dtype, shape, "F" if fortran else "C")


_DTYPE = re.compile(r"[<>=|]?(?:[?bBhHiIlLqQefdFD]|[biufcSUV]\d{1,4}|O[48]?)")
_NUMBER_TYPES = frozenset(
    [
        "bool",
        "bool_",
        "complex128",
        "complex64",
        "float16",
        "float32",
        "float64",
        "int16",
        "int32",
        "int64",
        "int8",
        "object",
        "uint16",
        "uint32",
        "uint64",
        "uint8",
    ]
)
_ADDED_TYPES = frozenset(["bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"])


def _dtype(name: Any, *_: Any) -> ElementType:
    if isinstance(name, Global):
        # A type by its class: numpy.float32, or those that ml_dtypes adds to NumPy
        name = name.name
        if name in _ADDED_TYPES:
            return ElementType(np.dtype(getattr(ml_dtypes, name)))
    if not isinstance(name, str):
        raise ValueError("an array without an element type")
    return ElementType(np.dtype(name) if name in _NUMBER_TYPES or _DTYPE.fullmatch(name) else None)


def _scalar(dtype: ElementType, data: Any = b"") -> Any:
    array = Array()
    array.fill(data, dtype, (), "C")
    return array.read()[()] if array.data else None


def _frombuffer(data: Any, dtype: Any, shape: Any, order: str, *_: Any) -> Array:
    array = Array()
    array.fill(data, dtype, shape, order)
    return array


def _array_of_state(_function: Any, _args: Any, state: Any, *_: Any) -> Array:
    # JAX and dill: (function, arguments, state), as ``ndarray.__reduce__`` returns them
    array = Array()
    array.build(state)
    return array


_CORES = ("numpy.core", "numpy._core")

#: Functions that replace those that make arrays: (module, name) -> function.
ARRAY_CONSTRUCTORS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _dtype,
    **{(f"{core}.multiarray", "_reconstruct"): lambda *_: Array() for core in _CORES},
    **{(f"{core}.multiarray", "scalar"): _scalar for core in _CORES},
    **{(f"{core}.numeric", "_frombuffer"): _frombuffer for core in _CORES},
    ("numpy.ma.core", "_mareconstruct"): lambda *_: _MaskedArray(),
    ("numpy.ma", "_mareconstruct"): lambda *_: _MaskedArray(),
    **{(f"dill.{module}", "_create_array"): _array_of_state for module in ("_dill", "dill")},
    **{(f"jax._src.{module}", "_reconstruct_array"): _array_of_state for module in ("array", "device_array")},
}

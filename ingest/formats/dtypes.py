"""Element types by name, with the little-endian order in which files store them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import ml_dtypes
import numpy as np

__all__ = ["NAMED", "by_code"]

_NUMPY = ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32")
_WIDE = ("float64", "complex64", "complex128")
_OTHERS = ("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "int4")

#: All element types that are read: name -> type.
NAMED: Mapping[str, np.dtype[Any]] = {
    **{name: np.dtype(name).newbyteorder("<") for name in (*_NUMPY, *_WIDE)},
    **{name: np.dtype(getattr(ml_dtypes, name)) for name in _OTHERS},
}

Code = TypeVar("Code")


def by_code(names: Mapping[Code, str]) -> dict[Code, np.dtype[Any]]:
    """The table of a format: what it calls an element type -> the type.

    >>> {code: dtype.str for code, dtype in by_code({"F32": "float32"}).items()}
    {'F32': '<f4'}
    """
    return {code: NAMED[name] for code, name in names.items()}

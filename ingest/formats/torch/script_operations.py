"""Operations of TorchScript that matter when a forward pass is followed: convolutions, packed weights, arithmetic."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

__all__ = [
    "ARITHMETIC",
    "CHANGES_OF_LISTS",
    "CONVOLUTIONS",
    "DILATION",
    "GROUPS",
    "PACKERS",
    "QUESTIONS",
    "STRIDE",
    "TRANSPOSED",
    "_PLAIN",
    "is_plain",
]

# Positions of arguments (weight is the second of each)
STRIDE, DILATION, GROUPS, TRANSPOSED = "stride", "dilation", "groups", "transposed"
CONVOLUTIONS: dict[str, dict[int, str]] = {
    "conv2d": {3: STRIDE, 5: DILATION, 6: GROUPS},
    "conv_transpose2d": {3: STRIDE, 6: GROUPS, 7: DILATION},
    "_convolution": {3: STRIDE, 5: DILATION, 6: TRANSPOSED, 8: GROUPS},
    "convolution": {3: STRIDE, 5: DILATION, 6: TRANSPOSED, 8: GROUPS},
    "_convolution_mode": {3: STRIDE, 5: DILATION, 6: GROUPS},
    "quantized.conv2d": {},
    "quantized.conv2d_relu": {},
    "quantized.conv_transpose2d": {},
}
# The weight is the first argument of these
PACKERS: dict[str, dict[int, str]] = {
    "quantized.conv2d_prepack": {2: STRIDE, 4: DILATION, 5: GROUPS},
    "quantized.conv_transpose2d_prepack": {2: STRIDE, 5: DILATION, 6: GROUPS},
}
# Properties of a tensor that are fixed by the size of the image
QUESTIONS = frozenset(
    {
        *("size", "dim", "len", "numel", "stride", "is_floating_point", "is_complex"),
        *("prim.shape", "prim.dtype", "prim.device", "prim.layout", "prim.is_quantized", "prim.data"),
    }
)
ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "floordiv": operator.floordiv,
    "remainder": operator.mod,
    "neg": operator.neg,
    "__not__": operator.not_,
    "__and__": operator.and_,
    "__or__": operator.or_,
    "__getitem__": operator.getitem,
    "len": len,
    "__range_length": lambda start, stop, step: len(range(start, stop, step)),
    "__derive_index": lambda index, start, step: start + index * step,
    "__contains__": lambda container, item: item in container,
}
CHANGES_OF_LISTS = frozenset(
    {"append", "extend", "insert", "_set_item", "pop", "clear", "reverse", "remove", "sort", "Delete", "update"}
)
_PLAIN = (int, float, str, bool, type(None))
# Hostile code makes long ones by adding or repeating them
MAX_PLAIN = 1_000


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a text, or a short list of numbers."""
    if isinstance(value, str | list | tuple) and len(value) > MAX_PLAIN:
        return False
    return isinstance(value, _PLAIN) or (
        isinstance(value, list | tuple) and all(isinstance(part, int | float | bool) for part in value)
    )

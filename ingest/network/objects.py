"""Objects of a pickle as plain records: the name of their class and what is stored in them, never live objects."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Global", "Object"]


# The state of a quantised convolution of PyTorch, in the order of its __getstate__
_QUANTISED_CLASS = re.compile(r"torch\.(?:ao\.)?nn\.(?:intrinsic\.)?quantized\b")
_QUANTISED = (
    *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "transposed", "output_padding"),
    *("groups", "padding_mode", "weight", "bias", "scale", "zero_point", "training"),
)


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a class or function, never the thing itself."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, slots=True)
class Object:
    """What a file stores in an instance of a class.

    Attributes:
        cls: Name of the class, or of the function that would have created the object.
        args: Arguments of that call.
        attributes: Instance attributes.
        items: Content of a subclass of dict.
        elements: Content of a subclass of list or set.
        state: State of another kind than attributes, for a ``__setstate__`` that is not called.
    """

    cls: Global
    args: tuple[Any, ...] = ()
    attributes: dict[Any, Any] = field(default_factory=dict)
    items: dict[Any, Any] = field(default_factory=dict)
    elements: list[Any] = field(default_factory=list)
    state: Any = None

    def build(self, state: Any) -> None:
        """Set the state of the BUILD opcode: attributes, or a pair (attributes, slots)."""
        parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
        if all(part is None or isinstance(part, dict) for part in parts):
            for part in parts:
                self.attributes.update(part or {})
        elif _QUANTISED_CLASS.match(self.cls.module) and isinstance(state, tuple) and len(state) == len(_QUANTISED):
            found = dict(zip(_QUANTISED, state, strict=True))
            weights = {name: found.pop(name) for name in ("weight", "bias")}
            self.attributes.update(found | {"_parameters": weights, "_buffers": {}, "_modules": {}})
        else:
            self.state = state

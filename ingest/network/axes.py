"""Weights in the layouts of other frameworks, converted to (out, in / groups, h, w)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cnnfilterdb.ingest.network.layers import ConvLayer, Kind, Skipped, Tensor

__all__ = ["Pair", "turned", "unique_names"]

Pair: TypeAlias = tuple[int, int]


def turned(
    name: str,
    tensor: Tensor,
    *,
    form: str,
    axes: tuple[int, int, int, int],
    channels: int | None,
    stride: Pair | None = None,
    dilation: Pair | None = None,
) -> ConvLayer | Skipped:
    """A layer whose weight is stored in another layout.

    Args:
        name: Its name.
        tensor: The weight.
        form: ``conv``, ``depthwise`` or ``transposed``.
        axes: Order of the stored axes that makes (out, in / groups, h, w); for a depthwise layer the first two are
            those whose product counts its outputs.
        channels: Channels of its input, if known. A depthwise layer states them itself.
        stride: (vertical, horizontal).
        dilation: (vertical, horizontal).
    """
    if len(tensor.shape) != 4:
        return Skipped(name, f"a weight of shape {tensor.shape}; expected four dimensions", tensor.parts)
    if not tensor.dtype.startswith(("float", "bfloat", "qint", "quint")):
        return Skipped(name, f"elements of type {tensor.dtype}", tensor.parts)
    if 0 in tensor.shape:
        return Skipped(name, f"empty: shape {tensor.shape}", tensor.parts)
    first, second, height, width = (tensor.shape[axis] for axis in axes)
    kind: Kind | None
    groups: int | None
    in_channels: int | None
    if form == "depthwise":
        in_channels = groups = channels or first
        shape = (first * second, 1, height, width)
        kind = "conv" if groups == 1 else "depthwise"
    elif form == "transposed":
        in_channels, groups = second, 1 if channels in (None, second) else None
        shape, kind = (first, second, height, width), "transposed"
    else:
        shape = (first, second, height, width)
        groups = channels // second if channels and channels % second == 0 else None
        groups = groups if groups is None or first % groups == 0 else None
        in_channels = None if groups is None else channels
        kind = None if groups is None else "conv" if groups == 1 else "depthwise" if second == 1 else "grouped"

    def read() -> npt.NDArray[np.float32]:
        return np.ascontiguousarray(tensor.read().transpose(axes).reshape(shape), np.float32)

    return ConvLayer(
        name=name,
        shape=shape,
        read=read,
        dtype=tensor.dtype,
        kind=kind,
        in_channels=in_channels,
        groups=groups,
        stride=stride,
        dilation=dilation,
        tensors=tensor.parts,
    )


def unique_names(found: Sequence[ConvLayer], holders: Sequence[str]) -> list[ConvLayer]:
    """Give layers that share a name, such as the halves of a separable convolution, the names of their weights."""
    counts = Counter(one.name for one in found)
    named = [
        replace(one, name=holder) if counts[one.name] > 1 else one for one, holder in zip(found, holders, strict=True)
    ]
    seen: Counter[str] = Counter()
    result = []
    for one in named:
        seen[one.name] += 1
        result.append(one if seen[one.name] == 1 else replace(one, name=f"{one.name}#{seen[one.name]}"))
    return result

"""Convolution layers of formats that state what a weight is: whether it is transposed, its groups, stride and dilation.

OpenVINO, Caffe, Darknet, ncnn and Core ML all store a weight as (out, in / groups, h, w), or that of a transposed layer
as (in, out / groups, h, w), with its attributes. Nothing has to be inferred.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from cnnfilterdb.ingest.formats import limits
from cnnfilterdb.ingest.network.axes import Pair
from cnnfilterdb.ingest.network.extract import conv_depths, untransposed
from cnnfilterdb.ingest.network.layers import ConvLayer, Kind, Skipped, Tensor

__all__ = ["explicit_layer", "placed"]

_DIMENSIONS = {3: "a one-dimensional convolution", 5: "a three-dimensional convolution"}


def explicit_layer(
    name: str,
    tensor: Tensor,
    *,
    transposed: bool = False,
    groups: int = 1,
    stride: Pair | None = None,
    dilation: Pair | None = None,
) -> ConvLayer | Skipped:
    """A layer of which everything is known.

    Args:
        name: Its name.
        tensor: Its weight: (out, in / groups, h, w), or of a transposed layer (in, out / groups, h, w).
        transposed: Whether it is a transposed convolution.
        groups: Number of groups.
        stride: (vertical, horizontal).
        dilation: (vertical, horizontal).

    >>> weight = Tensor("w", (8, 1, 3, 3), "float32", read=lambda: np.ones((8, 1, 3, 3)))
    >>> layer = explicit_layer("dw", weight, groups=8)
    >>> layer.kind, layer.in_channels
    ('depthwise', 8)
    """
    if len(tensor.shape) != 4:
        return Skipped(name, _DIMENSIONS.get(len(tensor.shape), f"a weight of shape {tensor.shape}"))
    first, second, height, width = tensor.shape
    if 0 in tensor.shape:
        return Skipped(name, f"an empty weight of shape {tensor.shape}")
    if groups < 1 or first % groups:
        return Skipped(name, f"{groups} groups, which a weight of shape {tensor.shape} cannot have")

    def stored() -> npt.NDArray[np.float32]:
        limits.current().allocate(4 * first * second * height * width)
        return np.ascontiguousarray(tensor.read(), np.float32)

    kind: Kind = "transposed"
    shape = (second * groups, first // groups, height, width)
    read = untransposed(stored, groups)
    if not transposed:
        shape, read = (first, second, height, width), stored
        kind = "conv" if groups == 1 else "depthwise" if second == 1 else "grouped"
    return ConvLayer(
        name=name,
        shape=shape,
        read=read,
        dtype=tensor.dtype,
        kind=kind,
        in_channels=first if transposed else second * groups,
        groups=groups,
        stride=stride,
        dilation=dilation,
        tensors=tensor.parts,
    )


def placed(layers: list[ConvLayer], depths: list[int | None]) -> tuple[ConvLayer, ...]:
    """Layers with the ranks of their depths in a graph."""
    return tuple(
        replace(layer, conv_depth=rank, conv_depth_norm=norm, depth_source=None if rank is None else "graph")
        for layer, (rank, norm) in zip(layers, conv_depths(depths), strict=True)
    )

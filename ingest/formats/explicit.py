"""Convolution layers of formats that state what a weight is: whether it is transposed, its groups, stride and dilation.

OpenVINO, Caffe, Darknet, ncnn, Core ML, PaddlePaddle and ExecuTorch all store a weight as (out, in / groups, h, w), or
that of a transposed layer as (in, out / groups, h, w), with its attributes. Nothing has to be inferred.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from cnnfilterdb.ingest.formats import limits
from cnnfilterdb.ingest.network.axes import Pair
from cnnfilterdb.ingest.network.composition import parameters
from cnnfilterdb.ingest.network.contents import contents_of
from cnnfilterdb.ingest.network.extract import conv_depths, untransposed
from cnnfilterdb.ingest.network.layers import ConvLayer, Kind, Skipped, Tensor, Weights

__all__ = ["explicit_layer", "explicit_weights"]

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
        why = _DIMENSIONS.get(len(tensor.shape), f"a weight of shape {tensor.shape}")
        return Skipped(name, why, tensor.parts)
    first, second, height, width = tensor.shape
    if 0 in tensor.shape:
        return Skipped(name, f"an empty weight of shape {tensor.shape}", tensor.parts)
    if groups < 1 or first % groups:
        return Skipped(name, f"{groups} groups, which a weight of shape {tensor.shape} cannot have", tensor.parts)

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


def explicit_weights(
    format: str, framework: str, stored: Iterable[Tensor], found: Iterable[tuple[ConvLayer | Skipped, int | None]]
) -> Weights:
    """The content of a file of which everything is known. A weight that several layers share is listed once.

    Args:
        format: Name of the format.
        framework: Framework that wrote it.
        stored: All tensors of the file, each once.
        found: Its layers and what was left out, with their depths in the graph; None where that is not known.

    >>> weight = Tensor("w", (8, 3, 3, 3), "float32", read=lambda: np.ones((8, 3, 3, 3)))
    >>> uses = [(explicit_layer(name, weight), depth) for depth, name in enumerate(["a", "b"])]
    >>> file = explicit_weights("caffe", "caffe", [weight], uses)
    >>> file.parameters, file.contents, file.skipped[0].reason
    (216, {'kernels': (1, 216)}, 'shares the weight of a')
    """
    layers: list[ConvLayer] = []
    depths: list[int | None] = []
    skipped: list[Skipped] = []
    first: dict[tuple[str, ...], str] = {}
    for one, depth in found:
        if isinstance(one, Skipped):
            skipped.append(one)
        elif first.setdefault(one.tensors, one.name) != one.name:
            skipped.append(Skipped(one.name, f"shares the weight of {first[one.tensors]}"))
        else:
            layers.append(one)
            depths.append(depth)
    placed = tuple(
        replace(layer, conv_depth=rank, conv_depth_norm=norm, depth_source=None if rank is None else "graph")
        for layer, (rank, norm) in zip(layers, conv_depths(depths), strict=True)
    )
    tensors = list(stored)
    contents = contents_of(tensors, layers, skipped)
    return Weights(format, framework, placed, parameters(tensors), tuple(skipped), contents=contents)

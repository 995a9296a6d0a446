"""The row of the layers table for one layer: what its file says about it, and the statistics of its kernels."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.errors import BadWeightsError
from cnnfilterdb.core.schema import MAX_KERNEL_WEIGHTS
from cnnfilterdb.ingest.network.layers import ConvLayer
from cnnfilterdb.stats import LayerStatistics, layer_statistics, statistics_row
from cnnfilterdb.stats.arguments import are_finite

__all__ = ["Measured", "measure"]


class Measured(NamedTuple):
    """A layer that was read and measured.

    Attributes:
        row: Its row of the layers table, without the key.
        weight: (out channels, in channels / groups, kernel height, kernel width) float32.
        statistics: Those of its kernels; None for a layer whose kernels are not stored, such as 1x1.
    """

    row: dict[str, Any]
    weight: npt.NDArray[np.float32]
    statistics: LayerStatistics | None


def measure(layer: ConvLayer, origin: str) -> Measured:
    """Read a layer and measure its kernels.

    Args:
        layer: The layer.
        origin: Name of the model in error messages.

    Raises:
        BadWeightsError: A weight is NaN or infinite, or not what was announced.
        WeightFileError: The weight cannot be read.

    >>> layer = ConvLayer("stem", (2, 1, 1, 2), read=lambda: np.float32([[[[1, 0]]], [[[0, 1]]]]))
    >>> row, weight, statistics = measure(layer, "net.pt")
    >>> row["filters"], row["stored"], row["orthogonality"], row["levels"]
    (2, True, 1.0, 2)
    """
    weight = _checked(layer, origin)
    stored = 1 < layer.shape[2] * layer.shape[3] <= MAX_KERNEL_WEIGHTS and weight.size > 0
    row = _layer_row(layer, stored, weight)
    if not stored:
        return Measured(row, weight, None)
    statistics = layer_statistics(weight)
    return Measured(row | statistics_row(statistics), weight, statistics)


def _layer_row(layer: ConvLayer, stored: bool, weight: npt.NDArray[np.float32]) -> dict[str, Any]:
    out_channels, in_per_group, height, width = layer.shape
    stride_h, stride_w = layer.stride or (None, None)
    dilation_h, dilation_w = layer.dilation or (None, None)
    return {
        "layer_name": layer.name,
        "kind": layer.kind,
        "kernel": layer.kernel,
        "kernel_h": height,
        "kernel_w": width,
        "in_channels": layer.in_channels,
        "out_channels": out_channels if layer.channels else None,
        "groups": layer.groups,
        "stride_h": stride_h,
        "stride_w": stride_w,
        "dilation_h": dilation_h,
        "dilation_w": dilation_w,
        "conv_depth": layer.conv_depth,
        "conv_depth_norm": layer.conv_depth_norm,
        "depth_source": layer.depth_source,
        "dead": layer.dead,
        "bn_folded": layer.bn_folded,
        "weight_norm": layer.weight_norm,
        "dtype": layer.dtype,
        "stored": stored,
        "filters": out_channels * in_per_group,
        # Little-endian, so that the hash is the same on every machine.
        "tensor_sha256": hashlib.sha256(np.ascontiguousarray(weight, "<f4").data).hexdigest(),
    }


def _checked(layer: ConvLayer, origin: str) -> npt.NDArray[np.float32]:
    weight = layer.read()
    if weight.shape != layer.shape or weight.dtype != np.float32:
        raise BadWeightsError(
            f"{origin}: layer {layer.name} was announced as float32 {layer.shape}, "
            f"read as {weight.dtype} {weight.shape}"
        )
    if not are_finite(weight):
        bad = weight.size - int(np.count_nonzero(np.isfinite(weight)))
        raise BadWeightsError(
            f"{origin}: layer {layer.name} has {bad:,} NaN or infinite weights of {weight.size:,}; "
            "the checkpoint is damaged or the training diverged"
        )
    return weight

"""Fingerprints of layers, as rows of their table: the spectrum of a layer and the sketch of its weight."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cnnfilterdb.core.schema import FINGERPRINTS, kernel_shape
from cnnfilterdb.stats import SKETCH_LEVELS, SKETCH_NUMBERS, layer_spectrum, weight_sketch

__all__ = ["fingerprint", "wrong_fingerprints", "wrong_numbers"]


def fingerprint(kernels: npt.NDArray[np.float32], kernel: str, out_channels: int | None) -> dict[str, Any]:
    """The columns of the fingerprints table that are computed from the kernels of a layer.

    Args:
        kernels: (n, k), in order.
        kernel: Kernel size.
        out_channels: Output channels; None where they are unknown.
    """
    sketch = weight_sketch(kernels)
    spectrum = asdict(layer_spectrum(kernels.reshape(out_channels or 1, -1, *kernel_shape(kernel))))
    numbers = {name: value for name, value in spectrum.items() if name in FINGERPRINTS.names}
    numbers["centred_norm"] = sketch.norm
    return {name: _rounded(value) for name, value in numbers.items()} | {"sketch": sketch.numbers}


def _rounded(value: float | None) -> float | None:
    """Seven digits, as many as the weights have: zeros take no space in a compressed file."""
    if value is None:
        return None
    fraction, exponent = math.frexp(value)
    return math.ldexp(round(fraction * (1 << 24)) / (1 << 24), exponent)


def wrong_fingerprints(table: pa.Table, model_id: str, hashes: dict[tuple[str, int], str]) -> str | None:
    """What is wrong with the fingerprints of a model; None if they are sound.

    Args:
        table: Rows of its file.
        model_id: Its key.
        hashes: Hash of the weight of each stored layer, of this model at least.
    """
    if set(table["model_id"].to_pylist()) - {model_id}:
        return "contains fingerprints of another model"
    numbers = table["layer"].to_pylist()
    for layer, digest in zip(numbers, table["tensor_sha256"].to_pylist(), strict=True):
        if hashes.get((model_id, layer)) != digest:
            return f"layer {layer}: computed from other weights than {model_id} has now"
    if sorted(numbers) != sorted(layer for model, layer in hashes if model == model_id):
        return f"its layers are not the stored layers of {model_id}"
    return wrong_numbers(table)


def wrong_numbers(table: pa.Table) -> str | None:
    """What is wrong with the numbers of rows of the fingerprints table; None if they are sound."""
    import pyarrow.compute as pc

    lengths = pc.list_value_length(table["sketch"])
    if lengths.null_count or pc.any(pc.not_equal(lengths, SKETCH_NUMBERS)).as_py():
        return f"sketch is not a list of {SKETCH_NUMBERS} numbers"
    values = table["sketch"].combine_chunks().flatten()
    if values.null_count or (np.abs(values.to_numpy().astype(np.int64)) > SKETCH_LEVELS).any():
        return f"sketch with a number that is missing or beyond {SKETCH_LEVELS:,}"
    for field in FINGERPRINTS:
        if pa.types.is_floating(field.type):
            found = table[field.name].drop_null().to_numpy()
            if not np.isfinite(found).all() or (field.name != "kurtosis" and (found < 0).any()):
                return f"{field.name} that is not a number from 0"
    return None

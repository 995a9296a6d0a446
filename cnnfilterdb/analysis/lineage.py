"""Which models descend from one another: their layers are paired by order and shape, and compared weight by weight.

Fine-tuning moves weights little, so a fine-tuned model and its parent point in nearly the same direction; models that
were trained apart do not. A network whose channels are permuted computes the same and is not recognised.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cnnfilterdb import stats
from cnnfilterdb.core.schema import kernel_shape, weight_columns
from cnnfilterdb.scan.ordered import filters_of
from cnnfilterdb.scan.scan import FilterFiles
from cnnfilterdb.stats import Basis, Histogram, WeightDifference, weight_difference

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["RELATED", "diff_frame", "paired_layers", "relation"]

#: Cosine from which two models are related. Of 23 pairs of unrelated models of the same shapes none was beyond 0.042.
RELATED = 0.15

#: What makes the shape of a stored weight. Groups may be unknown; the number of filters is not.
_SHAPE = ("kernel", "out_channels", "filters")


def paired_layers(first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]) -> list[tuple[int, int]]:
    """Pair the layers of two models: equal names and shapes first, then the others in order by their shapes.

    Args:
        first: Layers of one model in order, with ``layer``, ``layer_name`` and the columns that make the shape.
        second: Those of the other.

    Returns:
        Positions in both, ascending in the first. Between layers that were paired by name, the longest common sequence
        of shapes is paired.

    >>> def layer(name, channels):
    ...     return {"layer_name": name, "kernel": "3x3", "out_channels": channels, "filters": channels}
    >>> paired_layers([layer("a", 8), layer("b", 4)], [layer("x", 16), layer("y", 8), layer("z", 4)])
    [(0, 1), (1, 2)]
    """
    shapes = [[tuple(row[column] for column in _SHAPE) for row in rows] for rows in (first, second)]
    by_name = {
        (row["layer_name"], shape): place for place, (row, shape) in enumerate(zip(second, shapes[1], strict=True))
    }
    found: list[tuple[int, int]] = []
    last = -1
    for place, (row, shape) in enumerate(zip(first, shapes[0], strict=True)):
        other = by_name.get((row["layer_name"], shape), -1)
        if other > last:  # names that would cross are left to their order
            found.append((place, other))
            last = other
    pairs: list[tuple[int, int]] = []
    start = (0, 0)
    for end in [*found, (len(first), len(second))]:
        between = _common(shapes[0][start[0] : end[0]], shapes[1][start[1] : end[1]])
        pairs += [(start[0] + i, start[1] + j) for i, j in between]
        if end[0] < len(first):
            pairs.append(end)
        start = (end[0] + 1, end[1] + 1)
    return pairs


def _common(first: Sequence[object], second: Sequence[object]) -> list[tuple[int, int]]:
    """Positions of a longest common subsequence, the earliest where there are several."""
    lengths = np.zeros((len(first) + 1, len(second) + 1), np.int64)
    for i in range(len(first) - 1, -1, -1):
        for j in range(len(second) - 1, -1, -1):
            same = first[i] == second[j]
            lengths[i, j] = lengths[i + 1, j + 1] + 1 if same else max(lengths[i + 1, j], lengths[i, j + 1])
    found, i, j = [], 0, 0
    while i < len(first) and j < len(second):
        if first[i] == second[j]:
            found.append((i, j))
            i, j = i + 1, j + 1
        elif lengths[i + 1, j] >= lengths[i, j + 1]:
            i += 1
        else:
            j += 1
    return found


def relation(difference: WeightDifference) -> str:
    """How two weights, or two models, are related.

    ``identical`` bit for bit; ``scaled``: equal up to the scale of the output channels, as a folded batch normalisation
    leaves them; ``related``: the cosine is at least :data:`RELATED`; otherwise ``unrelated``.
    """
    if difference.equal_weights == difference.weights:
        return "identical"
    if difference.is_scaled:
        return "scaled"
    return "related" if (difference.cosine or 0) >= RELATED else "unrelated"


def diff_frame(
    storage: FilterFiles,
    first: pa.Table,
    second: pa.Table,
    bases: dict[str, Basis],
    component_weights: dict[str, npt.NDArray[np.float64]],
) -> pd.DataFrame:
    """The frame of :meth:`Reader.diff`.

    Args:
        storage: The storage whose files are read.
        first: The stored layers of one model, in order: rows of the layers table.
        second: Those of the other.
        bases: A basis with a range for each kernel size whose coefficients are compared.
        component_weights: The weights of its components.
    """
    import pandas as pd

    rows_a, rows_b = first.to_pylist(), second.to_pylist()
    pairs = paired_layers(rows_a, rows_b)
    weights = [dict(_weights(storage, rows)) for rows in (rows_a, rows_b)]
    rows: list[dict[str, Any]] = []
    total: WeightDifference | None = None
    moved = {kernel: [np.zeros((len(basis.mean), basis.bins)) for _ in range(2)] for kernel, basis in bases.items()}
    for i, j in pairs:
        a, b = weights[0][rows_a[i]["layer"]], weights[1][rows_b[j]["layer"]]
        one = weight_difference(a, b)
        total = one if total is None else total + one
        kernel = rows_a[i]["kernel"]
        shift = None
        if kernel in bases:
            basis = bases[kernel]
            counts = [_counts(weight, basis) for weight in (a, b)]
            for whole, part in zip(moved[kernel], counts, strict=True):
                whole += part
            shift = _shift(counts, basis, component_weights[kernel])
        rows.append(
            {
                "layer_a": rows_a[i]["layer"], "layer_b": rows_b[j]["layer"], "name_a": rows_a[i]["layer_name"],
                "name_b": rows_b[j]["layer_name"], "kernel": kernel, "depth": rows_a[i]["conv_depth_norm"],
            } | _numbers(one, shift)
        )  # fmt: skip
    columns = ["layer_a", "layer_b", "name_a", "name_b", "kernel", "depth", *_numbers(_NOTHING, None)]
    frame = pd.DataFrame(rows, columns=columns).astype({"layer_a": "Int64", "layer_b": "Int64"})
    used = [{pair[side] for pair in pairs} for side in (0, 1)]
    whole_shift = None
    if total is not None and "3x3" in bases and moved["3x3"][0].any():
        whole_shift = _shift(moved["3x3"], bases["3x3"], component_weights["3x3"])
    frame.attrs = {
        "total": None if total is None else _numbers(total, whole_shift),
        "unpaired_a": [row["layer_name"] for place, row in enumerate(rows_a) if place not in used[0]],
        "unpaired_b": [row["layer_name"] for place, row in enumerate(rows_b) if place not in used[1]],
    }
    return frame


_NOTHING = WeightDifference(0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0)


def _numbers(one: WeightDifference, shift: float | None) -> dict[str, Any]:
    return {
        "weights": one.weights,
        "cosine": one.cosine,
        "distance": one.distance,
        "changed_kernels": one.changed_kernels / one.kernels if one.kernels else None,
        "equal_weights": one.equal_weights / one.weights if one.weights else None,
        "scaled_cosine": one.scaled_cosine,
        "shift": shift,
        "relation": relation(one),
    }


def _weights(storage: FilterFiles, rows: Sequence[dict[str, Any]]) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """The weights of the layers of a model: layer -> (out, in / groups, height, width)."""
    by_kernel: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_kernel.setdefault(row["kernel"], []).append(row)
    for kernel, layers in by_kernel.items():
        parts: dict[int, list[npt.NDArray[np.float32]]] = {row["layer"]: [] for row in layers}
        for table in filters_of(storage, kernel, {layers[0]["model_id"]: list(parts)}):
            numbers = table["layer"].to_numpy()
            values = np.column_stack([table[name].to_numpy() for name in weight_columns(kernel)])
            for layer in np.unique(numbers).tolist():
                parts[layer].append(values[numbers == layer])
        for row in layers:
            weight = np.ascontiguousarray(np.concatenate(parts[row["layer"]]), np.float32)
            yield row["layer"], weight.reshape(row["out_channels"] or 1, -1, *kernel_shape(kernel))


def _counts(weight: npt.NDArray[np.float32], basis: Basis) -> npt.NDArray[np.float64]:
    assert basis.low is not None
    assert basis.high is not None
    columns = list(np.ascontiguousarray(weight.reshape(-1, len(basis.mean)).T))
    return Histogram.of_columns(columns, basis, basis.low, basis.high, basis.bins).counts.astype(np.float64)


def _shift(
    counts: Sequence[npt.NDArray[np.float64]], basis: Basis, component_weights: npt.NDArray[np.float64]
) -> float:
    """Shift of the coefficients; a component without one in the range counts as even."""
    first, second = (np.where(part.sum(axis=1, keepdims=True) > 0, part, 1.0)[None] for part in counts)
    assert basis.low is not None
    assert basis.high is not None
    return float(stats.paired_shift(first, second, component_weights, basis.low, basis.high)[0])

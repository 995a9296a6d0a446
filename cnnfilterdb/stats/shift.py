"""How groups of filters are compared: recipes of the papers, probabilities, balance."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.errors import SelectionError

__all__ = ["EMPTY_BIN", "balance_weights", "probabilities", "shares"]

#: Density that the papers' notebook gives to an empty bin: the machine epsilon of float32, in units of density.
EMPTY_BIN = float(np.finfo(np.float32).eps)


def shares(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Share of the counts of each histogram in each bin, without any correction of empty bins.

    Args:
        counts: (..., bins), whole or weighted.

    Returns:
        (..., bins) float64, summing to 1 over the last axis.

    Raises:
        SelectionError: A histogram is empty: none of its coefficients is in the range.

    >>> shares(np.array([3.0, 1.0, 0.0])).tolist()
    [0.75, 0.25, 0.0]
    """
    counts = np.asarray(counts, np.float64)
    total = counts.sum(axis=-1, keepdims=True)
    if not (total > 0).all():
        raise SelectionError("a group has no coefficient in the range of the histograms; choose a wider range")
    found: npt.NDArray[np.float64] = counts / total
    return found


def probabilities(counts: npt.NDArray[np.float64], low: float, high: float) -> npt.NDArray[np.float64]:
    """Probabilities from counts, as in the papers' notebook.

    Counts become densities, empty bins get the density :data:`EMPTY_BIN`, and each histogram is divided by its sum.

    Args:
        counts: (..., bins), whole or weighted.
        low: Left edge of the range.
        high: Right edge.

    Returns:
        (..., bins) float64, positive, summing to 1 over the last axis.

    Raises:
        SelectionError: A histogram is empty: none of its coefficients is in the range.

    >>> probabilities(np.array([3.0, 1.0]), 0, 1).tolist()
    [0.75, 0.25]
    """
    density: npt.NDArray[np.float64] = shares(counts) / ((high - low) / counts.shape[-1])
    density[density == 0] = EMPTY_BIN
    density /= density.sum(axis=-1, keepdims=True)
    return density


def balance_weights(
    filters: npt.NDArray[np.int64], groups: npt.NDArray[np.int64], members: Sequence[Hashable], balance: str
) -> npt.NDArray[np.float64]:
    """Weight of each layer's counts such that every member of a group counts the same.

    Args:
        filters: Filters of each layer, (l,).
        groups: Number of its group, (l,).
        members: What it belongs to within the group: a layer, a model, a family, (l,).
        balance: ``filters`` counts every filter the same, as the papers do; anything else every member.

    Returns:
        (l,) float64: 1, or 1 / the number of filters of the member in the group.

    >>> balance_weights(np.array([10, 30, 5]), np.array([0, 0, 0]), ["a", "a", "b"], "models").tolist()
    [0.025, 0.025, 0.2]
    """
    if balance == "filters":
        return np.ones(len(filters))
    numbers: dict[tuple[int, Hashable], int] = {}
    places = np.array([numbers.setdefault(key, len(numbers)) for key in zip(groups.tolist(), members, strict=True)])
    totals = np.bincount(places, weights=filters, minlength=len(numbers)) if len(places) else np.empty(0)
    return np.asarray(1 / totals[places] if len(places) else totals, np.float64)

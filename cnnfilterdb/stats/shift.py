"""Distribution shift between groups of filters: from histograms to divergences."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cnnfilterdb.errors import SelectionError

__all__ = ["EMPTY_BIN", "RECIPES", "Recipe", "balance_weights", "kl_shift", "kl_shift_components", "probabilities"]

#: Density that the papers' notebook gives to an empty bin: the machine epsilon of float32, in units of density.
EMPTY_BIN = float(np.finfo(np.float32).eps)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one of the papers compares groups.

    Attributes:
        low: Left edge of the histograms; None stands for the smallest coefficient of the basis.
        high: Right edge; None stands for the largest coefficient.
        weights: Weights of the components: ``explained_variance`` ratio, or ``uniform``.
    """

    low: float | None
    high: float | None
    weights: str


#: ``cvpr2022``: CNN Filter DB (arXiv 2203.15331), one range over all coefficients, weighted by explained variance
#: ratio. ``medneurips2022``: Does Medical Imaging learn different Convolution Filters? (arXiv 2210.13799), range -3 to
#: 3, equal weights. Both: 70 bins, symmetric KL divergence as a sum, in nats.
RECIPES = {
    "cvpr2022": Recipe(None, None, "explained_variance"),
    "medneurips2022": Recipe(-3.0, 3.0, "uniform"),
}


def probabilities(counts: npt.NDArray[np.float64], low: float, high: float) -> npt.NDArray[np.float64]:
    """Probabilities from counts, as the papers' notebook makes them.

    Counts become densities, empty bins get the density :data:`EMPTY_BIN`, and each histogram is divided by its sum.

    Args:
        counts: (..., bins), whole or weighted.
        low: Left edge of the range.
        high: Right edge.

    Returns:
        (..., bins) float64, positive, summing to 1 over the last axis.

    Raises:
        SelectionError: A histogram is empty: none of its coefficients lies in the range.

    >>> probabilities(np.array([3.0, 1.0]), 0, 1).tolist()
    [0.75, 0.25]
    """
    counts = np.asarray(counts, np.float64)
    total = counts.sum(axis=-1, keepdims=True)
    if not (total > 0).all():
        raise SelectionError(f"a group has no coefficient in the range {low:g} to {high:g}; choose a wider range")
    density: npt.NDArray[np.float64] = counts / (total * ((high - low) / counts.shape[-1]))
    density[density == 0] = EMPTY_BIN
    density /= density.sum(axis=-1, keepdims=True)
    return density


def kl_shift(
    counts: npt.NDArray[np.float64], weights: npt.NDArray[np.float64], low: float, high: float
) -> npt.NDArray[np.float64]:
    """Shift between every two of g groups: D(P, Q) = sum_i w_i (KL(P_i, Q_i) + KL(Q_i, P_i)), in nats.

    The divergences of all pairs and components are one matrix product (CNN Filter DB, arXiv 2203.15331).

    Args:
        counts: Histograms of the groups, (g, k, bins), whole or weighted.
        weights: Weight of each component, (k,).
        low: Left edge of the range.
        high: Right edge.

    Returns:
        (g, g) float64: symmetric, at least 0, with a diagonal of 0.

    Raises:
        SelectionError: A group has no coefficient in the range.

    >>> counts = np.array([[[3.0, 1.0]], [[1.0, 3.0]]])
    >>> kl_shift(counts, np.ones(1), 0, 1).round(4).tolist()   # 2 * 0.5 * ln 3
    [[0.0, 1.0986], [1.0986, 0.0]]
    """
    p = probabilities(counts, low, high)
    groups = len(p)
    log_p = np.log(p).reshape(groups, -1)
    return _symmetric((p * weights[:, None]).reshape(groups, -1), log_p)


def kl_shift_components(counts: npt.NDArray[np.float64], low: float, high: float) -> npt.NDArray[np.float64]:
    """Symmetric KL divergence of every two groups in each component, without weights.

    Args:
        counts: (g, k, bins).
        low: Left edge of the range.
        high: Right edge.

    Returns:
        (k, g, g) float64, in nats.
    """
    p = probabilities(counts, low, high)
    return np.stack([_symmetric(p[:, i], np.log(p[:, i])) for i in range(p.shape[1])])


def _symmetric(p: npt.NDArray[np.float64], log_p: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Sum over bins of (p - q)(log p - log q), for every two rows."""
    cross = p @ log_p.T
    own = cross.diagonal()
    # Summed in pairs, so that the matrix is symmetric to the last bit; equal groups may round to a hair below zero.
    matrix = np.maximum((own[:, None] + own[None, :]) - (cross + cross.T), 0)
    np.fill_diagonal(matrix, 0)
    return matrix


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

"""How far groups of filters are apart: divergences between the histograms of their SVD coefficients.

Every function takes the histograms of all groups at once. The pairs are the cells of matrix products, or, where a
measure is not a product, of one array operation per group.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.stats.shift import probabilities, shares

__all__ = ["METRICS", "kl_shift", "kl_shift_components", "paired_shift"]

#: Measures of how far two distributions P and Q over the same bins are apart:
#:
#: - ``kl``: KL(P, Q) + KL(Q, P) in nats, the papers' shift (CNN Filter DB, arXiv 2203.15331).
#: - ``directed``: KL(P, Q) alone, with P the row and Q the column of a matrix.
#: - ``jensen_shannon``: (KL(P, M) + KL(Q, M)) / 2 with M = (P + Q) / 2, in nats, at most ln 2 (Lin, 1991). It is the
#:   divergence, whose root is SciPy's ``jensenshannon`` distance.
#: - ``total_variation``: sum |P - Q| / 2, from 0 to 1.
#: - ``wasserstein``: the Wasserstein-1 distance, or earth mover's distance, in units of the coefficients. All
#:   values of a bin count as being in its middle.
#:
#: The divergences ``kl`` and ``directed`` are infinite where a bin is empty in one group only; for them, empty bins
#: get the density that the papers give them (:func:`~cnnfilterdb.stats.probabilities`). The others use the histograms
#: as they are.
METRICS = ("kl", "directed", "jensen_shannon", "total_variation", "wasserstein")


def kl_shift(
    counts: npt.NDArray[np.float64], weights: npt.NDArray[np.float64], low: float, high: float, *, metric: str = "kl"
) -> npt.NDArray[np.float64]:
    """Shift between every two of g groups: a divergence per component, summed by weight.

    Args:
        counts: Histograms of the groups, (g, k, bins), whole or weighted.
        weights: Weight of each component, (k,).
        low: Left edge of the range.
        high: Right edge.
        metric: One of :data:`METRICS`.

    Returns:
        (g, g) float64: at least 0, with a diagonal of 0, and symmetric to the last bit but for ``directed``.

    Raises:
        SelectionError: A group has no coefficient in the range, or an unknown metric.

    >>> counts = np.array([[[3.0, 1.0]], [[1.0, 3.0]]])
    >>> kl_shift(counts, np.ones(1), 0, 1).round(4).tolist()   # 2 * 0.5 * ln 3
    [[0.0, 1.0986], [1.0986, 0.0]]
    >>> kl_shift(counts, np.ones(1), 0, 1, metric="wasserstein").tolist()   # half of all, moved by half a unit
    [[0.0, 0.25], [0.25, 0.0]]
    """
    counts = np.asarray(counts, np.float64)
    groups, _, bins = counts.shape
    by_bin = np.repeat(weights, bins)
    if metric in ("kl", "directed"):
        p = probabilities(counts, low, high).reshape(groups, -1)
        matrix = _leibler(p * by_bin, np.log(p), directed=metric == "directed")
    elif metric == "jensen_shannon":
        matrix = _jensen_shannon(shares(counts).reshape(groups, -1), by_bin)
    elif metric == "total_variation":
        matrix = _city_block(shares(counts).reshape(groups, -1) * (by_bin / 2))
    elif metric == "wasserstein":
        width = (high - low) / bins
        matrix = _city_block(shares(counts).cumsum(axis=-1).reshape(groups, -1) * (by_bin * width))
    else:
        raise SelectionError(f"metric: {metric!r} is not one of {', '.join(METRICS)}")
    return matrix


def kl_shift_components(
    counts: npt.NDArray[np.float64], low: float, high: float, *, metric: str = "kl"
) -> npt.NDArray[np.float64]:
    """Divergence of every two groups in each component, without weights; the arguments are those of :func:`kl_shift`.

    Returns:
        (k, g, g) float64.
    """
    one = np.ones(1)
    parts = [kl_shift(counts[:, i : i + 1], one, low, high, metric=metric) for i in range(counts.shape[1])]
    return np.stack(parts)


def paired_shift(
    first: npt.NDArray[np.float64],
    second: npt.NDArray[np.float64],
    weights: npt.NDArray[np.float64],
    low: float,
    high: float,
    *,
    metric: str = "kl",
) -> npt.NDArray[np.float64]:
    """Shift between the groups of one array and those of another, row by row; otherwise as :func:`kl_shift`.

    Args:
        first: Histograms, (n, k, bins), whole or weighted.
        second: Histograms, (n, k, bins).
        weights: Weight of each component, (k,).
        low: Left edge of the range.
        high: Right edge.
        metric: One of :data:`METRICS`.

    Returns:
        (n,) float64, at least 0.

    Raises:
        SelectionError: A group has no coefficient in the range, or an unknown metric.

    >>> first, second = np.array([[[3.0, 1.0]]]), np.array([[[1.0, 3.0]]])
    >>> paired_shift(first, second, np.ones(1), 0, 1).round(4).tolist()
    [1.0986]
    """
    bins = first.shape[-1]
    if metric in ("kl", "directed"):
        p, q = probabilities(first, low, high), probabilities(second, low, high)
        found = (p - q if metric == "kl" else p) * (np.log(p) - np.log(q))
    elif metric in METRICS:
        p, q = shares(first), shares(second)
        if metric == "jensen_shannon":
            from scipy.special import entr

            found = entr((p + q) / 2) - (entr(p) + entr(q)) / 2
        elif metric == "total_variation":
            found = np.abs(p - q) / 2
        else:
            found = np.abs((p - q).cumsum(axis=-1)) * ((high - low) / bins)
    else:
        raise SelectionError(f"metric: {metric!r} is not one of {', '.join(METRICS)}")
    result: npt.NDArray[np.float64] = np.maximum(found.sum(axis=-1) @ weights, 0)
    return result


def _leibler(p: npt.NDArray[np.float64], log_p: npt.NDArray[np.float64], *, directed: bool) -> npt.NDArray[np.float64]:
    """KL divergences of every two rows: sum over bins of p (log p - log q), and with p and q exchanged."""
    cross = p @ log_p.T
    own = cross.diagonal()
    # Summed in pairs, so that the matrix is symmetric to the last bit.
    matrix = own[:, None] - cross if directed else (own[:, None] + own[None, :]) - (cross + cross.T)
    # Equal groups may round to a hair below zero.
    matrix = np.maximum(matrix, 0)
    np.fill_diagonal(matrix, 0)
    return matrix


def _jensen_shannon(p: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Entropy of the middle of every two rows less the mean of their entropies, bins by weight."""
    from scipy.special import entr

    own = entr(p) @ weights
    matrix = np.zeros((len(p), len(p)))
    for row in range(len(p) - 1):
        middle = entr((p[row] + p[row + 1 :]) / 2) @ weights
        matrix[row, row + 1 :] = np.maximum(middle - (own[row] + own[row + 1 :]) / 2, 0)
    return matrix + matrix.T


def _city_block(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Sum of absolute differences of every two rows."""
    from scipy.spatial.distance import pdist, squareform

    matrix: npt.NDArray[np.float64] = squareform(pdist(rows, "cityblock")) if len(rows) > 1 else np.zeros((1, 1))
    return matrix

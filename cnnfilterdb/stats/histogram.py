"""Histograms of SVD coefficients, as a mergeable state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cnnfilterdb.stats.basis import Basis

if TYPE_CHECKING:
    from cnnfilterdb.stats.compiled import Columns

__all__ = ["Histogram", "histograms", "joint_histogram"]

#: Filters that are projected at once, so that they stay in the processor's cache.
_BLOCK = 1 << 13


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """Counts of the coefficients of filters, one histogram per component, all over one range.

    Attributes:
        low: Left edge of the first bin.
        high: Right edge of the last bin, which belongs to it, as in ``numpy.histogram``.
        counts: (k, bins) int64.
        below: Coefficients left of the range, (k,) int64.
        above: Coefficients right of the range, (k,) int64.
        filters: Number of filters; of each component, counts, below and above add up to it.

    >>> a = Histogram(0.0, 1.0, np.array([[2, 0]]), np.array([0]), np.array([1]), 3)
    >>> a.merge(a).counts.tolist(), a.merge(a).filters
    ([[4, 0]], 6)
    """

    low: float
    high: float
    counts: npt.NDArray[np.int64]
    below: npt.NDArray[np.int64]
    above: npt.NDArray[np.int64]
    filters: int

    @classmethod
    def of_columns(cls, columns: Columns, basis: Basis, low: float, high: float, bins: int) -> Histogram:
        """Histogram of filters given as k arrays (n,), which are scaled and projected first."""
        return histograms(columns, basis, [(low, high)], bins)[0]

    def merge(self, other: Histogram) -> Histogram:
        """Histogram of both sets of filters together.

        Raises:
            ValueError: They have different ranges or numbers of bins.
        """
        if (self.low, self.high, self.counts.shape) != (other.low, other.high, other.counts.shape):
            raise ValueError("histograms of different ranges or bins cannot be merged")
        return Histogram(
            self.low,
            self.high,
            self.counts + other.counts,
            self.below + other.below,
            self.above + other.above,
            self.filters + other.filters,
        )


def histograms(columns: Columns, basis: Basis, ranges: Sequence[tuple[float, float]], bins: int) -> list[Histogram]:
    """Histograms of the coefficients of filters in several ranges; scaling and projection are done once.

    Args:
        columns: k contiguous float32 arrays (n,), the weights of n filters.
        basis: The basis.
        ranges: (low, high) of each histogram.
        bins: Number of bins of each.

    Raises:
        ValueError: A range is empty, or there are no bins.
        FloatingPointError: A weight is not finite.
    """
    from cnnfilterdb.stats.compiled import bin_coefficients

    edges = _edges(tuple((float(low), float(high)) for low, high in ranges), bins)
    counts, below, above = bin_coefficients(columns, basis.components, basis.offsets, edges)
    return [
        Histogram(float(low), float(high), counts[i], below[i], above[i], len(columns[0]))
        for i, (low, high) in enumerate(ranges)
    ]


@lru_cache(maxsize=64)  # the same for every layer
def _edges(ranges: tuple[tuple[float, float], ...], bins: int) -> npt.NDArray[np.float64]:
    """The edges of the bins of each range, (ranges, bins + 1)."""
    if bins < 1 or not all(low < high for low, high in ranges):
        raise ValueError(f"at least 1 bin and ranges with low < high are needed, not {bins} bins in {list(ranges)}")
    return np.stack([np.linspace(low, high, bins + 1) for low, high in ranges])


def joint_histogram(
    columns: Columns, basis: Basis, components: tuple[int, int], low: float, high: float, bins: int
) -> npt.NDArray[np.int64]:
    """Counts of filters by two of their coefficients, over one range for both.

    Args:
        columns: k float32 arrays (n,), the weights of n filters.
        basis: The basis.
        components: Numbers of the two components.
        low: Left edge of the first bin.
        high: Right edge of the last bin, which belongs to it.
        bins: Number of bins of each component.

    Returns:
        (bins of the first component, bins of the second); filters outside the range are not counted.

    >>> from cnnfilterdb.stats import Moments
    >>> filters = np.random.default_rng(0).normal(size=(100, 9)).astype(np.float32)
    >>> basis = Basis.fit(Moments.of(filters), "3x3")
    >>> joint_histogram(list(filters.T), basis, (0, 1), -4.0, 4.0, 2).sum().item()
    100
    """
    chosen = list(components)
    rotation, offsets = basis.components[chosen], basis.offsets[chosen, None]
    counts = np.zeros(bins * bins, np.int64)
    for start in range(0, len(columns[0]), _BLOCK):
        block = np.array([column[start : start + _BLOCK] for column in columns], np.float64)
        peak = np.abs(block).max(axis=0)
        peak[peak == 0] = 1.0  # zeros stay zeros
        block /= peak
        place = (rotation @ block - offsets - low) * (bins / (high - low))
        first, second = place[:, ((place >= 0) & (place <= bins)).all(axis=0)].astype(np.int64).clip(max=bins - 1)
        counts += np.bincount(first * bins + second, minlength=bins * bins)
    return counts.reshape(bins, bins)

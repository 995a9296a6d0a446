"""Histograms of SVD coefficients, as a mergeable state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cnnfilterdb.stats.basis import Basis

if TYPE_CHECKING:
    from cnnfilterdb.stats.compiled import Columns

__all__ = ["Histogram", "histograms"]


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
    """
    from cnnfilterdb.stats.compiled import bin_coefficients

    if bins < 1 or not all(low < high for low, high in ranges):
        raise ValueError(f"at least 1 bin and ranges with low < high are needed, not {bins} bins in {list(ranges)}")
    edges = np.stack([np.linspace(low, high, bins + 1) for low, high in ranges])
    counts, below, above = bin_coefficients(columns, basis.components, basis.offsets, edges)
    return [
        Histogram(float(low), float(high), counts[i], below[i], above[i], len(columns[0]))
        for i, (low, high) in enumerate(ranges)
    ]

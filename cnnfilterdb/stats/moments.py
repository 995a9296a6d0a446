"""First and second moments of scaled filters, as a mergeable state in double precision."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Moments"]


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Number, mean and centred second moment of a set of scaled filters.

    A filter f of k weights is scaled to f / max |f|; a filter of zeros is left unchanged (CNN Filter DB, arXiv
    2203.15331). Moments of disjoint sets add up exactly, so those of any selection follow from those of its layers.

    Attributes:
        count: Number of filters n.
        mean: Mean of the scaled filters, (k,) float64; zeros when there are none.
        scatter: Sum over the filters of (s - mean)(s - mean)', (k, k) float64. Divided by n - 1 it is their covariance.

    >>> filters = np.array([[2, 1, 0], [0, 1, 2]], np.float32)
    >>> moments = Moments.of(filters)
    >>> moments.count, moments.mean.tolist(), moments.scatter[0].tolist()
    (2, [0.5, 0.5, 0.5], [0.5, 0.0, -0.5])
    """

    count: int
    mean: npt.NDArray[np.float64]
    scatter: npt.NDArray[np.float64]

    @classmethod
    def empty(cls, size: int) -> Moments:
        """Moments of no filters of ``size`` weights."""
        return cls(0, np.zeros(size), np.zeros((size, size)))

    @classmethod
    def of(cls, filters: npt.NDArray[np.float32], *, scale: bool = True) -> Moments:
        """Moments of filters (n, k).

        The sums are taken about the first filter, so that kernels that hardly differ lose no digits.

        Args:
            filters: (n, k), finite.
            scale: Scale each filter first; False takes the raw weights, as the quality metrics do.
        """
        from cnnfilterdb.stats import compiled

        n, size = filters.shape
        if n == 0:
            return cls.empty(size)
        shift = first_filter(filters, scale=scale)
        return cls.from_sums(n, shift, *compiled.sums(filters, shift, scale=scale))

    @classmethod
    def from_sums(
        cls, n: int, shift: npt.NDArray[np.float64], total: npt.NDArray[np.float64], products: npt.NDArray[np.float64]
    ) -> Moments:
        """Moments of n filters, from the sums of the shifted filters and of their products.

        Args:
            n: Number of filters, at least 1.
            shift: What was subtracted from each filter, (k,).
            total: Sum of the rest, (k,).
            products: Sum of its products, (k, k), of which the upper triangle is read.
        """
        from cnnfilterdb.stats import compiled

        return cls(n, *compiled.centred(n, shift, total, products))

    @property
    def covariance(self) -> npt.NDArray[np.float64]:
        """Covariance of the weights, (k, k), with n - 1 in the denominator; NaN with less than two filters.

        >>> Moments.of(np.array([[2, 1], [0, 1]], np.float32), scale=False).covariance.tolist()
        [[2.0, 0.0], [0.0, 0.0]]
        """
        return self.scatter / (self.count - 1) if self.count > 1 else np.full_like(self.scatter, np.nan)

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets together (Chan, Golub and LeVeque, 1979)."""
        return Moments.merge_all([self, other])

    @classmethod
    def merge_all(cls, parts: Iterable[Moments]) -> Moments:
        """Moments of several disjoint sets together.

        Raises:
            ValueError: There are no parts, so the number of weights is unknown.

        >>> a, b = np.eye(3, dtype=np.float32)[:2], np.eye(3, dtype=np.float32)[2:]
        >>> Moments.merge_all([Moments.of(a), Moments.of(b)]).mean.round(3).tolist()
        [0.333, 0.333, 0.333]
        """
        found = list(parts)
        return cls.stacked(
            np.array([part.count for part in found], np.int64),
            np.stack([part.mean for part in found]),
            np.stack([part.packed() for part in found]),
        )

    @classmethod
    def stacked(
        cls, counts: npt.NDArray[np.int64], means: npt.NDArray[np.float64], packed: npt.NDArray[np.float64]
    ) -> Moments:
        """Moments of m disjoint sets together, given as arrays.

        Args:
            counts: (m,).
            means: (m, k).
            packed: Upper triangles of their scatters, (m, k (k + 1) / 2); see :meth:`packed`.
        """
        total = int(counts.sum())
        if total == 0:
            return cls.empty(means.shape[1])
        weights = counts / total
        mean = weights @ means
        apart = means - mean
        scatter = unpacked(packed.sum(axis=0), means.shape[1])
        return cls(total, mean, scatter + (apart * counts[:, None]).T @ apart)

    def packed(self) -> npt.NDArray[np.float64]:
        """The upper triangle of the scatter, row by row, (k (k + 1) / 2,), as the layers table stores it."""
        return self.scatter[np.triu_indices(len(self.mean))]

    @classmethod
    def unpack(cls, count: int, mean: npt.NDArray[np.float64], packed: npt.NDArray[np.float64]) -> Moments:
        """Moments from a row of the layers table; the inverse of :meth:`packed`."""
        return cls(int(count), mean, unpacked(packed, len(mean)))


def first_filter(filters: npt.NDArray[np.float32], *, scale: bool) -> npt.NDArray[np.float64]:
    """The first of some filters (n, k), scaled on request: the point about which sums are taken."""
    first: npt.NDArray[np.float32] = filters[0].astype(np.float32)
    if scale:
        first = first / (np.abs(first).max() or np.float32(1))
    return np.asarray(first, np.float64)


def unpacked(packed: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.float64]:
    """The symmetric matrix (size, size) of an upper triangle, row by row.

    >>> unpacked(np.array([1.0, 2.0, 3.0]), 2).tolist()
    [[1.0, 2.0], [2.0, 3.0]]
    """
    matrix = np.empty((size, size))
    rows, columns = np.triu_indices(size)
    matrix[rows, columns] = matrix[columns, rows] = packed
    return matrix

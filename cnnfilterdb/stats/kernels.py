"""Compiled inner loops: scale, sum, project and bin convolution kernels.

All of them work through blocks of a few hundred filters that stay in the first-level cache. Within a block every
weight is a contiguous row, which is what lets the compiler use vector instructions; columns of Parquet come that way,
and rows of a weight tensor are turned on the way in. Arithmetic is in double precision on filters that were scaled in
single precision, the precision in which they are stored. Each function releases the interpreter lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import carray, njit, types
from numba.extending import intrinsic

__all__ = ["Columns", "bin_coefficients", "coefficient_bounds", "extremes", "project", "similarities", "sums"]

#: One float32 array per kernel weight, all of one length.
Columns = Sequence[npt.NDArray[np.float32]]

_BLOCK = 256

# A coefficient this close to the edge of a bin (in bin widths) is compared with the edge itself, as NumPy does it.
_NEAR = 1e-9


@intrinsic
def _float32_at(typing_context: Any, address: Any) -> Any:
    """A pointer to float32 from an address: columns stay where they are, however many there are."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float32)(types.uint64), generate


@njit(inline="always")
def _scale_block(block: Any, scaled: Any, peak: Any, size: int) -> None:
    """Divide each filter of a block (k, size) by its largest absolute weight, as the papers do; zeros stay zeros."""
    k = block.shape[0]
    for b in range(size):
        peak[b] = abs(block[0, b])
    for j in range(1, k):
        for b in range(size):
            value = abs(block[j, b])
            peak[b] = value if value > peak[b] else peak[b]
    for b in range(size):
        peak[b] = peak[b] if peak[b] > 0 else np.float32(1)
    for j in range(k):
        for b in range(size):
            # The quotient is rounded to single precision, as NumPy divides float32 by float32.
            scaled[j, b] = np.float64(np.float32(block[j, b] / peak[b]))


@njit(inline="always")
def _gather(addresses: Any, count: int, start: int, size: int, block: Any) -> None:
    for j in range(addresses.shape[0]):
        column = carray(_float32_at(addresses[j]), (count,))
        for b in range(size):
            block[j, b] = column[start + b]


@njit(inline="always")
def _project_block(scaled: Any, components: Any, offsets: Any, i: int, size: int, out: Any) -> None:
    for b in range(size):
        out[b] = -offsets[i]
    for j in range(scaled.shape[0]):
        loading = components[i, j]
        for b in range(size):
            out[b] += loading * scaled[j, b]


@njit(cache=True, nogil=True)
def _sums(filters: Any, shift: Any, scale: bool) -> Any:  # pragma: no cover (compiled)
    n, k = filters.shape
    total = np.zeros(k)
    products = np.zeros((k, k))
    block = np.empty((k, _BLOCK), np.float32)
    scaled = np.empty((k, _BLOCK))
    peak = np.empty(_BLOCK, np.float32)
    for start in range(0, n, _BLOCK):
        size = min(_BLOCK, n - start)
        for b in range(size):
            for j in range(k):
                block[j, b] = filters[start + b, j]
        if scale:
            _scale_block(block, scaled, peak, size)
        else:
            for j in range(k):
                for b in range(size):
                    scaled[j, b] = block[j, b]
        for j in range(k):
            for b in range(size):
                scaled[j, b] -= shift[j]
        for j in range(k):
            row = scaled[j, :size]
            total[j] += row.sum()
            for i in range(j, k):
                products[j, i] += np.dot(row, scaled[i, :size])
    return total, products


@njit(cache=True, nogil=True)
def _coefficient_bounds(
    addresses: Any, count: int, components: Any, offsets: Any
) -> Any:  # pragma: no cover (compiled)
    k = addresses.shape[0]
    block = np.empty((k, _BLOCK), np.float32)
    scaled = np.empty((k, _BLOCK))
    peak = np.empty(_BLOCK, np.float32)
    out = np.empty(_BLOCK)
    low = np.full(_BLOCK, np.inf)
    high = np.full(_BLOCK, -np.inf)
    for start in range(0, count, _BLOCK):
        size = min(_BLOCK, count - start)
        _gather(addresses, count, start, size, block)
        _scale_block(block, scaled, peak, size)
        for i in range(k):
            _project_block(scaled, components, offsets, i, size, out)
            for b in range(size):
                low[b] = out[b] if out[b] < low[b] else low[b]
                high[b] = out[b] if out[b] > high[b] else high[b]
    return low.min(), high.max()


@njit(cache=True, nogil=True)
def _bin_coefficients(
    addresses: Any, count: int, components: Any, offsets: Any, edges: Any, counts: Any, below: Any, above: Any
) -> None:  # pragma: no cover (compiled)
    k = addresses.shape[0]
    ranges, bins = edges.shape[0], edges.shape[1] - 1
    block = np.empty((k, _BLOCK), np.float32)
    scaled = np.empty((k, _BLOCK))
    peak = np.empty(_BLOCK, np.float32)
    out = np.empty(_BLOCK)
    place = np.empty(_BLOCK)
    for start in range(0, count, _BLOCK):
        size = min(_BLOCK, count - start)
        _gather(addresses, count, start, size, block)
        _scale_block(block, scaled, peak, size)
        for i in range(k):
            _project_block(scaled, components, offsets, i, size, out)
            for r in range(ranges):
                low, high = edges[r, 0], edges[r, bins]
                factor = bins / (high - low)
                for b in range(size):
                    place[b] = (out[b] - low) * factor
                for b in range(size):
                    t = place[b]
                    if t < -1.0:
                        below[r, i] += 1
                    elif t > bins + 1.0:
                        above[r, i] += 1
                    else:
                        bin_ = int(t)
                        rest = t - bin_
                        # A value just below 0 is truncated to bin 0, and has a negative rest.
                        if rest < _NEAR or rest > 1 - _NEAR or bin_ >= bins:
                            value = out[b]
                            if value < low:
                                below[r, i] += 1
                                continue
                            if value > high:
                                above[r, i] += 1
                                continue
                            bin_ = min(bin_, bins - 1)
                            # numpy.histogram: bins are closed on the left, the last one on both sides.
                            if value < edges[r, bin_]:
                                bin_ -= 1
                            elif bin_ < bins - 1 and value >= edges[r, bin_ + 1]:
                                bin_ += 1
                        counts[r, i, bin_] += 1


@njit(cache=True, nogil=True)
def _project(filters: Any, components: Any, offsets: Any, out: Any) -> None:  # pragma: no cover (compiled)
    n, k = filters.shape
    block = np.empty((k, _BLOCK), np.float32)
    scaled = np.empty((k, _BLOCK))
    peak = np.empty(_BLOCK, np.float32)
    part = np.empty(_BLOCK)
    for start in range(0, n, _BLOCK):
        size = min(_BLOCK, n - start)
        for b in range(size):
            for j in range(k):
                block[j, b] = filters[start + b, j]
        _scale_block(block, scaled, peak, size)
        for i in range(k):
            _project_block(scaled, components, offsets, i, size, part)
            for b in range(size):
                out[start + b, i] = part[b]


@njit(cache=True, nogil=True)
def _extremes(filters: Any, low: Any, high: Any) -> None:  # pragma: no cover (compiled)
    n, k = filters.shape
    for row in range(n):
        smallest = largest = filters[row, 0]
        for j in range(1, k):
            value = filters[row, j]
            smallest = value if value < smallest else smallest
            largest = value if value > largest else largest
        low[row], high[row] = smallest, largest


@njit(cache=True, nogil=True)
def _similarities(
    addresses: Any, count: int, variants: Any, sign: bool, offset: bool, best: Any, which: Any
) -> None:  # pragma: no cover (compiled)
    k = addresses.shape[0]
    block = np.empty((k, _BLOCK), np.float32)
    scaled = np.empty((k, _BLOCK))
    peak = np.empty(_BLOCK, np.float32)
    length = np.empty(_BLOCK)
    part = np.empty(_BLOCK)
    for start in range(0, count, _BLOCK):
        size = min(_BLOCK, count - start)
        _gather(addresses, count, start, size, block)
        # Scaled by the largest weight, so that squares of tiny weights do not vanish.
        _scale_block(block, scaled, peak, size)
        if offset:
            part[:size] = 0
            for j in range(k):
                for b in range(size):
                    part[b] += scaled[j, b]
            for j in range(k):
                for b in range(size):
                    scaled[j, b] -= part[b] / k
        length[:size] = 0
        for j in range(k):
            for b in range(size):
                length[b] += scaled[j, b] * scaled[j, b]
        for b in range(size):
            best[start + b] = -np.inf
            which[start + b] = 0
        for v in range(variants.shape[0]):
            part[:size] = 0
            for j in range(k):
                for b in range(size):
                    part[b] += variants[v, j] * scaled[j, b]
            for b in range(size):
                # What centring leaves of a constant kernel is rounding, not direction.
                if length[b] > 1e-24:
                    value = part[b] / np.sqrt(length[b])
                    if value > best[start + b]:
                        best[start + b] = value
                        which[start + b] = v
                    if sign and -value > best[start + b]:
                        best[start + b] = -value
                        which[start + b] = -1 - v


def _addresses(columns: Columns) -> npt.NDArray[np.uint64]:
    count = len(columns[0])
    for column in columns:
        if column.dtype != np.float32 or column.ndim != 1 or len(column) != count or not column.flags.c_contiguous:
            raise ValueError("columns must be contiguous float32 arrays of one length")
    return np.array([column.ctypes.data for column in columns], np.uint64)


def _rows(filters: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    rows = np.ascontiguousarray(filters, np.float32)
    if rows.ndim != 2:
        raise ValueError(f"filters must be of shape (n, k), not {rows.shape}")
    return rows


def sums(
    filters: npt.NDArray[np.float32], shift: npt.NDArray[np.float64], *, scale: bool
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Sums of filters (n, k) less ``shift``, (k,), and of their products, (k, k) with the upper triangle only.

    Args:
        filters: (n, k).
        shift: (k,), subtracted from each filter.
        scale: Scale each filter first.
    """
    total, products = _sums(_rows(filters), shift, scale)
    return total, products


def coefficient_bounds(
    columns: Columns, components: npt.NDArray[np.float64], offsets: npt.NDArray[np.float64]
) -> tuple[float, float]:
    """Smallest and largest of all coefficients V s - offset of the scaled filters; (inf, -inf) without filters."""
    low, high = _coefficient_bounds(_addresses(columns), len(columns[0]), components, offsets)
    return float(low), float(high)


def bin_coefficients(
    columns: Columns,
    components: npt.NDArray[np.float64],
    offsets: npt.NDArray[np.float64],
    edges: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Histograms of all coefficients, in several ranges at once, by the rules of ``numpy.histogram``.

    Args:
        columns: k arrays of n weights each.
        components: (k, k).
        offsets: (k,).
        edges: (r, bins + 1), the bin edges of each range, equally spaced.

    Returns:
        Counts (r, k, bins), and the numbers of coefficients below and above each range, (r, k) each.
    """
    ranges, bins, size = edges.shape[0], edges.shape[1] - 1, len(columns)
    counts = np.zeros((ranges, size, bins), np.int64)
    below, above = np.zeros((ranges, size), np.int64), np.zeros((ranges, size), np.int64)
    _bin_coefficients(_addresses(columns), len(columns[0]), components, offsets, edges, counts, below, above)
    return counts, below, above


def project(
    filters: npt.NDArray[np.float32], components: npt.NDArray[np.float64], offsets: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Coefficients (n, k) of filters (n, k), scaled first."""
    rows = _rows(filters)
    out = np.empty(rows.shape)
    _project(rows, components, offsets, out)
    return out


def extremes(filters: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Smallest and largest weight of each filter (n, k): two arrays (n,)."""
    rows = _rows(filters)
    low, high = np.empty(len(rows), np.float32), np.empty(len(rows), np.float32)
    _extremes(rows, low, high)
    return low, high


def similarities(
    columns: Columns, variants: npt.NDArray[np.float64], sign: bool, offset: bool
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Largest cosine of each filter with any of some unit vectors (v, k), and which of them."""
    count = len(columns[0])
    best, which = np.empty(count), np.empty(count, np.int64)
    _similarities(_addresses(columns), count, variants, sign, offset, best, which)
    return best, which

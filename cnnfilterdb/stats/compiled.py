"""Compiled inner loops: scale, sum, measure, project and bin convolution kernels.

All of them work through blocks of a few hundred filters that stay in the first-level cache. Within a block every
weight is a contiguous row, which is what lets the compiler use vector instructions; columns of Parquet come that way,
and rows of a weight tensor are turned on the way in. Results are those of double precision on filters that were scaled
in single precision, the precision in which they are stored. Each function releases the interpreter lock.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped]
from numba import carray, njit, types
from numba.extending import intrinsic

from cnnfilterdb.core.workers import threads

__all__ = [
    "Columns",
    "bin_coefficients",
    "centred",
    "coefficient_bounds",
    "cosines",
    "entropies",
    "extremes",
    "forms",
    "layer_sums",
    "levels",
    "longest",
    "power_law_tail",
    "project",
    "similarities",
    "squares",
    "sums",
]

#: One float32 array per kernel weight, all of one length.
Columns = Sequence[npt.NDArray[np.float32]]

T = TypeVar("T")
U = TypeVar("U")

_BLOCK = 256

# Filters that one thread sums at a time. The parts do not depend on the machine, so that sums do not either.
_PART = 32_768

# Rows that BLAS multiplies with as many others at a time: of so many it takes a quarter of a second per hundred billion
# products, and what it returns is a megabyte.
_ROWS = 512

# Products of weights that take a millisecond or two: with fewer, starting threads takes longer than they save.
_WORTH_THREADS = 1 << 26

# Shortest filter, after division by its largest weight and centring, whose cosine is exact enough in single precision.
_SHORT = 0.01

# A coefficient this close to the edge of a bin (in bin widths) is compared with the edge itself, as NumPy does it.
_NEAR = 1e-9

# The rank of a value among the edges of bins if rounding decides what it is.
_UNSURE = np.uint32(1 << 31)


def _cacheable() -> bool:
    """Whether numba can keep compiled code: next to this file, or in the user's cache folder.

    If neither is writable (another user's installation and no home folder), every process compiles again.
    """
    try:
        njit(cache=True)(_worth_caching)
    except RuntimeError:
        return False
    return True


def _worth_caching() -> None:
    """A function whose cache location numba is asked for; it is never compiled."""


# Python's check for a division by zero would keep quotients from vector instructions.
_COMPILED = {"cache": _cacheable(), "nogil": True, "error_model": "numpy"}

# What LLVM may do to sums in double precision: reorder them, which allows vector instructions. Quotients stay
# exact.
_REORDER = {"reassoc", "nsz", "contract"}


@intrinsic
def _float32_at(typing_context: Any, address: Any) -> Any:
    """A pointer to float32 from an address: columns stay where they are, however many there are."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float32)(types.uint64), generate


@intrinsic
def _fma(typing_context: Any, x: Any, y: Any, z: Any) -> Any:
    """The number x y + z, rounded once in every loop if the processor supports that.

    If this were left to the compiler, sums that should be equal would differ.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = args[0].type
        function = builder.module.declare_intrinsic("llvm.fmuladd", [kind], ir.FunctionType(kind, [kind] * 3))
        return builder.call(function, args)

    return x(x, x, x), generate


@njit(inline="always")
def _peak_block(block: Any, peak: Any, size: int) -> None:
    """The largest absolute weight of each filter of a block (k, size); 1 for zeros, so that they stay zeros."""
    for b in range(size):
        peak[b] = abs(block[0, b])
    for j in range(1, block.shape[0]):
        for b in range(size):
            value = abs(block[j, b])
            peak[b] = value if value > peak[b] else peak[b]
    for b in range(size):
        peak[b] = peak[b] if peak[b] > 0 else np.float32(1)


@njit(inline="always")
def _scale_block(block: Any, scaled: Any, peak: Any, size: int) -> None:
    """Divide each filter of a block (k, size) by its largest absolute weight, as the papers do; zeros stay zeros."""
    _peak_block(block, peak, size)
    for j in range(block.shape[0]):
        for b in range(size):
            # The quotient is rounded to single precision, as NumPy divides float32 by float32.
            scaled[j, b] = np.float64(np.float32(block[j, b] / peak[b]))


@njit(inline="always")
def _part(addresses: Any, j: int, start: int, size: int) -> Any:
    """Part of a column, where it is."""
    # From the start of the part: an index that might be negative would keep loops over it from vector instructions.
    return carray(_float32_at(addresses[j] + np.uint64(4 * start)), (size,))


@njit(inline="always")
def _gather(addresses: Any, start: int, size: int, block: Any) -> None:
    """Copy a part of all columns to a block (k, size)."""
    for j in range(addresses.shape[0]):
        column, row = _part(addresses, j, start, size), block[j]
        for b in range(size):
            row[b] = column[b]


@njit(inline="always")
def _peaks(addresses: Any, start: int, size: int, peak: Any) -> None:
    """What :func:`_peak_block` finds, of a part of the columns that was not copied; three of them at a time."""
    k = addresses.shape[0]
    peak[:size] = 0
    for j in range(0, k - k % 3, 3):
        first, second = _part(addresses, j, start, size), _part(addresses, j + 1, start, size)
        third = _part(addresses, j + 2, start, size)
        for b in range(size):
            x, y, z = abs(first[b]), abs(second[b]), abs(third[b])
            value = x if x > y else y
            value = value if value > z else z
            peak[b] = value if value > peak[b] else peak[b]
    for j in range(k - k % 3, k):
        column = _part(addresses, j, start, size)
        for b in range(size):
            value = abs(column[b])
            peak[b] = value if value > peak[b] else peak[b]
    for b in range(size):
        peak[b] = peak[b] if peak[b] > 0 else np.float32(1)


@njit(inline="always")
def _project_block(scaled: Any, components: Any, offsets: Any, i: int, size: int, out: Any) -> None:
    k = scaled.shape[0]
    start = -offsets[i]
    # All weights of a 3x3 kernel at a time, so that no sum is stored and loaded again half-done; the others by three.
    first = 9 if k >= 9 else 0
    if first:
        v = components[i]
        v0, v1, v2, v3, v4, v5, v6, v7, v8 = v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8]
        s0, s1, s2, s3, s4 = scaled[0], scaled[1], scaled[2], scaled[3], scaled[4]
        s5, s6, s7, s8 = scaled[5], scaled[6], scaled[7], scaled[8]
        for b in range(size):
            part = _fma(v2, s2[b], _fma(v1, s1[b], _fma(v0, s0[b], start)))
            part = _fma(v5, s5[b], _fma(v4, s4[b], _fma(v3, s3[b], part)))
            out[b] = _fma(v8, s8[b], _fma(v7, s7[b], _fma(v6, s6[b], part)))
    else:
        for b in range(size):
            out[b] = start
    for j in range(first, k - 2, 3):
        x, y, z = components[i, j], components[i, j + 1], components[i, j + 2]
        sx, sy, sz = scaled[j], scaled[j + 1], scaled[j + 2]
        for b in range(size):
            out[b] = _fma(z, sz[b], _fma(y, sy[b], _fma(x, sx[b], out[b])))
    for j in range(k - k % 3, k):
        loading = components[i, j]
        for b in range(size):
            out[b] = _fma(loading, scaled[j, b], out[b])


@njit(inline="always")
def _load_block(filters: Any, start: int, size: int, block: Any) -> None:
    """Transpose filters to the rows of a block. One flat, unsigned index lets the compiler gather several at a time."""
    k = block.shape[0]
    part = filters[start : start + size]
    flat = part.reshape(part.size)
    for j in range(k):
        row = block[j]
        for b in range(size):
            row[b] = flat[np.uint64(j + b * k)]


@njit(inline="always")
def _accumulate(rows: Any, size: int, total: Any, products: Any) -> None:
    """Add the sums of the rows of a block, (k,), and of their products, (k, k), the upper triangle only.

    Three rows by three at a time: nine sums are kept in registers for six rows that are read.
    """
    k = rows.shape[0]
    for j in range(k):
        part = 0.0
        for b in range(size):
            part += rows[j, b]
        total[j] += part
    whole = k - k % 3
    for j in range(0, whole, 3):
        for i in range(j, whole, 3):
            s00 = s01 = s02 = s10 = s11 = s12 = s20 = s21 = s22 = 0.0
            for b in range(size):
                x0, x1, x2 = rows[j, b], rows[j + 1, b], rows[j + 2, b]
                y0, y1, y2 = rows[i, b], rows[i + 1, b], rows[i + 2, b]
                s00 += x0 * y0
                s01 += x0 * y1
                s02 += x0 * y2
                s10 += x1 * y0
                s11 += x1 * y1
                s12 += x1 * y2
                s20 += x2 * y0
                s21 += x2 * y1
                s22 += x2 * y2
            products[j, i] += s00
            products[j, i + 1] += s01
            products[j, i + 2] += s02
            products[j + 1, i] += s10
            products[j + 1, i + 1] += s11
            products[j + 1, i + 2] += s12
            products[j + 2, i] += s20
            products[j + 2, i + 1] += s21
            products[j + 2, i + 2] += s22
    for i in range(whole, k):
        for j in range(i + 1):
            part = 0.0
            for b in range(size):
                part += rows[j, b] * rows[i, b]
            products[j, i] += part


@njit(**_COMPILED, fastmath=_REORDER)
def _sums(filters: Any, shift: Any, scale: bool) -> Any:  # pragma: no cover (compiled)
    n, k = filters.shape
    total = np.zeros(k)
    products = np.zeros((k, k))
    block = np.empty((k, _BLOCK), np.float32)
    scaled = np.empty((k, _BLOCK))
    peak = np.empty(_BLOCK, np.float32)
    for start in range(0, n, _BLOCK):
        size = min(_BLOCK, n - start)
        _load_block(filters, start, size, block)
        if scale:
            _scale_block(block, scaled, peak, size)
        else:
            for j in range(k):
                for b in range(size):
                    scaled[j, b] = block[j, b]
        for j in range(k):
            for b in range(size):
                scaled[j, b] -= shift[j]
        _accumulate(scaled, size, total, products)
    return total, products


@njit(**_COMPILED)
def _centred(count: int, shift: Any, total: Any, products: Any) -> Any:  # pragma: no cover (compiled)
    k = len(total)
    mean, scatter = np.empty(k), np.empty((k, k))
    for j in range(k):
        mean[j] = shift[j] + total[j] / count
        for i in range(j, k):
            scatter[j, i] = scatter[i, j] = products[j, i] - total[j] * total[i] / count
        # A weight that never varies has no variance; rounding must not make it negative.
        scatter[j, j] = max(scatter[j, j], 0.0)
    return mean, scatter


@njit(**_COMPILED, fastmath=_REORDER)
def _layer_sums(
    filters: Any, shift: Any, scaled_shift: Any, tolerance: float, peaks: Any
) -> Any:  # pragma: no cover (compiled)
    n, k = filters.shape
    total, scaled_total = np.zeros(k), np.zeros(k)
    products, scaled_products = np.zeros((k, k)), np.zeros((k, k))
    block = np.empty((k, _BLOCK), np.float32)
    work = np.empty((k, _BLOCK))
    peak = np.empty(_BLOCK, np.float32)
    length, square = np.empty(_BLOCK), np.empty(_BLOCK)
    norm, energy, binary, longest = 0.0, 0.0, 0, 0.0
    for start in range(0, n, _BLOCK):
        size = min(_BLOCK, n - start)
        _load_block(filters, start, size, block)
        _peak_block(block, peak, size)
        square[:size] = 0
        for j in range(k):
            for b in range(size):
                value = np.float64(np.float32(block[j, b] / peak[b]))
                work[j, b] = value - scaled_shift[j]
                square[b] += value * value
        _accumulate(work, size, scaled_total, scaled_products)
        for b in range(size):
            longest = square[b] if square[b] > longest else longest
        length[:size] = 0
        square[:size] = 0
        for j in range(k):
            for b in range(size):
                value = np.float64(block[j, b])
                work[j, b] = value - shift[j]
                length[b] += abs(value)
                square[b] += value * value
        _accumulate(work, size, total, products)
        for b in range(size):
            norm += length[b]
            energy += square[b]
            binary += (square[b] > 0) and (k * square[b] - length[b] * length[b] <= tolerance * k * square[b])
            # A filter of zeros was scaled by 1.
            peaks[start + b] = peak[b] if square[b] > 0 else np.float32(0)
    return total, products, scaled_total, scaled_products, norm, energy, binary, longest


@njit(**_COMPILED, fastmath=_REORDER)
def _longest(filters: Any) -> float:  # pragma: no cover (compiled)
    n, k = filters.shape
    block, scaled = np.empty((k, _BLOCK), np.float32), np.empty((k, _BLOCK))
    peak, square = np.empty(_BLOCK, np.float32), np.empty(_BLOCK)
    longest = 0.0
    for start in range(0, n, _BLOCK):
        size = min(_BLOCK, n - start)
        _load_block(filters, start, size, block)
        _scale_block(block, scaled, peak, size)
        square[:size] = 0
        for j in range(k):
            for b in range(size):
                square[b] += scaled[j, b] * scaled[j, b]
        for b in range(size):
            longest = square[b] if square[b] > longest else longest
    return float(np.sqrt(longest))


@njit(inline="always")
def _widen_bounds(
    block: Any, size: int, scaled: Any, peak: Any, components: Any, offsets: Any, out: Any, low: Any, high: Any
) -> None:
    """Let bounds reach all coefficients of a block (k, size)."""
    _scale_block(block, scaled, peak, size)
    for i in range(block.shape[0]):
        _project_block(scaled, components, offsets, i, size, out)
        for b in range(size):
            low[b] = out[b] if out[b] < low[b] else low[b]
            high[b] = out[b] if out[b] > high[b] else high[b]


@njit(inline="always")
def _scale_roughly(addresses: Any, start: int, size: int, peak: Any, inverse: Any, rough: Any) -> bool:
    """Scale a part of the columns by inverses, in single precision; whether the error bound holds for these."""
    unusual = 0
    for b in range(size):
        inverse[b] = np.float32(1) / peak[b]
        # The inverse of a very large or small weight is less exact than the error allows for, or infinite.
        unusual += not (peak[b] > np.float32(1e-37) and peak[b] < np.float32(1e37))
    for j in range(addresses.shape[0]):
        column, row = _part(addresses, j, start, size), rough[j]
        for b in range(size):
            row[b] = column[b] * inverse[b]
    return unusual == 0


@njit(inline="always")
def _longer(addresses: Any, start: int, size: int, peak: Any, excess: Any, reach: Any) -> int:
    """How many filters of a part of the columns are not shorter than a length (squared) when they are scaled.

    Their excess is not below 0.
    """
    k = addresses.shape[0]
    excess[:size] = 0
    for j in range(0, k - k % 3, 3):
        first, second = _part(addresses, j, start, size), _part(addresses, j + 1, start, size)
        third = _part(addresses, j + 2, start, size)
        for b in range(size):
            excess[b] = _fma(third[b], third[b], _fma(second[b], second[b], _fma(first[b], first[b], excess[b])))
    for j in range(k - k % 3, k):
        column = _part(addresses, j, start, size)
        for b in range(size):
            excess[b] = _fma(column[b], column[b], excess[b])
    longer = 0
    for b in range(size):
        # Squares of very large or small weights are infinite or zero.
        usual = peak[b] > np.float32(1e-15) and peak[b] < np.float32(1e15)
        above = excess[b] - reach * peak[b] * peak[b]
        excess[b] = above if usual else np.float32(1)
        longer += not (usual and above < 0)
    return longer


@njit(inline="always")
def _reach(components: Any, offsets: Any, low: float, high: float) -> Any:
    """Square of a length: all coefficients of a filter that is shorter are between low and high."""
    reach = np.inf
    for i in range(components.shape[0]):
        square = 0.0
        for value in components[i]:
            square += value * value
        # A coefficient is at most the product of two lengths, less its offset.
        for bound in (high + offsets[i], -low - offsets[i]):
            reach = min(reach, bound * bound / square if bound > 0 else 0.0)
    # Less the errors of single precision, several times over: each of k products and sums is rounded.
    return np.float32(reach * max(0.0, 1 - 2.0**-21 * (components.shape[0] + 8)))


@njit(inline="always")
def _coefficient(addresses: Any, row: int, peak: Any, components: Any, offsets: Any, i: int) -> Any:
    """One coefficient of one filter of the columns, to the last bit that of :func:`_project_block`."""
    found = -offsets[i]
    for j in range(addresses.shape[0]):
        scaled = np.float32(_part(addresses, j, row, 1)[0] / peak)
        found = _fma(components[i, j], np.float64(scaled), found)
    return found


@njit(**_COMPILED)
def _coefficient_bounds(
    addresses: Any, count: int, components: Any, offsets: Any
) -> Any:  # pragma: no cover (compiled)
    k = addresses.shape[0]
    chosen = np.empty((k, _BLOCK), np.float32)
    peak, excess = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.float32)
    scaled, out = np.empty((k, _BLOCK)), np.empty(_BLOCK)
    lows, highs = np.full(_BLOCK, np.inf), np.full(_BLOCK, -np.inf)
    filled, reach = 0, np.float32(0)
    for start in range(0, count, _BLOCK):
        size = min(_BLOCK, count - start)
        _peaks(addresses, start, size, peak)
        # Few filters are long enough to reach the bounds of those before them. They are collected, and computed once
        # they fill a block.
        if _longer(addresses, start, size, peak, excess, reach) > 0:
            for b in range(size):
                if not excess[b] < 0:
                    for j in range(k):
                        chosen[j, filled] = _part(addresses, j, start + b, 1)[0]
                    filled += 1
                    if filled == _BLOCK:
                        _widen_bounds(chosen, filled, scaled, peak, components, offsets, out, lows, highs)
                        filled = 0
                        reach = _reach(components, offsets, lows.min(), highs.max())
    _widen_bounds(chosen, filled, scaled, peak, components, offsets, out, lows, highs)
    return lows.min(), highs.max()


@njit(inline="always")
def _place_exactly(value: float, edges: Any, factor: float) -> int:
    """The place of a value among bins: 0 below, 1 to bins, bins + 1 above, as ``numpy.histogram`` does it."""
    bins = len(edges) - 1
    if value < edges[0]:
        return 0
    if value > edges[bins]:
        return bins + 1
    bin_ = min(int((value - edges[0]) * factor), bins - 1)
    # Bins are closed on the left, the last one on both sides.
    if value < edges[bin_]:
        bin_ -= 1
    elif bin_ < bins - 1 and value >= edges[bin_ + 1]:
        bin_ += 1
    return bin_ + 1


@njit(inline="always")
def _rank_exactly(value: float, edges: Any) -> Any:
    """The number of edges, of all ranges, that a value has passed; one more than there are if it is not a number."""
    ranges, bins = edges.shape[0], edges.shape[1] - 1
    if value != value:
        return np.uint32(ranges * (bins + 1) + 1)
    rank = 0
    for r in range(ranges):
        rank += _place_exactly(value, edges[r], bins / (edges[r, bins] - edges[r, 0]))
    return np.uint32(rank)


@njit(inline="always")
def _add_places(values: Any, size: int, factor: float, shift: float, margin: float, bins: int, rank: Any) -> Any:
    """Add the place of each value among bins, as above, to its rank, and return the largest rank.

    A value is in the bins that it has as a multiple of the factor, and shifted. Its rank is _UNSURE if it is nearer to
    an edge than a margin (in bin widths): rounding decides there.
    """
    slope, start, half = np.float32(factor), np.float32(shift), np.float32(0.5)
    sure, last = np.float32(0.5 - margin), np.float32(bins + 1.5)
    largest = np.uint32(0)
    for b in range(size):
        t = _fma(values[b], slope, start)
        t = t if t > half else half
        t = t if t < last else last
        place = np.int32(t)
        from_middle = abs(t - half - np.float32(place))
        found = np.uint32(rank[b] + np.uint32(place)) if from_middle <= sure else _UNSURE
        rank[b] = found
        largest = found if found > largest else largest
    return largest


@njit(inline="always")
def _count(rank: Any, size: int, parts: Any) -> None:
    """Count the ranks of a block into four histograms (4, ranks).

    With a single one, each addition would often wait for the last: most coefficients are in a few bins.
    """
    whole = size - size % 4
    first, second, third, fourth = parts[0], parts[1], parts[2], parts[3]
    for b in range(0, whole, 4):
        first[rank[b]] += np.uint32(1)
        second[rank[b + 1]] += np.uint32(1)
        third[rank[b + 2]] += np.uint32(1)
        fourth[rank[b + 3]] += np.uint32(1)
    for b in range(whole, size):
        first[rank[b]] += np.uint32(1)


@njit(inline="always")
def _by_range(parts: Any, edges: Any) -> Any:
    """Counts (r, k, bins + 2) by place in each range, of counts (k, 4, ranks + 1) by rank among the edges of all."""
    ranges, last = edges.shape[0], edges.shape[1] - 1
    found = np.zeros((ranges, parts.shape[0], last + 2), np.int64)
    place = np.zeros(ranges, np.int64)
    for rank in range(parts.shape[2] - 1):
        following, nearest = -1, np.inf
        for r in range(ranges):
            for i in range(parts.shape[0]):
                for part in range(parts.shape[1]):
                    found[r, i, place[r]] += np.int64(parts[i, part, rank])
            if place[r] <= last:
                edge = edges[r, place[r]]
                # A value passes the last edge of a range if it is larger, the others if it is equal.
                edge = np.nextafter(edge, np.inf) if place[r] == last else edge
                if following < 0 or edge < nearest:
                    following, nearest = r, edge
        if following >= 0:
            place[following] += 1
    return found


@njit(**_COMPILED)
def _count_ranks(
    addresses: Any,
    count: int,
    components: Any,
    offsets: Any,
    rough_components: Any,
    rough_offsets: Any,
    error: float,
    edges: Any,
) -> Any:  # pragma: no cover (compiled)
    k = addresses.shape[0]
    ranges, bins = edges.shape[0], edges.shape[1] - 1
    ranks = ranges * (bins + 1) + 1
    # One more, for what is not a number.
    parts = np.zeros((k, 4, ranks + 1), np.uint32)
    rough = np.empty((k, _BLOCK), np.float32)
    peak, inverse, near = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.float32)
    rank = np.empty(_BLOCK, np.uint32)
    for start in range(0, count, _BLOCK):
        size = min(_BLOCK, count - start)
        _peaks(addresses, start, size, peak)
        usual = _scale_roughly(addresses, start, size, peak, inverse, rough)
        for i in range(k):
            # In single precision, in half the time: few values are so near an edge that rounding decides.
            _project_block(rough, rough_components, rough_offsets, i, size, near)
            if i == 0:
                # A weight that is not a number makes every coefficient one.
                missing = 0
                for b in range(size):
                    missing += near[b] != near[b]
                usual = usual and missing == 0
            rank[:size] = np.uint32(0) if usual else _UNSURE
            largest = np.uint32(0) if usual else _UNSURE
            for r in range(ranges):
                low, high = edges[r, 0], edges[r, bins]
                factor = bins / (high - low)
                shift = 1 - low * factor
                # Single precision rounds the factor, the shift and two sums of at most bins + 2, by half a unit each; a
                # product is no larger than such a sum and the shift together. All of it twice over.
                margin = factor * error + 2.0**-21 * (bins + 2 + abs(shift)) + _NEAR
                if usual:
                    largest = max(largest, _add_places(near, size, factor, shift, margin, bins, rank))
            if largest >= _UNSURE:
                for b in range(size):
                    if rank[b] >= _UNSURE:
                        rank[b] = _rank_exactly(
                            _coefficient(addresses, start + b, peak[b], components, offsets, i), edges
                        )
            _count(rank, size, parts[i])
    return _by_range(parts, edges), parts[:, :, ranks].sum()


@njit(**_COMPILED)
def _project(filters: Any, components: Any, offsets: Any, out: Any) -> None:  # pragma: no cover (compiled)
    n, k = filters.shape
    block = np.empty((k, _BLOCK), np.float32)
    scaled = np.empty((k, _BLOCK))
    peak = np.empty(_BLOCK, np.float32)
    part = np.empty(_BLOCK)
    for start in range(0, n, _BLOCK):
        size = min(_BLOCK, n - start)
        _load_block(filters, start, size, block)
        _scale_block(block, scaled, peak, size)
        for i in range(k):
            _project_block(scaled, components, offsets, i, size, part)
            for b in range(size):
                out[start + b, i] = part[b]


@njit(**_COMPILED)
def _extremes(filters: Any, low: Any, high: Any) -> None:  # pragma: no cover (compiled)
    n, k = filters.shape
    for row in range(n):
        smallest = largest = filters[row, 0]
        for j in range(1, k):
            value = filters[row, j]
            smallest = value if value < smallest else smallest
            largest = value if value > largest else largest
        low[row], high[row] = smallest, largest


@njit(**_COMPILED, fastmath=_REORDER)
def _squares(rows: Any, out: Any) -> None:  # pragma: no cover (compiled)
    for row in range(rows.shape[0]):
        total = 0.0
        for j in range(rows.shape[1]):
            value = np.float64(rows[row, j])
            total += value * value
        out[row] = total


@njit(**_COMPILED, fastmath=_REORDER)
def _absolute(products: Any, rows: Any, columns: Any, lower: bool) -> float:  # pragma: no cover (compiled)
    total = 0.0
    for i in range(products.shape[0]):
        found = 0.0
        for j in range(i if lower else products.shape[1]):
            found += abs(products[i, j]) * columns[j]
        total += found * rows[i]
    return total


@njit(**_COMPILED)
def _entropies(spectra: Any, out: Any) -> None:  # pragma: no cover (compiled)
    for row in range(spectra.shape[0]):
        total = 0.0
        for value in spectra[row]:
            total += max(value, 0.0)
        found = 0.0
        for value in spectra[row]:
            if value > 0:
                found -= value / total * np.log10(value / total)
        out[row] = max(found, 0.0) if total > 0 else np.nan


@njit(**_COMPILED)
def _power_law_tail(logs: Any, sums: Any, last: int, less: int) -> tuple[int, float]:  # pragma: no cover (compiled)
    count = len(logs)
    found, least, bound, refused = -1, np.inf, np.inf, -1
    # Some starts first: their smallest distance is a bound by which most of the others are refused early.
    for step in (64, 1):
        for start in range(0, last + 1, step):
            if sums[start] <= 1e-12:
                break
            size = count - start
            slope = -(size - less) / sums[start]
            largest = 0.0
            # One value that is too far off is enough. Often it is the one that refused the last tail: it comes first.
            for i in range(-1, size):
                place = refused if i < 0 else start + i
                if place >= start:
                    expected = -np.expm1(slope * (logs[place] - logs[start]))
                    largest = max(largest, abs(expected - (place - start) / size))
                    if largest > bound:
                        refused = place
                        break
            bound = min(bound, largest)
            if step == 1 and largest < least:
                found, least = start, largest
    return found, least


@njit(**_COMPILED)
def _levels(bits: Any, most: int) -> int:  # pragma: no cover (compiled)
    slots = 4
    while slots < 4 * most:
        slots *= 2
    value_of, row_of = np.zeros(slots, np.int32), np.full(slots, -1, np.int64)
    largest = 0
    for row in range(bits.shape[0]):
        count = 0
        for j in range(bits.shape[1]):
            value = bits[row, j]
            if value == np.int32(-2147483648):  # minus zero is zero
                value = np.int32(0)
            # After multiplication by the golden ratio the upper bits differ; low bits of rounded floats are alike.
            mixed = (np.int64(value) * 2654435769) & 0xFFFFFFFF
            slot = (mixed ^ (mixed >> 15)) & (slots - 1)
            while row_of[slot] == row and value_of[slot] != value:
                slot = (slot + 1) & (slots - 1)
            if row_of[slot] != row:
                row_of[slot], value_of[slot] = row, value
                count += 1
                if count > most:
                    return most + 1
        largest = max(largest, count)
    return largest


@njit(**_COMPILED, fastmath=_REORDER)
def _forms(filters: Any, matrices: Any, vectors: Any, out: Any) -> None:  # pragma: no cover (compiled)
    n, k = filters.shape
    count, linear = matrices.shape[0], vectors.shape[0]
    block = np.empty((k, _BLOCK), np.float32)
    scaled = np.empty((k, _BLOCK))
    peak = np.empty(_BLOCK, np.float32)
    product = np.empty(_BLOCK)
    found = np.empty((count + linear + 2, _BLOCK))
    for start in range(0, n, _BLOCK):
        size = min(_BLOCK, n - start)
        _load_block(filters, start, size, block)
        _peak_block(block, peak, size)
        for j in range(k):
            for b in range(size):
                # Not rounded: the scale only keeps squares of tiny weights from vanishing.
                scaled[j, b] = np.float64(block[j, b]) / np.float64(peak[b])
        found[:, :size] = 0
        for i in range(k):
            for j in range(i, k):
                for b in range(size):
                    product[b] = scaled[i, b] * scaled[j, b]
                for q in range(count):
                    factor = matrices[q, i, j] if i == j else 2 * matrices[q, i, j]
                    if factor != 0:
                        for b in range(size):
                            found[q, b] += factor * product[b]
            for q in range(linear):
                factor = vectors[q, i]
                for b in range(size):
                    found[count + q, b] += factor * scaled[i, b]
            for b in range(size):
                found[count + linear, b] += abs(scaled[i, b])
        for b in range(size):
            found[count + linear + 1, b] = peak[b]
            for q in range(count + linear + 2):
                out[start + b, q] = found[q, b]


@njit(inline="always")
def _centre_block(rows: Any, part: Any, size: int) -> None:
    """Subtract from each filter of a block (k, size) its mean."""
    k = rows.shape[0]
    part[:size] = 0
    for j in range(k):
        for b in range(size):
            part[b] += rows[j, b]
    for j in range(k):
        for b in range(size):
            rows[j, b] -= part[b] / k


@njit(inline="always")
def _may_be_similar(
    block: Any, peak: Any, variants: Any, sign: bool, offset: bool, cut: Any, size: int, rough: Any, length: Any,
    part: Any, top: Any,
) -> bool:  # fmt: skip
    """Whether a filter of a block (k, size) may have a cosine of at least ``cut``, in single precision."""
    k = block.shape[0]
    rows = block
    if offset:
        for j in range(k):
            for b in range(size):
                rough[j, b] = block[j, b]
        _centre_block(rough, part, size)
        rows = rough
    length[:size] = 0
    top[:size] = -np.inf
    for j in range(k):
        for b in range(size):
            length[b] = _fma(rows[j, b], rows[j, b], length[b])
    for v in range(variants.shape[0]):
        part[:size] = 0
        for j in range(k):
            for b in range(size):
                part[b] = _fma(variants[v, j], rows[j, b], part[b])
        for b in range(size):
            value = abs(part[b]) if sign else part[b]
            top[b] = value if value > top[b] else top[b]
    unsure = 0
    for b in range(size):
        # Squares of very large or small weights are infinite or zero, and a direction of which little is left after
        # centring is less exact than the cut allows for.
        # All is read before it is compared, or the compiler could not do several filters at once.
        largest, square, value = peak[b], length[b], top[b]
        value = value if value > 0 else np.float32(0)
        least = np.float32(_SHORT * _SHORT) * largest * largest
        sound = largest > np.float32(1e-15) and largest < np.float32(1e15) and square > least
        unsure += not (sound and value * value < cut * square)
    return unsure > 0


@njit(**_COMPILED)
def _similarities(
    addresses: Any, count: int, variants: Any, rough_variants: Any, sign: bool, offset: bool, cut: Any, least: float,
    best: Any, which: Any, place: Any,
) -> int:  # pragma: no cover (compiled)  # fmt: skip
    k = addresses.shape[0]
    block, rough = np.empty((k, _BLOCK), np.float32), np.empty((k, _BLOCK), np.float32)
    weights = np.empty((k, _BLOCK))
    peak, near = np.empty(_BLOCK, np.float32), np.empty((3, _BLOCK), np.float32)
    length = np.empty(_BLOCK)
    part = np.empty(_BLOCK)
    top = np.empty(_BLOCK)
    names = np.empty(_BLOCK, np.int64)
    found = 0
    for start in range(0, count, _BLOCK):
        size = min(_BLOCK, count - start)
        _gather(addresses, start, size, block)
        _peak_block(block, peak, size)
        # In single precision first, in a third of the time: few blocks have a filter that is similar enough.
        if cut > 0 and not _may_be_similar(
            block, peak, rough_variants, sign, offset, cut, size, rough, near[0], near[1], near[2]
        ):
            continue
        # Not scaled: in double precision the square of no weight vanishes or overflows.
        for j in range(k):
            for b in range(size):
                weights[j, b] = np.float64(block[j, b])
        if offset:
            _centre_block(weights, part, size)
        length[:size] = 0
        for j in range(k):
            for b in range(size):
                length[b] += weights[j, b] * weights[j, b]
        # A filter has one length, so the variant with the largest product is the most similar one. Without branches,
        # the compiler does several filters at once.
        top[:size] = -np.inf
        names[:size] = 0
        for v in range(variants.shape[0]):
            part[:size] = 0
            for j in range(k):
                for b in range(size):
                    part[b] += variants[v, j] * weights[j, b]
            for b in range(size):
                negated = sign and part[b] < 0
                value = -part[b] if negated else part[b]
                better = value > top[b]
                top[b] = value if better else top[b]
                names[b] = (-1 - v if negated else v) if better else names[b]
        for b in range(size):
            # After centring, a constant kernel consists of rounding errors, not of a direction.
            largest = np.float64(peak[b])
            directed = length[b] > 1e-24 * largest * largest
            value = top[b] / np.sqrt(length[b] if directed else 1.0) if directed else -np.inf
            if value >= least:
                best[found], which[found], place[found] = value, names[b] if directed else 0, start + b
                found += 1
    return found


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


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    # Kept, because starting threads takes as long as measuring a small layer.
    return ThreadPoolExecutor(workers, thread_name_prefix="kernels")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child process has none of the threads


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


def _in_single_precision(components: npt.NDArray[np.float64], offsets: npt.NDArray[np.float64]) -> Any:
    """A basis in single precision, and the largest error of coefficients that are computed with it."""
    # Twice the largest error: k + 8 roundings, each of half a unit, of sums of this size.
    largest = float((np.abs(components).sum(axis=1) + np.abs(offsets)).max())
    error = 2 * (components.shape[1] + 8) * 2.0**-24 * largest
    return components.astype(np.float32), offsets.astype(np.float32), error


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

    Raises:
        FloatingPointError: A coefficient is not a number, because a weight is not finite.
    """
    rough = _in_single_precision(components, offsets)
    counts, missing = _count_ranks(_addresses(columns), len(columns[0]), components, offsets, *rough, edges)
    if missing:
        raise FloatingPointError("weights that are not finite have no coefficients")
    return counts[:, :, 1:-1], counts[:, :, 0], counts[:, :, -1]


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
    columns: Columns, variants: npt.NDArray[np.float64], sign: bool, offset: bool, least: float = -np.inf
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Largest cosine of filters with any of some unit vectors (v, k), which of them, and the numbers of the filters.

    Args:
        columns: k arrays of n weights each.
        variants: (v, k).
        sign: Take the absolute value of the cosine.
        offset: Subtract the mean of each filter first.
        least: Filters whose cosine is smaller are left out, which takes less time.
    """
    count = len(columns[0])
    # Pages of which nothing is used take neither time nor memory.
    best, which, place = np.empty(count), np.empty(count, np.int64), np.empty(count, np.int64)
    k = variants.shape[1]
    # Twice the largest error of single precision: k + 8 roundings, each of half a unit, of k terms of at most 1.
    cut = least - 2 * (k + 8) * 2.0**-24 * np.sqrt(k) / _SHORT
    square = np.float32(cut * abs(cut)) if cut > 0 else np.float32(0)
    rough = variants.astype(np.float32)
    found = _similarities(_addresses(columns), count, variants, rough, sign, offset, square, least, best, which, place)
    return best[:found], which[:found], place[:found]


def centred(
    count: int, shift: npt.NDArray[np.float64], total: npt.NDArray[np.float64], products: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean (k,) and centred second moment (k, k) of ``count`` filters, from their :func:`sums` about a shift."""
    mean, scatter = _centred(count, shift, total, products)
    return mean, scatter


def layer_sums(
    filters: npt.NDArray[np.float32],
    shift: npt.NDArray[np.float64],
    scaled_shift: npt.NDArray[np.float64],
    tolerance: float,
) -> tuple[
    tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]],
    tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]],
    npt.NDArray[np.float32],
    float,
    float,
    int,
    float,
]:
    """Everything that the quality of a layer needs from its filters (n, k), in one pass.

    Args:
        filters: (n, k).
        shift: (k,), subtracted from each raw filter.
        scaled_shift: (k,), subtracted from each scaled filter.
        tolerance: Largest :func:`cnnfilterdb.stats.binary_residual` of a binary kernel.

    Returns:
        The :func:`sums` of the raw filters, those of the scaled ones, the largest absolute weight of each filter (n,),
        the sum of all absolute weights, that of all squares, the number of binary kernels, and the largest norm of a
        scaled filter.
    """
    rows = _rows(filters)
    peaks = np.empty(len(rows), np.float32)
    parts = [slice(start, start + _PART) for start in range(0, len(rows), _PART)] or [slice(0)]

    def measure(part: slice) -> Any:
        return _layer_sums(rows[part], shift, scaled_shift, tolerance, peaks[part])

    if len(parts) == 1:
        found = measure(parts[0])
    else:
        *sums, longest = zip(*_pool(threads()).map(measure, parts), strict=True)
        found = *map(sum, sums), max(longest)
    total, products, scaled_total, scaled_products, norm, energy, binary, square = found
    return (
        (total, products),
        (scaled_total, scaled_products),
        peaks,
        float(norm),
        float(energy),
        int(binary),
        float(np.sqrt(square)),
    )


def longest(filters: npt.NDArray[np.float32]) -> float:
    """Largest norm of the scaled filters (n, k); 0 without filters."""
    return float(_longest(_rows(filters)))


def squares(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Sum of squares of each row of an array (n, k): (n,)."""
    out = np.empty(len(rows))
    _squares(_rows(rows), out)
    return out


def cosines(rows: npt.NDArray[np.float32], inverse: npt.NDArray[np.float64]) -> Callable[[], float]:
    """Start to sum |x'y| over all pairs of different rows, each product times the factors of both.

    Args:
        rows: (n, k).
        inverse: A factor of each row, (n,).

    Returns:
        A function that waits for the sum: with many rows, threads compute it in the meantime.
    """
    n, k = rows.shape
    rows = _rows(rows)

    def part(block: tuple[int, int]) -> float:
        first, second = (slice(start, start + _ROWS) for start in block)
        products = rows[first] @ rows[second].T
        return float(_absolute(products, inverse[first], inverse[second], first == second))

    blocks = [(i, j) for i in range(0, n, _ROWS) for j in range(0, i + 1, _ROWS)]
    found = _pool(threads()).map(part, blocks) if n * n * k > _WORTH_THREADS else map(part, blocks)
    return partial(sum, found)


def entropies(spectra: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Entropy, base 10, of the shares of variances (m, k), of which rounding may make some negative; NaN for none."""
    out = np.empty(len(spectra))
    _entropies(spectra, out)
    return out


def power_law_tail(
    logs: npt.NDArray[np.float64], sums: npt.NDArray[np.float64], last: int, less: int
) -> tuple[int, float]:
    """Where the tail of sorted values starts whose distance from its power law is smallest, and that distance.

    Args:
        logs: (n,), the logarithms of the values, rising.
        sums: (n,), of the logarithms from each on, less as many times its own.
        last: The last value that a tail may start with.
        less: What is subtracted from the number of values in the estimate of the exponent.

    Returns:
        The number of the first value and the Kolmogorov-Smirnov distance; -1 and infinity if all values are equal.
    """
    start, distance = _power_law_tail(logs, sums, last, less)
    return int(start), float(distance)


def levels(rows: npt.NDArray[np.float32], most: int) -> int:
    """Largest number of different values in a row of an array (n, k); ``most`` + 1 means more than ``most``."""
    return int(_levels(_rows(rows).view(np.int32), most))


def forms(
    filters: npt.NDArray[np.float32], matrices: npt.NDArray[np.float64], vectors: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Quadratic and linear forms of filters (n, k), which are first divided by their largest absolute weight.

    Args:
        filters: (n, k).
        matrices: (q, k, k), symmetric.
        vectors: (l, k).

    Returns:
        (n, q + l + 2): s'Qs of each matrix, v's of each vector, the sum of |s|, and the divisor of the filter.
    """
    rows = _rows(filters)
    out = np.empty((len(rows), len(matrices) + len(vectors) + 2))
    _forms(rows, matrices, vectors, out)
    return out

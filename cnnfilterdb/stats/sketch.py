"""Sketches of weights: a few numbers per layer, from which cosines and distances of two weights are estimated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["SKETCH_LEVELS", "SKETCH_NUMBERS", "WeightSketch", "sketch_cosine", "weight_sketch"]

#: Numbers of a sketch. The standard error of a cosine near 0 is 1 / sqrt(64) = 0.125 for one layer; it falls with the
#: number of layers that are compared.
SKETCH_NUMBERS = 64

#: Each number is rounded to an integer from -2047 to 2047: relative distances down to 0.001 remain visible.
SKETCH_LEVELS = 2047

#: Seed of the random signs and places. Sketches of different seeds cannot be compared: it never changes.
_SEED = 20260129
#: Kernels whose difference from their mean is below this share of them are all the same, up to rounding.
_SAME = 1e-6
#: Kernels that are converted to double precision at a time.
_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class WeightSketch:
    """The sketch of a weight.

    Attributes:
        norm: Norm of the weight after the mean kernel was subtracted; 0 if all kernels are the same.
        numbers: (64,) int16, the sketch, up to a positive factor; zeros if all kernels are the same.
    """

    norm: float
    numbers: npt.NDArray[np.int16]


def weight_sketch(kernels: npt.NDArray[np.float32]) -> WeightSketch:
    """Sketch a weight, by a count sketch of its weights less the mean kernel.

    Each weight is added with a random sign to one of 64 sums, chosen at random (Charikar, Chen and Farach-Colton,
    2002). The inner product of two such sketches has the expectation of that of the weights, and a variance of at most
    (|a|^2 |b|^2 + <a, b>^2) / 64. Sketches are linear, so that differences of weights have the sketch of the
    difference: small distances are estimated with the same relative error as large ones, 1 / sqrt(128).

    The mean kernel is what unrelated layers have in common, such as a large centre: it is subtracted, so that the
    cosine of unrelated layers is 0 but for chance.

    Args:
        kernels: (n, k), the kernels of a layer in order.

    >>> rng = np.random.default_rng(0)
    >>> a, noise = (rng.standard_normal((4096, 9)).astype(np.float32) for _ in range(2))
    >>> parent, child, other = (weight_sketch(one) for one in (a, a + noise / 2, noise))
    >>> [round(sketch_cosine(parent.numbers, one.numbers), 2) for one in (parent, child, other)]  # 1, 0.89 and 0
    [1.0, 0.88, -0.01]
    >>> weight_sketch(np.ones((8, 9), np.float32)).norm
    0.0
    """
    mean = kernels.mean(axis=0, dtype=np.float64) if len(kernels) else np.zeros(kernels.shape[1])
    # NumPy guarantees the raw numbers of this generator, but not those of its distributions.
    random = np.random.PCG64(_SEED)
    sums, squares, size = np.zeros(2 * SKETCH_NUMBERS), 0.0, 0.0
    for start in range(0, len(kernels), _BLOCK):  # so that a large layer needs no copies in double precision
        block = slice(start, start + _BLOCK)
        centred = (kernels[block] - mean).ravel()
        # The low bits of a random byte are the place, and one above them the sign.
        codes = np.asarray(random.random_raw(-(-centred.size // 8)), "<u8").view(np.uint8)[: centred.size]
        codes &= np.uint8(2 * SKETCH_NUMBERS - 1)
        sums += np.bincount(codes, weights=centred, minlength=2 * SKETCH_NUMBERS)
        squares += float(centred @ centred)
        size += float(np.square(kernels[block], dtype=np.float64).sum())
    norm = float(np.sqrt(squares))
    if not norm > _SAME * float(np.sqrt(size)):
        return WeightSketch(0.0, np.zeros(SKETCH_NUMBERS, np.int16))
    sketch = (sums[:SKETCH_NUMBERS] - sums[SKETCH_NUMBERS:]) / norm
    peak = np.abs(sketch).max()
    if not peak > 0:
        return WeightSketch(0.0, np.zeros(SKETCH_NUMBERS, np.int16))
    return WeightSketch(norm, np.rint(sketch * (SKETCH_LEVELS / peak)).astype(np.int16))


def sketch_cosine(first: npt.NDArray[np.int16], second: npt.NDArray[np.int16]) -> float:
    """The estimated cosine of two weights, each less its mean kernel; 0 where one of them has the same kernels only.

    Args:
        first: The numbers of a sketch.
        second: Those of another, of a weight of the same shape.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(np.clip(a @ b / size, -1, 1)) if size > 0 else 0.0

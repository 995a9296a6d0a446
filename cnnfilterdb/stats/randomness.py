"""The variance entropy of random kernels: the threshold above which a layer looks random."""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy.interpolate import PchipInterpolator

__all__ = ["published_threshold", "randomness_threshold", "simulated_weights"]


def published_threshold(kernels: int) -> float:
    """Variance entropy of random 3x3 kernels as published: T_H(n) = L / (1 + exp(-k (log2 n - x0))) + b.

    CNN Filter DB prints two decimals of the constants; these are from torchconvquality. The curve is 0.0029 below the
    largest possible entropy for many kernels, and up to 0.024 off the simulation for few.

    Args:
        kernels: Number of kernels n.

    >>> round(published_threshold(4096), 5)
    0.95107
    """
    scale, centre, slope, offset = 1.2618047, 2.30436435, 0.88767525, -0.31050834
    return float(scale / (1 + np.exp(-slope * (np.log2(kernels) - centre))) + offset)


def randomness_threshold(kernels: int, weights: int = 9) -> float:
    """Variance entropy, base 10, that random kernels are expected to reach: T_H. A layer above it looks random.

    For 9 weights it is the published curve (:func:`published_threshold`). The papers have none for other sizes: there
    it is the smallest entropy of 1,000 sets of as many random normal kernels, simulated by ``scripts/randomness.py``
    and interpolated in log2 n; beyond 64 times as many kernels as weights, the distance to log10 k falls as 1 / n.
    Only the number of weights matters, not their arrangement: 1x9 kernels have the threshold of 3x3 ones.

    Args:
        kernels: Number of kernels of the layer.
        weights: Number of weights of each.

    Returns:
        Not positive below 3 kernels, where it is meaningless (two kernels have one direction, hence entropy 0). NaN for
        numbers of weights that were not simulated; see :func:`simulated_weights`.

    >>> [round(randomness_threshold(64, weights), 3) for weights in (9, 25, 49)]
    [0.906, 1.288, 1.501]
    """
    if weights == 9:
        return published_threshold(kernels)
    if weights not in _simulated():
        return float("nan")
    if kernels < 3:
        return 0.0
    interpolation, last, entropy = _simulated()[weights]
    if kernels > last:
        top = float(np.log10(weights))
        return top - (top - entropy) * last / kernels
    return float(interpolation(np.log2(kernels)))


def simulated_weights() -> list[int]:
    """Numbers of weights with a threshold: of sizes up to 11x11, lines up to 1x31, and the usual larger squares."""
    return sorted({9, *_simulated()})


@cache
def _simulated() -> dict[int, tuple[PchipInterpolator, int, float]]:
    """Per number of weights: the curve over log2 of the number of kernels, its last number of kernels and value."""
    from scipy.interpolate import PchipInterpolator

    curves: dict[int, list[tuple[int, float]]] = {}
    text = files(__package__).joinpath("randomness.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        curves.setdefault(int(row["weights"]), []).append((int(row["kernels"]), float(row["entropy"])))
    found = {}
    for weights, points in curves.items():
        points.sort()
        kernels, entropies = zip(*points, strict=True)
        found[weights] = (PchipInterpolator(np.log2(kernels), entropies), int(kernels[-1]), float(entropies[-1]))
    return found

"""Spectra of layers: power-law tail, norm and rank of their matrices, and how heavy the tails of their weights are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["LayerSpectrum", "layer_spectrum", "power_law"]

_Array = npt.NDArray[np.float64]

#: Eigenvalues up to this count as zero, as in WeightWatcher.
_ZERO = 1e-5
#: With fewer eigenvalues than this the estimate of the exponent is corrected for their number, as in WeightWatcher ...
_SMALL = 20
#: ... and a tail has at least this many of them.
_SHORTEST = 8
#: Weights that are converted to double precision at a time.
_BLOCK = 1 << 19


@dataclass(frozen=True, slots=True)
class LayerSpectrum:
    """What the eigenvalues of a layer say. None where it is not defined: for zeros, or too few eigenvalues.

    Attributes:
        alpha: Exponent of the power law of the tail of the eigenvalues; trained layers have about 2 to 6.
        alpha_ks: Kolmogorov-Smirnov distance between the tail and its power law.
        alpha_hat: alpha x log10 lambda_max.
        lambda_max: Largest eigenvalue, half the square of the largest spectral norm of the matrices.
        stable_rank: Sum of the eigenvalues divided by the largest.
        kurtosis: Fourth moment of the weights divided by the square of their variance, less 3: 0 for Gaussian weights.
        peak_ratio: Largest absolute weight divided by the 99th percentile of them (weightlens 0.3.0).
    """

    alpha: float | None
    alpha_ks: float | None
    alpha_hat: float | None
    lambda_max: float | None
    stable_rank: float | None
    kurtosis: float | None
    peak_ratio: float | None


def layer_spectrum(weight: npt.NDArray[np.float32]) -> LayerSpectrum:
    """The spectrum of a layer (Martin, Peng and Mahoney, Nature Communications 12, 4122, 2021).

    As in WeightWatcher 0.7.7, a convolution of h x w kernels is taken as h w matrices (out, in / groups), each
    multiplied by sqrt(1/2); the eigenvalues are the squared singular values of all of them together.

    Args:
        weight: (out channels, in channels / groups, height, width).

    >>> rng = np.random.default_rng(0)
    >>> found = layer_spectrum(rng.standard_normal((32, 16, 3, 3)).astype(np.float32))
    >>> round(found.alpha, 2), round(found.stable_rank, 1), abs(found.kurtosis) < 0.2
    (7.14, 51.2, True)
    """
    values = np.concatenate([_eigenvalues(weight[:, :, i, j]) for i, j in np.ndindex(weight.shape[2:])])
    largest = float(values.max(initial=0.0))
    alpha, distance, _ = power_law(values[values > _ZERO]) or (None, None, None)
    peak, high = _largest(weight)
    return LayerSpectrum(
        alpha=alpha,
        alpha_ks=distance,
        alpha_hat=None if alpha is None else alpha * float(np.log10(largest)),
        lambda_max=largest or None,
        stable_rank=float(values.sum() / largest) if largest > 0 else None,
        kurtosis=_kurtosis(np.ravel(weight)),
        peak_ratio=peak / high if high > 0 else None,
    )


def power_law(values: npt.NDArray[np.float64]) -> tuple[float, float, float] | None:
    """Fit a power law to the tail of positive values (Clauset, Shalizi and Newman, SIAM Review 51, 2009).

    The tail starts at the value from which on the Kolmogorov-Smirnov distance is smallest; its exponent is the maximum
    likelihood estimate 1 + n / sum log(x / x_min), with n - 1 for n in fewer than 20 values, as in WeightWatcher 0.7.7.

    Args:
        values: (n,), positive.

    Returns:
        Exponent, distance and smallest value of the tail; None for fewer than 8 values, or if all are equal.

    >>> values = (1 - (np.arange(1000) + 0.5) / 1000) ** (-1 / 1.5)   # a power law with an exponent of 2.5
    >>> round(power_law(values)[0], 1)
    2.5
    """
    values = np.sort(values)
    count = len(values)
    if count < _SHORTEST:
        return None
    from cnnfilterdb.stats import compiled

    small = count < _SMALL
    logs = np.log(values)
    left = np.arange(count, 0, -1)
    sums: _Array = np.cumsum(logs[::-1])[::-1] - left * logs
    start, distance = compiled.power_law_tail(logs, sums, count - (_SHORTEST if small else 2), int(small))
    if start < 0:
        return None
    return 1 + (count - start - small) / float(sums[start]), distance, float(values[start])


def _eigenvalues(matrix: npt.NDArray[np.float32]) -> _Array:
    """Eigenvalues of the matrix of one position: half the squares of its singular values.

    By NumPy, which lets other threads work meanwhile, as the functions of SciPy for this do not.
    """
    narrow = np.array(matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T, np.float64)
    narrow *= np.sqrt(0.5)
    gram = narrow.T @ narrow
    del narrow
    values: _Array = np.maximum(np.linalg.eigvalsh(gram), 0)
    return values


def _largest(weight: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Largest absolute weight, and the 99th percentile of the absolute weights; zeros if there are none.

    The percentile lies between two weights of known ranks. Without their sign, numbers have the order of their bits:
    the upper bits of all are counted, and only those that share them with the weights that are sought are sorted.
    """
    bits = np.ascontiguousarray(weight, np.float32).ravel().view(np.uint32)
    if not bits.size:
        return 0.0, 0.0
    blocks = [slice(start, start + _BLOCK) for start in range(0, bits.size, _BLOCK)]
    counts = np.zeros(1 << 15, np.int64)
    for block in blocks:
        counts += np.bincount(bits[block] >> np.uint32(16) & np.uint32(0x7FFF), minlength=len(counts))
    ends = np.cumsum(counts)
    place = 0.99 * (bits.size - 1)
    below = int(place)
    first, last = np.searchsorted(ends, [below, min(below + 1, bits.size - 1)], side="right")
    near = []
    for block in blocks:
        plain = bits[block] & np.uint32(0x7FFFFFFF)
        near.append(plain[(plain >> 16 >= first) & (plain >> 16 <= last)])
    found = np.sort(np.concatenate(near)).view(np.float32)
    rank = below - (int(ends[first - 1]) if first else 0)
    low, high = float(found[rank]), float(found[min(rank + 1, len(found) - 1)])
    return float(max(weight.max(), -weight.min())), low + (high - low) * (place - below)


def _kurtosis(values: npt.NDArray[np.float32]) -> float | None:
    mean = values.mean(dtype=np.float64) if values.size else 0.0
    second = fourth = 0.0
    for start in range(0, values.size, _BLOCK):  # so that a large layer needs no copies in double precision
        squares = np.square(values[start : start + _BLOCK] - mean)  # a power of 4 would take ten times as long
        second += float(squares.sum())
        fourth += float(squares @ squares)
    return fourth * values.size / second**2 - 3 if second > 0 else None

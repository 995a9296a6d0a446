"""Descriptors of single kernels, of any size: gain, symmetry, frequency bands, orientation.

All but the two with the unit of the weights do not depend on the scale of a kernel, and most not on its sign. They are
quadratic or linear forms of its weights, which one compiled pass computes for many kernels; ``sql/descriptors.sql``
has the same in SQL.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.core.schema import kernel_shape

__all__ = ["DESCRIPTORS", "DescriptorSums", "dct_energies", "descriptors", "variance_map"]

#: Each descriptor and its meaning.
DESCRIPTORS = {
    "norm": "root of the sum of squared weights",
    "dc_gain": "sum of the weights: the response to a constant input of 1",
    "symmetry": "share of the energy in the part that a turn by 180 degrees keeps; the rest is antisymmetric",
    "mirror_x": "share of the energy in the part that swapping left and right keeps",
    "mirror_y": "share of the energy in the part that swapping top and bottom keeps",
    "centre_surround": "cosine with a Laplacian of Gaussian: 1 for a bright centre in a dark surround, -1 reversed",
    "dct_dc": "share of the energy of the discrete cosine transform at frequency 0",
    "dct_low": "its share at low frequencies, above 0 and up to half of the range",
    "dct_high": "its share at high frequencies",
    "fft_low": "share of the energy spectrum below half the Nyquist frequency, which survives a stride of 2",
    "orientation": "direction of the strongest change, in radians from 0 to pi, anticlockwise from the horizontal",
    "coherence": "0 when the kernel changes alike in all directions, 1 when along one only",
    "binary_residual": "0 when all weights are of one magnitude",
}

# Below this share of the energy, what is left of a gradient is rounding.
_FLAT = 1e-12


def descriptors(filters: npt.NDArray[np.float32], kernel: str) -> dict[str, npt.NDArray[np.float64]]:
    """Describe kernels by :data:`DESCRIPTORS`.

    With the weights f(y, x) of a kernel of height h and width w, E = sum f^2, and y pointing down:

    - ``symmetry`` is |f + f turned by 180 degrees|^2 / 4E, the mirror symmetries likewise. The antisymmetric share is 1
      less that.
    - ``centre_surround`` is the cosine with (1 - r^2 / 2) exp(-r^2 / 2) less its mean (Marr and Hildreth, 1980), where
      r^2 = (6 y / h)^2 + (6 x / w)^2 about the centre: for 3x3, the centre against its eight neighbours.
    - The bands of the orthonormal DCT-II c(u, v): ``dct_dc`` is c(0, 0)^2 / E, ``dct_low`` those with
      (u / h)^2 + (v / w)^2 <= 1/4, ``dct_high`` the others. The three add up to 1.
    - ``fft_low`` integrates the energy spectrum |F|^2 of the kernel with zeros around it over frequencies of up to 1/4
      cycle per pixel in both directions, a direction of one weight left out, as a share of the integral over all.
    - ``orientation`` and ``coherence`` are those of the structure tensor, the sum over the kernel of g g', with
      gradients g by central differences, one-sided at the edges (``numpy.gradient``).
    - ``binary_residual``: see :func:`cnnfilterdb.stats.binary_residual`.

    Args:
        filters: (n, k).
        kernel: Their kernel size.

    Returns:
        One array (n,) float64 per name. NaN where it is not defined: all but norm and gain of a kernel of zeros, the
        orientation of what has none (coherence 0), both of flat kernels, the centre of 2x2 and smaller.

    Raises:
        SelectionError: Filters of another size.

    >>> found = descriptors(np.array([[-1, 0, 1, -2, 0, 2, -1, 0, 1]], np.float32), "3x3")
    >>> [round(float(found[name][0]), 3) for name in ("symmetry", "mirror_y", "dct_low", "orientation", "coherence")]
    [0.0, 1.0, 0.889, 0.0, 0.636]
    """
    from cnnfilterdb.stats import compiled

    matrices, vectors = _forms(kernel)
    size = vectors.shape[1]
    if filters.ndim != 2 or filters.shape[1] != size:
        raise SelectionError(f"filters of shape {filters.shape} were given; {kernel} kernels are (n, {size})")
    found = compiled.forms(filters, matrices, vectors)
    if not vectors[1].any():
        found[:, 11] = np.nan
    energy, even, mirror_x, mirror_y, dc, low, spectrum, xx, yy, xy = found[:, :10].T
    total, centre, magnitude, peak = found[:, 10:].T
    with np.errstate(divide="ignore", invalid="ignore"):
        change = np.where(xx + yy > _FLAT * energy, xx + yy, np.nan)
        strength = np.hypot(xx - yy, 2 * xy)
        # Rows run downwards, angles upwards.
        angle = 0.5 * np.arctan2(-2 * xy, xx - yy)
        share_dc, share_low = _share(dc / energy), _share(low / energy)
        return {
            "norm": peak * np.sqrt(energy),
            "dc_gain": peak * total,
            "symmetry": _share(even / energy),
            "mirror_x": _share(mirror_x / energy),
            "mirror_y": _share(mirror_y / energy),
            "centre_surround": np.clip(centre / np.sqrt(energy), -1, 1),
            "dct_dc": share_dc,
            "dct_low": share_low,
            "dct_high": _share(1 - share_dc - share_low),
            "fft_low": _share(spectrum / energy),
            "orientation": np.where(strength > _FLAT * change, _angle(angle), np.nan),
            "coherence": _share(strength / change),
            "binary_residual": _share(1 - magnitude**2 / (size * energy)),
        }


def _share(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.clip(values, 0, 1)


def _angle(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Angles from 0 up to pi; rounding must not make a pi, or a minus zero, of what is just below 0."""
    turned = np.where(values < 0, values + np.pi, values)
    return np.where(turned >= np.pi, 0.0, turned) + 0.0


def dct_energies(filters: npt.NDArray[np.float32], kernel: str) -> npt.NDArray[np.float64]:
    """Share of the energy of each frequency of the orthonormal DCT-II, (n, height, width).

    NaN for kernels of zeros.

    >>> dct_energies(np.ones((1, 9), np.float32), "3x3").round(9)[0].tolist()
    [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    height, width = kernel_shape(kernel)
    energies = (filters.astype(np.float64) @ _dct_rows(height, width).T) ** 2
    with np.errstate(invalid="ignore"):
        energies /= energies.sum(axis=1, keepdims=True)
    return energies.reshape(len(filters), height, width)


def _dct_rows(height: int, width: int) -> npt.NDArray[np.float64]:
    """The orthonormal DCT-II as a matrix, (k, k)."""
    from scipy.fft import dct

    return np.kron(*(dct(np.eye(side), axis=0, norm="ortho") for side in (height, width)))


@cache
def _forms(kernel: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The quadratic forms (10, k, k) and the linear ones (2, k) of a kernel size."""
    height, width = kernel_shape(kernel)
    size = height * width
    identity = np.eye(size)
    places = np.arange(size).reshape(height, width)

    def kept_by(turned: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        return (identity + identity[turned.ravel()]) / 2

    u, v = (axis.ravel() for axis in np.indices((height, width)))
    rows = _dct_rows(height, width)
    low = rows[(4 * ((u * width) ** 2 + (v * height) ** 2) <= size**2) & (u + v > 0)]

    def below_half(side: int) -> npt.NDArray[np.float64]:
        apart = np.subtract.outer(np.arange(side), np.arange(side))
        return np.sinc(apart / 2) / 2 if side > 1 else np.ones((1, 1))

    across, down = _gradients(height, width)
    crossed = across.T @ down
    y, x = (6 * (place - (side - 1) / 2) / side for place, side in ((u, height), (v, width)))
    hat = (1 - (y**2 + x**2) / 2) * np.exp(-(y**2 + x**2) / 2)
    hat -= hat.mean()
    length = np.linalg.norm(hat)
    matrices = np.stack(
        [
            identity,
            kept_by(places[::-1, ::-1]),
            kept_by(places[:, ::-1]),
            kept_by(places[::-1]),
            np.full((size, size), 1 / size),
            low.T @ low,
            np.kron(below_half(height), below_half(width)),
            across.T @ across,
            down.T @ down,
            (crossed + crossed.T) / 2,
        ]
    )
    return matrices, np.stack([np.ones(size), hat / length if length > 1e-9 else np.zeros(size)])


def _gradients(height: int, width: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Matrices (k, k) of the horizontal and the vertical gradient."""

    def along(side: int) -> npt.NDArray[np.float64]:
        matrix: npt.NDArray[np.float64] = np.zeros((1, 1))
        if side > 1:
            matrix = np.asarray(np.gradient(np.eye(side), axis=0), np.float64)
        return matrix

    across, down = np.kron(np.eye(height), along(width)), np.kron(along(height), np.eye(width))
    return np.asarray(across, np.float64), np.asarray(down, np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class DescriptorSums:
    """Descriptors summed over the kernels of a layer, as a mergeable state.

    Attributes:
        sums: Sum of each of the :data:`DESCRIPTORS` over the kernels for which it is defined, (d,).
        counts: Number of those kernels, (d,).
        direction: Sum of coherence x exp(2 i orientation), in which opposite directions are the same.

    >>> filters = np.array([[0, 1], [1, 1], [0, 0]], np.float32)
    >>> means = DescriptorSums.of(descriptors(filters, "1x2")).means()
    >>> means["dc_gain"], means["symmetry"], means["orientation"]
    (1.0, 0.75, 0.0)
    """

    sums: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]
    direction: complex

    @classmethod
    def of(cls, found: Mapping[str, npt.NDArray[np.float64]]) -> DescriptorSums:
        """Sums of what :func:`descriptors` returns."""
        values = np.stack([found[name] for name in DESCRIPTORS])
        return cls(
            np.nansum(values, axis=1),
            np.count_nonzero(~np.isnan(values), axis=1),
            complex(np.nansum(found["coherence"] * np.exp(2j * found["orientation"]))),
        )

    def merge(self, other: DescriptorSums) -> DescriptorSums:
        """Sums over both sets of kernels."""
        return DescriptorSums(self.sums + other.sums, self.counts + other.counts, self.direction + other.direction)

    def means(self) -> dict[str, float]:
        """Mean of each descriptor; NaN where it is defined for no kernel.

        The orientation is that of :attr:`direction`: the more coherent a kernel is, the more it counts.
        """
        with np.errstate(invalid="ignore"):
            found = dict(zip(DESCRIPTORS, (self.sums / self.counts).tolist(), strict=True))
        if found["orientation"] == found["orientation"]:
            found["orientation"] = float(_angle(np.array(np.angle(self.direction) / 2)))
        return found


def variance_map(
    counts: npt.NDArray[np.int64], means: npt.NDArray[np.float64], variances: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Variance of each weight over the kernels of some layers, each layer scaled to a standard deviation of 1.

    Learned large kernels have it at the centre; that of random ones is 1 everywhere (The Power of Linear Combinations,
    arXiv 2301.11360). Both divisions are by the number of values; layers whose weights are all the same are left out.

    Args:
        counts: Number of kernels of each layer, (m,).
        means: Mean of its raw kernels, (m, k).
        variances: Variance of its raw kernels, (m, k).

    Returns:
        (k,) float64; NaN without layers.

    >>> kernels = np.array([[1.0, 2.0], [-1.0, 2.0]])   # their weights have a variance of 1.5
    >>> variance_map(np.array([2]), kernels.mean(axis=0)[None], kernels.var(axis=0)[None]).round(3).tolist()
    [0.667, 0.0]
    """
    middle = means.mean(axis=1, keepdims=True)
    spread = (variances + (means - middle) ** 2).mean(axis=1)
    there = spread > 0
    counts, spread = counts[there], spread[there, None]
    if not len(counts):
        return np.full(means.shape[1], np.nan)
    shares = counts / counts.sum()
    means, variances = means[there] / np.sqrt(spread), variances[there] / spread
    found: npt.NDArray[np.float64] = shares @ (variances + (means - shares @ means) ** 2)
    return found

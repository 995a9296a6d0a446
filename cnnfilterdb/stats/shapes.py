"""Named shapes of kernels: which derivative of a Gaussian a depthwise kernel looks like."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.errors import SelectionError

__all__ = ["SHAPES", "SHAPE_COSINE", "NamedShapes", "by_chance", "named_shapes", "shape_bank"]

_Array = npt.NDArray[np.float64]

#: Names of the shapes. ``on`` has a positive centre and ``off`` a negative one, as a blob or with the opposite surround
#: of a difference of Gaussians; the others count with either sign.
SHAPES = ("on", "off", "on_surround", "off_surround", "edge_x", "edge_y", "bar_x", "bar_y", "cross")

#: Least cosine with a shape to be named after it.
SHAPE_COSINE = 0.9

#: Widths of the Gaussians in pixels, as far as the kernel is at least three times as wide; their centres are moved by
#: up to half a pixel, as strides of 2 and even padding do.
_SIGMAS = (0.45, 0.6, 0.8, 1.0, 1.4, 2.0)
_OFFSETS = (-0.5, 0.0, 0.5)
#: Ratio of the widths of a difference of Gaussians that is nearest to the Laplacian (Marr and Hildreth, 1980).
_RATIO = 1.6
_CHANCE_KERNELS = 20_000


@dataclass(frozen=True, slots=True, eq=False)
class NamedShapes:
    """The shapes of some kernels.

    Attributes:
        shape: Number of the shape of each kernel in :data:`SHAPES`, (n,); -1 for a kernel like none of them.
        cosine: Its cosine with that shape, or with the nearest one, less their means, (n,); 0 where all weights are
            equal.
    """

    shape: npt.NDArray[np.int64]
    cosine: _Array


@lru_cache(maxsize=8)
def shape_bank(height: int, width: int) -> tuple[_Array, npt.NDArray[np.int64]]:
    """Templates of all shapes, over widths and offsets of the Gaussian.

    Args:
        height: Height of the kernels, at least 3.
        width: Their width, at least 3.

    Returns:
        (m, height x width), each of mean 0 and length 1, and the number of the shape of each, (m,).

    Raises:
        SelectionError: Smaller kernels.
    """
    if min(height, width) < 3:
        raise SelectionError(f"kernels of {height}x{width}: shapes have names from 3x3 on")
    y, x = (axis - (size - 1) / 2 for axis, size in zip(np.indices((height, width)), (height, width), strict=True))
    found: list[tuple[_Array, int]] = []
    for sigma in _SIGMAS:
        if 3 * sigma > min(height, width) + 1e-9 and sigma > _SIGMAS[1]:
            continue
        for dy in _OFFSETS:
            for dx in _OFFSETS:
                u, v = (x - dx) / sigma, (y - dy) / sigma
                blob = np.exp(-(u**2 + v**2) / 2)
                wide = np.exp(-(u**2 + v**2) / 2 / _RATIO**2) / _RATIO**2
                for name, template in (
                    ("on", blob), ("off", -blob), ("on_surround", blob - wide), ("off_surround", wide - blob),
                    ("edge_x", u * blob), ("edge_y", v * blob), ("bar_x", (u**2 - 1) * blob),
                    ("bar_y", (v**2 - 1) * blob), ("cross", u * v * blob),
                ):  # fmt: skip
                    centred = (template - template.mean()).ravel()
                    length = np.linalg.norm(centred)
                    if length > 1e-6 * np.linalg.norm(template):
                        found.append((centred / length, SHAPES.index(name)))
    return np.stack([one for one, _ in found]), np.array([number for _, number in found])


def named_shapes(kernels: npt.NDArray[np.float32], height: int, width: int) -> NamedShapes:
    """Name kernels after the shape that they are most like, if the cosine is at least 0.9.

    After Babaiee, Kiasari, Rus and Grosu (ICLR 2024, arXiv 2401.14469), who find that depthwise kernels of trained
    networks fall into classes that resemble differences of Gaussians and their first and second derivatives. Means are
    subtracted from both before they are compared. :func:`by_chance` says how many random kernels get a name.

    Args:
        kernels: (n, height x width).
        height: Their height.
        width: Their width.

    >>> sobel = np.float32([-1, 0, 1, -2, 0, 2, -1, 0, 1])
    >>> blob = np.float32([1, 2, 1, 2, 4, 2, 1, 2, 1])
    >>> found = named_shapes(np.stack([sobel, -sobel, blob, -blob, sobel + 3]), 3, 3)
    >>> [SHAPES[number] for number in found.shape]
    ['edge_x', 'edge_x', 'on', 'off', 'edge_x']
    """
    bank, number = shape_bank(height, width)
    values = np.asarray(kernels, np.float64).reshape(-1, height * width)
    centred = values - values.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=1)
    flat = ~(lengths > 1e-6 * np.abs(values).max(axis=1, initial=0.0))
    cosines = centred @ bank.T / np.where(flat, 1, lengths)[:, None]
    cosines = np.where(number < SHAPES.index("edge_x"), cosines, np.abs(cosines))
    best = cosines.argmax(axis=1)
    cosine = np.where(flat, 0.0, np.clip(cosines[np.arange(len(values)), best], -1, 1))
    return NamedShapes(np.where(cosine >= SHAPE_COSINE, number[best], -1), cosine)


@lru_cache(maxsize=8)
def by_chance(height: int, width: int) -> _Array:
    """The share of random kernels, of independent Gaussian weights, that each shape names.

    Args:
        height: Height of the kernels.
        width: Their width.

    Returns:
        (9,), from 20,000 kernels: the standard error is below 0.004.

    >>> bool(by_chance(3, 3).sum() < 0.1), bool(by_chance(5, 5).sum() < 0.001)
    (True, True)
    """
    rng = np.random.default_rng(0)
    kernels = rng.standard_normal((_CHANCE_KERNELS, height * width), dtype=np.float32)
    shape = named_shapes(kernels, height, width).shape
    return np.bincount(shape[shape >= 0], minlength=len(SHAPES)) / len(shape)

"""Structure of the kernels of layers and groups, from their first and second moments alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cnnfilterdb.core.errors import SelectionError

__all__ = ["COLOURS", "first_layer_profile", "mean_symmetry", "spatial_correlation", "subspace_overlap"]

#: Opponent colours, as unit vectors over red, green and blue.
COLOURS = {
    "luminance": (3**-0.5, 3**-0.5, 3**-0.5),
    "red_blue": (2**-0.5, 0.0, -(2**-0.5)),
    "green_magenta": (-(6**-0.5), 2 * 6**-0.5, -(6**-0.5)),
}


def mean_symmetry(kernels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Symmetry of mean kernels under reflections and turns (Alsallakh et al., arXiv 2503.19215).

    S = 1 - 1 / (2 t) sum |T(K) - K| over the t symmetries T other than the identity, where K is scaled to length 1:
    seven for square kernels, otherwise three. Whether the paper's mean includes the identity could not be checked. The
    same as the SQL macro ``mean_symmetry``.

    Args:
        kernels: Mean kernels, (m, height, width).

    Returns:
        (m,) float64: 1 if no symmetry changes a kernel, 0 if all turn it into its negative, NaN for zeros.

    >>> sobel = np.array([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    >>> mean_symmetry(np.stack([np.ones((3, 3)), sobel])).round(3).tolist()
    [1.0, 0.31]
    """
    turned = [kernels[:, ::-1, ::-1], kernels[:, :, ::-1], kernels[:, ::-1]]
    if kernels.shape[1] == kernels.shape[2]:
        diagonal = kernels.transpose(0, 2, 1)
        turned += [diagonal, diagonal[:, ::-1, ::-1], diagonal[:, :, ::-1], diagonal[:, ::-1]]
    energy = (kernels**2).sum(axis=(1, 2))
    with np.errstate(invalid="ignore"):
        cosines = np.stack([(kernels * one).sum(axis=(1, 2)) / energy for one in turned])
    return 1 - np.asarray(np.sqrt(2 - 2 * np.clip(cosines, -1, 1)).mean(axis=0), np.float64) / 2


def spatial_correlation(covariance: npt.NDArray[np.float64], height: int, width: int) -> npt.NDArray[np.float64]:
    """Mean correlation of weights by their distance (as in Fortuin et al., arXiv 2102.06571, for each distance).

    The same as the SQL macro ``spatial_correlation``.

    Args:
        covariance: Of the weights of kernels, row by row, (k, k), or any multiple of it.
        height: Height of the kernels.
        width: Their width.

    Returns:
        (height, width) float64: at [dy, dx] the mean over all pairs of positions dy rows and dx columns apart. NaN
        where a weight does not vary.

    >>> spatial_correlation(np.array([[4.0, 1.0], [1.0, 1.0]]), 1, 2).tolist()
    [[1.0, 0.5]]
    """
    deviation = np.sqrt(np.where(covariance.diagonal() > 0, covariance.diagonal(), np.nan))
    correlation = covariance / deviation[:, None] / deviation
    y, x = (axis.ravel() for axis in np.indices((height, width)))
    dy, dx = np.abs(np.subtract.outer(y, y)), np.abs(np.subtract.outer(x, x))
    found = np.empty((height, width))
    for place in np.ndindex(height, width):
        found[place] = correlation[(dy == place[0]) & (dx == place[1])].mean()
    return found


def subspace_overlap(covariances: npt.NDArray[np.float64], dimensions: int) -> npt.NDArray[np.float64]:
    """How well the first principal components of one group serve another (after Kaushik et al., arXiv 2512.05117).

    Args:
        covariances: (g, k, k), or multiples of them.
        dimensions: Number of components, from 1 to k.

    Returns:
        (g, g) float64: at [a, b] the variance of b that lies in the components of a, as a share of what lies in its
        own, from 0 to 1. NaN for a group without variance.

    Raises:
        SelectionError: Another number of components.

    >>> subspace_overlap(np.stack([np.diag([4.0, 1.0]), np.diag([1.0, 4.0])]), 1).tolist()
    [[1.0, 0.25], [0.25, 1.0]]
    """
    size = covariances.shape[-1]
    if not 1 <= dimensions <= size:
        raise SelectionError(f"dimensions: {dimensions} given; kernels of {size} weights have 1 to {size} components")
    values, vectors = np.linalg.eigh(covariances)
    first = vectors[:, :, -dimensions:]
    within = np.einsum("aik,bij,ajk->ab", first, covariances, first, optimize=True)
    own = np.maximum(values[:, -dimensions:], 0).sum(axis=1)
    found: npt.NDArray[np.float64] = np.clip(within / np.where(own > 0, own, np.nan), 0, 1)
    return found


def first_layer_profile(weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Energy of a first layer along frequencies and colours (after Chowers and Weiss, ICML 2023, arXiv 2206.02454).

    e_i = sum over filters of <f, p_i>^2, as a share of the total. The paper takes the principal components of image
    patches as p; here they are the orthonormal DCT-II in the opponent colours of :data:`COLOURS`, to which those of
    natural images are close, so that no images are needed.

    Args:
        weight: (out channels, 3, height, width); the input channels are red, green and blue, in either direction.

    Returns:
        (3, height, width) float64: colour, vertical and horizontal frequency; the sum is 1. NaN for zeros.

    Raises:
        SelectionError: Not three input channels.

    >>> grey = np.ones((4, 3, 3, 3), np.float32)
    >>> first_layer_profile(grey)[0, 0, 0].round(6)
    np.float64(1.0)
    """
    if weight.ndim != 4 or weight.shape[1] != 3:
        raise SelectionError(f"weight of shape {weight.shape} given; expected (out channels, 3, height, width)")
    rows, columns = (_dct(side) for side in weight.shape[2:])
    colours = np.array(list(COLOURS.values()))
    along = np.einsum("ocyx,kc,uy,vx->okuv", weight.astype(np.float64), colours, rows, columns, optimize=True)
    energy = (along**2).sum(axis=0)
    total = energy.sum()
    found: npt.NDArray[np.float64] = energy / (total if total > 0 else np.nan)
    return found


def _dct(side: int) -> npt.NDArray[np.float64]:
    """The orthonormal DCT-II of one dimension, (frequency, place)."""
    frequency = np.arange(side)[:, None]
    found = np.cos(np.pi * frequency * (np.arange(side) + 0.5) / side) * np.sqrt(2 / side)
    found[0] /= np.sqrt(2)
    return np.asarray(found, np.float64)
